"""Laws of the model: identity at the start, fields that obey their own definitions, routing, masks and gate."""

import pytest
import torch

import physfields as pf
from backbones import Text, attach, sample
from physexperts import MECHANISMS
from pila import masks
from pila.adapter import PilaAdapter
from pila.afe import AFE
from pila.bank import CHANNELS, COMPONENTS, PHASES, SLOTS, channels_of, pack, read
from pila.gate import gate
from pila.operators import RECIPES

B = 3


@pytest.fixture
def batch(backbone):
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        text = backbone.embed(["two balls collide", "ink", ""])
    x_s, v = torch.randn(2, B, 16, 5, 8, 8, generator=g)
    return x_s, v, torch.tensor([0.1, 0.5, 1.0]), text, torch.eye(8)[[5, 2, 0]]


def test_a_fresh_adapter_equals_the_base_bit_for_bit_in_the_stock_pipeline(backbone, make_recipe):
    prompts = ["a blue ball is thrown to the left", "two balls collide"]
    base = sample(backbone, prompts, seed=3, steps=3, guidance=1.5)
    for mode in ("conditional", "after_guidance", "per_branch"):
        with attach(backbone, PilaAdapter(backbone.spec, make_recipe()), mode=mode):
            assert torch.equal(sample(backbone, prompts, seed=3, steps=3, guidance=1.5), base)


def test_a_trained_adapter_changes_the_video_and_detaching_restores_it(backbone, trained):
    base = sample(backbone, ["two balls collide"], seed=3, steps=3)
    with attach(backbone, trained):
        changed = sample(backbone, ["two balls collide"], seed=3, steps=3)
    assert (changed - base).abs().max() > 1e-4
    assert torch.equal(sample(backbone, ["two balls collide"], seed=3, steps=3), base)


def test_without_flow_correction_a_trained_adapter_equals_the_base(backbone, make_recipe):
    adapter = PilaAdapter(backbone.spec, make_recipe("correct=none"))
    torch.nn.init.normal_(adapter.decoder.out.weight)
    base = sample(backbone, ["ink"], seed=0, steps=2)
    with attach(backbone, adapter):
        assert torch.equal(sample(backbone, ["ink"], seed=0, steps=2), base)


def test_a_rotation_keeps_its_sign_through_the_packed_bank():
    y, x = torch.meshgrid(torch.arange(8.0) - 3.5, torch.arange(8.0) - 3.5, indexing="ij")
    rate = 0.3
    turning = torch.stack([rate * x, -rate * y])[None, :, None].expand(1, 2, 5, 8, 8)  # x turns towards y: y is down
    bank = pack({"velocity": turning})
    grid = pf.Grid()
    assert torch.allclose(pf.curl(read(bank, "velocity"), grid), torch.full((1, 1, 5, 8, 8), 2 * rate), atol=1e-6)
    assert pf.strain_rate(read(bank, "velocity"), grid).abs().max() < 1e-6
    flipped = read(bank, "velocity").flip(1)  # (x, y) taken for (y, x) is a strain and no rotation
    assert pf.curl(flipped, grid).abs().max() < 1e-6


def test_a_fresh_velocity_head_reads_what_was_written(trained, backbone, make_recipe):
    afe = PilaAdapter(backbone.spec, make_recipe()).afe
    v = torch.randn(2, 2, 5, 8, 8)
    assert torch.allclose(afe.readout(pack({"velocity": v}))["velocity"], v, atol=1e-6)


def test_every_slot_survives_packing_by_name():
    fields = {slot: torch.randn(2, c, 3, 4, 4) for slot, c in COMPONENTS.items()}
    bank = pack(fields)
    assert bank.shape[1] == CHANNELS == sum(s.stop - s.start for s in SLOTS.values())
    for slot, field in fields.items():
        assert torch.equal(read(bank, slot), field)


