"""The general laws: each vanishes on an exact solution at the observed order, and notices every field it reads."""

import math

import pytest
import torch

import physfields as pf
from physfields import exact
from physfields.fields import components
from physfields.residuals import GENERAL, KINDS, PILA, TABLE, describe, evaluate

D = torch.float64
KEYS = [term.key for term in GENERAL]
C = pf.Constants

WATER, GAS, LIGHT = "shallow_water", "compressible_navier_stokes", "maxwell_te"
# Where each law holds: (solution, its parameters, the law's constants).
HOLDS = {
    "navier_stokes.incompressibility": [(exact.lamb_oseen, {}, C())],
    "navier_stokes.incompressible_momentum": [
        (exact.lamb_oseen, {}, C(viscosity=0.1)),
        (exact.lamb_oseen, {"density": 2.0, "viscosity": 0.3}, C(viscosity=0.3, density=2.0)),
        (exact.taylor_green, {}, C(viscosity=0.1)),
    ],
    "navier_stokes.vorticity_transport": [(exact.lamb_oseen, {"age": 8.0}, C(viscosity=0.1))],
    "compressible_navier_stokes.mass_conservation": [(exact.homologous_expansion, {}, C())],
    "compressible_navier_stokes.compressible_momentum": [
        (exact.isentropic_vortex, {}, C(viscosity=0.0)),
        (exact.couette, {}, C(viscosity=0.1)),
        (exact.homologous_expansion, {}, C(viscosity=0.1)),
    ],
    "compressible_navier_stokes.compressible_energy": [
        (exact.couette, {}, C(viscosity=0.1, conductivity=0.2)),
        (exact.isentropic_vortex, {}, C(viscosity=0.0, conductivity=0.0)),
        (exact.homologous_expansion, {"bulk_viscosity": 0.3}, C(viscosity=0.1, bulk_viscosity=0.3, conductivity=0.2)),
    ],
    "euler.mass_conservation": [(exact.isentropic_vortex, {}, C())],
    "euler.euler_momentum": [(exact.isentropic_vortex, {}, C())],
    "euler.euler_energy": [(exact.isentropic_vortex, {}, C())],
    "shallow_water.shallow_mass": [(exact.shallow_vortex, {}, C())],
    "shallow_water.shallow_momentum": [(exact.shallow_vortex, {"gravity": 2.0}, C(gravity=2.0))],
    "burgers.burgers_momentum": [(exact.burgers_wave, {}, C(viscosity=0.2))],
    "heat.conduction": [(exact.heat_kernel, {"age": 3.0}, C(diffusivity=0.2))],
    "advection_diffusion.advection_diffusion": [(exact.heat_kernel, {"age": 3.0}, C(diffusivity=0.2))],
    "cahn_hilliard.separation": [(exact.separated_phases, {"interface": 2.0}, C(interface=2.0, mobility=0.7))],
    "stefan.stefan_conduction": [(exact.stefan, {}, C(diffusivity=0.5))],
    "stefan.stefan_front": [(exact.stefan, {"latent_heat": 2.0}, C(diffusivity=0.5, latent_heat=2.0))],
    "wave.propagation": [(exact.plane_wave, {"c": 0.7}, C(wave_speed=0.7)), (exact.travelling_wave, {}, C())],
    "linear_elasticity.elastic_momentum": [
        (exact.plane_elastic_wave, {"lame_lambda": 1.5, "density": 2.0}, C(lame_lambda=1.5, density=2.0))
    ],
    "linear_elasticity.hooke": [(exact.plane_elastic_wave, {"lame_lambda": 1.5}, C(lame_lambda=1.5))],
    "maxwell_te.faraday": [(exact.maxwell_plane_wave, {"permeability": 2.0}, C(permeability=2.0))],
    "maxwell_te.ampere": [(exact.maxwell_plane_wave, {"permittivity": 2.0}, C(permittivity=2.0))],
    "maxwell_te.gauss": [(exact.maxwell_plane_wave, {}, C())],
}
CASES = [(key, *case) for key, cases in HOLDS.items() for case in cases]
IDS = [f"{key}-{solution.__name__}-{i}" for i, (key, solution, _, _) in enumerate(CASES)]


