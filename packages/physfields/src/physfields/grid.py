"""The grid on which fields live: time and two or three spatial axes, each with spacing, boundary rule and order.

A `Grid` is frozen and hashable: two equal grids are one compile constant. Its axes are (t, y, x), or (t, z, y, x) where
four spacings (or `axes`) say so; they are the last dimensions of every field. Spacing is a number or, for one axis, its
1-D coordinates (increasing, uneven allowed): the latent times of a causal video VAE have a first gap shorter than the
rest. The grid knows no sizes; a field's length along an axis is checked when an operator differentiates along it.

Boundaries (what an operator assumes beyond the first and last node):
    one_sided   nothing: edge rows use points inside, at the interior's order (the default)
    periodic    the axis is a circle; node n is node 0 (ask for it: on another field the edges diverge as 1/h)
    replicate   the edge value repeats: imposes zero normal slope, O(1) error where it is not zero
    reflect     even extension about the edge node: imposes zero normal slope
    zero        the field vanishes outside
    sbp         nothing: edge rows of half the order, in exchange for exact integration by parts in `norm`
"""

import ast
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor

from physfields.sbp import sbp_norm

Axis = Literal["t", "z", "y", "x"]
Boundary = Literal["one_sided", "periodic", "replicate", "reflect", "zero", "sbp"]
Order = Literal[2, 4, 6]
Singleton = Literal["raise", "zero"]
Path = Literal["auto", "rows", "blocks", "cat"]

PLANE: tuple[Axis, ...] = ("t", "y", "x")
SPACE: tuple[Axis, ...] = ("t", "z", "y", "x")


@dataclass(frozen=True, init=False)
class Grid:
    """Axes with spacing, boundary and order; one value is used for all axes.

    `path` is how derivatives are computed (`physfields.stencil`), "auto" the best one for the device and the compiler.

    >>> grid = Grid(spacing=((0.0, 0.625, 1.625), 1.0, 1.0), boundary=("one_sided", "periodic", "periodic"))
    >>> grid.gaps("t", 3)
    (0.625, 1.0)
    >>> Grid((0.5, 1.0, 1.0, 1.0)).axes
    ('t', 'z', 'y', 'x')
    """

    axes: tuple[str, ...]
    spacing: tuple[float | tuple[float, ...], ...]
    boundary: tuple[Boundary, ...]
    order: tuple[int, ...]
    singleton: Singleton
    path: Path
    key: str = field(init=False, compare=False, repr=False)

    def __init__(
        self,
        spacing: float | int | Tensor | Sequence[float | int | Sequence[float | int] | Tensor] = 1.0,
        *,
        axes: Sequence[str] | None = None,
        boundary: str | Sequence[str] = "one_sided",
        order: int | Sequence[int] = 2,
        singleton: str = "raise",
        path: str = "auto",
    ):
        names = _axes(axes, spacing, boundary, order)
        steps = tuple(_each(spacing, names, "spacing"))
        kinds, orders = tuple(_each(boundary, names, "boundary")), tuple(_each(order, names, "order"))
        for what, values, legal in (
            ("boundary", kinds, get_args(Boundary)),
            ("order", orders, get_args(Order)),
            ("singleton", (singleton,), get_args(Singleton)),
            ("path", (path,), get_args(Path)),
        ):
            if any(isinstance(value, bool) or value not in legal for value in values):
                raise ValueError(f"Grid: expected {what} out of {legal}, got {values}.")
        checked = tuple(_check_step(axis, step) for axis, step in zip(names, steps, strict=True))
        for axis, step, kind in zip(names, checked, kinds, strict=True):
            if kind in ("periodic", "sbp") and isinstance(step, tuple):
                raise ValueError(
                    f"Grid: a {kind} axis {axis} expects a number as spacing, got coordinates; use one_sided."
                )
        values = {"axes": names, "spacing": checked, "boundary": kinds, "order": orders}
        for name, value in {**values, "singleton": singleton, "path": path}.items():
            object.__setattr__(self, name, value)
        # One string that says all: compilers hold a string as a constant, but may turn floats into symbols.
        object.__setattr__(self, "key", repr((checked, names, kinds, orders, singleton, path)))

    @classmethod
    def from_key(cls, key: str) -> "Grid":
        """The grid that a grid's `key` describes."""
        spacing, axes, boundary, order, singleton, path = ast.literal_eval(key)
        return cls(spacing, axes=axes, boundary=boundary, order=order, singleton=singleton, path=path)

    @classmethod
    def from_video_times(
        cls,
        times: Sequence[float | int] | Tensor,
        spacing: float | int | Sequence[float | int] = (1.0, 1.0),
        *,
        stride: int = 1,
        first: int = 1,
        boundary: str | Sequence[str] = "one_sided",
        order: int | Sequence[int] = 2,
        singleton: str = "raise",
        path: str = "auto",
    ) -> "Grid":
        """A grid over a video's frame times, or over its latents' times when the VAE's time stride is given.

        `spacing` is that of the spatial axes. `times` may be uneven (24 fps picked for 16): use the true ones.

        >>> Grid.from_video_times(range(9), stride=4).spacing[0]
        (0.0, 2.5, 6.5)
        """
        coordinates = latent_times(times, stride, first=first)
        steps = (spacing,) * 2 if isinstance(spacing, (int, float)) else tuple(spacing)
        return cls((coordinates, *steps), boundary=boundary, order=order, singleton=singleton, path=path)

    @classmethod
    def from_latent_times(
        cls,
        times: Sequence[float | int] | Tensor,
        spacing: Sequence[float | int] = (1.0, 1.0),
        *,
        boundary: str | Sequence[str] = "one_sided",
        order: int | Sequence[int] = 2,
    ) -> "Grid":
        """A grid over latent times tau_j, the centres of the frames each latent covers (uneven in a causal VAE).

        With `times` in source frames / 4 and latent pixels as units, velocities are latent pixels per 4 frames.
        """
        return cls.from_video_times(times, spacing, boundary=boundary, order=order)

    @property
    def space(self) -> tuple[str, ...]:
        """The spatial axes, in the order of a vector's components."""
        return self.axes[1:]

    def index(self, axis: str) -> int:
        """The place of an axis among the axes, or ValueError."""
        if axis not in self.axes:
            raise ValueError(f"expected an axis out of {self.axes}, got {axis!r}.")
        return self.axes.index(axis)

    def dim(self, axis: str) -> int:
        """The tensor dimension of an axis, counted from the last: x is -1, t is -3 in the plane and -4 in space."""
        return self.index(axis) - len(self.axes)

    def step(self, axis: str) -> float | tuple[float, ...]:
        """The spacing of an axis as given: a number or coordinates."""
        return self.spacing[self.index(axis)]

    def rule(self, axis: str) -> Boundary:
        """The boundary of an axis."""
        return self.boundary[self.index(axis)]

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

    def norm(self, axis: str, n: int) -> tuple[float, ...]:
        """Quadrature weights of the n nodes: sum_i H_i f_i is the integral of f along the axis.

        `sbp` has the norm in which its derivative integrates by parts, <g, D f> + <D g, f> = g f at the ends; a
        periodic axis weighs all nodes alike; the others have the trapezoid rule.
        """
        step, kind = self.step(axis), self.rule(axis)
        if kind == "sbp":
            assert not isinstance(step, tuple)
            return tuple(float(w) * step for w in sbp_norm(self.order[self.index(axis)], n))
        gaps = self.gaps(axis, n)
        if kind == "periodic":
            return gaps
        return tuple(0.5 * (a + b) for a, b in zip((0.0, *gaps), (*gaps, 0.0), strict=True))

    def check_length(self, axis: str, n: int) -> None:
        """Raise when coordinates were given and a field's axis has another number of nodes."""
        step = self.step(axis)
        if isinstance(step, tuple) and len(step) != n:
            raise ValueError(
                f"axis {axis}: the grid has {len(step)} coordinates, the field has {n} nodes; "
                f"expected equal numbers: build the grid from this field's own coordinates."
            )


