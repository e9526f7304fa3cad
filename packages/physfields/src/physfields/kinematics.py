"""Between nodes: half steps in time and faces in space, and the integral that fits them.

Two uses. Kinematics in box form, (d[i+1] - d[i]) / gap = (v[i] + v[i+1]) / 2, holds to rounding for the displacement
that `cumulative_integral` makes; the central form would leave gap^2 / 4 v_tt and fight its own integrator. Smoothness
by face differences sees a checkerboard, which central differences of every order take for a constant.

A face lies half-way between a node and the next: one entry fewer along its axis, on a periodic axis as many.
"""

from operator import index as index_of
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from physfields.fields import in_full_precision
from physfields.grid import Grid
from physfields.stencil import derivative

Place = Literal["node", "half", "half_step"]


@in_full_precision("any")
def time_derivative(
    f: Float[Tensor, "b c t *space"], /, grid: Grid, *, n: int = 1, at: Place = "node"
) -> Float[Tensor, "b c s *space"]:
    """D_t f or D_tt f at the nodes, or (f[i+1] - f[i]) / (t[i+1] - t[i]) at the half steps (one time fewer, n = 1).

    >>> t = torch.tensor([0.0, 0.625, 1.625, 2.625]).reshape(1, 1, 4, 1, 1)  # latent times of a causal video VAE
    >>> grid = Grid.from_latent_times(t.flatten())
    >>> time_derivative(t**2, grid).flatten()[1:]
    tensor([1.2500, 3.2500, 5.2500])
    >>> time_derivative(t**2, grid, at="half").flatten()
    tensor([0.6250, 2.2500, 4.2500])
    """
    if n not in (1, 2):
        raise ValueError(f"time_derivative: expected n = 1 or 2, got {n!r}; use partial(f, {{'t': n}}, grid).")
    if at == "node":
        return derivative(f, "t", n, grid)
    if at not in ("half", "half_step") or n != 1:
        raise ValueError(f'time_derivative: expected at="node", or at="half" with n=1; got at={at!r}, n={n}.')
    return face_difference(f, "t", grid)


@in_full_precision("any")
def face_difference(f: Float[Tensor, "b c *nodes"], /, axis: str, grid: Grid) -> Float[Tensor, "b c *faces"]:
    """(f[i+1] - f[i]) / gap on the faces between nodes: sees the checkerboard that central differences cannot.

    One entry fewer along the axis; on a periodic axis as many, the last face joining the last node to the first.
    Second order at the faces.

    >>> board = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(1, 1, 1, 1, 4)
    >>> face_difference(board, "x", Grid()).flatten()
    tensor([-2.,  2., -2.])
    """
    dim = grid.dim(axis)
    gaps, low, high = grid.gaps(axis, f.shape[dim]), *neighbours(f, axis, grid)
    if not gaps or f.shape[dim] < 2:
        raise ValueError(f"axis {axis} has 1 node; a face difference needs at least 2: lengthen the axis.")
    if isinstance(grid.step(axis), tuple):
        return (high - low) / f.new_tensor(gaps).reshape([-1] + [1] * (-1 - dim))
    return (high - low) * (1 / gaps[0])


@in_full_precision("any")
def face_mean(f: Float[Tensor, "b c *nodes"], /, axis: str, grid: Grid) -> Float[Tensor, "b c *faces"]:
    """(f[i] + f[i+1]) / 2 on the faces, where `face_difference` lives."""
    low, high = neighbours(f, axis, grid)
    return 0.5 * (low + high)


@in_full_precision("any", "any")
def box_residual(
    d: Float[Tensor, "b c *grid"], v: Float[Tensor, "b k *other"], /, grid: Grid
) -> Float[Tensor, "b c *half"]:
    """D_t d - v on half steps: zero to rounding for d = `cumulative_integral`(v), whatever the gaps.

    >>> v = torch.tensor([0.0, 1.0, -2.0, 4.0]).reshape(1, 1, 4, 1, 1)
    >>> grid = Grid.from_latent_times([0.0, 0.5, 1.5, 2.5])
    >>> box_residual(cumulative_integral(v, grid), v, grid).flatten()
    tensor([0., 0., 0.])
    """
    if d.shape != v.shape:
        raise ValueError(f"box_residual: expected d and v of one shape, got {tuple(d.shape)} and {tuple(v.shape)}.")
    return face_difference(d, "t", grid) - face_mean(v, "t", grid)


def neighbours(f: Tensor, axis: str, grid: Grid) -> tuple[Tensor, Tensor]:
    """The two nodes of each face along an axis; the last face of a periodic axis joins the last node to the first."""
    dim = grid.dim(axis)
    n = f.shape[dim]
    if grid.rule(axis) == "periodic":
        return f, torch.cat([f.narrow(dim, 1, n - 1), f.narrow(dim, 0, 1)], dim=dim)
    return f.narrow(dim, 0, n - 1), f.narrow(dim, 1, n - 1)


@in_full_precision("any")
def cumulative_integral(
    v: Float[Tensor, "b c t *space"], /, grid: Grid, *, anchor: int | Literal["first", "middle", "last"] = "middle"
) -> Float[Tensor, "b c t *space"]:
    """d with d[anchor] = 0 and d[i+1] - d[i] = gap (v[i] + v[i+1]) / 2: the trapezoid rule with the true gaps.

    "middle" is frame floor(T / 2). The matching residual is `box_residual`. PILA (Wang et al., 2026), Eq. 19.
    """
    frames = index_of(v.shape[2])  # a tracer's size may be symbolic; the anchor is not
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
        times = v.new_tensor(step).reshape([-1] + [1] * (v.ndim - 3)).expand(v.shape[2:])
        steps = torch.cumulative_trapezoid(v, x=times, dim=2)
    else:
        steps = torch.cumulative_trapezoid(v, dx=step, dim=2)
    total = torch.cat([torch.zeros_like(v[:, :, :1]), steps], dim=2)
    return total - total[:, :, index : index + 1]
