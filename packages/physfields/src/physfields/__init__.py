"""Finite-difference fields in torch: operators and physics residuals on (t, y, x) grids, in units."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("physfields")