def latent_times(times: Sequence[float | int] | Tensor, stride: int = 4, *, first: int = 1) -> tuple[float, ...]:
    """The time of each latent: the mean time of the frames it covers, `first` for latent 0 and then `stride` each.

    With `times` = frame index / 4 these are the times in which latent velocities count pixels per four frames.

    >>> latent_times([i / 4 for i in range(9)])
    (0.0, 0.625, 1.625)
    """
    frames = [float(time) for time in (times.tolist() if isinstance(times, Tensor) else times)]
    if stride < 1 or not 1 <= first <= stride:
        raise ValueError(f"latent_times: expected stride >= 1 and first in 1..stride, got {stride} and {first}.")
    if stride == 1:
        return tuple(frames)
    if len(frames) < first or (len(frames) - first) % stride:
        raise ValueError(
            f"latent_times: expected {first} + {stride} k frames, got {len(frames)}; crop the clip to whole latents."
        )
    groups = [frames[:first], *(frames[i : i + stride] for i in range(first, len(frames), stride))]
    return tuple(math.fsum(group) / len(group) for group in groups)


def _axes(axes: Sequence[str] | None, *values: object) -> tuple[str, ...]:
    if axes is None:
        four = any(isinstance(v, Sequence) and not isinstance(v, str) and len(v) == 4 for v in values)
        return SPACE if four else PLANE
    if tuple(axes) not in (PLANE, SPACE):
        raise ValueError(f"Grid: expected axes {PLANE} or {SPACE}, got {tuple(axes)}.")
    return tuple(axes)


def _each(values: object, axes: Sequence[str], name: str) -> list:
    if isinstance(values, str) or not isinstance(values, (Sequence, Tensor)) or (
        isinstance(values, Tensor) and values.ndim == 0
    ):  # fmt: skip
        return [values] * len(axes)
    if len(values) != len(axes):
        raise ValueError(f"Grid: expected one {name} for each of the axes {tuple(axes)}, got {len(values)}.")
    return list(values)


def _check_step(axis: str, step: object) -> float | tuple[float, ...]:
    values = step.tolist() if isinstance(step, Tensor) else step
    if not isinstance(values, Iterable):
        number = _number(axis, values)
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"Grid: expected a positive spacing on axis {axis}, got {number}.")
        return number
    positions = tuple(_number(axis, value) for value in values)
    if (
        len(positions) < 1
        or not all(math.isfinite(p) for p in positions)
        or any(b <= a for a, b in pairwise(positions))
    ):
        raise ValueError(f"Grid: expected increasing finite coordinates on axis {axis}, got {positions}; sort them.")
    return positions


def _number(axis: str, value: object) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise ValueError(f"Grid: expected numbers as spacing of axis {axis}, got {value!r}.")
    return float(value)  # pyright: ignore[reportArgumentType]
