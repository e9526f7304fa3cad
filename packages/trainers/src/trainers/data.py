"""Data: records of clips (`read_records`), tensors in memory, and how items become a batch."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .guards import bytes_of
from .records import Filters, Record, Skipped, count_records, read_records

__all__ = ["Filters", "InMemory", "Record", "Skipped", "collate", "count_records", "read_records", "take"]


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one batch of items: tensors are stacked, numbers become a tensor, anything else a list.

    >>> batch = collate([{"x": torch.ones(2), "label": 1, "text": "a"}, {"x": torch.zeros(2), "label": 0, "text": "b"}])
    >>> batch["x"].shape, batch["label"], batch["text"]
    (torch.Size([2, 2]), tensor([1, 0]), ['a', 'b'])
    """
    return {key: _join([item[key] for item in items]) for key in items[0]}


def _join(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        if len(shapes := {tuple(value.shape) for value in values}) > 1:
            raise ValueError(f"expected samples of one shape in a batch, got {sorted(shapes)}: group them by buckets")
        return torch.stack(values)
    return torch.tensor(values) if isinstance(values[0], (int, float)) else values


def take(data: Any, indices: Tensor, device: torch.device) -> dict[str, Any]:
    """Return the batch of a map-style data set at `indices`, by its `get_batch` if it has one, tensors on `device`."""
    get_batch = getattr(data, "get_batch", None)
    batch = get_batch(indices) if get_batch is not None else collate([data[i] for i in indices.tolist()])
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


class InMemory:
    """Columns of equal length (tensors by their first axis, or lists) that a batch is cut from at once.

    >>> data = InMemory({"x": torch.arange(6).reshape(3, 2), "text": ["a", "b", "c"]})
    >>> data.get_batch(torch.tensor([2, 0]))
    {'x': tensor([[4, 5],
            [0, 1]]), 'text': ['c', 'a']}
    """

    def __init__(self, columns: Mapping[str, Any], *, digest: str | None = None) -> None:
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"expected columns of equal length, got {lengths or 'none'}")
        self.columns, self._length = dict(columns), next(iter(lengths.values()))
        self.digest = digest if digest is not None else _digest(self.columns)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: column[index] for key, column in self.columns.items()}

    def get_batch(self, indices: Tensor) -> dict[str, Any]:
        """Return the rows `indices` (a LongTensor) of every column."""
        return {
            key: column[indices] if isinstance(column, Tensor) else [column[i] for i in indices.tolist()]
            for key, column in self.columns.items()
        }


def _digest(columns: Mapping[str, Any]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for key, column in sorted(columns.items()):
        hasher.update(key.encode())
        if isinstance(column, Tensor):
            hasher.update(str((column.dtype, tuple(column.shape))).encode())
            hasher.update(bytes_of(column))
        else:
            hasher.update(repr(list(column)).encode())
    return hasher.hexdigest()
