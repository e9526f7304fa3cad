"""Masks: weights (b, 1, t, y, x) >= 0 on the nodes; 0 means "not a value", and whatever stands there is ignored.

Two rules keep loss and gradient finite where invalid cells hold NaN: replace them before the stencil (`fill`: after it,
the neighbours are poisoned, and 0 * NaN is NaN in the gradient), and believe the result only where the whole stencil
was valid (`erode_valid`). A mean over an empty mask is 0 with zero gradient.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from physfields.grid import AXES, DIM, Grid
from physfields.operators import neighbours
from physfields.stencil import halo

Mask = Shaped[Tensor, "b 1 t y x"]


def fill(f: Float[Tensor, "b c t y x"], mask: Mask, value: float = 0.0) -> Float[Tensor, "b c t y x"]:
    """f where the mask is positive, `value` elsewhere; no gradient reaches the replaced cells."""
    return torch.where(mask > 0, f, value)


def erode_valid(mask: Mask, grid: Grid, radius: int | tuple[int, int, int]) -> Bool[Tensor, "b 1 t y x"]:
    """Nodes whose whole stencil is valid: `radius` cells to each side, for all axes or for (t, y, x) each.

    A central stencil of order p reaches p / 2 cells. One-sided edge rows read 2 radius + 2 cells inwards; an axis with
    coordinates reads one cell more to the right; ghost cells beyond other edges count as valid.
    """
    valid = mask > 0
    for axis, r in zip(AXES, (radius,) * 3 if isinstance(radius, int) else radius, strict=True):
        dim, n, right = DIM[axis], valid.shape[DIM[axis]], r + isinstance(grid.step(axis), tuple)
        if r == 0 or n == 1:
            continue
        if n < 2 * r + 1:
            raise ValueError(f"axis {axis} has {n} nodes; eroding by {r} needs at least {2 * r + 1}.")
        one_sided = grid.rule(axis) == "one_sided"
        wide = halo(valid, dim, r, right, "replicate" if one_sided or grid.rule(axis) == "zero" else grid.rule(axis))
        inner = torch.stack([wide.narrow(dim, k, n) for k in range(r + right + 1)]).all(dim=0)
        if one_sided:
            reach = min(2 * r + 2, n)
            position = torch.arange(n, device=mask.device).reshape([n] + [1] * (-1 - dim))
            low = valid.narrow(dim, 0, reach).all(dim=dim, keepdim=True)
            high = valid.narrow(dim, n - reach, reach).all(dim=dim, keepdim=True)
            inner = inner & (low | (position >= r)) & (high | (position < n - right))
        valid = inner
    return valid


def masked_mean(f: Float[Tensor, "b c t y x"], mask: Mask | None = None) -> Float[Tensor, "b c"]:
    """Weighted mean over time and space for each sample and component; 0 where a sample's mask is empty."""
    if mask is None:
        return f.mean(dim=(2, 3, 4))
    weight = mask.to(f.dtype)
    total = weight.sum(dim=(2, 3, 4))
    mean = (weight * fill(f, mask)).sum(dim=(2, 3, 4)) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, mean, 0.0)


def face_mask(mask: Mask, axis: str, grid: Grid) -> Shaped[Tensor, "b 1 tt yy xx"]:
    """The mean weight of a face's two nodes; 0 when either node is not a value."""
    weight = mask if mask.is_floating_point() else mask.float()
    low, high = neighbours(weight, axis, grid)
    return torch.where((low > 0) & (high > 0), 0.5 * (low + high), 0.0)
