"""The backbone that a recipe names."""

from typing import Protocol, runtime_checkable

import torch

from backbones.loading import load
from backbones.stock import StockBackbone

__all__ = ["Recipe", "load_for"]


@runtime_checkable
class Recipe(Protocol):
    """A recipe, as far as it says which backbone it wants, where, and in which precision."""

    @property
    def backbone(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...


def load_for(recipe: Recipe) -> StockBackbone:
    """Load the backbone of a recipe; under float32 each part keeps the dtype that it is stored in.

    ValueError with the remedy when there is nothing to load, or no such device.
    """
    dtype = None if recipe.dtype == "float32" else getattr(torch, recipe.dtype)
    return load(recipe.backbone, device=recipe.device, dtype=dtype)
