"""Measures physical plausibility and shows it: scores, comparisons, one report."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("bench")
