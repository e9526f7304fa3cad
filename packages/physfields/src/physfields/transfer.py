"""Laws of transfer: heat, advection and diffusion, phase separation (Cahn-Hilliard), a melting front (Stefan).

Each function reads a `State` and returns a `Balance`. T is temperature, c concentration, q a source per time, s a level
set: positive in the melt, zero on the front, its size that of a distance near the front. Temperature in a Stefan
problem is measured from melting.
"""

import torch

from physfields.balance import Balance, Field, State, balance
from physfields.masks import erode_valid
from physfields.operators import biharmonic


def _fed(state: State, *terms: Field) -> Balance:
    source = state.optional("source")
    return balance(*terms, *([] if source is None else [-source.value]))


def conduction(state: State) -> Balance:
    """D_t T - alpha lap T - q = 0."""
    return _fed(state, state.temperature.t, -(state.constant("diffusivity") * state.temperature.lap))


def advection_diffusion(state: State) -> Balance:
    """D_t c + div(c v) - D lap c - q = 0, in conservative form."""
    c = state.concentration
    flux = state.derived("substance flux", lambda: c.value * state.velocity.value)
    return _fed(state, c.t, flux.div, -(state.constant("diffusivity") * c.lap))


def separation(state: State) -> Balance:
    """D_t c - M lap(c^3 - c - gamma lap c) = 0; the phases are c = -1 and c = 1."""
    c, mobility = state.concentration, state.constant("mobility")
    well = state.derived("c^3 - c", lambda: c.value**3 - c.value)
    stiff = mobility * (state.constant("interface") * biharmonic(c.value, state.bank.grid))
    return balance(c.t, -(mobility * well.lap), stiff)


def stefan_conduction(state: State) -> Balance:
    """D_t T - alpha lap T = 0 wherever the whole stencil lies in one phase; 0 elsewhere."""
    T, inside = state.temperature, _one_phase(state)
    terms = (torch.where(inside, T.t, 0.0), torch.where(inside, -(state.constant("diffusivity") * T.lap), 0.0))
    return balance(*terms)


def stefan_front(state: State) -> Balance:
    """L V - alpha |grad T| = 0 at the front, read off the melt beside it: the front moves by the heat that arrives.

    V = D_t s / |grad s|. T vanishes on the front, so its slope there is 2 T / distance - (slope here), to second order.
    """
    T, s = state.temperature, state.level_set
    steep = s.grad.square().sum(dim=1, keepdim=True)
    steep = torch.where(steep > 0, steep, 1.0).sqrt()
    distance = s.value / steep
    grid = state.bank.grid
    cell = max(max(grid.gaps(axis, s.value.shape[grid.dim(axis)])) for axis in grid.space)
    beside = _one_phase(state) & (s.value > 0) & (distance < state.constants.front_band * cell)
    here = (T.grad * s.grad).sum(dim=1, keepdim=True) / steep
    slope = 2 * T.value / torch.where(beside, distance, 1.0) - here
    gained = torch.where(beside, state.constant("latent_heat") * s.t / steep, 0.0)
    return balance(gained, torch.where(beside, -(state.constant("diffusivity") * slope), 0.0))


def _one_phase(state: State) -> torch.Tensor:
    melt, grid = state.level_set.value > 0, state.bank.grid
    reach = tuple(order // 2 for order in grid.order)
    return erode_valid(melt, grid, reach) | erode_valid(~melt, grid, reach)
