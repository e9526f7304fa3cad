"""Laws of flow: incompressible and compressible Navier-Stokes, Euler, shallow water, Burgers; on a plane or in space.

Each function reads a `State` and returns a `Balance`. v is velocity, rho density, p pressure, h depth, f force per
volume (per mass in Burgers); constants are fields of `Constants`. Second derivatives are compact, also in grad div v:
a first derivative of a first derivative along one axis would lose an order at its edges.
"""

import torch

from physfields.balance import Balance, Field, State, balance
from physfields.derivatives import FieldDerivatives
from physfields.fields import symmetric_pairs
from physfields.operators import tensor_divergence


def grad_div(v: FieldDerivatives) -> Field:
    """grad div v, from compact second derivatives and mixed ones."""
    space = v.grid.space

    def component(i: int) -> Field:
        parts = []
        for j, axis in enumerate(space):
            if i == j:
                parts.append(v.d(axis, 2)[:, j : j + 1])
            else:
                parts.append(FieldDerivatives(v.d(axis, 1)[:, j : j + 1], v.grid).d(space[i], 1))
        return sum(parts[1:], start=parts[0])

    return torch.cat([component(i) for i in range(len(space))], dim=1)


def _pushed(state: State, *terms: Field) -> Balance:
    force = state.optional("force")
    return balance(*terms, *([] if force is None else [-force.value]))


def incompressibility(state: State) -> Balance:
    """div v = 0, against the size of the velocity gradient."""
    return Balance({"node": state.velocity.div}, (("node", state.velocity.jacobian),))


def incompressible_momentum(state: State) -> Balance:
    """rho (D_t v + v . grad v) + grad p - mu lap v - f = 0, rho constant."""
    v, rho, mu = state.velocity, state.constant("density"), state.constant("viscosity")
    return _pushed(state, rho * v.t, rho * v.advected_by(v.value), state.pressure.grad, -(mu * v.lap))


def vorticity_transport(state: State) -> Balance:
    """D_t w + v . grad w - nu lap w = 0 for the curl w of v on a plane, nu = mu / rho: no pressure is needed."""
    if len(state.bank.grid.space) != 2:
        raise ValueError("vorticity_transport: expected a plane (t, y, x); in space vortices also stretch.")
    v, grid = state.velocity, state.bank.grid
    w = state.derived("curl v", lambda: v.curl)
    nu = state.constant("viscosity") / state.constant("density")

    def of(component: int, y: int, x: int) -> Field:
        inner = v.d("y", y) if y else v.value
        field = FieldDerivatives(inner[:, component : component + 1], grid)
        return field.d("x", x) if x else field.value

    # Derivatives of curl v from v itself: compact along each axis, where derivatives of a derivative lose orders.
    w_y, w_x = of(0, 1, 1) - of(1, 2, 0), of(0, 0, 2) - of(1, 1, 1)
    lap = of(0, 2, 1) + of(0, 0, 3) - of(1, 3, 0) - of(1, 1, 2)
    return balance(w.t, v.value[:, :1] * w_y + v.value[:, 1:] * w_x, -(nu * lap))


def mass_conservation(state: State) -> Balance:
    """D_t rho + div(rho v) = 0, the divergence of the product: it telescopes."""
    flux = state.derived("mass flux", lambda: state.density.value * state.velocity.value)
    return balance(state.density.t, flux.div)


def compressible_momentum(state: State) -> Balance:
    """rho (D_t v + v . grad v) + grad p - mu lap v - (zeta + mu / 3) grad div v - f = 0."""
    v, rho, mu = state.velocity, state.density.value, state.constant("viscosity")
    squeezed = -((state.constant("bulk_viscosity") + mu / 3) * grad_div(v))
    return _pushed(state, rho * v.t, rho * v.advected_by(v.value), state.pressure.grad, -(mu * v.lap), squeezed)


def compressible_energy(state: State) -> Balance:
    """D_t p + v . grad p + gamma p div v - (gamma - 1) (k lap(p / rho) + friction) = 0, a perfect gas."""
    v, p, gamma, mu = state.velocity, state.pressure, state.constant("heat_ratio"), state.constant("viscosity")
    temperature = state.derived("p / rho", lambda: p.value / state.density.value)
    double = v.value.new_tensor([1.0 if i == j else 2.0 for i, j in symmetric_pairs(len(state.bank.grid.space))])
    sheared = (v.strain.square() * double.reshape([-1] + [1] * len(state.bank.grid.axes))).sum(dim=1, keepdim=True)
    friction = 2 * mu * sheared + (state.constant("bulk_viscosity") - 2 * mu / 3) * v.div.square()
    heated = -((gamma - 1) * (state.constant("conductivity") * temperature.lap))
    return balance(p.t, p.advected_by(v.value), gamma * p.value * v.div, heated, -((gamma - 1) * friction))


def euler_momentum(state: State) -> Balance:
    """D_t (rho v) + div(rho v v) + grad p = 0, in conservative form."""
    v, grid = state.velocity.value, state.bank.grid
    flux = state.derived("mass flux", lambda: state.density.value * v)
    pairs = symmetric_pairs(len(grid.space))
    carried = torch.cat([flux.value[:, i : i + 1] * v[:, j : j + 1] for i, j in pairs], dim=1)
    return balance(flux.t, tensor_divergence(carried, grid), state.pressure.grad)


def euler_energy(state: State) -> Balance:
    """D_t E + div((E + p) v) = 0 with E = p / (gamma - 1) + rho |v|^2 / 2, a perfect gas."""
    v, p = state.velocity.value, state.pressure.value

    def energy() -> Field:
        kinetic = 0.5 * state.density.value * v.square().sum(dim=1, keepdim=True)
        return p / (state.constant("heat_ratio") - 1) + kinetic

    E = state.derived("energy", energy)
    return balance(E.t, state.derived("energy flux", lambda: (E.value + p) * v).div)


def shallow_mass(state: State) -> Balance:
    """D_t h + div(h v) = 0."""
    return balance(state.height.t, state.derived("water flux", lambda: state.height.value * state.velocity.value).div)


def shallow_momentum(state: State) -> Balance:
    """D_t v + v . grad v + g grad(h + b) = 0 over a bed b (flat unless given)."""
    v, g, bed = state.velocity, state.constant("gravity"), state.optional("bed")
    terms = [v.t, v.advected_by(v.value), g * state.height.grad]
    return balance(*terms, *([] if bed is None else [g * bed.grad]))


def burgers_momentum(state: State) -> Balance:
    """D_t v + v . grad v - nu lap v - f = 0."""
    v = state.velocity
    return _pushed(state, v.t, v.advected_by(v.value), -(state.constant("viscosity") * v.lap))
