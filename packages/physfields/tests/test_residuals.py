"""Each of the 29 residuals vanishes on an exact solution and notices each field it reads; batches and scales."""

import math

import pytest
import torch

import physfields as pf
from physfields import exact
from physfields.residuals import COMPONENTS, EXPERTS, FAMILIES, PILA, evaluate

D = torch.float64
SCALES = pf.Scales(viscosity=0.1, diffusivity=0.1, compression=1.0, latent_heat=1.0, reference_temperature=1.0)
KEYS = [term.key for term in PILA]


def grid_of(n, order, length=3.0, duration=2.0):
    return pf.Grid((duration / n, length / n, length / n), order=order), (n + 1, n + 1, n + 1)


def constants(at, **values):
    t = at[0]
    return {
        name: torch.cat([torch.full_like(t, v) for v in (value if isinstance(value, tuple) else (value,))], dim=1)
        for name, value in values.items()
    }


def squeeze(at):
    """Uniform squeezing, div d = -0.6, under an impulse of size 0.5; the closure's slope is 1.2."""
    _, y, x = at
    return {"displacement": torch.cat([-0.3 * y, -0.3 * x], dim=1), **constants(at, impulse=(0.3, -0.4))}


def still(at):
    return constants(at, density=1.0, pressure=0.5, temperature=0.3, phase=1.0, velocity=(0.2, 0.1))


def heat(at):
    return exact.heat_mode(at, diffusivity=0.1, melting=0.2)


def ice(at):
    gaussian = exact.advected_gaussian(at)
    return {"phase": gaussian["phase"], "density": 2.0 - 0.7 * gaussian["phase"]}  # the melt is lighter


def lit(at):
    wave = exact.travelling_wave(at)["wave"]
    return {"wave": torch.where(at[2] > 1.5, wave, 0.0), "phase": (at[2] > 1.5).to(D)}


def hooke(at):
    rate = exact.standing_wave(at)["strain"]
    return {"strain": rate, "stress": 2.0 * rate, "velocity": exact.standing_wave(at)["velocity"]}


# Where each law holds: (solution, whether it vanishes to rounding rather than to truncation order).
HOLDS = {
    "rigid_body.kinematic_consistency": [(exact.rigid_motion, True), (exact.uniform_acceleration, True)],
    "rigid_body.low_strain": [(exact.rigid_motion, True)],
    "rigid_body.stress_strain_closure": [(hooke, True)],
    "rigid_body.rigid_motion": [(exact.rigid_motion, True)],
    "elastic.displacement_wave": [(exact.standing_wave, False)],
    "elastic.velocity_wave": [(exact.plane_wave, False), (exact.standing_wave, False)],
    "elastic.deformation_compatibility": [(exact.standing_wave, False), (exact.rigid_motion, True)],
    "elastic.stress_strain_closure": [(hooke, True)],
    "fluid.mass_continuity": [(exact.advected_gaussian, False), (exact.uniform_expansion, False)],
    "fluid.momentum_balance": [(exact.taylor_green, False)],
    "fluid.pressure_regularity": [(still, True)],
    "fluid.density_stability": [(still, True)],
    "compressible_flow.mass_continuity": [(exact.uniform_expansion, False)],
    "compressible_flow.compression_dynamics": [(exact.acoustic_wave, False), (exact.uniform_expansion, True)],
    "compressible_flow.pressure_density_closure": [(exact.acoustic_wave, True)],
    "compressible_flow.gradient_regularity": [(exact.uniform_expansion, True), (exact.rigid_motion, True)],
    "phase_change.phase_transport": [(exact.advected_gaussian, False)],
    "phase_change.thermal_phase_coupling": [(heat, False)],
    "phase_change.density_phase_closure": [(ice, True)],
    "phase_change.support_regularity": [(still, True)],
    "collision.kinematic_consistency": [(exact.uniform_acceleration, True), (exact.rigid_motion, True)],
    "collision.impulse_response": [(exact.uniform_acceleration, True)],
    "collision.contact_compression": [(squeeze, True)],
    "collision.impulse_propagation": [(exact.uniform_acceleration, True)],
    "thermal.heat_transport": [(exact.heat_mode, False), (exact.uniform_expansion, False)],
    "thermal.thermal_regularity": [(still, True)],
    "optical.wave_propagation": [(exact.plane_wave, False), (exact.travelling_wave, False)],
    "optical.support_gating": [(lit, True)],
    "optical.support_smoothness": [(still, True)],
}


def term_of(key):
    return next(term for term in PILA if term.key == key)


def residual(key, fields, grid, **options):
    term = term_of(key)
    return evaluate(fields, grid, [term.category], families=[term.family], scales=SCALES, **options)[key]


