"""Masks: weights (b, 1, t, *space) >= 0 on the nodes; 0 means "not a value", and whatever stands there is ignored.

Two rules keep loss and gradient finite where invalid cells hold NaN: replace them before the stencil (`fill`: after it,
the neighbours are poisoned, and 0 * NaN is NaN in the gradient), and believe the result only where the whole stencil
was valid (`erode_valid`). A mean over an empty mask is 0 with zero gradient.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from physfields.grid import Grid
from physfields.kinematics import neighbours
from physfields.sbp import sbp_length
from physfields.stencil import halo

Mask = Shaped[Tensor, "b 1 *grid"]


def fill(f: Float[Tensor, "b c *grid"], mask: Mask, value: float = 0.0) -> Float[Tensor, "b c *grid"]:
    """f where the mask is positive, `value` elsewhere; no gradient reaches the replaced cells."""
    return torch.where(mask > 0, f, value)


def erode_valid(mask: Mask, grid: Grid, radius: int | tuple[int, ...]) -> Bool[Tensor, "b 1 *grid"]:
    """Nodes whose whole stencil is valid: `radius` cells to each side, for all axes or for each of the grid's.

    A central stencil of order p reaches p / 2 cells. One-sided edge rows read 2 radius + 2 cells inwards; an axis with
    coordinates reads one cell more to the right; `sbp` reads its closure at the ends, and twice as far inside, as its
    second derivative is the first one twice. Ghost cells beyond other edges count as valid.
    """
    radii = (radius,) * len(grid.axes) if isinstance(radius, int) else radius
    if len(radii) != len(grid.axes) or min(radii) < 0:
        raise ValueError(f"erode_valid: expected a radius >= 0 for each of the axes {grid.axes}, got {radii}.")
    if mask.ndim != 2 + len(grid.axes):
        raise ValueError(f"erode_valid: expected a mask (b, 1, {', '.join(grid.axes)}), got {tuple(mask.shape)}.")
    valid = mask if mask.dtype == torch.bool else mask > 0
    for axis, r in zip(grid.axes, radii, strict=True):
        if r > 0 and valid.shape[grid.dim(axis)] > 1:
            valid = _erode(valid, grid, axis, r)
    return valid


def _erode(valid: Tensor, grid: Grid, axis: str, r: int) -> Tensor:
    """One axis of `erode_valid`; the axes' erosions commute."""
    dim, rule = grid.dim(axis), grid.rule(axis)
    n = valid.shape[dim]
    if n < 2 * r + 1:
        raise ValueError(f"axis {axis} has {n} nodes; eroding by {r} needs at least {2 * r + 1}.")
    left = 2 * r if rule == "sbp" else r
    right = left + isinstance(grid.step(axis), tuple)
    left, right = min(left, n), min(right, n)
    if rule not in ("one_sided", "sbp"):
        return _all_within(halo(valid, dim, left, right, "replicate" if rule == "zero" else rule), dim, left + right)
    # The edge rows of D D read the closure's rows of D, which read r cells beyond the closure.
    closure = sbp_length(2 * r) // 2 if rule == "sbp" and r in (1, 2, 3) else r
    reach = min(closure + 2 * r if rule == "sbp" else 2 * r + 2, n)
    low = valid.narrow(dim, 0, reach).all(dim=dim, keepdim=True)
    high = valid.narrow(dim, n - reach, reach).all(dim=dim, keepdim=True)
    # As ghost cells they reach the rows whose central stencil leaves the axis: the one-sided ones.
    inner = _all_within(torch.cat([low] * left + [valid] + [high] * right, dim=dim), dim, left + right)
    edge = closure + r  # of D D, r rows more than of D read the closure
    if rule == "sbp" and edge > left:
        position = torch.arange(n, device=valid.device).reshape([n] + [1] * (-1 - dim))
        inner = inner & (low | (position >= edge)) & (high | (position < n - edge))
    return inner


def _all_within(valid: Tensor, dim: int, width: int) -> Tensor:
    return valid.unfold(dim, width + 1, 1).all(dim=-1)


class Shares(NamedTuple):
    """A mask made ready for many means: its holes, and the share of each node; an empty sample has shares of 0."""

    holes: Tensor
    share: Tensor


class NodeWeights:
    """The weight of residuals whose stencils reach along some axes, at a place: each made once; None without a mask."""

    def __init__(self, mask: Mask | None, grid: Grid):
        self.mask, self.grid = mask, grid
        self._valid: dict[tuple[str, ...], Tensor] = {}
        self._kept: dict[tuple[tuple[str, ...], str], Tensor] = {}
        self._shares: dict[tuple[tuple[str, ...], str, torch.dtype], Shares] = {}

    def mean(self, f: Tensor, axes: tuple[str, ...], place: str) -> Tensor:
        """`masked_mean` under that weight."""
        weight = self(axes, place)
        if weight is None:
            return masked_mean(f)
        key = axes, place, f.dtype
        if key not in self._shares:
            self._shares[key] = _shares(weight, f.dtype)
        return masked_mean(f, self._shares[key])

    def __call__(self, axes: tuple[str, ...], place: str) -> Tensor | None:
        """`place` is "node", or the axis between whose nodes the residual lives."""
        if self.mask is None:
            return None
        if (axes, place) not in self._kept:
            if place == "node":
                self._kept[axes, place] = self.mask * self._sound(axes, self.mask)
            else:
                whole = self(axes, "node")
                assert whole is not None
                self._kept[axes, place] = face_mask(whole, place, self.grid)
        return self._kept[axes, place]

    def _sound(self, axes: tuple[str, ...], mask: Tensor) -> Tensor:
        """Nodes whose whole stencil along the axes is valid: one axis more than what was kept for the rest of them."""
        if axes not in self._valid:
            grid = self.grid
            reach = tuple(
                order // 2 if axis in axes[:1] else 0 for axis, order in zip(grid.axes, grid.order, strict=True)
            )
            self._valid[axes] = erode_valid(self._sound(axes[1:], mask) if axes else mask, grid, reach)
        return self._valid[axes]


def masked_mean(f: Float[Tensor, "b c *grid"], mask: Mask | Shares | None = None) -> Float[Tensor, "b c"]:
    """Weighted mean over time and space for each sample and component; 0 where a sample's mask is empty."""
    dims = tuple(range(2, f.ndim))
    if mask is None:
        return f.mean(dim=dims)
    shares = mask if isinstance(mask, Shares) else _shares(mask, f.dtype)
    return (f.masked_fill(shares.holes, 0.0) * shares.share).sum(dim=dims)


def _shares(mask: Tensor, dtype: torch.dtype) -> Shares:
    weight = mask.to(dtype)
    total = weight.sum(dim=tuple(range(2, mask.ndim)), keepdim=True)
    return Shares(~(mask > 0), weight / total.masked_fill(total <= 0, 1.0))


def face_mask(mask: Mask, axis: str, grid: Grid) -> Shaped[Tensor, "b 1 *faces"]:
    """The mean weight of a face's two nodes; 0 when either node is not a value."""
    weight = mask if mask.is_floating_point() else mask.float()
    low, high = neighbours(weight, axis, grid)
    return 0.5 * (low + high) * (torch.minimum(low, high) > 0)