def term_of(key):
    return next(term for term in TABLE if term.key == key)


def complete(fields, key, grid, shape):
    """The other fields that the category reads, as ones: they are not this term's business."""
    category = term_of(key).category
    others = {slot for term in GENERAL if term.category == category for slot in term.reads} - set(fields)
    return {**fields, **{s: torch.ones(1, components(KINDS[s], grid) or 1, *shape, dtype=D) for s in others}}


def stress_of(fields, at, constants):
    """Hooke's stress of an exact displacement, from its analytic derivatives."""
    d_y = exact.differentiate(lambda a: {"d": fields(a)["displacement"]}, at, {"y": 1})["d"]
    d_x = exact.differentiate(lambda a: {"d": fields(a)["displacement"]}, at, {"x": 1})["d"]
    div = constants.lame_lambda * (d_y[:, :1] + d_x[:, 1:])
    mu = constants.lame_mu
    return torch.cat([div + 2 * mu * d_y[:, :1], div + 2 * mu * d_x[:, 1:], mu * (d_y[:, 1:] + d_x[:, :1])], dim=1)


def run(key, solution, parameters, constants, n, order, length=1.5, wrong=None):
    grid, shape = pf.Grid((length / 2 / n, length / n, length / n), order=order), (n + 1, n + 1, n + 1)
    at = exact.mesh(grid, shape)
    fields = dict(solution(at, **parameters))
    if key.endswith("hooke"):
        fields["stress"] = stress_of(lambda a: solution(a, **parameters), at, constants)
    if wrong is not None:
        slot, size = wrong
        t, y, x = at
        error = (1.3 * y + 0.7 * x + 0.9 * t + 0.2).cos() * torch.tensor([1.0, -0.6, 0.8], dtype=D).reshape(3, 1, 1, 1)
        fields[slot] = fields[slot] + size * error[:, : fields[slot].shape[1]]
    fields = {slot: f.expand(-1, -1, *shape) for slot, f in fields.items()}
    return evaluate(complete(fields, key, grid, shape), grid, [term_of(key).category], constants=constants)[key]


def slot_length(key):
    return 3.0 if key.startswith("stefan") else 1.5  # a melt that is wide enough for the stencils


def largest(*arguments):
    return float(run(*arguments).field["node"].abs().max())


@pytest.mark.parametrize(("key", "solution", "parameters", "constants"), CASES, ids=IDS)
def test_a_law_vanishes_on_its_exact_solution_at_the_observed_order(key, solution, parameters, constants):
    for order in (2, 4):
        if key.startswith("stefan"):
            continue  # below: the front crosses nodes, so that single rows say nothing
        n = 16
        coarse, fine = (largest(key, solution, parameters, constants, size, order) for size in (n, 2 * n))
        if fine < 1e-11:
            assert coarse < 1e-11  # exact for the stencils
            continue
        assert fine < 0.12 * float(run(key, solution, parameters, constants, n, order).scale)
        assert math.log2(coarse / fine) > order - 0.35


@pytest.mark.parametrize("key", ["stefan.stefan_conduction", "stefan.stefan_front"])
def test_the_stefan_conditions_converge_at_second_order(key):
    solution, parameters, constants = HOLDS[key][0]
    sizes = torch.tensor([12.0, 16.0, 20.0, 26.0, 34.0])
    errors = torch.tensor([largest(key, solution, parameters, constants, int(n), 2, 3.0) for n in sizes])
    log = sizes.log() - sizes.log().mean()
    assert -float((log * errors.log()).sum() / (log**2).sum()) > 1.7
    assert errors[-1] < 0.05 * float(run(key, solution, parameters, constants, 34, 2, 3.0).scale)


READS = [(term.key, slot) for term in GENERAL for slot in term.reads]


