"""Frozen video diffusion models behind one contract; adapters attach to stock diffusers pipelines."""

from importlib.metadata import version

__all__ = ["__version__"]
__version__ = version("physbackbones")
