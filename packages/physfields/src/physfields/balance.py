"""What a residual reads and what it returns: constants, a `State` of fields with derivatives, and a `Balance`.

A residual is a short function State -> Balance: zero when the named law holds, in the units of its terms. A place is
"node", or the axis along which the residual sits half-way between nodes: "t" for the half steps of kinematics, spatial
axes for the faces of stabilisers, which central differences would leave blind to a checkerboard.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from physfields.derivatives import Derivatives, FieldDerivatives
from physfields.fields import symmetric_pairs
from physfields.kinematics import neighbours
from physfields.masks import face_mask

Field = Float[Tensor, "_ _ *_"]  # (b, c, t, *space); faces and half steps are one shorter along their axis


@dataclass(frozen=True)
class Scales:
    """Every number that PILA's residuals need; all are our choice (the paper's values are not public). Latent units."""

    viscosity: float = 0.1  # nu of term 10; our choice
    displacement_wave_speed: float = 1.0  # c of term 5; our choice
    velocity_wave_speed: float = 1.0  # c of term 6; our choice
    wave_speed: float = 1.0  # c of term 27; our choice
    compression: float = 1.0  # kappa_c of term 14; our choice
    diffusivity: float = 0.1  # kappa_T of terms 18 and 25, as the viscosity (Prandtl number 1); our choice
    latent_heat: float = 1.0  # L_h of term 18; our choice
    reference_temperature: float = 1.0  # T_ref of terms 18 and 25: T itself is mean-centred; our choice
    density_floor: float = 0.1  # rho_floor of term 12; our choice
    slope_range: tuple[float, float] = (0.1, 10.0)  # clamp of fitted closure slopes; our choice
    literal_compatibility: bool = False  # term 7 as eps - sym grad d though eps is a rate; our choice: off
    charbonnier: float = 1e-6  # added under the root; our choice
    smallest_scale: float = 1e-3  # floor of the divisor of relative residuals; our choice


Number = float | Float[Tensor, ""] | Float[Tensor, " b"]


@dataclass(frozen=True)
class Constants:
    """Material constants of the general laws, in the user's units; 1 (or 0) until said.

    A tensor of one number, or of one a sample, may stand for each: it can carry a gradient, and so be fitted. `more`
    holds the constants of laws that are not in the table (`residuals.evaluate(..., table=)`), by name.
    """

    density: Number = 1.0  # rho of incompressible flow and of elastic bodies
    viscosity: Number = 1.0  # dynamic mu of Navier-Stokes; kinematic nu of Burgers
    bulk_viscosity: Number = 0.0  # zeta of compressible Navier-Stokes
    conductivity: Number = 1.0  # k of compressible Navier-Stokes, in units where T = p / rho
    heat_ratio: Number = 1.4  # gamma of a perfect gas
    gravity: Number = 1.0  # g of shallow water
    diffusivity: Number = 1.0  # of heat, of a dissolved substance
    wave_speed: Number = 1.0
    lame_lambda: Number = 1.0
    lame_mu: Number = 1.0
    permittivity: Number = 1.0
    permeability: Number = 1.0
    mobility: Number = 1.0  # M of Cahn-Hilliard
    interface: Number = 1.0  # gamma of Cahn-Hilliard: the square of an interface's width, over 2
    latent_heat: Number = 1.0  # L / c of Stefan, in kelvin
    front_band: float = 4.0  # cells beside the front in which the Stefan condition is asked for; our choice
    more: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Balance:
    """A residual by place and the terms (place, value) that make it up. `symmetric`: components of such a tensor."""

    field: Mapping[str, Field]
    terms: tuple[tuple[str, Field], ...]
    symmetric: bool = False


@dataclass(frozen=True)
class State:
    """What a residual may read: `state.velocity.div`, `state.scales.viscosity`, `state.slope(a, b)`.

    `mean(f)` is a sample's mean under the residual's own weight, `sound(axes)` the weight of nodes whose stencil along
    `axes` is whole: None without a mask. `reach` are the axes along which its own stencil reaches; empty without one.
    `constant(name)` broadcasts over a field. What several residuals share is kept in `shared` (`derived`).
    """

    bank: Derivatives
    mean: Callable[[Field], Tensor]
    sound: Callable[[tuple[str, ...]], Tensor | None]
    scales: Scales = Scales()
    slope_rule: str | float | int = "fit"
    constants: Constants = Constants()
    shared: dict[str, object] = field(default_factory=dict)
    reach: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> FieldDerivatives:
        return getattr(self.bank, name)

    def optional(self, name: str) -> FieldDerivatives | None:
        """A field that the law may do without."""
        return self.bank[name] if name in tuple(self.bank) else None

    def constant(self, name: str, unsaid: float | None = None) -> float | Tensor:
        """A constant of the general laws, shaped to multiply a field; `unsaid` stands for one of `Constants.more`."""
        value = self.constants.more.get(name, unsaid) if unsaid is not None else getattr(self.constants, name)
        if not isinstance(value, Tensor):
            return value
        batch = {len(f.value) for f in self.bank.values()}
        if value.numel() != 1 and {value.numel()} != batch:
            raise ValueError(
                f"Constants: expected {name} of one number, or of one for each of {max(batch)} samples, "
                f"got shape {tuple(value.shape)}."
            )
        return value.reshape([-1] + [1] * (1 + len(self.bank.grid.axes)))

    def derived(self, name: str, make: Callable[[], Field]) -> FieldDerivatives:
        """A field made of others, with its derivatives, made once for all residuals that share it."""
        if name not in self.shared:
            self.shared[name] = FieldDerivatives(make(), self.bank.grid)
        made = self.shared[name]
        assert isinstance(made, FieldDerivatives)
        return made

    def slope(self, a: Field, b: Field, *, signed: bool = False) -> Float[Tensor, "b *ones"]:
        """kappa* = <a, b> / <b, b> of each sample, without gradient, clamped; or the fixed number.

        A `signed` slope keeps its sign and has its size clamped.
        """
        ones = [1] * (a.ndim - 1)
        if not isinstance(self.slope_rule, str):
            return a.new_full((len(a), *ones), self.slope_rule)
        products = torch.cat([a.detach() * b.detach(), b.detach().square()], dim=1)
        means = self.mean(products).unflatten(1, (2, -1))
        space = len(self.bank.grid.space)
        if a.shape[1] == space * (space + 1) // 2 and space > 1:  # symmetric tensor: corners count twice
            means = means * means.new_tensor([1.0 if i == j else 2.0 for i, j in symmetric_pairs(space)])
        ab, bb = means.sum(dim=2).unbind(dim=1)
        slope = ab / (bb + torch.finfo(bb.dtype).tiny)
        low, high = self.scales.slope_range
        size = (slope.abs() if signed else slope).clamp(low, high)
        return (torch.where(slope < 0, -size, size) if signed else size).reshape([-1, *ones])

    def centred(self, name: str) -> Field:
        """A field minus its mean over the sample."""

        def make() -> Field:
            f = self.bank[name].value
            return f - self.mean(f).reshape([*f.shape[:2]] + [1] * (f.ndim - 2))

        return self.derived(f"centred {name} {self.reach}", make).value  # residuals of other reach have other means

    def time_mean(self, f: Field) -> Field:
        """The mean over time by the trapezoid rule with the true gaps, one frame long.

        Gaps with a frame at which f's stencil in space touches an invalid cell stay out; 0 where none is left.
        """
        grid, sound = self.bank.grid, self.sound(self.bank.grid.space)
        low, high = neighbours(f, "t", grid)
        gaps = f.new_tensor(grid.gaps("t", f.shape[2])).reshape([-1] + [1] * len(grid.space))
        weight = gaps if sound is None else gaps * (face_mask(sound, "t", grid) > 0)
        total = weight.sum(dim=grid.dim("t"), keepdim=True)
        return (0.5 * weight * (low + high)).sum(dim=2, keepdim=True) / torch.where(total > 0, total, 1.0)


def balance(*terms: Field, at: str = "node", symmetric: bool = False) -> Balance:
    """The residual that is the sum of its terms."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return Balance({at: total}, tuple((at, term) for term in terms), symmetric)


def faces(state: State, f: FieldDerivatives, centred: Field) -> Balance:
    """Face differences along every spatial axis, against the field's own fluctuation across one cell."""
    grid = state.bank.grid
    cell = min(min(grid.gaps(axis, f.value.shape[grid.dim(axis)])) for axis in grid.space)
    return Balance({axis: f.difference(axis) for axis in grid.space}, (("node", centred / cell),))
