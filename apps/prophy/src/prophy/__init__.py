"""ProPhy: a physical branch beside a frozen generator, routed by what a vision-language model sees."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("prophy")
