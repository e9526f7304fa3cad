"""Laws of waves: the scalar wave, linear elasticity, Maxwell's equations on a plane (TE).

Each function reads a `State` and returns a `Balance`. w is a wave, q its source, d displacement, f force per volume.
TE on a plane: the electric field lies in the plane (E_y, E_x), the magnetic one stands on it (H_z), x, y, z
right-handed, so that curl E = D_x E_y - D_y E_x.
"""

import torch

from physfields.balance import Balance, State, balance
from physfields.fields import symmetric_pairs
from physfields.flows import grad_div


def propagation(state: State) -> Balance:
    """D_tt w - c^2 lap w - q = 0."""
    source = state.optional("source")
    c = state.constant("wave_speed")
    return balance(state.wave.tt, -(c**2 * state.wave.lap), *([] if source is None else [-source.value]))


def elastic_momentum(state: State) -> Balance:
    """rho D_tt d - (lambda + mu) grad div d - mu lap d - f = 0."""
    d, mu, force = state.displacement, state.constant("lame_mu"), state.optional("force")
    terms = [state.constant("density") * d.tt, -((state.constant("lame_lambda") + mu) * grad_div(d)), -(mu * d.lap)]
    return balance(*terms, *([] if force is None else [-force.value]))


def hooke(state: State) -> Balance:
    """sigma - lambda tr(eps) I - 2 mu eps = 0 with eps = sym grad d: a symmetric tensor."""
    d, grid = state.displacement, state.bank.grid
    identity = d.value.new_tensor([float(i == j) for i, j in symmetric_pairs(len(grid.space))])
    pressed = identity.reshape([-1] + [1] * len(grid.axes)) * d.div
    return balance(
        state.stress.value,
        -(state.constant("lame_lambda") * pressed),
        -(2 * state.constant("lame_mu") * d.strain),
        symmetric=True,
    )


def faraday(state: State) -> Balance:
    """mu D_t H + curl E = 0."""
    _on_a_plane(state)
    return balance(state.constant("permeability") * state.magnetic.t, state.electric.curl)


def ampere(state: State) -> Balance:
    """eps D_t E - curl H = 0: (y, x) components eps D_t E_y + D_x H and eps D_t E_x - D_y H."""
    _on_a_plane(state)
    H = state.magnetic
    return balance(state.constant("permittivity") * state.electric.t, torch.cat([H.x, -H.y], dim=1))


def gauss(state: State) -> Balance:
    """div E = 0 where there is no charge, against the size of the gradient of E."""
    _on_a_plane(state)
    return Balance({"node": state.electric.div}, (("node", state.electric.jacobian),))


def _on_a_plane(state: State) -> None:
    if len(state.bank.grid.space) != 2:
        raise ValueError(f"maxwell_te: expected a plane (t, y, x), got axes {state.bank.grid.axes}.")
