"""A view of a cache: chosen artefacts of chosen entries as a map-style data set.

It knows where everything lies when it is made, so that reading asks no index and a worker process, forked or spawned,
can go on with it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .data import collate

__all__ = ["Shards", "View"]


class Shards:
    """Tensors out of the shards under `root`, which stay mapped."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._mapped: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.root,)

    def read(self, shard: str, tensor: str) -> Tensor:
        """Return a tensor; ValueError when its shard is gone or damaged."""
        try:
            if shard not in self._mapped:
                self._mapped[shard] = safe_open(self.root / shard, framework="pt")
            return self._mapped[shard].get_tensor(tensor)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"the shard {self.root / shard} cannot be read ({error}): run the cache step again, which makes anew "
                "what is missing"
            ) from None


class View(torch.utils.data.Dataset[dict[str, Any]]):
    """Artefacts by name; `places[i][name]` is (shard, tensor). `digest` names keys and artefacts, so that a resume on
    another cache is noticed."""

    def __init__(
        self, shards: Shards, keys: tuple[str, ...], places: Sequence[Mapping[str, tuple[str, str]]], digest: str
    ) -> None:
        self.keys, self.digest = keys, digest
        self._shards, self._places = shards, places

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: self._shards.read(*place) for name, place in self._places[index].items()}

    def stacked(self) -> dict[str, Tensor]:
        """Load everything into memory at once (for `InMemory`); every entry must have the same shapes."""
        return collate([self[i] for i in range(len(self))])