@pytest.mark.parametrize(("key", "slot"), READS, ids=[f"{k}-{s}" for k, s in READS])
def test_a_law_notices_each_field_that_it_reads(key, slot):
    solution, parameters, constants = HOLDS[key][0]
    before = run(key, solution, parameters, constants, 16, 2, slot_length(key)).loss
    size = 0.05 if slot == "level_set" else 0.3
    after = run(key, solution, parameters, constants, 16, 2, slot_length(key), (slot, size)).loss
    assert after > 20 * before
    assert after > 1e-7


def test_the_cases_cover_every_law():
    assert list(HOLDS) == KEYS
    assert [term.number for term in TABLE] == list(range(1, len(TABLE) + 1))
    assert len({term.key for term in TABLE}) == len(TABLE)
    assert all(term.units and term.reference and term.equation.endswith(".") for term in TABLE)
    assert TABLE[: len(PILA)] == PILA


# In space


@pytest.mark.parametrize("order", [2, 4])
def test_navier_stokes_and_waves_hold_in_space(order):
    def errors(n):
        grid = pf.Grid((1.0 / n, *(2.0 / n,) * 3), order=order)
        at = exact.mesh(grid, (n + 1,) * 4)
        k = (0.5, 0.8, -0.6)
        fields = {**exact.abc_flow(at), **exact.plane_wave(at, k=k), **exact.plane_elastic_wave(at, k=k)}
        fields["velocity"] = exact.abc_flow(at)["velocity"]  # plane_wave has one too
        fields["stress"] = torch.zeros(1, 6, *(n + 1,) * 4, dtype=D)
        flow = evaluate(fields, grid, ["wave", "linear_elasticity"], families=["pde_anchor"], constants=C())
        names = ["navier_stokes.incompressibility", "navier_stokes.incompressible_momentum"]
        state = {key: evaluate_one(fields, grid, key) for key in names}
        return {key: float(r.field["node"].abs().max()) for key, r in {**flow, **state}.items()}

    coarse, fine = errors(6), errors(12)
    for key, error in coarse.items():
        assert fine[key] < 1e-12 or math.log2(error / fine[key]) > order - 0.45, key  # 7 nodes: barely asymptotic


def evaluate_one(fields, grid, key):
    """One law of a category whose others are made for a plane."""
    from physfields.balance import State
    from physfields.derivatives import Derivatives
    from physfields.masks import masked_mean
    from physfields.reduction import reduce_all

    term = term_of(key)
    bank = Derivatives({slot: fields[slot] for slot in term.reads}, grid)
    state = State(bank, masked_mean, lambda axes: None, constants=C(viscosity=0.1))
    return reduce_all(
        [term.function(state)], [()], [1.0], grid, lambda f, a, p: masked_mean(f), divisor=None, charbonnier=None
    )[0]


def test_laws_of_the_plane_say_so_in_space():
    grid = pf.Grid((1.0,) * 4)
    fields = {"electric": torch.ones(1, 3, 4, 4, 4, 4), "magnetic": torch.ones(1, 1, 4, 4, 4, 4)}
    with pytest.raises(ValueError, match="plane"):
        evaluate(fields, grid, ["maxwell_te"])
    with pytest.raises(ValueError, match=r"expected a field of shape \(b, c, t, z, y, x\)"):
        evaluate({"temperature": torch.ones(1, 1, 4, 4, 4)}, grid, ["heat"])


# Constants, sources, weights


@pytest.mark.parametrize(
    ("key", "slot", "channels"),
    [(t.key, slot, 2 if slot == "force" else 1) for t in GENERAL for slot in t.optional],
)
def test_a_source_moves_the_residual_by_itself_or_by_its_slope(key, slot, channels):
    solution, parameters, constants = HOLDS[key][0]
    grid, shape = pf.Grid((0.2, 0.3, 0.3)), (8, 8, 8)
    at = exact.mesh(grid, shape)
    fields = complete({s: f.expand(-1, -1, *shape) for s, f in solution(at, **parameters).items()}, key, grid, shape)
    push = (at[1] + 2 * at[2]).expand(-1, channels, -1, -1, -1)
    category = [term_of(key).category]
    before = evaluate(fields, grid, category, constants=constants)[key].field["node"]
    after = evaluate({**fields, slot: push}, grid, category, constants=constants)[key].field["node"]
    moved = constants.gravity * pf.gradient(push, grid)[:, 0] if slot == "bed" else -push
    torch.testing.assert_close(after, before + moved)


