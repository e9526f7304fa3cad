"""The grid on which fields live: axes (t, y, x), each with a spacing, a boundary rule and an order of accuracy.

A `Grid` is frozen and hashable: two equal grids are one compile constant. Spacing is a number or, for one axis, its 1-D
coordinates (increasing, uneven allowed): the latent times of a causal video VAE have a first gap shorter than the rest.
The grid knows no sizes; a field's length along an axis is checked when an operator differentiates along it.

Boundaries (what an operator assumes beyond the first and last node):
    one_sided   nothing: edge rows use points inside, at the interior's order (the default)
    periodic    the axis is a circle; node n is node 0 (ask for it: on another field the edges diverge as 1/h)
    replicate   the edge value repeats: imposes zero normal slope, O(1) error where it is not zero
    reflect     even extension about the edge node: imposes zero normal slope
    zero        the field vanishes outside
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor

Axis = Literal["t", "y", "x"]
Boundary = Literal["one_sided", "periodic", "replicate", "reflect", "zero"]
Order = Literal[2, 4, 6]
Singleton = Literal["raise", "zero"]

AXES: tuple[Axis, Axis, Axis] = ("t", "y", "x")
DIM: dict[str, int] = {"t": -3, "y": -2, "x": -1}


@dataclass(frozen=True, init=False)
class Grid:
    """Spacing, boundary and order for the axes (t, y, x); one value is used for all three.

    >>> grid = Grid(spacing=((0.0, 0.625, 1.625), 1.0, 1.0), boundary=("one_sided", "periodic", "periodic"))
    >>> grid.gaps("t", 3)
    (0.625, 1.0)
    """

    spacing: tuple[float | tuple[float, ...], ...]
    boundary: tuple[Boundary, ...]
    order: tuple[int, ...]
    singleton: Singleton

    def __init__(
        self,
        spacing: float | int | Sequence[float | int | Sequence[float | int] | Tensor] = 1.0,
        *,
        boundary: str | Sequence[str] = "one_sided",
        order: int | Sequence[int] = 2,
        singleton: str = "raise",
    ):
        steps = spacing if isinstance(spacing, Sequence) else (spacing,) * 3
        kinds = (boundary,) * 3 if isinstance(boundary, str) else tuple(boundary)
        orders = (order,) * 3 if isinstance(order, int) else tuple(order)
        for name, values in (("spacing", steps), ("boundary", kinds), ("order", orders)):
            if len(values) != 3:
                raise ValueError(f"Grid: expected one {name} for each of the axes (t, y, x), got {len(values)}.")
        if not set(kinds) <= set(get_args(Boundary)):
            raise ValueError(f"Grid: expected boundaries out of {get_args(Boundary)}, got {kinds}.")
        if not set(orders) <= set(get_args(Order)):
            raise ValueError(f"Grid: expected orders out of {get_args(Order)}, got {orders}.")
        if singleton not in get_args(Singleton):
            raise ValueError(f"Grid: expected singleton out of {get_args(Singleton)}, got {singleton!r}.")
        checked = tuple(_check_step(axis, step) for axis, step in zip(AXES, steps, strict=True))
        for axis, step, kind in zip(AXES, checked, kinds, strict=True):
            if kind == "periodic" and isinstance(step, tuple):
                raise ValueError(f"Grid: a periodic axis {axis} expects a number as spacing, got coordinates.")
        object.__setattr__(self, "spacing", checked)
        object.__setattr__(self, "boundary", kinds)
        object.__setattr__(self, "order", orders)
        object.__setattr__(self, "singleton", singleton)

    @classmethod
    def from_latent_times(
        cls,
        times: Sequence[float | int] | Tensor,
        spacing: tuple[float | int, float | int] = (1.0, 1.0),
        *,
        boundary: str | Sequence[str] = "one_sided",
        order: int | Sequence[int] = 2,
    ) -> "Grid":
        """A grid over latent times tau_j, the centres of the frames each latent covers (uneven in a causal VAE).

        With `times` in source frames / 4 and latent pixels as units, velocities are latent pixels per 4 frames.
        """
        coordinates = times.tolist() if isinstance(times, Tensor) else list(times)
        return cls((coordinates, *spacing), boundary=boundary, order=order)

    def step(self, axis: str) -> float | tuple[float, ...]:
        """The spacing of an axis as given: a number or coordinates."""
        return self.spacing[_index(axis)]

    def rule(self, axis: str) -> Boundary:
        """The boundary of an axis."""
        return self.boundary[_index(axis)]

    def gaps(self, axis: str, n: int) -> tuple[float, ...]:
        """Distances between neighbouring nodes of an axis of n nodes: n - 1, or n with the wrap of a periodic axis."""
        step = self.step(axis)
        if isinstance(step, tuple):
            self.check_length(axis, n)
            return tuple(b - a for a, b in pairwise(step))
        return (step,) * (n if self.rule(axis) == "periodic" else n - 1)

    def coordinates(self, axis: str, n: int) -> tuple[float, ...]:
        """Positions of the n nodes of an axis; a uniform axis starts at 0."""
        step = self.step(axis)
        if isinstance(step, tuple):
            self.check_length(axis, n)
            return step
        return tuple(i * step for i in range(n))

    def check_length(self, axis: str, n: int) -> None:
        """Raise when coordinates were given and a field's axis has another number of nodes."""
        step = self.step(axis)
        if isinstance(step, tuple) and len(step) != n:
            raise ValueError(
                f"axis {axis}: the grid has {len(step)} coordinates, the field has {n} nodes; "
                f"expected equal numbers: build the grid from this field's own coordinates."
            )


def _index(axis: str) -> int:
    if axis not in AXES:
        raise ValueError(f"expected an axis out of {AXES}, got {axis!r}.")
    return AXES.index(axis)


def _check_step(axis: str, step: float | int | Iterable[float | int] | Tensor) -> float | tuple[float, ...]:
    values = step.tolist() if isinstance(step, Tensor) else step
    if not isinstance(values, Iterable):
        number = float(values)
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"Grid: expected a positive spacing on axis {axis}, got {number}.")
        return number
    positions = tuple(float(value) for value in values)
    if not all(math.isfinite(p) for p in positions) or any(b <= a for a, b in pairwise(positions)):
        raise ValueError(f"Grid: expected increasing finite coordinates on axis {axis}, got {positions}; sort them.")
    return positions
