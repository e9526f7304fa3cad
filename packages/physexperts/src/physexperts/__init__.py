"""Routers and experts for mixtures of physics: label priors, masks, balance, statistics."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("physexperts")