def test_constants_may_be_tensors_one_a_sample_and_carry_gradients():
    grid, shape = pf.Grid((0.1, 0.2, 0.2), order=4), (9, 12, 12)
    at = exact.mesh(grid, shape)
    alphas = (0.2, 0.5)
    T = torch.cat([exact.heat_kernel(at, diffusivity=a)["temperature"] for a in alphas])
    fitted = torch.tensor([0.4, 0.4], dtype=D, requires_grad=True)
    loss = evaluate({"temperature": T}, grid, ["heat"], constants=C(diffusivity=fitted))["heat.conduction"].loss
    (gradient,) = torch.autograd.grad(loss.sum(), fitted)
    assert gradient[0] > 0 > gradient[1]  # down to .2, up to .5
    right = C(diffusivity=torch.tensor(alphas, dtype=D))
    best = evaluate({"temperature": T}, grid, ["heat"], constants=right)["heat.conduction"].loss
    assert (best < 1e-3 * loss.detach()).all()


def test_bad_requests_say_what_was_expected():
    T = {"temperature": torch.zeros(2, 1, 4, 4, 4)}
    with pytest.raises(ValueError, match="one for each of 2 samples"):
        evaluate(T, pf.Grid(), ["heat"], constants=C(diffusivity=torch.ones(3)))
    with pytest.raises(ValueError, match=r"write \['heat'\]"):
        evaluate(T, pf.Grid(), "heat")
    with pytest.raises(ValueError, match="temperature: expected 1 components"):
        evaluate({"temperature": torch.zeros(2, 2, 4, 4, 4)}, pf.Grid(), ["heat"])
    with pytest.raises(ValueError, match="got none"):
        pf.laplacian(T["temperature"], None)
    with pytest.raises(ValueError, match="n = 1 or 2"):
        pf.time_derivative(T["temperature"], pf.Grid(), n=3)
    with pytest.raises(ValueError, match="equal"):
        pf.advection(torch.zeros(2, 1, 4, 4, 4), torch.zeros(3, 2, 4, 4, 4), pf.Grid())
    with pytest.raises(ValueError, match="one shape"):
        pf.box_residual(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4), pf.Grid())


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_equals_its_loop_however_the_derivatives_are_computed(stacked, masked):
    grid, g = pf.Grid((0.2, 0.3, 0.3)), torch.Generator().manual_seed(4)
    slots = {slot for term in GENERAL for slot in term.reads}
    bank = {s: torch.rand(3, components(KINDS[s], grid) or 1, 7, 8, 9, dtype=D, generator=g) + 0.5 for s in slots}
    mask = (torch.rand(3, 1, 7, 8, 9, generator=g) > 0.05).to(D) if masked else None
    categories = {term.category for term in GENERAL}
    together = evaluate(bank, grid, categories, mask=mask, stacked=stacked)
    assert list(together) == KEYS
    for i in range(3):
        one = {s: f[i : i + 1] for s, f in bank.items()}
        alone = evaluate(one, grid, categories, mask=mask[i : i + 1] if masked else None)
        for key in KEYS:
            torch.testing.assert_close(together[key].loss[i], alone[key].loss[0], rtol=1e-9, atol=1e-12)


