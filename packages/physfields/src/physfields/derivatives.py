"""A bank of named fields with their derivatives, each computed once however many residuals read it.

>>> bank = Derivatives({"T": torch.arange(4.0).expand(1, 1, 4, 4, 4)}, Grid())
>>> bank.T.x.unique()
tensor([1.])

`bank.T` is a `FieldDerivatives` with `value`, `t`, `tt`, `y`, `x`, `yy`, `xx`, `lap`, `grad` (of a scalar) and, for
vectors (y, x), `div`, `curl`, `strain` and `jacobian`. The names are the keys of the mapping that it was built from.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from physfields.grid import Grid
from physfields.operators import as_field, face_difference, face_mean
from physfields.stencil import derivative


class FieldDerivatives:
    """One field (b, c, t, y, x) and its derivatives on a grid; layouts as in `physfields.operators`."""

    def __init__(self, value: Tensor, grid: Grid):
        self.value, self.grid = value, grid
        self._faces: dict[tuple[str, str], Tensor] = {}

    def _derivative(self, axis: str, m: int) -> Tensor:
        with torch.autocast(self.value.device.type, enabled=False):
            return derivative(self.value, axis, m, self.grid)

    @cached_property
    def t(self) -> Tensor:
        return self._derivative("t", 1)

    @cached_property
    def tt(self) -> Tensor:
        return self._derivative("t", 2)

    @cached_property
    def y(self) -> Tensor:
        return self._derivative("y", 1)

    @cached_property
    def x(self) -> Tensor:
        return self._derivative("x", 1)

    @cached_property
    def yy(self) -> Tensor:
        return self._derivative("y", 2)

    @cached_property
    def xx(self) -> Tensor:
        return self._derivative("x", 2)

    @cached_property
    def lap(self) -> Tensor:
        return self.yy + self.xx

    @cached_property
    def grad(self) -> Tensor:
        """(b, 2, t, y, x) of a scalar: (D_y f, D_x f)."""
        self._expect(1)
        return torch.cat([self.y, self.x], dim=1)

    @cached_property
    def div(self) -> Tensor:
        self._expect(2)
        return self.y[:, :1] + self.x[:, 1:]

    @cached_property
    def curl(self) -> Tensor:
        self._expect(2)
        return self.x[:, :1] - self.y[:, 1:]

    @cached_property
    def strain(self) -> Tensor:
        self._expect(2)
        return torch.cat([self.y[:, :1], self.x[:, 1:], 0.5 * (self.x[:, :1] + self.y[:, 1:])], dim=1)

    @cached_property
    def jacobian(self) -> Tensor:
        """(b, 4, t, y, x): D_y u_y, D_y u_x, D_x u_y, D_x u_x, packed as components."""
        self._expect(2)
        return torch.cat([self.y, self.x], dim=1)

    def advected_by(self, u: Tensor) -> Tensor:
        """u . grad f for a velocity u (b, 2, t, y, x)."""
        return u[:, :1] * self.y + u[:, 1:] * self.x

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

    def _expect(self, components: int) -> None:
        if self.value.shape[1] != components:
            raise ValueError(f"expected a field of {components} components, got {self.value.shape[1]}.")


class Derivatives(Mapping[str, FieldDerivatives]):
    """Named fields on one grid: `bank.velocity.div` or `bank["velocity"].div`."""

    def __init__(self, fields: Mapping[str, Tensor], grid: Grid):
        self.grid = grid
        self._fields = {name: FieldDerivatives(as_field(f, None, name), grid) for name, f in fields.items()}
        shapes = {name: tuple(f.value.shape[:1] + f.value.shape[2:]) for name, f in self._fields.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"Derivatives: expected equal (b, t, y, x) for all fields, got {shapes}.")

    def __getitem__(self, name: str) -> FieldDerivatives:
        if name not in self._fields:
            raise ValueError(f"no field {name!r} in the bank: expected one of {sorted(self._fields)}.")
        return self._fields[name]

    def __getattr__(self, name: str) -> FieldDerivatives:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"no field {name!r} in the bank")
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)
