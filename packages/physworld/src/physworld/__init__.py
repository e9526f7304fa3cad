"""A simulated world of eight physical mechanisms with exact fields, captions and judge-free metrics."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("physworld")