def test_a_general_law_under_a_mask_of_nan_is_finite_both_ways():
    grid, g = pf.Grid((0.2, 0.3, 0.3)), torch.Generator().manual_seed(5)
    slots = {slot for term in GENERAL for slot in term.reads}
    mask = torch.ones(1, 1, 9, 9, 9)
    mask[..., 7:] = 0
    bank = {
        s: torch.where(
            mask > 0, torch.rand(1, components(KINDS[s], grid) or 1, 9, 9, 9, dtype=D, generator=g), torch.nan
        )
        for s in slots
    }
    leaves = {s: f.requires_grad_() for s, f in bank.items()}
    out = evaluate(leaves, grid, {term.category for term in GENERAL}, mask=mask)
    total = torch.stack([r.loss.sum() for r in out.values()]).sum()
    assert total.isfinite()
    assert all(d.isfinite().all() for d in torch.autograd.grad(total, list(leaves.values())))


def test_weights_multiply_losses_by_key_category_and_family():
    fields = {"temperature": torch.randn(2, 1, 5, 5, 5, dtype=D), "velocity": torch.randn(2, 2, 5, 5, 5, dtype=D)}
    plain = evaluate(fields, pf.Grid(), ["thermal"])
    weights = {"thermal.heat_transport": 3.0, "thermal": 2, "stabilizer": 0.5}
    weighed = evaluate(fields, pf.Grid(), ["thermal"], weights=weights)
    for key, factor in (("thermal.heat_transport", 6.0), ("thermal.thermal_regularity", 1.0)):
        torch.testing.assert_close(weighed[key].loss, factor * plain[key].loss)
        torch.testing.assert_close(weighed[key].scale, plain[key].scale)
    with pytest.raises(ValueError, match="'heat_transport'"):
        evaluate(fields, pf.Grid(), ["thermal"], weights={"heat_transport": 1.0})


def test_terms_sizes_are_recorded_and_the_scale_is_the_largest():
    grid, shape = pf.Grid((0.2, 0.3, 0.3)), (8, 8, 8)
    fields = {"temperature": exact.heat_kernel(exact.mesh(grid, shape))["temperature"].requires_grad_()}
    r = evaluate(fields, grid, ["heat"], constants=C(diffusivity=0.2))["heat.conduction"]
    rate = pf.time_derivative(fields["temperature"], grid).square().mean().sqrt()
    spread = 0.2 * pf.laplacian(fields["temperature"], grid).square().mean().sqrt()
    torch.testing.assert_close(r.terms[0], torch.stack([rate, spread]))
    assert r.scale == r.terms.max()
    assert not r.terms.requires_grad
    assert r.loss.requires_grad


def test_nan_in_one_law_leaves_the_others_alone():
    fields = {"temperature": torch.randn(1, 1, 5, 5, 5), "wave": torch.randn(1, 1, 5, 5, 5).requires_grad_()}
    fields["temperature"][0, 0, 2, 2, 2] = torch.nan
    out = evaluate(fields, pf.Grid(), ["heat", "wave"])
    assert out["heat.conduction"].loss.isnan().all()
    assert out["wave.propagation"].loss.isfinite().all()
    (gradient,) = torch.autograd.grad(out["wave.propagation"].loss.sum(), fields["wave"])
    assert gradient.isfinite().all()


def test_the_table_is_printed_one_row_a_line():
    text = describe()
    assert len(text.splitlines()) == len(TABLE)
    assert all(term.key in text and term.equation in text for term in TABLE)
    assert "[force]" in describe(["burgers"])
    assert describe(families=[]) == ""


# Analytic derivatives


def test_analytic_derivatives_agree_with_differences():
    grid = pf.Grid((0.05, 0.05, 0.05), order=6)
    at = exact.mesh(grid, (9, 12, 12))
    skip = {"mesh", "differentiate", "Fields", "Mesh", "abc_flow", "stefan"}  # a kink; another mesh
    for name in set(exact.__all__) - skip:
        solution = getattr(exact, name)
        for orders in ({"t": 1}, {"y": 2}, {"x": 1, "t": 1}):
            truth = exact.differentiate(solution, at, orders)
            for slot, f in solution(at).items():
                f = f.expand(-1, -1, *at[0].shape[2:])
                torch.testing.assert_close(pf.partial(f, orders, grid), truth[slot], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="axes out of"):
        exact.differentiate(exact.plane_wave, at, {"z": 1})