def complete(fields, key, at):
    """Slots that other terms of the same expert and family read: they are there, and are not this term's business."""
    extra = {slot: torch.zeros_like(at[0]).expand(-1, c, -1, -1, -1) for slot, c in COMPONENTS.items()}
    return {**extra, **{slot: value.expand(-1, -1, *at[0].shape[2:]) for slot, value in fields.items()}}


def largest(key, solution, n, order):
    # A standing wave needs whole periods (w = 1), the vortices a length of the order of theirs.
    grid, shape = grid_of(n, order, duration=2 * math.pi if solution is exact.standing_wave else 2.0)
    at = exact.mesh(grid, shape)
    out = residual(key, complete(solution(at), key, at), grid)
    return max(float(part.abs().max()) for part in out.field.values())


CASES = [(key, solution, rounding) for key, cases in HOLDS.items() for solution, rounding in cases]


@pytest.mark.parametrize(("key", "solution", "rounding"), CASES, ids=[f"{k}-{s.__name__}" for k, s, _ in CASES])
@pytest.mark.parametrize("order", [2, 4])
def test_a_residual_vanishes_on_its_exact_solution(key, solution, rounding, order):
    if rounding:
        assert largest(key, solution, 8, order) < 1e-11
        return
    n = 24 if order == 2 or solution is exact.standing_wave else 16
    coarse, fine = largest(key, solution, n, order), largest(key, solution, 2 * n, order)
    box = key == "elastic.deformation_compatibility"  # half steps are second order whatever the grid's order
    assert math.log2(coarse / fine) > (2 if box else order) - 0.25
    assert fine < 0.1


def test_the_table_of_solutions_covers_all_29():
    assert list(HOLDS) == KEYS


READS = [(term.key, slot) for term in PILA for slot in term.reads if (term.number, slot) != (2, "velocity")]


@pytest.mark.parametrize(("key", "slot"), READS)
def test_a_residual_notices_each_field_that_it_reads(key, slot):
    solution, _ = HOLDS[key][0]
    grid, shape = grid_of(16, 2, duration=2 * math.pi if solution is exact.standing_wave else 2.0)
    at = t, y, x = exact.mesh(grid, shape)
    fields = dict(complete(solution(at), key, at))
    before = residual(key, fields, grid).loss
    wrong = (
        0.3 * (1.3 * y + 0.7 * x + 0.9 * t + 0.2).cos() * torch.tensor([1.0, -0.6, 0.8], dtype=D).reshape(-1, 1, 1, 1)
    )
    fields[slot] = fields[slot] + wrong[:, : COMPONENTS[slot]]
    after = residual(key, fields, grid).loss
    assert after > 1e-3
    assert after > 20 * before


def test_a_density_below_its_floor_is_punished_and_one_above_is_not():
    at = exact.mesh(pf.Grid(), (3, 4, 4))
    key = "fluid.density_stability"
    low = residual(key, complete(constants(at, density=0.04), key, at), pf.Grid())
    torch.testing.assert_close(low.loss, torch.tensor([0.06**2], dtype=D))
    assert not residual(key, complete(constants(at, density=0.4), key, at), pf.Grid()).loss.any()


def test_the_stabilisers_see_a_checkerboard():
    board = ((-1.0) ** torch.arange(6)).to(D).expand(1, 1, 4, 6, 6)
    for key, slot in (("fluid.pressure_regularity", "pressure"), ("thermal.thermal_regularity", "temperature")):
        fields = complete({slot: board}, key, (board, board, board))
        torch.testing.assert_close(residual(key, fields, pf.Grid()).loss, torch.tensor([4.0], dtype=D))


def test_kinematics_and_compatibility_agree_with_our_own_integrator_at_uneven_times():
    grid = pf.Grid.from_latent_times([0.0, 0.625, 1.625, 2.625, 3.625])
    v = torch.randn(2, 2, 5, 6, 6, dtype=D, generator=torch.Generator().manual_seed(0))
    fields = {"velocity": v, "displacement": pf.cumulative_integral(v, grid), "strain": pf.strain_rate(v, grid)}
    out = evaluate({**fields, "stress": fields["strain"]}, grid, ["rigid_body", "elastic"], families=["kinematic"])
    for r in out.values():
        assert r.loss.max() < 1e-25
        assert r.scale.min() > 0.1
    literal = pf.Scales(literal_compatibility=True)
    worse = evaluate({**fields, "stress": v}, grid, ["elastic"], families=["kinematic"], scales=literal)
    assert worse["elastic.deformation_compatibility"].loss.min() > 0.1


