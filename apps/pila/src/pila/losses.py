"""The losses of PILA's stages; each returns scalars by name.

Residuals are in latent units and balanced by adaptive weights of mean 1. The obvious alternative, dividing each by
the size of its own terms (`physics.relative`), feeds on itself: shrinking a field shrinks the divisor, so the gradient
grows as the field dies (measured: gradient norm .3 -> 400 and a velocity forgotten within 60 steps). Labels
decide which mechanism's residuals a clip has to answer. Nothing here is a simulator's ground truth: what supervises is
optical flow of the pixels, the equations, and flow matching.

References: PILA (Wang et al., 2026), Eq. 6, 7 and 11, stages A and B; the form of L_A and L_B and the adaptive
weights are our choice.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

import physfields as pf
from physexperts import MECHANISMS
from physfields.residuals import PILA, evaluate
from pila import masks
from pila.adapter import Anatomy, PilaAdapter
from pila.afe import Recovered
from pila.bank import COMPONENTS, PHASES, channels_of
from pila.config import Observe, Physics, Recipe
from pila.operators import RECIPES, Operators

__all__ = ["flow_matching", "observe", "physics", "recover"]

RECOVERY: dict[str, tuple[str, ...]] = {
    "core": ("fluid.mass_continuity", "fluid.momentum_balance", "rigid_body.kinematic_consistency"),
    "phase": ("phase_change.phase_transport",),
    "temperature": ("phase_change.thermal_phase_coupling", "thermal.heat_transport"),
    "impulse": ("collision.impulse_response",),
    "wave": ("optical.wave_propagation",),
}
"""Residuals that each phase of recovery adds; those of core hold for every clip, the others for clips with that
label.
"""


def flow_matching(velocity: Float[Tensor, "b c t h w"], target: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """L_FM = mean |v~ - (eps - x0)|^2."""
    return (velocity - target).square().mean()


def observe(
    recovered: Recovered, flow: Float[Tensor, "b 2 t h w"], grid: pf.Grid, weights: Observe
) -> dict[str, Float[Tensor, ""]]:
    """L_A: velocity against optical flow, strain rate against the flow's, displacement against velocity."""
    fields = recovered.fields
    terms = {
        "velocity": _charbonnier(fields["velocity"] - flow),
        "strain": weights.strain_weight * _charbonnier(fields["strain"] - pf.strain_rate(flow, grid)),
    }
    if weights.kinematic_weight:
        rate = pf.time_derivative(fields["displacement"], grid, at="half")
        terms["kinematic"] = (
            weights.kinematic_weight * (rate - pf.face_mean(fields["velocity"], "t", grid)).abs().mean()
        )
    return terms


def recover(
    recovered: Recovered,
    x0: Float[Tensor, "b c t h w"],
    labels: Float[Tensor, "b 8"],
    grid: pf.Grid,
    phase: str,
    recipe: Recipe,
) -> dict[str, Float[Tensor, ""]]:
    """L_B: the equations of every field that `phase` has reached, each over the clips that it concerns and divided by
    the size of the batch: a rare mechanism does not shout.
    """
    mask = _recovery_mask(recovered, x0, labels, grid, recipe)
    wanted = [key for name in list(PHASES)[: list(PHASES).index(phase) + 1] for key in RECOVERY[name]]
    fields = _complete(recovered.fields)
    terms = {}
    for key in wanted:
        mechanism, family = key.split(".")[0], _FAMILY[key]
        everybody = key in RECOVERY["core"]
        rows = torch.arange(len(x0)) if everybody else labels[:, MECHANISMS.index(mechanism)].nonzero()[:, 0].cpu()
        if family not in recipe.physics.families or not len(rows):
            continue
        found = evaluate(
            {slot: f[rows] for slot, f in fields.items()},
            grid,
            [mechanism],
            families=[family],
            mask=mask[rows],
            scales=recipe.physics.scales,
            relative=recipe.physics.relative,
        )
        terms[key] = found[key].loss.sum() / len(x0)
    return terms


