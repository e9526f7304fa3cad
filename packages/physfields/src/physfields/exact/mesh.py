"""The points at which an exact solution is written down, and its analytic derivatives there."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from physfields.grid import Grid

Scalar = Float[Tensor, "1 1 t *space"]
Mesh = tuple[Scalar, ...]
Fields = Mapping[str, Float[Tensor, "1 _ t *space"]]


def mesh(
    grid: Grid,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Mesh:
    """The coordinates (t, y, x) of every node, each (1, 1, t, y, x); uniform axes start at 0. In space (t, z, y, x)."""
    if len(shape) != len(grid.axes):
        raise ValueError(f"mesh: expected one size for each of the axes {grid.axes}, got {shape}.")
    axes = [
        torch.tensor(grid.coordinates(axis, n), dtype=dtype, device=device)
        for axis, n in zip(grid.axes, shape, strict=True)
    ]
    return tuple(axis[None, None] for axis in torch.meshgrid(*axes, indexing="ij"))


def differentiate(solution: Callable[[Mesh], Fields], at: Mesh, orders: Mapping[str, int]) -> Fields:
    """The analytic derivative of every field of a solution: `differentiate(plane_wave, at, {"t": 1, "x": 2})`.

    By automatic differentiation of the formula at each point, exact to rounding.

    >>> from physfields.exact import plane_wave
    >>> at = mesh(Grid(0.5), (2, 3, 3))
    >>> bool(torch.allclose(differentiate(plane_wave, at, {"t": 2})["wave"], -plane_wave(at)["wave"]))
    True
    """
    names = ("t", "z", "y", "x") if len(at) == 4 else ("t", "y", "x")
    if strangers := set(orders) - set(names):
        raise ValueError(f"differentiate: expected axes out of {names}, got {sorted(strangers)}.")
    points = tuple(axis.detach().clone().requires_grad_() for axis in at)
    found = {}
    with torch.enable_grad():
        for slot, value in solution(points).items():
            parts = value.expand(-1, -1, *at[0].shape[2:]).unbind(dim=1)
            for axis, m in orders.items():
                for _ in range(m):
                    parts = [_slope(part, points[names.index(axis)]) for part in parts]
            found[slot] = torch.stack([part.detach() for part in parts], dim=1)
    return found


def _slope(part: Tensor, axis: Tensor) -> Tensor:
    if not part.requires_grad:
        return torch.zeros_like(part)
    (slope,) = torch.autograd.grad(part.sum(), axis, create_graph=True, allow_unused=True)
    return torch.zeros_like(part) if slope is None else slope[:, 0]


def vector(*parts: Tensor) -> Tensor:
    """Components side by side, broadcast to one shape."""
    return torch.cat(torch.broadcast_tensors(*parts), dim=1)


def along(at: Mesh, k: Sequence[float]) -> Tensor:
    """k . x for one number per spatial axis."""
    if len(k) != len(at) - 1:
        raise ValueError(f"expected {len(at) - 1} numbers, one per spatial axis, got {tuple(k)}.")
    total = k[0] * at[1]
    for c, axis in zip(k[1:], at[2:], strict=True):
        total = total + c * axis
    return total