@pytest.mark.parametrize("boundary", ["one_sided", "reflect"])
def test_every_residual_accepts_uneven_rows_and_columns(boundary):
    uneven = (0.0, 0.5, 1.5, 2.2, 3.4, 4.3, 5.0)
    bank = random_bank(size=7, frames=7)
    out = evaluate(bank, pf.Grid((uneven, uneven, uneven), boundary=boundary), relative=True)
    assert all(r.loss.isfinite().all() for r in out.values())


def test_a_displacement_wave_measured_from_the_middle_frame_needs_the_time_mean():
    grid, shape = grid_of(24, 2, duration=2 * math.pi)
    at = exact.mesh(grid, shape)
    d = exact.standing_wave(at)["displacement"]
    literal = pf.time_derivative(d, grid, n=2) - pf.laplacian(d, grid)
    out = residual("elastic.displacement_wave", {"displacement": d, "velocity": d}, grid)
    assert literal.abs().max() > 10 * out.field["node"].abs().max()


def fit_case(slope, key="rigid_body.stress_strain_closure"):
    g = torch.Generator().manual_seed(1)
    eps = torch.randn(2, 3, 3, 4, 4, dtype=D, generator=g)
    fields = {"strain": eps, "stress": slope * eps, "velocity": eps[:, :2]}
    return residual(key, fields, pf.Grid())


def test_a_fitted_closure_finds_the_slope_of_each_sample_and_keeps_to_its_range():
    slopes = torch.tensor([0.5, 4.0], dtype=D).reshape(2, 1, 1, 1, 1)
    assert fit_case(slopes).loss.max() < 1e-25
    assert fit_case(20.0).loss.min() > 1  # clamped to 10
    assert fit_case(-1.0).loss.min() > 1  # clamped to 0.1


def test_a_fixed_slope_is_used_as_given_and_a_fitted_one_carries_no_gradient():
    g = torch.Generator().manual_seed(2)
    p, rho = (torch.randn(1, 1, 3, 4, 4, dtype=D, generator=g) for _ in range(2))
    p = 0.8 * rho + 0.3 * p  # a slope inside its range
    fields = {"pressure": p.requires_grad_(), "density": rho}
    key = "compressible_flow.pressure_density_closure"
    fixed = evaluate(fields, pf.Grid(), ["compressible_flow"], families=["closure"], kappa=2.0)[key]
    torch.testing.assert_close(fixed.field["node"], (p - p.mean()) - 2.0 * (rho - rho.mean()))
    # by Charbonnier: the mean square is flat in a least-squares slope, and would not tell
    options = {"families": ["closure"], "reduction": "charbonnier"}
    fitted = evaluate(fields, pf.Grid(), ["compressible_flow"], **options)[key]
    (gradient,) = torch.autograd.grad(fitted.loss.sum(), p)
    r = fitted.field["node"].detach()
    pull = r / (r.square() + 1e-6).sqrt()
    torch.testing.assert_close(gradient, (pull - pull.mean()) / r.numel())


def random_bank(batch=3, frames=5, size=5, dtype=D, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        slot: torch.randn(batch, c, frames, size, size, dtype=D, generator=g).to(dtype)
        for slot, c in COMPONENTS.items()
    }


UNEVEN = pf.Grid.from_latent_times([0.0, 0.625, 1.625, 2.625, 3.625])


@pytest.mark.parametrize("options", [{}, {"relative": True}, {"reduction": "charbonnier"}, {"kappa": 1.5}])
def test_a_batch_of_different_samples_equals_the_loop_over_them(options):
    bank, mask = random_bank(), torch.rand(3, 1, 5, 5, 5, dtype=D, generator=torch.Generator().manual_seed(9))
    together = evaluate(bank, UNEVEN, mask=mask, **options)
    assert list(together) == KEYS
    for i in range(3):
        alone = evaluate({s: f[i : i + 1] for s, f in bank.items()}, UNEVEN, mask=mask[i : i + 1], **options)
        for key in KEYS:
            torch.testing.assert_close(together[key].loss[i], alone[key].loss[0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(together[key].scale[i], alone[key].scale[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"relative": True}, {"reduction": "charbonnier", "relative": True}])
def test_inactive_fields_of_zeros_have_finite_losses_and_gradients(options):
    bank = {slot: torch.zeros(1, c, 5, 5, 5, requires_grad=True) for slot, c in COMPONENTS.items()}
    total = torch.stack([r.loss for r in evaluate(bank, UNEVEN, **options).values()]).sum()
    assert total.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, list(bank.values())))


