"""The 29 residuals of PILA, one short function each: zero when the named law holds, in the units of its terms.

A function reads a `State` (fields with their derivatives, scales, least-squares slopes) and returns a `Balance`: the
residual where it lives, and the terms it is made of, whose size makes it dimensionless. A place is "node", or the axis
along which the residual sits half-way between nodes: "t" for the half steps of kinematics, "y" and "x" for the faces of
stabilisers, which central differences would leave blind to a checkerboard. phi = 1 is molten or active support.

The paper states these terms in words; the formulas are our choice of the plain equation that the words name.

References: PILA (Wang et al., 2026), Tables 6 and 7.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from physfields.derivatives import Derivatives, FieldDerivatives
from physfields.grid import DIM
from physfields.masks import face_mask, masked_mean
from physfields.operators import neighbours

Field = Float[Tensor, "_ _ _ _ _"]  # (b, c, t, y, x); faces and half steps are one shorter along their axis


@dataclass(frozen=True)
class Scales:
    """Every number that the residuals need; all are our choice (the paper's values are not public). Latent units."""

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


@dataclass(frozen=True)
class Balance:
    """A residual by place and the terms (place, value) that make it up. `symmetric`: components are (yy, xx, yx)."""

    field: Mapping[str, Field]
    terms: tuple[tuple[str, Field], ...]
    symmetric: bool = False


@dataclass(frozen=True)
class State:
    """What a residual may read: `state.velocity.div`, `state.scales.viscosity`, `state.slope(a, b)`.

    `weight(place)` is the residual's own weight there, `sound(axes)` that of nodes whose stencil along `axes` is whole;
    both are None without a mask.
    """

    bank: Derivatives
    weight: Callable[[str], Tensor | None]
    sound: Callable[[str], Tensor | None]
    scales: Scales = Scales()
    slope_rule: str | float | int = "fit"

    def __getattr__(self, name: str) -> FieldDerivatives:
        return getattr(self.bank, name)

    def slope(self, a: Field, b: Field, *, signed: bool = False) -> Float[Tensor, "b 1 1 1 1"]:
        """kappa* = <a, b> / <b, b> of each sample, without gradient, clamped; or the fixed number.

        A `signed` slope keeps its sign and has its size clamped.
        """
        if not isinstance(self.slope_rule, str):
            return a.new_full((len(a), 1, 1, 1, 1), self.slope_rule)
        a, b = a.detach(), b.detach()
        if a.shape[1] == 3:  # symmetric tensor: the corner counts twice
            root = a.new_tensor([1.0, 1.0, 2.0**0.5]).reshape(3, 1, 1, 1)
            a, b = a * root, b * root
        weight = self.weight("node")
        ab, bb = masked_mean(a * b, weight).sum(dim=1), masked_mean(b * b, weight).sum(dim=1)
        slope = ab / (bb + torch.finfo(bb.dtype).tiny)
        low, high = self.scales.slope_range
        size = (slope.abs() if signed else slope).clamp(low, high)
        return (torch.where(slope < 0, -size, size) if signed else size).reshape(-1, 1, 1, 1, 1)

    def centred(self, f: Field) -> Field:
        """f minus its mean over the sample."""
        return f - masked_mean(f, self.weight("node"))[:, :, None, None, None]

    def time_mean(self, f: Field, axes: str) -> Field:
        """The mean over time by the trapezoid rule with the true gaps, one frame long.

        Gaps with a frame at which a stencil of f, along `axes`, touches an invalid cell stay out; 0 where none is left.
        """
        grid, sound = self.bank.grid, self.sound(axes)
        low, high = neighbours(f, "t", grid)
        gaps = f.new_tensor(grid.gaps("t", f.shape[2])).reshape(-1, 1, 1)
        weight = gaps if sound is None else gaps * (face_mask(sound, "t", grid) > 0)
        total = weight.sum(dim=-3, keepdim=True)
        return (0.5 * weight * (low + high)).sum(dim=2, keepdim=True) / torch.where(total > 0, total, 1.0)


def _sum(*terms: Field, at: str = "node", symmetric: bool = False) -> Balance:
    return Balance({at: sum(terms[1:], start=terms[0])}, tuple((at, term) for term in terms), symmetric)


def _faces(state: State, f: FieldDerivatives) -> Balance:
    # The size to compare with: the field's own fluctuation across one cell.
    cell = min(min(state.bank.grid.gaps(axis, f.value.shape[DIM[axis]])) for axis in ("y", "x"))
    return Balance({axis: f.difference(axis) for axis in ("y", "x")}, (("node", state.centred(f.value) / cell),))


# Rigid body


def kinematic_consistency(state: State) -> Balance:
    """D_t d - v = 0 on half steps: the box form, exact for `cumulative_integral`."""
    return _sum(state.displacement.difference("t"), -state.velocity.mean("t"), at="t")


def low_strain(state: State) -> Balance:
    """eps = 0, against the size of the velocity gradient."""
    return Balance({"node": state.strain.value}, (("node", state.velocity.jacobian),), symmetric=True)


def stress_strain_closure(state: State) -> Balance:
    """sigma - kappa eps = 0: Hooke's law up to a scale."""
    sigma, eps = state.stress.value, state.strain.value
    return _sum(sigma, -state.slope(sigma, eps) * eps, symmetric=True)


def rigid_motion(state: State) -> Balance:
    """sym grad v = 0: only translations and rotations pass."""
    return Balance({"node": state.velocity.strain}, (("node", state.velocity.jacobian),), symmetric=True)


# Elastic


def displacement_wave(state: State) -> Balance:
    """D_tt d - c^2 (lap d - mean_t lap d) = 0; the mean, as d is measured from an arbitrary frame and not from rest."""
    d, c = state.displacement, state.scales.displacement_wave_speed
    return _sum(d.tt, -(c**2) * (d.lap - state.time_mean(d.lap, "yx")))


def velocity_wave(state: State) -> Balance:
    """D_tt v - c^2 lap v = 0."""
    return _sum(state.velocity.tt, -(state.scales.velocity_wave_speed**2) * state.velocity.lap)


def deformation_compatibility(state: State) -> Balance:
    """sym grad (D_t d) - eps = 0 on half steps: eps is a strain *rate*; the literal eps - sym grad d behind a flag."""
    d, eps = state.displacement, state.strain
    if state.scales.literal_compatibility:
        return _sum(eps.value, -d.strain, symmetric=True)
    rate = FieldDerivatives(d.strain, state.bank.grid).difference("t")
    return _sum(rate, -eps.mean("t"), at="t", symmetric=True)


# Fluid


def mass_continuity(state: State) -> Balance:
    """D_t rho + div(rho v) = 0, the divergence of the product: it telescopes."""
    flux = FieldDerivatives(state.density.value * state.velocity.value, state.bank.grid)
    return _sum(state.density.t, flux.div)


def momentum_balance(state: State) -> Balance:
    """rho (D_t v + v . grad v) + grad p - nu lap v = 0."""
    v, rho = state.velocity, state.density.value
    return _sum(rho * v.t, rho * v.advected_by(v.value), state.pressure.grad, -state.scales.viscosity * v.lap)


def pressure_regularity(state: State) -> Balance:
    """Face differences of p are small."""
    return _faces(state, state.pressure)


def density_stability(state: State) -> Balance:
    """rho stays above its floor, and its face differences are small."""
    rho = state.density
    faces = _faces(state, rho)
    return Balance({"node": torch.relu(state.scales.density_floor - rho.value), **faces.field}, faces.terms)


# Compressible flow


def compression_dynamics(state: State) -> Balance:
    """D_t (div v) + kappa lap p = 0: sound, linearised."""
    compression = FieldDerivatives(state.velocity.div, state.bank.grid)
    return _sum(compression.t, state.scales.compression * state.pressure.lap)


def pressure_density_closure(state: State) -> Balance:
    """(p - mean p) - kappa (rho - mean rho) = 0."""
    p, rho = state.centred(state.pressure.value), state.centred(state.density.value)
    return _sum(p, -state.slope(p, rho) * rho)


def gradient_regularity(state: State) -> Balance:
    """Face differences of div v are small."""
    return _faces(state, FieldDerivatives(state.velocity.div, state.bank.grid))


# Phase change


def phase_transport(state: State) -> Balance:
    """D_t phi + v . grad phi = 0: the phase is carried along."""
    return _sum(state.phase.t, state.phase.advected_by(state.velocity.value))


def _heat(state: State) -> tuple[Field, ...]:
    # T is mean-centred, so T div v alone would heat nothing where T = 0: the reference temperature comes back.
    T, v = state.temperature, state.velocity
    carried = T.advected_by(v.value) + (T.value + state.scales.reference_temperature) * v.div
    return T.t, carried, -state.scales.diffusivity * T.lap


def thermal_phase_coupling(state: State) -> Balance:
    """D_t T + v . grad T + (T + T_ref) div v - kappa lap T + L D_t phi = 0: melting (phi rises) takes heat."""
    return _sum(*_heat(state), state.scales.latent_heat * state.phase.t)


def density_phase_closure(state: State) -> Balance:
    """(rho - mean rho) - kappa (phi - mean phi) = 0; kappa of either sign (ice floats, wax sinks)."""
    rho, phi = state.centred(state.density.value), state.centred(state.phase.value)
    return _sum(rho, -state.slope(rho, phi, signed=True) * phi)


def support_regularity(state: State) -> Balance:
    """Face differences of phi are small."""
    return _faces(state, state.phase)


# Collision


def impulse_response(state: State) -> Balance:
    """D_t v - kappa J = 0, the mass absorbed in kappa."""
    dv, J = state.velocity.t, state.impulse.value
    return _sum(dv, -state.slope(dv, J) * J)


def contact_compression(state: State) -> Balance:
    """relu(-div d) - kappa |J| = 0: what is pressed together is being pushed."""
    squared = state.impulse.value.square().sum(dim=1, keepdim=True)
    size = torch.where(squared > 0, torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)  # no NaN slope at 0
    pressed = torch.relu(-state.displacement.div)
    return _sum(pressed, -state.slope(pressed, size) * size)


def impulse_propagation(state: State) -> Balance:
    """Face differences of J are small."""
    return _faces(state, state.impulse)


# Thermal


def heat_transport(state: State) -> Balance:
    """D_t T + v . grad T + (T + T_ref) div v - kappa lap T = 0."""
    return _sum(*_heat(state))


def thermal_regularity(state: State) -> Balance:
    """Face differences of T are small."""
    return _faces(state, state.temperature)


# Optical


def wave_propagation(state: State) -> Balance:
    """D_tt w - c^2 lap w = 0."""
    return _sum(state.wave.tt, -(state.scales.wave_speed**2) * state.wave.lap)


def support_gating(state: State) -> Balance:
    """(1 - phi) w = 0: no wave outside its support."""
    w = state.wave.value
    return Balance({"node": (1 - state.phase.value) * w}, (("node", w),))


def support_smoothness(state: State) -> Balance:
    """Face differences of phi are small."""
    return _faces(state, state.phase)
