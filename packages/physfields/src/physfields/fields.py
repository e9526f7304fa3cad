"""What a field is: a floating tensor (b, c, t, *space) on a grid, space being (y, x) or (z, y, x).

Every public operator passes its fields through `in_full_precision`: they are checked against the grid, half precision
is lifted to fp32 (a second derivative of a rounded field is noise), and autocast is off inside.

A vector has one component per spatial axis, in the axes' order. A symmetric tensor has its diagonal first, then the
pairs of axes in order: (yy, xx, yx), or (zz, yy, xx, zy, zx, yx).
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from physfields.grid import Grid

P = ParamSpec("P")
R = TypeVar("R")
Kind = Literal["any", "scalar", "vector", "symmetric"]


def symmetric_pairs(n: int) -> tuple[tuple[int, int], ...]:
    """The (row, column) of each component of a symmetric tensor over n axes.

    >>> symmetric_pairs(2)
    ((0, 0), (1, 1), (0, 1))
    """
    return (*((i, i) for i in range(n)), *((i, j) for i in range(n) for j in range(i + 1, n)))


def split_components(f: Tensor) -> tuple[Tensor, ...]:
    """The components of f, each (b, 1, ...), so that the backward joins their gradients at once.

    The dimension put in between keeps torch's compiler from taking the join of single components for a channels-last
    image, whose kernels it does not vectorise.
    """
    return tuple(part.squeeze(2) for part in f.unsqueeze(2).split(1, dim=1))


def components(kind: Kind, grid: Grid) -> int | None:
    """How many components a kind of field has on a grid; None is any number."""
    n = len(grid.space)
    return {"any": None, "scalar": 1, "vector": n, "symmetric": n * (n + 1) // 2}[kind]


def in_full_precision(*kinds: Kind) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check and lift an operator's leading fields, one kind for each; switch autocast off inside."""

    def wrap(operator: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(operator)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            grid = _find_grid((*args, *kwargs.values()), operator.__name__)
            fields = [
                as_field(field, components(kind, grid), operator.__name__, axes=grid.axes)
                for field, kind in zip(args[: len(kinds)], kinds, strict=True)
            ]
            _agree(fields, operator.__name__)
            with torch.autocast(fields[0].device.type, enabled=False):
                return operator(*fields, *args[len(kinds) :], **kwargs)  # pyright: ignore[reportCallIssue]

        call.__signature__ = inspect.signature(operator)  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return wrap


def as_field(f: object, count: int | None, name: str, *, axes: Iterable[str] = ("t", "y", "x")) -> Tensor:
    """f as a floating field of at least fp32 over the axes, or ValueError naming what was expected."""
    names = tuple(axes)
    if not isinstance(f, Tensor) or f.ndim != 2 + len(names):
        got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(
            f"{name}: expected a field of shape (b, c, {', '.join(names)}), got {got}; "
            f"add the missing axes with f[None] or f.unsqueeze(...), or build the grid for this field's axes."
        )
    if not f.is_floating_point():
        raise ValueError(f"{name}: expected a floating field, got {f.dtype}; convert it with .float().")
    if count is not None and f.shape[1] != count:
        raise ValueError(
            f"{name}: expected {count} components in dimension 1, got {f.shape[1]}; "
            f"a vector has one per spatial axis, in the order {names[1:]}."
        )
    return f.float() if f.dtype in (torch.float16, torch.bfloat16) else f


def _agree(fields: list[Tensor], name: str) -> None:
    # No sets: a tracer's symbolic sizes compare but do not hash.
    shapes = [f.shape[2:] for f in fields]
    batches = [f.shape[0] for f in fields if f.shape[0] != 1]
    if any(s != shapes[0] for s in shapes) or any(b != batches[0] for b in batches):
        raise ValueError(f"{name}: expected fields of equal (b, t, *space), got {[tuple(f.shape) for f in fields]}.")


def _find_grid(values: Iterable[object], name: str) -> Grid:
    for value in values:
        if isinstance(value, Grid):
            return value
    raise ValueError(f"{name}: expected a physfields.Grid, got none; build one with Grid(spacing=(dt, dy, dx)).")
