"""Staged training of adapters on frozen models: stages as data, exact resume, caches, true timestamps."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("phystrainers")
