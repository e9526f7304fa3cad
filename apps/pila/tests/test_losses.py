"""Laws of the losses: eligibility, weights, masks, and what a perfect recovery costs."""

from dataclasses import replace

import pytest
import torch

import physfields as pf
from pila import losses
from pila.bank import PHASES

B = 4


@pytest.fixture
def anatomy(trained, backbone):
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        text = backbone.embed(["two balls collide"] * B)
    x_s, v = torch.randn(2, B, 16, 5, 8, 8, generator=g)
    labels = torch.eye(8)[[0, 2, 5, 7]]
    return trained.anatomy(x_s, v, torch.full((B,), 0.3), text, labels), labels


def test_flow_matching_is_zero_on_the_target():
    v = torch.randn(2, 16, 5, 8, 8)
    assert losses.flow_matching(v, v) == 0
    assert losses.flow_matching(v + 2, v) == pytest.approx(4.0)


def test_a_velocity_equal_to_the_flow_costs_nothing_and_its_displacement_is_consistent(trained, anatomy):
    a, _ = anatomy
    grid = trained.grid(5)
    terms = losses.observe(a.recovered, a.recovered.fields["velocity"], grid, trained.recipe.observe)
    terms = {name: term.item() for name, term in terms.items()}
    assert terms["velocity"] == pytest.approx(1e-3, rel=1e-3)  # the root of Charbonnier's 1e-6
    assert terms["strain"] == pytest.approx(0.5e-3, rel=1e-3)
    assert terms["kinematic"] < 1e-5
    swapped = losses.observe(a.recovered, a.recovered.fields["velocity"].flip(1), grid, trained.recipe.observe)
    assert swapped["velocity"] > 10 * terms["velocity"]


def test_clips_without_labels_owe_no_physics(trained, anatomy):
    a, labels = anatomy
    none = losses.physics(a, torch.zeros_like(labels), trained.grid(5), trained, trained.recipe, blend=0.5)
    some = losses.physics(a, labels, trained.grid(5), trained, trained.recipe, blend=0.5)
    assert none == 0
    assert some > 0


def test_physics_is_a_mean_over_clips(trained, anatomy, make_recipe):
    a, labels = anatomy
    recipe = make_recipe("physics.adaptive=false")
    grid = trained.grid(5)
    whole = losses.physics(a, labels, grid, trained, recipe, blend=0.0)
    parts = []
    for n in range(B):
        mine = torch.zeros_like(labels)
        mine[n] = labels[n]
        parts.append(losses.physics(a, mine, grid, trained, recipe, blend=0.0).item())
    assert whole.item() == pytest.approx(sum(parts), rel=1e-5)


def test_a_clip_with_two_labels_owes_the_mean_of_both_by_their_routing_weights(trained, backbone, make_recipe):
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        text = backbone.embed(["ink"])
    x_s, v = torch.randn(2, 1, 16, 5, 8, 8, generator=g)
    both = torch.eye(8)[[0]] + torch.eye(8)[[5]]
    a = trained.anatomy(x_s, v, torch.full((1,), 0.3), text, both)
    recipe, grid = make_recipe("physics.adaptive=false"), trained.grid(5)

    def owed(labels: torch.Tensor) -> float:
        return losses.physics(a, labels, grid, trained, recipe, blend=0.0).item()

    first, second, pi = owed(torch.eye(8)[[0]]), owed(torch.eye(8)[[5]]), a.routing.dense()[0]
    assert pi[0] != pi[5]
    assert first != pytest.approx(second, rel=0.1)
    expected = (pi[0] * first + pi[5] * second) / (pi[0] + pi[5])
    assert owed(both) == pytest.approx(expected.item(), rel=1e-4)
    halved = replace(a, proposals=replace(a.proposals, weights=0.5 * a.proposals.weights))  # a mean knows no scale
    alone = losses.physics(halved, torch.eye(8)[[0]], grid, trained, recipe, blend=0.0).item()
    assert alone == pytest.approx(first, rel=1e-4)


