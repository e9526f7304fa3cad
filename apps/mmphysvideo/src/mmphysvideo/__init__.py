"""MMPhysVideo: perception as pseudo-RGB, a two-stream teacher, a single-stream student that costs nothing."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("mmphysvideo")
