"""Makes the simulated data set and trains the embedded default backbone on it."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("world")
