"""Vector calculus on batched fields (b, c, t, y, x), differentiable, in the grid's units.

Component i belongs to spatial axis i: a vector is (u_y, u_x); y points down, as rows do. A Jacobian is
[component, axis]. Symmetric tensors are three components (yy, xx, yx). Optical flow comes as (x, y): `from_flow_xy`.
`curl` is D_x u_y - D_y u_x, positive when x turns towards y: clockwise on a screen, as y points down.

fp16 and bf16 are computed and returned in fp32; fp32 and fp64 are kept; autocast is off inside; integers raise.
NaN stays within the stencil's reach: to hide invalid cells, replace them before the stencil (`physfields.masks`).
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from physfields.grid import AXES, DIM, Grid
from physfields.stencil import derivative

P = ParamSpec("P")
R = TypeVar("R")
Place = Literal["node", "half"]
Form = Literal["convective", "conservative", "skew"]


def in_full_precision(*components: int | None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check and up-cast an operator's leading fields (component counts given, None is any); switch autocast off."""

    def wrap(operator: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(operator)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            fields = [
                as_field(field, count, operator.__name__)
                for field, count in zip(args[: len(components)], components, strict=True)
            ]
            with torch.autocast(fields[0].device.type, enabled=False):
                return operator(*fields, *args[len(components) :], **kwargs)  # pyright: ignore[reportCallIssue]

        call.__signature__ = inspect.signature(operator)  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return wrap


def as_field(f: object, components: int | None, name: str) -> Tensor:
    """f as a floating field of at least fp32, or ValueError naming what was expected."""
    if not isinstance(f, Tensor) or f.ndim != 5:
        got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(f"{name}: expected a field of shape (b, c, t, y, x), got {got}.")
    if not f.is_floating_point():
        raise ValueError(f"{name}: expected a floating field, got {f.dtype}; convert it with .float().")
    if components is not None and f.shape[1] != components:
        raise ValueError(f"{name}: expected {components} components in dimension 1, got {f.shape[1]}.")
    return f.float() if f.dtype in (torch.float16, torch.bfloat16) else f


@in_full_precision(None)
def partial(f: Float[Tensor, "b c t y x"], /, orders: Mapping[str, int], grid: Grid) -> Float[Tensor, "b c t y x"]:
    """Any mixed derivative: `partial(f, {"y": 1, "x": 2}, grid)` is D_y D_xx f.

    >>> x = torch.arange(5.0).expand(1, 1, 1, 1, 5)
    >>> partial(x**2, {"x": 1}, Grid())[0, 0, 0, 0]
    tensor([0., 2., 4., 6., 8.])
    """
    for axis, m in orders.items():
        if axis not in AXES or m < 0:
            raise ValueError(f"partial: expected orders >= 0 for axes out of {AXES}, got {dict(orders)}.")
        f = derivative(f, axis, m, grid) if m else f
    return f


@in_full_precision(None)
def gradient(
    f: Float[Tensor, "b c t y x"], /, grid: Grid, *, axes: Sequence[str] = ("y", "x")
) -> Float[Tensor, "b c a t y x"]:
    """D_a f for each axis a, stacked behind the components: (b, c, 2, t, y, x)."""
    return torch.stack([partial(f, {axis: 1}, grid) for axis in axes], dim=2)


@in_full_precision(2)
def jacobian(u: Float[Tensor, "b 2 t y x"], /, grid: Grid) -> Float[Tensor, "b 2 2 t y x"]:
    """J[i, j] = D_j u_i, component first: J[0, 1] is D_x u_y."""
    return gradient(u, grid)


@in_full_precision(None)
def hessian(f: Float[Tensor, "b c t y x"], /, grid: Grid) -> Float[Tensor, "b c 2 2 t y x"]:
    """H[i, j] = D_i D_j f: compact second derivatives on the diagonal, the mixed one off it."""
    yy, xx, yx = (partial(f, orders, grid) for orders in ({"y": 2}, {"x": 2}, {"y": 1, "x": 1}))
    return torch.stack([torch.stack([yy, yx], dim=2), torch.stack([yx, xx], dim=2)], dim=2)


@in_full_precision(2)
def divergence(u: Float[Tensor, "b 2 t y x"], /, grid: Grid) -> Float[Tensor, "b 1 t y x"]:
    """div u = D_y u_y + D_x u_x."""
    return derivative(u[:, :1], "y", 1, grid) + derivative(u[:, 1:], "x", 1, grid)


@in_full_precision(2)
def curl(u: Float[Tensor, "b 2 t y x"], /, grid: Grid) -> Float[Tensor, "b 1 t y x"]:
    """curl u = D_x u_y - D_y u_x: twice the angular velocity, positive when x turns towards y."""
    return derivative(u[:, :1], "x", 1, grid) - derivative(u[:, 1:], "y", 1, grid)


@in_full_precision(None)
def laplacian(f: Float[Tensor, "b c t y x"], /, grid: Grid) -> Float[Tensor, "b c t y x"]:
    """lap f = D_yy f + D_xx f, with compact second derivatives, for each component."""
    return derivative(f, "y", 2, grid) + derivative(f, "x", 2, grid)


@in_full_precision(2)
def vector_laplacian(u: Float[Tensor, "b 2 t y x"], /, grid: Grid) -> Float[Tensor, "b 2 t y x"]:
    """lap u, component by component (Cartesian axes)."""
    return laplacian(u, grid)


@in_full_precision(3)
def tensor_divergence(s: Float[Tensor, "b 3 t y x"], /, grid: Grid) -> Float[Tensor, "b 2 t y x"]:
    """(div s)_i = D_j s_ij of a symmetric tensor (yy, xx, yx), as a vector (y, x)."""
    yy, xx, yx = s.split(1, dim=1)
    along_y = derivative(yy, "y", 1, grid) + derivative(yx, "x", 1, grid)
    along_x = derivative(yx, "y", 1, grid) + derivative(xx, "x", 1, grid)
    return torch.cat([along_y, along_x], dim=1)


@in_full_precision(2)
def strain_rate(u: Float[Tensor, "b 2 t y x"], /, grid: Grid) -> Float[Tensor, "b 3 t y x"]:
    """E = (grad u + grad u^T) / 2 as (yy, xx, yx); zero for every rigid motion. PILA (Wang et al., 2026), Eq. 16."""
    dy, dx = derivative(u, "y", 1, grid), derivative(u, "x", 1, grid)
    return torch.cat([dy[:, :1], dx[:, 1:], 0.5 * (dx[:, :1] + dy[:, 1:])], dim=1)


@in_full_precision(2)
def spin(u: Float[Tensor, "b 2 t y x"], /, grid: Grid) -> Float[Tensor, "b 1 t y x"]:
    """W_yx = (D_x u_y - D_y u_x) / 2, the antisymmetric part: the angular velocity of a rotation."""
    return 0.5 * curl(u, grid)


@in_full_precision(None, 2)
def advection(
    f: Float[Tensor, "b c t y x"], u: Float[Tensor, "b 2 t y x"], /, grid: Grid, *, form: Form = "convective"
) -> Float[Tensor, "b c t y x"]:
    """Transport of f by u: u . grad f, div(u f), or their mean (skew), which conserves f^2 where div u = 0."""
    uy, ux = u[:, :1], u[:, 1:]
    if form == "convective":
        return uy * derivative(f, "y", 1, grid) + ux * derivative(f, "x", 1, grid)
    if form == "conservative":
        return derivative(uy * f, "y", 1, grid) + derivative(ux * f, "x", 1, grid)
    if form == "skew":
        return 0.5 * (advection(f, u, grid) + advection(f, u, grid, form="conservative"))
    raise ValueError(f"advection: expected form convective, conservative or skew, got {form!r}.")


@in_full_precision(None, 2)
def material_derivative(
    f: Float[Tensor, "b c t y x"], u: Float[Tensor, "b 2 t y x"], /, grid: Grid
) -> Float[Tensor, "b c t y x"]:
    """Df/Dt = D_t f + u . grad f: the rate that a point carried by u sees."""
    return derivative(f, "t", 1, grid) + advection(f, u, grid)


@in_full_precision(None)
def time_derivative(
    f: Float[Tensor, "b c t y x"], /, grid: Grid, *, n: Literal[1, 2] = 1, at: Place = "node"
) -> Float[Tensor, "b c s y x"]:
    """D_t f or D_tt f at the nodes, or (f[i+1] - f[i]) / (t[i+1] - t[i]) at the half steps (one time fewer, n = 1)."""
    if at == "node":
        return derivative(f, "t", n, grid)
    if at != "half" or n != 1:
        raise ValueError(f'time_derivative: expected at="node", or at="half" with n=1; got at={at!r}, n={n}.')
    return face_difference(f, "t", grid)


@in_full_precision(None)
def face_difference(f: Float[Tensor, "b c t y x"], /, axis: str, grid: Grid) -> Float[Tensor, "b c tt yy xx"]:
    """(f[i+1] - f[i]) / gap on the faces between nodes: sees the checkerboard that central differences cannot.

    One entry fewer along the axis; on a periodic axis as many, the last face joining the last node to the first.
    Second order at the faces.
    """
    gaps, low, high = grid.gaps(axis, f.shape[DIM[axis]]), *neighbours(f, axis, grid)
    if not gaps:
        raise ValueError(f"axis {axis} has 1 node; a face difference needs at least 2: lengthen the axis.")
    if isinstance(grid.step(axis), tuple):
        return (high - low) / f.new_tensor(gaps).reshape([-1] + [1] * (-1 - DIM[axis]))
    return (high - low) * (1 / gaps[0])


@in_full_precision(None)
def face_mean(f: Float[Tensor, "b c t y x"], /, axis: str, grid: Grid) -> Float[Tensor, "b c tt yy xx"]:
    """(f[i] + f[i+1]) / 2 on the faces, where `face_difference` lives."""
    low, high = neighbours(f, axis, grid)
    return 0.5 * (low + high)


def neighbours(f: Tensor, axis: str, grid: Grid) -> tuple[Tensor, Tensor]:
    """The two nodes of each face along an axis; the last face of a periodic axis joins the last node to the first."""
    if axis not in AXES:
        raise ValueError(f"expected an axis out of {AXES}, got {axis!r}.")
    dim, n = DIM[axis], f.shape[DIM[axis]]
    if grid.rule(axis) == "periodic":
        return f, torch.cat([f.narrow(dim, 1, n - 1), f.narrow(dim, 0, 1)], dim=dim)
    return f.narrow(dim, 0, n - 1), f.narrow(dim, 1, n - 1)


@in_full_precision(None)
def cumulative_integral(
    v: Float[Tensor, "b c t y x"], /, grid: Grid, *, anchor: int | Literal["first", "middle", "last"] = "middle"
) -> Float[Tensor, "b c t y x"]:
    """d with d[anchor] = 0 and d[i+1] - d[i] = gap (v[i] + v[i+1]) / 2: the trapezoid rule with the true gaps.

    "middle" is frame floor(T / 2). The matching residual is `time_derivative(d, at="half") - face_mean(v, "t")`.
    PILA (Wang et al., 2026), Eq. 19.
    """
    frames = v.shape[2]
    grid.check_length("t", frames)
    index = (
        {"first": 0, "middle": frames // 2, "last": frames - 1}.get(anchor, anchor)
        if isinstance(anchor, str)
        else anchor
    )
    if not isinstance(index, int) or not 0 <= index < frames:
        raise ValueError(
            f'cumulative_integral: expected anchor "first", "middle", "last" or 0..{frames - 1}, got {anchor!r}.'
        )
    step = grid.step("t")
    if isinstance(step, tuple):
        steps = torch.cumulative_trapezoid(v, x=v.new_tensor(step).reshape(-1, 1, 1).expand(v.shape[2:]), dim=2)
    else:
        steps = torch.cumulative_trapezoid(v, dx=step, dim=2)
    total = torch.cat([torch.zeros_like(v[:, :, :1]), steps], dim=2)
    return total - total[:, :, index : index + 1]


@in_full_precision(2)
def from_flow_xy(flow: Float[Tensor, "b 2 t y x"], /) -> Float[Tensor, "b 2 t y x"]:
    """Optical flow in its usual (x, y) order as a vector field (y, x); its own inverse."""
    return flow.flip(1)
