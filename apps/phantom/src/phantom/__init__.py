"""Phantom: pixels and physics sampled in lockstep, one stream frozen, one trained."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("phantom")
