"""The order of samples: an endless stream of permutations that is a pure function of (seed, data digest, world size).

Epoch e is one permutation of all samples; batches are cut from the stream of epochs laid end to end, so that every
batch is full, no sample is lost at an epoch's end, and none is seen twice within an epoch. The ranks of a world share
one stream: a step takes `count` samples for each rank. The state is three integers.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

__all__ = ["Deal", "Order", "derive_seed"]


def derive_seed(*parts: Any) -> int:
    """Return a 63-bit seed that is a pure function of the parts' text.

    >>> derive_seed(0, "a", 1) == derive_seed(0, "a", 1) != derive_seed(0, "a", 2)
    True
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Deal:
    """Samples of one batch, and how often each of them was dealt before: what a random crop of it may depend on."""

    indices: Int64[Tensor, " n"]
    epochs: Int64[Tensor, " n"]


class Order:
    """Deals out the indices of `size` samples.

    >>> order = Order(4, seed=0)
    >>> sorted(order.take(2).tolist() + order.take(2).tolist())
    [0, 1, 2, 3]
    >>> order.state()
    {'seed': 0, 'epoch': 1, 'index': 0}
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        digest: str = "",
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        index: int = 0,
    ) -> None:
        if size < 1:
            raise ValueError("expected at least one sample, got an empty data set")
        assert 0 <= rank < world_size, (rank, world_size)
        self.size, self.seed, self.digest, self.rank, self.world_size = size, seed, digest, rank, world_size
        self.epoch, self.index = epoch + index // size, index % size
        self._permutation = self._permute(self.epoch)

    def deal(self, count: int) -> Deal:
        """Return this rank's next `count` samples and move on by `count` for every rank."""
        wanted = count * self.world_size
        parts, epochs = [], []
        while wanted:
            part = self._permutation[self.index : self.index + wanted]
            parts.append(part)
            epochs.append(torch.full_like(part, self.epoch))
            wanted -= len(part)
            self.index += len(part)
            if self.index == self.size:
                self.epoch, self.index = self.epoch + 1, 0
                self._permutation = self._permute(self.epoch)
        mine = slice(self.rank * count, (self.rank + 1) * count)
        return Deal(torch.cat(parts)[mine], torch.cat(epochs)[mine])

    def take(self, count: int) -> Int64[Tensor, " count"]:
        """Return the indices that `deal` does."""
        return self.deal(count).indices

    def state(self) -> dict[str, int]:
        """Return the three integers that `Order(size, **state)` continues from."""
        return {"seed": self.seed, "epoch": self.epoch, "index": self.index}

    def _permute(self, epoch: int) -> Tensor:
        seed = derive_seed("order", self.seed, epoch, self.digest, self.world_size)
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))
