"""PILA: a frozen generator corrected by routed physics experts on recovered fields."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("pila")