def test_displacement_is_the_integral_of_velocity_with_true_latent_times(trained, batch):
    x_s, _v, sigma, _, _ = batch
    _, recovered = trained.recover(x_s, sigma)
    grid = trained.grid(5)
    assert grid.gaps("t", 5)[0] == pytest.approx(0.625)
    d, u = recovered.fields["displacement"], recovered.fields["velocity"]
    box = pf.time_derivative(d, grid, at="half") - pf.face_mean(u, "t", grid)
    assert box.abs().max() < 1e-5 * u.abs().max()
    assert d[:, :, 2].abs().max() == 0  # anchored in the middle
    constant_step = (d[:, :, 1] - d[:, :, 0]) - 0.5 * (u[:, :, 0] + u[:, :, 1])
    assert constant_step.abs().max() > 0.01 * u.abs().max()


def test_recovered_fields_keep_their_constraints(trained, batch):
    x_s, _, sigma, _, _ = batch
    _, r = trained.recover(x_s, sigma)
    f = r.fields
    for centred in ("pressure", "temperature"):
        assert f[centred].mean((1, 2, 3, 4)).abs().max() < 1e-5
    assert f["density"].min() > trained.recipe.anchors.density_floor
    assert f["phase"].min() > 0
    assert f["phase"].max() < 1
    spherical = torch.cat([f["pressure"], f["pressure"], torch.zeros_like(f["pressure"])], 1)
    closure = f["stress"] + trained.recipe.anchors.pressure_scale * spherical
    assert torch.allclose(closure, 2 * trained.recipe.anchors.shear_scale * f["strain"], atol=1e-5)
    assert torch.allclose(f["strain"], pf.strain_rate(f["velocity"], trained.grid(5)))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("mode", ["anchored", "free_kinematics", "scaffold"])
def test_slots_that_a_phase_has_not_reached_are_exactly_zero(phase, mode):
    torch.manual_seed(0)
    afe = AFE(8, width=4, density_floor=0.01, pressure_scale=1.0, shear_scale=0.5, mode=mode)
    r = afe(torch.randn(2, 8, 5, 6, 6), pf.Grid(), phase)
    for slot, place in SLOTS.items():
        assert bool(r.bank[:, place].any()) == (slot in PHASES[phase]), slot
    assert set(r.fields) == set(PHASES[phase])


def test_fields_are_made_in_full_precision_under_autocast(trained, batch):
    x_s, _, sigma, _, _ = batch
    with torch.autocast("cpu", torch.bfloat16):
        _, r = trained.recover(x_s, sigma)
    assert r.bank.dtype == torch.float32
    exact = pf.strain_rate(r.fields["velocity"], trained.grid(5))
    assert torch.allclose(r.fields["strain"], exact, atol=1e-6)


def test_k_experts_answer_and_a_label_brings_its_own(trained, batch):
    x_s, v, sigma, text, labels = batch
    a = trained.anatomy(x_s, v, sigma, text, labels)
    assert a.routing.selected.sum(1).tolist() == [4] * B
    assert torch.allclose(a.routing.weights.sum(1), torch.ones(B))
    assert a.routing.selected[torch.arange(B), labels.argmax(1)].all()


def test_with_k_zero_the_bank_is_left_as_it_was(backbone, make_recipe, batch):
    x_s, v, sigma, text, labels = batch
    adapter = PilaAdapter(backbone.spec, make_recipe("routing.k=0"))
    torch.nn.init.normal_(adapter.decoder.out.weight)
    a = adapter.anatomy(x_s, v, sigma, text, labels)
    assert torch.equal(a.refined, a.recovered.bank)
    assert not len(a.proposals.values)
    assert a.correction.any()


def test_an_operator_changes_only_the_fields_of_its_recipe(trained, batch):
    x_s, v, sigma, text, labels = batch
    p = trained.anatomy(x_s, v, sigma, text, labels).proposals
    for value, expert in zip(p.values, p.experts.tolist(), strict=True):
        allowed = torch.tensor(channels_of(RECIPES[MECHANISMS[expert]]))
        assert value[~allowed].abs().max() == 0
        assert value[allowed].abs().max() > 0