def test_physics_looks_where_the_experts_act_once_the_masks_are_blended(trained, anatomy, make_recipe):
    a, labels = anatomy
    recipe, grid = make_recipe("physics.adaptive=false", "physics.mask_floor=0"), trained.grid(5)
    here = torch.zeros_like(a.proposals.values)
    here[..., :4] = a.proposals.values[..., :4]  # the experts act in the left half alone
    left = replace(a, proposals=replace(a.proposals, values=here))
    bank = a.recovered.bank.clone()
    bank[..., 6:] += 3.0 * torch.randn(bank[..., 6:].shape, generator=torch.Generator().manual_seed(0))
    rough = replace(left, recovered=replace(left.recovered, bank=bank))  # a violation far from them

    def owed(what, blend: float) -> float:
        return losses.physics(what, labels, grid, trained, recipe, blend=blend).item()

    assert owed(rough, 1.0) == pytest.approx(owed(left, 1.0), rel=1e-4)
    assert owed(rough, 0.0) > 1.5 * owed(left, 0.0)


def test_each_family_contributes_and_none_is_zero(trained, anatomy, make_recipe):
    a, labels = anatomy
    grid = trained.grid(5)

    def value(families: str) -> float:
        recipe = make_recipe("physics.adaptive=false", f"physics.families={families}")
        return losses.physics(a, labels, grid, trained, recipe, blend=0.0).item()

    parts = [value(f"[{family}]") for family in ("pde_anchor", "kinematic", "closure", "stabilizer")]
    assert all(part > 0 for part in parts)
    assert value("[pde_anchor, kinematic, closure, stabilizer]") == pytest.approx(sum(parts), rel=1e-5)
    assert value("[]") == 0


def test_adaptive_weights_balance_the_terms_of_an_expert(trained):
    per_term = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    physics = trained.recipe.physics
    w = losses._weights(per_term, torch.tensor([8, 9]), trained.operators, physics)
    assert w.mean() == pytest.approx(1.0)
    assert w[0] / w[1] == pytest.approx(2.0, rel=1e-4)
    assert trained.operators.mean_square[8:10].tolist() == [2.0, 4.0]
    losses._weights(10 * per_term, torch.tensor([8, 9]), trained.operators, physics)
    assert trained.operators.mean_square[8] == pytest.approx(0.98 * 2 + 0.02 * 20)


@pytest.mark.parametrize(("phase", "count"), list(zip(PHASES, [3, 4, 6, 7, 8], strict=True)))
def test_each_phase_of_recovery_adds_its_equations(trained, anatomy, phase, count):
    a, _ = anatomy
    _, recovered = trained.recover(a.x0, torch.full((B,), 0.3), phase=phase)
    terms = losses.recover(recovered, a.x0, torch.ones(B, 8), trained.grid(5), phase, trained.recipe)
    assert len(terms) == count
    assert all(torch.isfinite(t) for t in terms.values())
    core = losses.recover(recovered, a.x0, torch.zeros(B, 8), trained.grid(5), phase, trained.recipe)
    assert set(core) == set(losses.RECOVERY["core"])  # unlabelled clips answer the observable equations alone


def test_a_residual_reaches_the_head_of_the_field_it_is_about(trained, anatomy):
    a, labels = anatomy
    _, recovered = trained.recover(a.x0, torch.full((B,), 0.3), phase="wave")
    terms = losses.recover(recovered, a.x0, labels, trained.grid(5), "wave", trained.recipe)
    terms["optical.wave_propagation"].backward()
    assert trained.afe.wave.out.weight.grad.abs().max() > 0
    assert trained.afe.impulse.out.weight.grad is None


def test_physics_pulls_less_on_smaller_fields_unless_it_is_relative(trained, anatomy, make_recipe):
    a, labels = anatomy
    homogeneous = labels * torch.tensor([1.0, 0, 0, 0, 0, 1, 0, 0])  # rigid, collision: quadratic in the fields
    grid = trained.grid(5)

    def value(size: float, *sets: str) -> float:
        pairs = replace(a.proposals, values=size * a.proposals.values)
        scaled = replace(a, recovered=replace(a.recovered, bank=size * a.recovered.bank), proposals=pairs)
        recipe = make_recipe("physics.adaptive=false", *sets)
        return losses.physics(scaled, homogeneous, grid, trained, recipe, blend=0.0).item()

    assert value(0.1) == pytest.approx(0.01 * value(1.0), rel=0.05)
    relative = "physics.relative=true"
    assert value(0.1, relative) == pytest.approx(value(1.0, relative), rel=0.05)


def test_the_grid_of_a_clip_has_the_times_of_its_latents(trained):
    assert trained.grid(5) == pf.Grid.from_latent_times([0.0, 0.625, 1.625, 2.625, 3.625])