def physics(
    a: Anatomy,
    labels: Float[Tensor, "b 8"],
    grid: pf.Grid,
    adapter: PilaAdapter,
    recipe: Recipe,
    *,
    blend: float,
) -> Float[Tensor, ""]:
    """L_phys: residuals of each labelled and selected expert's own refined bank, weighed by its routing weight (Eq.
    6, 7).

    `blend` goes from 0 (bootstrap mask) to 1 (active mask).
    """
    b, pairs = len(labels), a.proposals
    eligible = labels[pairs.samples, pairs.experts] > 0
    mask = masks.blend(_bootstrap(a.recovered, a.x0, grid, recipe.physics), _active_mask(a, eligible, recipe), blend)
    total, weight = a.x0.new_zeros(b), a.x0.new_zeros(b)
    for k, mechanism in enumerate(MECHANISMS):
        rows = (eligible & (pairs.experts == k)).nonzero()[:, 0]
        if not len(rows):
            continue
        samples, pi = pairs.samples[rows], pairs.weights[rows]
        fields = adapter.afe.readout(a.recovered.bank[samples] + pairs.values[rows])
        found = evaluate(
            fields,
            grid,
            [mechanism],
            families=recipe.physics.families,
            mask=mask[samples],
            scales=recipe.physics.scales,
            relative=recipe.physics.relative,
        )
        if found:
            per_term = torch.stack([r.loss for r in found.values()], 1)
            numbers = torch.tensor([_NUMBER[key] for key in found], device=per_term.device)
            loss = (per_term * _weights(per_term, numbers, adapter.operators, recipe.physics)).sum(1)
            total = total.index_add(0, samples, pi * loss)
            weight = weight.index_add(0, samples, pi)
    return (total / (weight + 1e-6)).mean()


@torch.no_grad()
def _weights(
    losses: Float[Tensor, "n j"], numbers: Tensor, operators: Operators, physics: Physics
) -> Float[Tensor, " j"]:
    """w_kj = 1 / running mean square, with mean 1 over the expert's terms; remembers this batch."""
    if not physics.adaptive:
        return torch.ones_like(losses[0])
    now, before = losses.mean(0), operators.mean_square[numbers]
    running = torch.where(before == 0, now, physics.memory * before + (1 - physics.memory) * now)
    operators.mean_square[numbers] = running
    weights = 1 / (running + 1e-6)
    return (weights / weights.mean()).clamp(*physics.bounds)


def _active_mask(a: Anatomy, eligible: Tensor, recipe: Recipe) -> Float[Tensor, "b 1 t h w"]:
    """Where the labelled experts change the bank: sum_k pi_k |dP_k|."""
    pairs = a.proposals
    size = pairs.weights.view(-1, 1, 1, 1, 1) * pairs.values.square().sum(1, keepdim=True).sqrt() * _row(eligible)
    energy = torch.zeros_like(a.x0[:, :1]).index_add(0, pairs.samples, size.detach())
    return masks.active(energy, quantile=recipe.physics.mask_quantile, floor=recipe.physics.mask_floor)


def _recovery_mask(
    recovered: Recovered, x0: Tensor, labels: Tensor, grid: pf.Grid, recipe: Recipe
) -> Float[Tensor, "b 1 t h w"]:
    """Half where things move, half where the fields of the labelled mechanisms stand out from their mean."""
    channels = torch.tensor([channels_of(RECIPES[m]) for m in MECHANISMS], dtype=labels.dtype, device=labels.device)
    own = (labels @ channels).clamp(max=1)[:, :, None, None, None]
    bank = recovered.bank.detach()
    energy = (own * (bank - bank.mean((2, 3, 4), keepdim=True))).square().sum(1, keepdim=True).sqrt()
    p = recipe.physics
    acting = masks.active(energy, quantile=p.mask_quantile, floor=p.mask_floor)
    share = recipe.recover.active_share * _row(labels.sum(1) > 0)  # a clip without labels has motion alone
    moving = _bootstrap(recovered, x0, grid, p)
    return (1 - share) * moving + share * acting


def _bootstrap(recovered: Recovered, x0: Tensor, grid: pf.Grid, p: Physics) -> Float[Tensor, "b 1 t h w"]:
    return masks.bootstrap(
        recovered.fields["velocity"].detach(),
        x0,
        grid,
        weights=p.mask_weights,
        quantile=p.mask_quantile,
        floor=p.mask_floor,
    )


def _complete(fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros in place of fields that are not recovered yet; the residuals that would read them are not asked for."""
    like = next(iter(fields.values()))[:, :1]
    return {slot: fields.get(slot, torch.zeros_like(like).expand(-1, c, -1, -1, -1)) for slot, c in COMPONENTS.items()}


def _charbonnier(error: Tensor) -> Tensor:
    return (error.square() + 1e-6).sqrt().mean()


def _row(flags: Tensor) -> Tensor:
    return flags.float().view(-1, 1, 1, 1, 1)


_NUMBER = {term.key: index for index, term in enumerate(PILA)}
_FAMILY = {term.key: term.family for term in PILA}