def test_the_scale_is_the_largest_term_and_the_relative_loss_is_free_of_units():
    grid, shape = grid_of(12, 2)
    at = exact.mesh(grid, shape)
    fields = {**exact.plane_wave(at, c=0.5), "phase": torch.ones_like(at[0])}
    key = "optical.wave_propagation"
    one, many = (residual(key, {**fields, "wave": s * fields["wave"]}, grid, relative=True) for s in (1.0, 50.0))
    torch.testing.assert_close(one.loss, many.loss)
    torch.testing.assert_close(50 * one.scale, many.scale)
    largest_term = pf.laplacian(fields["wave"], grid).square().mean().sqrt()  # c = 1 in the scales
    torch.testing.assert_close(one.scale[0], largest_term)
    assert not one.scale.requires_grad


def test_charbonnier_is_the_smooth_absolute_value():
    at = exact.mesh(pf.Grid(), (3, 4, 4))
    key = "optical.support_gating"
    fields = complete(constants(at, wave=0.3, phase=0.5), key, at)
    loss = residual(key, fields, pf.Grid(), reduction="charbonnier").loss
    torch.testing.assert_close(loss, torch.tensor([math.sqrt(0.15**2 + 1e-6)], dtype=D))


def test_the_corner_of_a_symmetric_tensor_counts_twice():
    at = exact.mesh(pf.Grid(), (3, 4, 4))
    fields = complete(constants(at, strain=(0.0, 0.0, 0.5)), "rigid_body.low_strain", at)
    torch.testing.assert_close(residual("rigid_body.low_strain", fields, pf.Grid()).loss, torch.tensor([0.5], dtype=D))


def test_half_precision_fields_give_fp32_residuals():
    out = evaluate(random_bank(dtype=torch.bfloat16), UNEVEN)
    same = evaluate({s: f.float() for s, f in random_bank(dtype=torch.bfloat16).items()}, UNEVEN)
    for key in KEYS:
        assert out[key].loss.dtype == torch.float32
        torch.testing.assert_close(out[key].loss, same[key].loss, rtol=0, atol=0)


def test_every_loss_has_a_gradient_that_matches_finite_differences():
    bank = random_bank(batch=1, frames=4, size=4)
    slots = list(bank)
    mask = torch.rand(1, 1, 4, 4, 4, dtype=D, generator=torch.Generator().manual_seed(3)) + 0.1

    def total(*values):
        out = evaluate(dict(zip(slots, values, strict=True)), pf.Grid(), mask=mask, kappa=0.7)
        return torch.stack([r.loss for r in out.values()])

    assert torch.autograd.gradcheck(total, [bank[s].requires_grad_() for s in slots], fast_mode=True)


def test_the_table_counts_as_the_paper_does():
    assert [term.number for term in PILA] == list(range(1, 30))
    assert [sum(term.category == e for term in PILA) for e in EXPERTS] == [4, 4, 4, 4, 4, 4, 2, 3]
    assert [sum(term.family == f for term in PILA) for f in FAMILIES] == [10, 3, 6, 10]
    assert len(set(KEYS)) == 29
    assert all(term.equation.endswith(".") and term.reference for term in PILA)


@pytest.mark.parametrize("term", PILA, ids=KEYS)
def test_a_term_reads_exactly_the_slots_it_names(term):
    bank = {s: f.requires_grad_() for s, f in random_bank().items()}
    out = evaluate(bank, UNEVEN, [term.category], relative=False, kappa=1.0)[term.key]
    gradients = torch.autograd.grad(out.loss.sum(), list(bank.values()), allow_unused=True)
    read = {slot for slot, g in zip(bank, gradients, strict=True) if g is not None and g.any()}
    assert read == set(term.reads) - ({"velocity"} if term.number == 2 else set())  # term 2 takes only its scale from v


def test_experts_and_families_choose_rows():
    bank = random_bank()
    assert list(evaluate(bank, UNEVEN, ["thermal"])) == ["thermal.heat_transport", "thermal.thermal_regularity"]
    assert [term_of(k).number for k in evaluate(bank, UNEVEN, families=["kinematic"])] == [1, 7, 21]
    assert evaluate(bank, UNEVEN, families=[]) == {}


def test_bad_requests_raise_with_what_was_expected():
    bank = random_bank()
    with pytest.raises(ValueError, match="categories out of"):
        evaluate(bank, UNEVEN, ["plasma"])
    with pytest.raises(ValueError, match="read 'temperature'"):
        evaluate({"velocity": bank["velocity"]}, UNEVEN, ["thermal"])
    with pytest.raises(ValueError, match="mask of shape"):
        evaluate(bank, UNEVEN, mask=torch.ones(3, 1, 5, 5, 4))
    with pytest.raises(ValueError, match="velocity: expected 2 components"):
        evaluate({**bank, "velocity": bank["strain"]}, UNEVEN)
    with pytest.raises(ValueError, match="floating"):
        evaluate({**bank, "pressure": bank["pressure"].long()}, UNEVEN)
    with pytest.raises(ValueError, match="kappa"):
        evaluate(bank, UNEVEN, kappa="free")
