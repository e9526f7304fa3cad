"""Vector calculus on batched fields (b, c, t, *space), differentiable, in the grid's units.

Space is (y, x) or (z, y, x), and component i belongs to spatial axis i: a vector is (u_y, u_x) or (u_z, u_y, u_x); y
points down, as rows do. A Jacobian is [component, axis]. Symmetric tensors are (yy, xx, yx) or (zz, yy, xx, zy, zx,
yx). Optical flow comes as (x, y): `from_flow_xy`. On a plane `curl` is D_x u_y - D_y u_x, positive when x turns towards
y: clockwise on a screen, as y points down.

fp16 and bf16 are computed and returned in fp32; fp32 and fp64 are kept; autocast is off inside; integers raise.
NaN stays within the stencil's reach: to hide invalid cells, replace them before the stencil (`physfields.masks`).
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import index

import torch
from jaxtyping import Float
from torch import Tensor

from physfields.fields import as_field, in_full_precision, symmetric_pairs
from physfields.grid import Grid
from physfields.kinematics import cumulative_integral, face_difference, face_mean, neighbours, time_derivative
from physfields.matrix import ghost_rows
from physfields.stencil import combine, derivative
from physfields.stencil import halo as ghost_cells

__all__ = [
    "as_field",
    "biharmonic",
    "cumulative_integral",
    "curl",
    "divergence",
    "face_difference",
    "face_mean",
    "from_flow_xy",
    "gradient",
    "halo",
    "hessian",
    "in_full_precision",
    "jacobian",
    "laplacian",
    "neighbours",
    "partial",
    "spin",
    "strain_rate",
    "tensor_divergence",
    "time_derivative",
    "vector_laplacian",
]


@in_full_precision("any")
def partial(f: Float[Tensor, "b c *grid"], /, orders: Mapping[str, int], grid: Grid) -> Float[Tensor, "b c *grid"]:
    """Any mixed derivative: `partial(f, {"y": 1, "x": 2}, grid)` is D_y D_xx f.

    >>> x = torch.arange(5.0).expand(1, 1, 1, 1, 5)
    >>> partial(x**2, {"x": 1}, Grid())[0, 0, 0, 0]
    tensor([0., 2., 4., 6., 8.])
    """
    for axis, m in orders.items():
        if axis not in grid.axes or isinstance(m, bool) or not isinstance(m, int) or m < 0:
            raise ValueError(f"partial: expected orders (whole, >= 0) for axes out of {grid.axes}, got {dict(orders)}.")
    for axis, m in orders.items():
        f = derivative(f, axis, m, grid) if m else f
    return f


@in_full_precision("any")
def gradient(
    f: Float[Tensor, "b c *grid"], /, grid: Grid, *, axes: Sequence[str] | None = None
) -> Float[Tensor, "b c a *grid"]:
    """D_a f for each axis a (all of space by default), stacked behind the components: (b, c, a, t, *space)."""
    along = grid.space if axes is None else tuple(axes)
    c, n = index(f.shape[1]), len(along)  # a tracer's size may be symbolic; the terms are not
    terms = tuple((range(k, n * c, n), range(c), axis, 1, 1.0) for k, axis in enumerate(along))
    return combine(f, terms, grid, n * c).unflatten(1, (c, n))


@in_full_precision("vector")
def jacobian(u: Float[Tensor, "b n *grid"], /, grid: Grid) -> Float[Tensor, "b n n *grid"]:
    """J[i, j] = D_j u_i, component first: on a plane J[0, 1] is D_x u_y."""
    return gradient(u, grid)


@in_full_precision("any")
def hessian(f: Float[Tensor, "b c *grid"], /, grid: Grid) -> Float[Tensor, "b c n n *grid"]:
    """H[i, j] = D_i D_j f: compact second derivatives on the diagonal, the mixed ones off it."""
    n, first = len(grid.space), {}
    for i, j in symmetric_pairs(n):
        a, b = grid.space[i], grid.space[j]
        first[i, j] = derivative(f, a, 2, grid) if i == j else derivative(derivative(f, a, 1, grid), b, 1, grid)
    rows = [torch.stack([first[min(i, j), max(i, j)] for j in range(n)], dim=2) for i in range(n)]
    return torch.stack(rows, dim=2)


@in_full_precision("vector")
def divergence(u: Float[Tensor, "b n *grid"], /, grid: Grid) -> Float[Tensor, "b 1 *grid"]:
    """div u = D_i u_i.

    >>> y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    >>> divergence(torch.stack([2 * y + x, x - y])[None, :, None], Grid()).unique()
    tensor([3.])
    """
    return combine(u, tuple((0, i, axis, 1, 1.0) for i, axis in enumerate(grid.space)), grid, 1)


@in_full_precision("vector")
def curl(u: Float[Tensor, "b n *grid"], /, grid: Grid) -> Float[Tensor, "b m *grid"]:
    """On a plane D_x u_y - D_y u_x, one component: twice the angular velocity, positive when x turns towards y.

    In space the vector (z, y, x) of the right-handed x, y, z: its z component is D_x u_y - D_y u_x as on a plane.
    """
    if len(grid.space) == 2:
        return combine(u, ((0, 0, "x", 1, 1.0), (0, 1, "y", 1, -1.0)), grid, 1)
    turns = [(i, (i + 1) % 3, (i + 2) % 3) for i in range(3)]
    terms = [(i, j, grid.space[k], 1, 1.0) for i, j, k in turns] + [(i, k, grid.space[j], 1, -1.0) for i, j, k in turns]
    return combine(u, tuple(terms), grid, 3)


@in_full_precision("any")
def laplacian(f: Float[Tensor, "b c *grid"], /, grid: Grid) -> Float[Tensor, "b c *grid"]:
    """lap f = D_ii f over space, with compact second derivatives, for each component.

    >>> y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    >>> laplacian((y**2 - 3 * x**2)[None, None, None], Grid()).unique()
    tensor([-4.])
    """
    c = index(f.shape[1])
    return combine(f, tuple((range(c), range(c), axis, 2, 1.0) for axis in grid.space), grid, c)


@in_full_precision("vector")
def vector_laplacian(u: Float[Tensor, "b n *grid"], /, grid: Grid) -> Float[Tensor, "b n *grid"]:
    """lap u, component by component (Cartesian axes)."""
    return laplacian(u, grid)


@in_full_precision("any")
def biharmonic(f: Float[Tensor, "b c *grid"], /, grid: Grid) -> Float[Tensor, "b c *grid"]:
    """lap lap f, from compact fourth derivatives and D_ii D_jj: full order at the edges, which lap(lap f) loses."""
    n = len(grid.space)
    straight = _total(derivative(f, axis, 4, grid) for axis in grid.space)
    second = [derivative(f, axis, 2, grid) for axis in grid.space[:-1]]
    mixed = _total(derivative(second[i], grid.space[j], 2, grid) for i in range(n) for j in range(i + 1, n))
    return torch.add(straight, mixed, alpha=2)


@in_full_precision("symmetric")
def tensor_divergence(s: Float[Tensor, "b k *grid"], /, grid: Grid) -> Float[Tensor, "b n *grid"]:
    """(div s)_i = D_j s_ij of a symmetric tensor, as a vector."""
    n = len(grid.space)
    terms = []
    for k, (i, j) in enumerate(symmetric_pairs(n)):
        terms += [(i, k, grid.space[j], 1, 1.0)] + ([(j, k, grid.space[i], 1, 1.0)] if i != j else [])
    return combine(s, tuple(terms), grid, n)


@in_full_precision("vector")
def strain_rate(u: Float[Tensor, "b n *grid"], /, grid: Grid) -> Float[Tensor, "b k *grid"]:
    """E = (grad u + grad u^T) / 2 as (yy, xx, yx); zero for every rigid motion. PILA (Wang et al., 2026), Eq. 16."""
    pairs, terms = symmetric_pairs(len(grid.space)), []
    for k, (i, j) in enumerate(pairs):
        if i == j:
            terms += [(k, i, grid.space[i], 1, 1.0)]
        else:
            terms += [(k, i, grid.space[j], 1, 0.5), (k, j, grid.space[i], 1, 0.5)]
    return combine(u, tuple(terms), grid, len(pairs))


@in_full_precision("vector")
def spin(u: Float[Tensor, "b n *grid"], /, grid: Grid) -> Float[Tensor, "b m *grid"]:
    """Half the curl, the antisymmetric part of the Jacobian: the angular velocity of a rotation."""
    return 0.5 * curl(u, grid)


def from_flow_xy(flow: Float[Tensor, "b n *grid"], /) -> Float[Tensor, "b n *grid"]:
    """Optical flow in its usual (x, y) order as a vector field (y, x); its own inverse. In space: (x, y, z)."""
    if not isinstance(flow, Tensor) or flow.ndim not in (5, 6) or flow.shape[1] != flow.ndim - 3:
        got = tuple(flow.shape) if isinstance(flow, Tensor) else type(flow).__name__
        raise ValueError(f"from_flow_xy: expected (b, 2, t, y, x) or (b, 3, t, z, y, x), got {got}.")
    return flow.flip(1)


@in_full_precision("any")
def halo(
    f: Float[Tensor, "b c *grid"], /, width: int, grid: Grid, *, axes: Sequence[str] | None = None
) -> Float[Tensor, "b c *wide"]:
    """f with `width` ghost cells on both sides of each axis (of space by default), filled by the grid's boundary rule.

    A one-sided axis is continued by the polynomial through its order + 2 outermost nodes, so that central stencils on
    the halo give the one-sided derivatives. Coordinates are mirrored about the edge nodes.

    >>> halo(torch.tensor([1.0, 4.0, 9.0, 16.0]).expand(1, 1, 1, 4, 4), 1, Grid(), axes="x")[0, 0, 0, 0]
    tensor([ 0.,  1.,  4.,  9., 16., 25.])
    """
    if width < 0:
        raise ValueError(f"halo: expected a width >= 0, got {width}.")
    for axis in grid.space if axes is None else axes:
        f = _extrapolated(f, width, axis, grid) if grid.rule(axis) == "one_sided" else _ruled(f, width, axis, grid)
    return f


def _ruled(f: Tensor, width: int, axis: str, grid: Grid) -> Tensor:
    n, needed = f.shape[grid.dim(axis)], width + (grid.rule(axis) == "reflect")
    if n < max(needed, 1):
        raise ValueError(f"axis {axis} has {n} nodes; a {grid.rule(axis)} halo of {width} needs at least {needed}.")
    return ghost_cells(f, grid.dim(axis), width, width, grid.rule(axis)) if width else f


def _extrapolated(f: Tensor, width: int, axis: str, grid: Grid) -> Tensor:
    dim, points = grid.dim(axis), grid.order[grid.index(axis)] + 2
    n = index(f.shape[dim])
    grid.check_length(axis, n)
    if n < max(points, width + 1):
        raise ValueError(f"axis {axis} has {n} nodes; a one-sided halo needs at least {max(points, width + 1)}.")
    if torch.compiler.is_compiling():
        from physfields.traced import plain_ghosts

        rows = plain_ghosts(grid.key, axis, n, width)
    else:
        rows = ghost_rows(grid.step(axis), n, points, width)
    low, high = ([_total(f.narrow(dim, i, 1) * w for i, w in ghost) for ghost in side] for side in rows)
    return torch.cat([*low, f, *high], dim=dim)


def _total(terms: Iterable[Tensor]) -> Tensor:
    first, *rest = terms
    return sum(rest, start=first)
