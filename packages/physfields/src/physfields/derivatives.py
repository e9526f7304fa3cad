"""A bank of named fields with their derivatives, each computed once however many residuals read it.

>>> bank = Derivatives({"T": torch.arange(4.0).expand(1, 1, 4, 4, 4)}, Grid())
>>> bank.T.x.unique()
tensor([1.])

`bank.T` is a `FieldDerivatives` with `value`, `t`, `tt`, one and two letters for each spatial axis (`y`, `yy`, ...),
any `d(axis, m)`, `lap`, `grad` (of a scalar) and, for vectors, `div`, `curl`, `strain` and `jacobian`. The names of the
fields are the keys of the mapping that the bank was built from.

A stacked bank computes a derivative for all its fields at the first asking, as one field of many components: far fewer
kernels, some of them for nothing. That is the default on a GPU, where a kernel's start costs more than its work.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from operator import index

import torch
from torch import Tensor

from physfields.fields import as_field, split_components, symmetric_pairs
from physfields.grid import Grid
from physfields.kinematics import face_difference, face_mean
from physfields.stencil import combine, derivative


def _kept(make: Callable[["FieldDerivatives"], Tensor]) -> property:
    """A property computed once. functools.cached_property takes a lock on Python 3.11, which compilers cannot trace."""

    def get(self: "FieldDerivatives") -> Tensor:
        name = make.__name__
        if name not in self._made:
            self._made[name] = make(self)
        return self._made[name]

    return property(get, doc=make.__doc__)


class FieldDerivatives:
    """One field (b, c, t, *space) and its derivatives on a grid; layouts as in `physfields.operators`."""

    def __init__(self, value: Tensor, grid: Grid, *, stack: "_Stack | None" = None, name: str = ""):
        self.value, self.grid = value, grid
        self._stack, self._name = stack, name
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._made: dict[str, Tensor] = {}
        self._faces: dict[tuple[str, str], Tensor] = {}
        self._cut: dict[str, tuple[Tensor, ...]] = {}

    def d(self, axis: str, m: int) -> Tensor:
        """D^m along an axis, kept."""
        if (axis, m) not in self._kept:
            if self._stack is not None:
                self._kept[axis, m] = self._stack.d(axis, m)[self._name]
            else:
                with torch.autocast(self.value.device.type, enabled=False):
                    self._kept[axis, m] = derivative(self.value, axis, m, self.grid)
        return self._kept[axis, m]

    @property
    def t(self) -> Tensor:
        return self.d("t", 1)

    @property
    def tt(self) -> Tensor:
        return self.d("t", 2)

    @property
    def z(self) -> Tensor:
        return self.d("z", 1)

    @property
    def zz(self) -> Tensor:
        return self.d("z", 2)

    @property
    def y(self) -> Tensor:
        return self.d("y", 1)

    @property
    def yy(self) -> Tensor:
        return self.d("y", 2)

    @property
    def x(self) -> Tensor:
        return self.d("x", 1)

    @property
    def xx(self) -> Tensor:
        return self.d("x", 2)

    @_kept
    def lap(self) -> Tensor:
        space = self.grid.space
        if self._stack is not None or any((axis, 2) in self._kept for axis in space):
            return _total(self.d(axis, 2) for axis in space)
        components = range(self.value.shape[1])
        return self._combined([(components, components, axis, 2, 1.0) for axis in space])

    @_kept
    def grad(self) -> Tensor:
        """(b, 2, t, y, x) of a scalar: (D_y f, D_x f), or (D_z f, D_y f, D_x f) in space."""
        self._expect(1)
        return torch.cat([self.d(axis, 1) for axis in self.grid.space], dim=1)

    @_kept
    def div(self) -> Tensor:
        self._expect(len(self.grid.space))
        if self._shared:
            return _total(self._slopes(axis)[i] for i, axis in enumerate(self.grid.space))
        return self._combined([(0, i, axis, 1, 1.0) for i, axis in enumerate(self.grid.space)])

    @_kept
    def curl(self) -> Tensor:
        """D_x u_y - D_y u_x in the plane; the vector (z, y, x) in space."""
        axes = self.grid.space
        self._expect(len(axes))
        in_space = [((1, 2), (2, 1)), ((2, 0), (0, 2)), ((0, 1), (1, 0))]
        rows = [((1, 0), (0, 1))] if len(axes) == 2 else in_space
        parts = [self._slopes(axes[a])[i] - self._slopes(axes[b])[j] for (a, i), (b, j) in rows]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    @_kept
    def strain(self) -> Tensor:
        """(grad u + grad u^T) / 2: the diagonal first, (yy, xx, yx)."""
        axes = self.grid.space
        self._expect(len(axes))

        def entry(i: int, j: int) -> Tensor:
            first = self._slopes(axes[j])[i]
            return first if i == j else 0.5 * (first + self._slopes(axes[i])[j])

        return torch.cat([entry(i, j) for i, j in symmetric_pairs(len(axes))], dim=1)

    @_kept
    def jacobian(self) -> Tensor:
        """(b, 4, t, y, x): D_y u_y, D_y u_x, D_x u_y, D_x u_x, packed as components; nine in space."""
        self._expect(len(self.grid.space))
        return torch.cat([self.d(axis, 1) for axis in self.grid.space], dim=1)

    def advected_by(self, u: Tensor) -> Tensor:
        """u . grad f for a velocity u (b, 2, t, y, x)."""
        first, *rest = zip(split_components(u), self.grid.space, strict=True)
        total = first[0] * self.d(first[1], 1)
        for component, axis in rest:
            total = torch.addcmul(total, component, self.d(axis, 1))
        return total

    def difference(self, axis: str) -> Tensor:
        """`face_difference` along an axis, kept."""
        if ("difference", axis) not in self._faces:
            self._faces["difference", axis] = face_difference(self.value, axis, self.grid)
        return self._faces["difference", axis]

    def mean(self, axis: str) -> Tensor:
        """`face_mean` along an axis, kept."""
        if ("mean", axis) not in self._faces:
            self._faces["mean", axis] = face_mean(self.value, axis, self.grid)
        return self._faces["mean", axis]

    def _slopes(self, axis: str) -> tuple[Tensor, ...]:
        """The components of D f along an axis: cut once, so that their gradients are joined once."""
        if axis not in self._cut:
            self._cut[axis] = split_components(self.d(axis, 1))
        return self._cut[axis]

    @property
    def _shared(self) -> bool:
        return self._stack is not None or any((axis, 1) in self._kept for axis in self.grid.space)

    def _combined(self, terms: list) -> Tensor:
        components = index(self.value.shape[1]) if isinstance(terms[0][0], range) else 1
        with torch.autocast(self.value.device.type, enabled=False):
            return combine(self.value, tuple(terms), self.grid, components)

    def _expect(self, components: int) -> None:
        if self.value.shape[1] != components:
            raise ValueError(f"expected a field of {components} components, got {self.value.shape[1]}.")


class Derivatives(Mapping[str, FieldDerivatives]):
    """Named fields on one grid: `bank.velocity.div` or `bank["velocity"].div`.

    `stacked`: whether a derivative is computed for all fields at once, or the names of those that are; None is all on
    a GPU and none elsewhere.
    """

    def __init__(self, fields: Mapping[str, Tensor], grid: Grid, *, stacked: bool | Collection[str] | None = None):
        self.grid = grid
        values = {name: as_field(f, None, name, axes=grid.axes) for name, f in fields.items()}
        shapes = {name: tuple(f.shape[:1] + f.shape[2:]) for name, f in values.items()}
        if any(shape != other for shape in shapes.values() for other in shapes.values()):
            raise ValueError(f"Derivatives: expected equal (b, t, *space) for all fields, got {shapes}.")
        names = _stacked_names(values, stacked)
        stack = _Stack({name: values[name] for name in values if name in names}, grid) if len(names) > 1 else None
        self._fields = {
            name: FieldDerivatives(f, grid, stack=stack if name in names else None, name=name)
            for name, f in values.items()
        }

    def __getitem__(self, name: str) -> FieldDerivatives:
        if name not in self._fields:
            raise ValueError(f"no field {name!r} in the bank: expected one of {sorted(self._fields)}.")
        return self._fields[name]

    def __getattr__(self, name: str) -> FieldDerivatives:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"no field {name!r} in the bank")
        return self._fields[name]

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class _Stack:
    """Fields as one field of many components, which are differentiated together."""

    def __init__(self, fields: Mapping[str, Tensor], grid: Grid):
        self.fields, self.grid = fields, grid
        self.value = torch.cat(list(fields.values()), dim=1)
        self._kept: dict[tuple[str, int], dict[str, Tensor]] = {}

    def d(self, axis: str, m: int) -> dict[str, Tensor]:
        if (axis, m) not in self._kept:
            with torch.autocast(self.value.device.type, enabled=False):
                together = derivative(self.value, axis, m, self.grid)
            parts = together.split([f.shape[1] for f in self.fields.values()], dim=1)
            self._kept[axis, m] = dict(zip(self.fields, parts, strict=True))
        return self._kept[axis, m]


def _stacked_names(fields: Mapping[str, Tensor], stacked: bool | Collection[str] | None) -> set[str]:
    if stacked is None:
        stacked = any(f.is_cuda for f in fields.values())
    names = (set(fields) if stacked else set()) if isinstance(stacked, bool) else set(stacked)
    if not names <= set(fields):
        raise ValueError(f"Derivatives: expected stacked out of {sorted(fields)}, got {sorted(names - set(fields))}.")
    by_dtype = {fields[name].dtype for name in names}
    if len(by_dtype) > 1:
        raise ValueError(f"Derivatives: expected one dtype in a stacked bank, got {by_dtype}; use stacked=False.")
    return names


def _total(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total = total + part
    return total
