"""The batches of a stage in their order, made ahead by background threads where the data set asks for it.

What a data set may bring besides its length and items:

- `get_batch(indices) -> dict`: a whole batch at once;
- `at(index, epoch) -> dict`: an item that differs from epoch to epoch (a random crop);
- `order(batch_size=..., seed=..., digest=..., rank=..., world_size=..., epoch=..., index=...)`: an order of its own,
  with `deal` and `state` as `Order` has them (`buckets.BucketOrder`);
- `ahead: int`: how many batches are made before they are asked for, by `threads: int` threads (2). Items must then be
  safe to make in several threads and must not draw from a global generator.

Threads and not processes: decoding and resizing let other threads run, nothing is copied or forked, and an error
arrives as it was raised. What was dealt ahead is no state: `state` is that of the last batch handed out, so a resumed
run makes the others anew, to the same bits.
"""

import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from .data import collate
from .order import Deal, Order

__all__ = ["Batch", "Feed"]


@dataclass(frozen=True)
class Batch:
    """A batch that was dealt: which samples, and (when asked) what they hold.

    It holds its feed, whose threads end with it and would leave what is not made yet.
    """

    indices: Int64[Tensor, " n"]
    make: Callable[[], dict[str, Any]]
    feed: Any = field(default=None, compare=False, repr=False)

    def get(self, device: torch.device) -> dict[str, Any]:
        """Return the batch, tensors on `device`; waits for the threads that make it."""
        moved = self.make().items()
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in moved}


class Feed:
    """Deals out batches of `batch_size` for this process. The integers of `state` go back in as arguments."""

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int,
        seed: int,
        digest: str = "",
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        index: int = 0,
    ) -> None:
        self.data, self.batch_size = data, batch_size
        make = partial(data.order, batch_size=batch_size) if hasattr(data, "order") else partial(Order, len(data))
        self.order = make(seed=seed, digest=digest, rank=rank, world_size=world_size, epoch=epoch, index=index)
        self.ahead = int(getattr(data, "ahead", 0))
        self._state = self.order.state()
        self._waiting: deque[tuple[Batch, dict[str, int]]] = deque()
        self._pool = ThreadPoolExecutor(getattr(data, "threads", 2), "trainers-feed") if self.ahead else None
        if self._pool is not None:  # also where a run ends by an error and nobody closes
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def next(self) -> Batch:
        """Return the next batch; with `ahead`, have those after it begun."""
        while len(self._waiting) <= self.ahead:
            batch = self._begin(self.order.deal(self.batch_size))
            self._waiting.append((batch, self.order.state()))
        batch, self._state = self._waiting.popleft()
        return replace(batch, feed=self)

    def state(self) -> dict[str, int]:
        """Return the integers that the batch after the last one handed out is reached with."""
        return self._state

    def close(self) -> None:
        """Drop what was made ahead."""
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, deal: Deal) -> Batch:
        if hasattr(self.data, "get_batch"):
            whole = partial(self.data.get_batch, deal.indices)
            return Batch(deal.indices, whole if self._pool is None else self._pool.submit(whole).result)
        pairs = zip(deal.indices.tolist(), deal.epochs.tolist(), strict=True)
        parts = [partial(_item, self.data, index, epoch) for index, epoch in pairs]
        if self._pool is not None:
            parts = [self._pool.submit(part).result for part in parts]
        return Batch(deal.indices, lambda: collate([part() for part in parts]))


def _item(data: Any, index: int, epoch: int) -> dict[str, Any]:
    try:
        return data.at(index, epoch) if hasattr(data, "at") else data[index]
    except Exception as error:
        error.add_note(f"while sample {index} was loaded")
        raise
