"""Transport: what a flow u carries. Forms that agree for smooth fields and differ in what they keep.

convective    u . grad f                     keeps a constant f constant
conservative  div(u f)                       keeps the sum of f (periodic grids: to rounding)
skew          their mean                     keeps the sum of f^2 where div u = 0 (periodic grids: to rounding)
upwind        u . grad f, stencils leaning against the flow: damps the waves that central stencils disperse;
              one order less than the grid's (order 2: the classical first-order scheme)
"""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from physfields.fields import in_full_precision
from physfields.grid import Grid
from physfields.operators import _total
from physfields.stencil import derivative
from physfields.weights import CENTRAL

Form = Literal["convective", "conservative", "skew", "upwind"]


@in_full_precision("any", "vector")
def advection(
    f: Float[Tensor, "b c *grid"], u: Float[Tensor, "b n *grid"], /, grid: Grid, *, form: Form = "convective"
) -> Float[Tensor, "b c *grid"]:
    """Transport of f by u, each component of f for itself, in one of the forms above.

    >>> import torch
    >>> x = torch.arange(4.0).expand(1, 1, 1, 4, 4)
    >>> u = torch.full((1, 2, 1, 4, 4), 0.5)
    >>> advection(x, u, Grid()).unique(), advection(x, u, Grid(), form="upwind").unique()
    (tensor([0.5000]), tensor([0.5000]))
    """
    if form not in get_args(Form):
        raise ValueError(f"advection: expected form out of {get_args(Form)}, got {form!r}.")
    if form == "skew":
        return 0.5 * (advection(f, u, grid) + advection(f, u, grid, form="conservative"))
    flow = [(axis, u[:, i : i + 1]) for i, axis in enumerate(grid.space)]
    if form == "conservative":
        return _total(derivative(c * f, axis, 1, grid) for axis, c in flow)
    carried = _total(c * derivative(f, axis, 1, grid) for axis, c in flow)
    return carried if form == "convective" else carried - _total(c.abs() * _lean(f, axis, grid) for axis, c in flow)


@in_full_precision("any", "vector")
def material_derivative(
    f: Float[Tensor, "b c *grid"], u: Float[Tensor, "b n *grid"], /, grid: Grid, *, form: Form = "convective"
) -> Float[Tensor, "b c *grid"]:
    """Df/Dt = D_t f + u . grad f: the rate that a point carried by u sees."""
    return derivative(f, "t", 1, grid) + advection(f, u, grid, form=form)


def _lean(f: Tensor, axis: str, grid: Grid) -> Tensor:
    # A central stencil without its last point is the central one minus a multiple of the p-th difference.
    step, p = grid.step(axis), grid.order[grid.index(axis)]
    if isinstance(step, tuple):
        raise ValueError(f"advection: the upwind form expects a number as spacing on axis {axis}, got coordinates.")
    rough = Grid(
        grid.spacing, axes=grid.axes, boundary=grid.boundary, order=2, singleton=grid.singleton, path=grid.path
    )
    return derivative(f, axis, p, rough) * (CENTRAL[p, 1][-1] * step ** (p - 1))