def test_the_refined_bank_is_the_bank_plus_weighted_proposals(trained, batch):
    x_s, v, sigma, text, labels = batch
    a = trained.anatomy(x_s, v, sigma, text, labels)
    total = a.recovered.bank.clone()
    for i, (n, w) in enumerate(zip(a.proposals.samples.tolist(), a.proposals.weights, strict=True)):
        total[n] = total[n] + w * a.proposals.values[i]
    assert torch.allclose(a.refined, total, atol=1e-5)


def test_one_clip_is_not_changed_by_its_neighbours_in_the_batch(trained, batch):
    x_s, v, sigma, text, labels = batch
    together = trained.anatomy(x_s, v, sigma, text, labels).correction
    for n in range(B):
        alone = trained.anatomy(x_s[n : n + 1], v[n : n + 1], sigma[n : n + 1], text[n : n + 1], labels[n : n + 1])
        assert torch.allclose(alone.correction[0], together[n], atol=1e-5)


def test_padding_of_the_text_does_not_reach_the_condition(trained, batch):
    _, _, sigma, text, labels = batch
    longer = Text(
        torch.cat([text.features, torch.zeros(B, 5, 16)], 1), torch.cat([text.mask, torch.zeros(B, 5) > 0], 1)
    )
    short = trained.condition(text.features, text.mask, labels, sigma)
    assert torch.allclose(short, trained.condition(longer.features, longer.mask, labels, sigma), atol=1e-6)


def test_the_gate_is_quadratic_and_never_below_its_floor():
    sigma = torch.linspace(0, 1, 11)
    g = gate(sigma, 0.25)
    assert g[0] == 1
    assert g[-1] == 0.25
    assert (g.diff() < 0).all()
    assert torch.allclose(g.diff().diff(), torch.full((9,), 2 * 0.75 * 0.01), atol=1e-6)


def test_the_correction_is_gated_by_the_noise_level(trained, batch):
    x_s, v, _, text, labels = batch
    floor = trained.recipe.network.gate_floor
    trained.encoder.sigma.linear.weight.data.zero_()
    trained.condition.sigma.linear.weight.data.zero_()
    zero = torch.zeros_like(v)  # with v = 0 the estimate does not depend on sigma: only the gate is left
    clean = trained.anatomy(x_s, zero, torch.zeros(B), text, labels).correction
    noisy = trained.anatomy(x_s, zero, torch.ones(B), text, labels).correction
    assert torch.allclose(noisy, floor * clean, atol=1e-5)


def test_masks_stay_between_floor_and_one_and_find_what_moves():
    velocity, x0 = torch.zeros(1, 2, 5, 8, 8), torch.zeros(1, 4, 5, 8, 8)
    velocity[:, :, 2:, 2:4, 2:4] = 1.0
    m = masks.bootstrap(velocity, x0, pf.Grid(), weights=(0.55, 0.25, 0.20), quantile=0.95, floor=0.08)
    assert m.min() == pytest.approx(0.08)
    assert m.max() == 1
    assert m[..., 2:4, 2:4].mean() > 3 * m[..., 6:, 6:].mean()
    still = masks.bootstrap(0 * velocity, x0, pf.Grid(), weights=(0.55, 0.25, 0.20), quantile=0.95, floor=0.08)
    assert torch.equal(still, torch.full_like(still, 0.08))


def test_the_sigma_range_limits_where_sampling_is_corrected(trained, batch):
    x_s, v, _, text, _ = batch
    trained.prepare(["two balls collide", "ink", ""], text)
    trained.sigma_range = (0.4, 0.6)
    assert trained.correction(x_s, v, torch.full((B,), 0.5), text).any()
    assert not trained.correction(x_s, v, torch.full((B,), 0.7), text).any()


def test_sampling_without_prepared_prompts_says_what_to_do(trained, batch):
    x_s, v, sigma, text, _ = batch
    with pytest.raises(ValueError, match="prepare"):
        trained.correction(x_s, v, sigma, text)
