"""One derivative along one axis: the code path that every operator shares.

Rows away from the edges share one central stencil, applied as a sum of slices; rows at the edges have stencils of their
own (`one_sided`) or see ghost cells (all other boundaries). Coefficients are integers with a common factor, multiplied
once at the end: the differences stay unscaled, so a constant field gives zero up to the last bit. An axis with
coordinates uses order + m points in every row, with the weights of the true distances.

No slice assignment: rows are joined by `torch.cat`, which compilers differentiate correctly.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from physfields.grid import AXES, DIM, Grid
from physfields.weights import fd_weights


def derivative(f: Float[Tensor, "*axes"], axis: str, m: int, grid: Grid) -> Float[Tensor, "*axes"]:
    """D^m f along an axis ("t", "y", "x": the last three of f), in units of f per coordinate^m, at the grid's order."""
    dim, n = DIM[axis], f.shape[DIM[axis]]
    order, boundary, step = grid.order[AXES.index(axis)], grid.rule(axis), grid.step(axis)
    grid.check_length(axis, n)
    if n == 1 and grid.singleton == "zero":
        return f * 0.0
    if n < order + m:
        raise ValueError(
            f"axis {axis} has {n} nodes; derivative {m} at order {order} needs at least {order + m}: "
            f'lengthen the axis, lower the order, or use Grid(singleton="zero") when it has one node.'
        )
    if isinstance(step, tuple):
        return _uneven(f, dim, m, step, boundary, order)
    radius = (m + 1) // 2 - 1 + order // 2
    rows, factor = _even_rows(m, order, radius, boundary == "one_sided")
    *edges, central = rows
    if not edges:
        g = halo(f, dim, radius, radius, boundary)
        return _combine([g.narrow(dim, k, n) for k in range(2 * radius + 1)], central) * (factor / step**m)
    inner = _combine([f.narrow(dim, k, n - 2 * radius) for k in range(2 * radius + 1)], central)
    first = [f.narrow(dim, k, 1) for k in range(order + m)]
    last = [f.narrow(dim, n - 1 - k, 1) for k in range(order + m)]
    low = [_combine(first, row) for row in edges]
    high = [_combine(last, [(-1) ** m * w for w in row]) for row in reversed(edges)]
    return torch.cat([*low, inner, *high], dim=dim) * (factor / step**m)


def halo(f: Shaped[Tensor, "..."], dim: int, before: int, after: int, boundary: str) -> Shaped[Tensor, "..."]:
    """f with `before` and `after` ghost cells along dim, filled by the boundary rule (not `one_sided`: it has none)."""
    n = f.shape[dim]
    first, last = f.narrow(dim, 0, 1), f.narrow(dim, n - 1, 1)
    if boundary == "periodic":
        low, high = [f.narrow(dim, n - before, before)], [f.narrow(dim, 0, after)]
    elif boundary == "replicate":
        low, high = [first] * before, [last] * after
    elif boundary == "zero":
        low, high = [torch.zeros_like(first)] * before, [torch.zeros_like(last)] * after
    elif boundary == "reflect":
        low = [f.narrow(dim, k, 1) for k in range(before, 0, -1)]
        high = [f.narrow(dim, n - 1 - k, 1) for k in range(1, after + 1)]
    else:
        raise ValueError(f"halo: expected periodic, replicate, reflect or zero, got {boundary!r}.")
    return torch.cat([*low, f, *high], dim=dim)


def _uneven(f: Tensor, dim: int, m: int, positions: tuple[float, ...], boundary: str, order: int) -> Tensor:
    n, points = len(positions), order + m
    left = (points - 1) // 2
    if boundary != "one_sided":
        f = halo(f, dim, left, points - 1 - left, boundary)
    starts, weights = _uneven_rows(positions, m, order, boundary == "one_sided")
    regular = [i for i in range(n) if starts[i] == i - (left if boundary == "one_sided" else 0)]
    low, high = range(regular[0]), range(regular[-1] + 1, n)
    shape = [len(regular)] + [1] * (-1 - dim)  # a column along dim
    columns = [f.new_tensor([weights[i][k] for i in regular]).reshape(shape) for k in range(points)]
    inner = sum(f.narrow(dim, starts[regular[0]] + k, len(regular)) * columns[k] for k in range(points))
    assert isinstance(inner, Tensor)
    edge = {i: _combine([f.narrow(dim, starts[i] + k, 1) for k in range(points)], weights[i]) for i in (*low, *high)}
    return torch.cat([*(edge[i] for i in low), inner, *(edge[i] for i in high)], dim=dim) if edge else inner


@lru_cache(maxsize=1024)
def _even_rows(m: int, order: int, radius: int, one_sided: bool) -> tuple[tuple[tuple[int, ...], ...], float]:
    """Integer rows (edge rows from the outside in, the central row last) and the factor that they share."""
    rows = [fd_weights([k - i for k in range(order + m)], m) for i in range(radius)] if one_sided else []
    rows.append(fd_weights(range(-radius, radius + 1), m))
    common = math.lcm(*(w.denominator for row in rows for w in row))
    return tuple(tuple(int(w * common) for w in row) for row in rows), 1 / common


@lru_cache(maxsize=1024)
def _uneven_rows(
    positions: tuple[float, ...], m: int, order: int, one_sided: bool
) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]:
    """First point and weights of every row; with ghost cells, points count from the first ghost cell."""
    n, points = len(positions), order + m
    left, x = (points - 1) // 2, [Fraction(p) for p in positions]
    starts = [min(max(i - left, 0), n - points) if one_sided else i for i in range(n)]
    if not one_sided:  # ghost nodes mirror the inner ones about the edge node
        x = [2 * x[0] - x[k] for k in range(left, 0, -1)] + x + [2 * x[-1] - x[-1 - k] for k in range(1, points - left)]
    here = [x[i if one_sided else i + left] for i in range(n)]
    rows = [fd_weights([x[starts[i] + k] - here[i] for k in range(points)], m) for i in range(n)]
    return tuple(starts), tuple(tuple(float(w) for w in row) for row in rows)


def _combine(slices: Sequence[Tensor], coefficients: Sequence[int | float]) -> Tensor:
    terms = sorted((c != 1, k) for k, c in enumerate(coefficients) if c)  # a coefficient 1 first: no product for it
    (scaled, k), *rest = terms
    total = slices[k] * coefficients[k] if scaled else slices[k]
    for _, k in rest:
        total = torch.add(total, slices[k], alpha=coefficients[k])
    return total
