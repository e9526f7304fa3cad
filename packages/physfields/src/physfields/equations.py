"""The 29 residuals of PILA, one short function each: zero when the named law holds, in the units of its terms.

A function reads a `State` and returns a `Balance` (see `physfields.balance`). phi = 1 is molten or active support.
The paper states these terms in words; the formulas are our choice of the plain equation that the words name.

References: PILA (Wang et al., 2026), Tables 6 and 7.
"""

import torch

from physfields.balance import Balance, Field, State, balance, faces
from physfields.derivatives import FieldDerivatives

# Rigid body


def kinematic_consistency(state: State) -> Balance:
    """D_t d - v = 0 on half steps: the box form, exact for `cumulative_integral`."""
    return balance(state.displacement.difference("t"), -state.velocity.mean("t"), at="t")


def low_strain(state: State) -> Balance:
    """eps = 0, against the size of the velocity gradient."""
    return Balance({"node": state.strain.value}, (("node", state.velocity.jacobian),), symmetric=True)


def stress_strain_closure(state: State) -> Balance:
    """sigma - kappa eps = 0: Hooke's law up to a scale."""
    sigma, eps = state.stress.value, state.strain.value
    return balance(sigma, -state.slope(sigma, eps) * eps, symmetric=True)


def rigid_motion(state: State) -> Balance:
    """sym grad v = 0: only translations and rotations pass."""
    return Balance({"node": state.velocity.strain}, (("node", state.velocity.jacobian),), symmetric=True)


# Elastic


def displacement_wave(state: State) -> Balance:
    """D_tt d - c^2 (lap d - mean_t lap d) = 0; the mean, as d is measured from an arbitrary frame and not from rest."""
    d, c = state.displacement, state.scales.displacement_wave_speed
    return balance(d.tt, -(c**2) * (d.lap - state.time_mean(d.lap)))


def velocity_wave(state: State) -> Balance:
    """D_tt v - c^2 lap v = 0."""
    return balance(state.velocity.tt, -(state.scales.velocity_wave_speed**2) * state.velocity.lap)


def deformation_compatibility(state: State) -> Balance:
    """sym grad (D_t d) - eps = 0 on half steps: eps is a strain *rate*; the literal eps - sym grad d behind a flag."""
    d, eps = state.displacement, state.strain
    if state.scales.literal_compatibility:
        return balance(eps.value, -d.strain, symmetric=True)
    rate = state.derived("strain of displacement", lambda: d.strain).difference("t")
    return balance(rate, -eps.mean("t"), at="t", symmetric=True)


# Fluid


def mass_continuity(state: State) -> Balance:
    """D_t rho + div(rho v) = 0, the divergence of the product: it telescopes."""
    flux = state.derived("mass flux", lambda: state.density.value * state.velocity.value)
    return balance(state.density.t, flux.div)


def momentum_balance(state: State) -> Balance:
    """rho (D_t v + v . grad v) + grad p - nu lap v = 0."""
    v, rho = state.velocity, state.density.value
    return balance(rho * v.t, rho * v.advected_by(v.value), state.pressure.grad, -state.scales.viscosity * v.lap)


def pressure_regularity(state: State) -> Balance:
    """Face differences of p are small."""
    return faces(state, state.pressure, state.centred("pressure"))


def density_stability(state: State) -> Balance:
    """rho stays above its floor, and its face differences are small."""
    rho = state.density
    smooth = faces(state, rho, state.centred("density"))
    return Balance({"node": torch.relu(state.scales.density_floor - rho.value), **smooth.field}, smooth.terms)


# Compressible flow


def _compression(state: State) -> FieldDerivatives:
    return state.derived("div v", lambda: state.velocity.div)


def compression_dynamics(state: State) -> Balance:
    """D_t (div v) + kappa lap p = 0: sound, linearised."""
    return balance(_compression(state).t, state.scales.compression * state.pressure.lap)


def pressure_density_closure(state: State) -> Balance:
    """(p - mean p) - kappa (rho - mean rho) = 0."""
    p, rho = state.centred("pressure"), state.centred("density")
    return balance(p, -state.slope(p, rho) * rho)


def gradient_regularity(state: State) -> Balance:
    """Face differences of div v are small."""
    compression = _compression(state)
    mean = state.mean(compression.value).reshape([-1] + [1] * (compression.value.ndim - 1))
    return faces(state, compression, compression.value - mean)


# Phase change


def phase_transport(state: State) -> Balance:
    """D_t phi + v . grad phi = 0: the phase is carried along."""
    return balance(state.phase.t, state.phase.advected_by(state.velocity.value))


def _heat(state: State) -> tuple[Field, ...]:
    # T is mean-centred, so T div v alone would heat nothing where T = 0: the reference temperature comes back.
    T, v = state.temperature, state.velocity

    def carried() -> Field:
        return T.advected_by(v.value) + (T.value + state.scales.reference_temperature) * v.div

    conducted = state.derived("conducted heat", lambda: -state.scales.diffusivity * T.lap).value
    return T.t, state.derived("carried heat", carried).value, conducted


def thermal_phase_coupling(state: State) -> Balance:
    """D_t T + v . grad T + (T + T_ref) div v - kappa lap T + L D_t phi = 0: melting (phi rises) takes heat."""
    return balance(*_heat(state), state.scales.latent_heat * state.phase.t)


def density_phase_closure(state: State) -> Balance:
    """(rho - mean rho) - kappa (phi - mean phi) = 0; kappa of either sign (ice floats, wax sinks)."""
    rho, phi = state.centred("density"), state.centred("phase")
    return balance(rho, -state.slope(rho, phi, signed=True) * phi)


def support_regularity(state: State) -> Balance:
    """Face differences of phi are small."""
    return faces(state, state.phase, state.centred("phase"))


# Collision


def impulse_response(state: State) -> Balance:
    """D_t v - kappa J = 0, the mass absorbed in kappa."""
    dv, J = state.velocity.t, state.impulse.value
    return balance(dv, -state.slope(dv, J) * J)


def contact_compression(state: State) -> Balance:
    """relu(-div d) - kappa |J| = 0: what is pressed together is being pushed."""
    squared = state.impulse.value.square().sum(dim=1, keepdim=True)
    size = torch.where(squared > 0, torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)  # no NaN slope at 0
    pressed = torch.relu(-state.displacement.div)
    return balance(pressed, -state.slope(pressed, size) * size)


def impulse_propagation(state: State) -> Balance:
    """Face differences of J are small."""
    return faces(state, state.impulse, state.centred("impulse"))


# Thermal


def heat_transport(state: State) -> Balance:
    """D_t T + v . grad T + (T + T_ref) div v - kappa lap T = 0."""
    return balance(*_heat(state))


def thermal_regularity(state: State) -> Balance:
    """Face differences of T are small."""
    return faces(state, state.temperature, state.centred("temperature"))


# Optical


def wave_propagation(state: State) -> Balance:
    """D_tt w - c^2 lap w = 0."""
    return balance(state.wave.tt, -(state.scales.wave_speed**2) * state.wave.lap)


def support_gating(state: State) -> Balance:
    """(1 - phi) w = 0: no wave outside its support."""
    w = state.wave.value
    return Balance({"node": (1 - state.phase.value) * w}, (("node", w),))


def support_smoothness(state: State) -> Balance:
    """Face differences of phi are small."""
    return faces(state, state.phase, state.centred("phase"))
