"""Poisson's equation and the Helmholtz split, solved directly by FFT, as inverses of this package's own stencils.

The grid's boundary says which problem it is: `periodic` (a circle), `reflect` and `replicate` (walls without flux: the
wall stands on the edge node, or half a cell outside it; a discrete cosine transform), `zero` (the solution vanishes one
cell outside; a discrete sine transform). Each is the periodic problem of the field continued as its rule says, so one
FFT serves all. The symbol is the stencil's and not k^2: `laplacian(solve_poisson(f, grid), grid)` gives back f to
rounding, up to the mean that no solution can have.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from physfields.fields import in_full_precision
from physfields.grid import Grid
from physfields.weights import CENTRAL


@dataclass(frozen=True)
class Helmholtz:
    """u = compressive + solenoidal + harmonic: curl-free, divergence-free, and neither (the mean on a torus)."""

    compressive: Float[Tensor, "b n *grid"]
    solenoidal: Float[Tensor, "b n *grid"]
    harmonic: Float[Tensor, "b n *grid"]


@in_full_precision("any")
def solve_poisson(f: Float[Tensor, "b c *grid"], /, grid: Grid) -> Float[Tensor, "b c *grid"]:
    """p with lap p = f, frame by frame. Between walls and on circles f loses its mean and p has mean 0.

    The mean is over the continued field: with `reflect` edge nodes count half, as in the trapezoid rule.
    Differentiable. A `one_sided` axis states no boundary value, and raises.

    >>> x = torch.arange(16.0).expand(1, 1, 1, 16, 16) * (2 * math.pi / 16)
    >>> grid = Grid((1.0, 2 * math.pi / 16, 2 * math.pi / 16), boundary=("one_sided", "periodic", "periodic"), order=6)
    >>> bool((solve_poisson(-x.sin(), grid) - x.sin()).abs().max() < 1e-4)
    True
    """
    _check(grid, ("periodic", "reflect", "replicate", "zero"), "solve_poisson")
    wide = f
    for axis in grid.space:
        wide = _continued(wide, grid.dim(axis), grid.rule(axis))
    symbols = _symbols(wide, grid, 2)
    total = symbols[0]
    for symbol in symbols[1:]:
        total = total + symbol
    free = total == 0  # the mean, where no axis is `zero`
    p = _filter(wide, grid, lambda g: torch.where(free, 0, g / torch.where(free, 1.0, total)))
    for axis in grid.space:
        dim = grid.dim(axis)
        p = p.narrow(dim, 0, f.shape[dim])
    return p


@in_full_precision("vector")
def helmholtz_split(u: Float[Tensor, "b n *grid"], /, grid: Grid) -> Helmholtz:
    """Split a periodic vector field; `curl` of the first part and `divergence` of the second vanish to rounding.

    compressive = grad (div grad)^-1 div u with the grid's own first derivatives; harmonic is what they do not see: the
    mean, and on even sizes the checkerboards.
    """
    _check(grid, ("periodic",), "helmholtz_split")
    symbols = _symbols(u, grid, 1)
    squared = symbols[0] ** 2
    for symbol in symbols[1:]:
        squared = squared + symbol**2
    free = squared == 0

    def project(g: Tensor) -> Tensor:
        along = sum(symbols[i] * g[:, i : i + 1] for i in range(len(symbols))) / torch.where(free, 1.0, squared)
        return torch.cat([symbol * along for symbol in symbols], dim=1)

    compressive = _filter(u, grid, project)
    harmonic = _filter(u, grid, lambda g: torch.where(free, g, 0))
    return Helmholtz(compressive, u - compressive - harmonic, harmonic)


def _check(grid: Grid, allowed: Sequence[str], name: str) -> None:
    for axis in grid.space:
        rule, order = grid.rule(axis), grid.order[grid.index(axis)]
        if rule not in allowed:
            raise ValueError(
                f"{name}: expected the boundary of axis {axis} out of {tuple(allowed)}, got {rule!r}; "
                f"say what holds at the edge with Grid(boundary=...)."
            )
        if isinstance(grid.step(axis), tuple):
            raise ValueError(f"{name}: expected a number as spacing on axis {axis}, got coordinates.")
        if rule in ("zero", "replicate") and order != 2:
            raise ValueError(f"{name}: a {rule} axis {axis} is solved at order 2 alone, got {order}; use reflect.")


def _continued(f: Tensor, dim: int, rule: str) -> Tensor:
    """f as one period of what the rule says beyond its edges."""
    n, back = f.shape[dim], f.flip(dim)
    if rule == "reflect":
        return torch.cat([f, back.narrow(dim, 1, n - 2)], dim=dim) if n > 2 else f
    if rule == "replicate":
        return torch.cat([f, back], dim=dim)
    if rule == "zero":
        nothing = torch.zeros_like(f.narrow(dim, 0, 1))
        return torch.cat([f, nothing, -back, nothing], dim=dim)
    return f


def _symbols(wide: Tensor, grid: Grid, m: int) -> list[Tensor]:
    """The real symbol of each axis' central stencil (of D / i for m = 1), shaped to broadcast over an rfftn."""
    symbols = []
    for axis in grid.space:
        dim, step, order = grid.dim(axis), grid.step(axis), grid.order[grid.index(axis)]
        assert isinstance(step, float)
        n = wide.shape[dim]
        waves = torch.arange(n // 2 + 1 if axis == "x" else n, dtype=torch.float64, device=wide.device)
        weights = CENTRAL[order, m][order // 2 + 1 :]
        symbol = torch.zeros_like(waves)
        for k, w in enumerate(weights, start=1):
            angle = 2 * math.pi * k / n * waves
            symbol = symbol + 2 * w * (angle.sin() if m == 1 else angle.cos() - 1)
        if m == 1 and n % 2 == 0:
            symbol[n // 2] = 0.0  # sin(k pi) is 0, and not its rounding
        symbols.append((symbol / step**m).to(wide.dtype).reshape([-1] + [1] * (-1 - dim)))
    return symbols


def _filter(f: Tensor, grid: Grid, apply: Callable[[Tensor], Tensor]) -> Tensor:
    dims = [grid.dim(axis) for axis in grid.space]
    spectrum = torch.fft.rfftn(f, dim=dims)
    return torch.fft.irfftn(apply(spectrum), s=[f.shape[dim] for dim in dims], dim=dims)
