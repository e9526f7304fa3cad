"""torch.compile: one graph, equal values and gradients, no warnings. In fresh processes: type checks do not compile."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.long

PRELUDE = """
import warnings
warnings.simplefilter("error")
import logging
import torch
if torch.__version__ < "2.15":  # older ones warn of what they do themselves while they trace
    warnings.filterwarnings("ignore", ".*Function.* should not be instantiated", DeprecationWarning)
import physfields as pf
from physfields.stencil import combine, derivative
torch.set_num_threads(1)
TIMES = (0.0, 0.625, 1.625, 2.625, 3.625, 4.5, 6.0, 6.25)

def compare(function, *inputs, backend="aot_eager", **options):
    torch._dynamo.reset()  # each function is a new one
    compiled = torch.compile(function, fullgraph=True, backend=backend, **options)
    leaves = [[f.clone().requires_grad_() for f in inputs] for _ in range(2)]
    found = [run(*each) for run, each in zip((function, compiled), leaves)]
    found = [out if isinstance(out, tuple) else (out,) for out in found]
    cotangents = [torch.randn_like(out) for out in found[0]]
    gradients = [torch.autograd.grad(out, each, cotangents) for out, each in zip(found, leaves)]
    for plain, traced in (found, gradients):
        for a, b in zip(plain, traced):
            torch.testing.assert_close(a, b)
    return compiled
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lru_cache" not in done.stderr
    return done


def test_every_boundary_and_order_compiles_to_one_graph_with_equal_gradients():
    run("""
    f = torch.randn(2, 2, 8, 6, 7)
    mixed = ((range(0, 4, 2), range(2), "y", 1, 1.0), (range(2), range(2), "x", 2, -0.5), (0, 1, "t", 1, 2.0))
    for boundary in ("one_sided", "periodic", "replicate", "reflect", "zero", "sbp"):
        grid = pf.Grid((0.5, 1.0, 2.0), boundary=boundary)
        compare(lambda a: combine(a, mixed, grid, 4), f)
    compare(lambda a: derivative(a, "t", 2, pf.Grid((TIMES, 1.0, 1.0), order=4)), f)
    """)


def test_the_operators_and_a_bank_compile_to_one_graph_with_equal_gradients():
    run("""
    grid = pf.Grid((TIMES[:4], 1.0, 0.5), boundary=("one_sided", "periodic", "one_sided"))
    u, T = torch.randn(2, 2, 4, 5, 6), torch.randn(2, 1, 4, 5, 6)
    of_one = [pf.gradient, pf.divergence, pf.curl, pf.spin, pf.jacobian, pf.laplacian, pf.vector_laplacian]
    of_one += [pf.strain_rate, pf.hessian, pf.time_derivative, pf.cumulative_integral]
    for operator in of_one:
        compare(lambda a: operator(a, grid), u)
    compare(lambda a: pf.tensor_divergence(a, grid), torch.cat([u, u[:, :1].square()], dim=1))
    compare(lambda a: pf.partial(a, {"t": 1, "y": 1, "x": 2}, grid), u)
    compare(lambda a: pf.time_derivative(a, grid, n=2) + pf.face_difference(a, "y", grid), u)
    compare(lambda a: pf.time_derivative(a, grid, at="half") - pf.face_mean(a, "t", grid), u)
    compare(lambda a, b: pf.box_residual(a, b, grid), u, u + 1)
    compare(lambda a: pf.halo(a, 1, grid), u)
    compare(lambda a, b: pf.material_derivative(a, b, grid), T, u)
    even = pf.Grid((0.5, 1.0, 0.5), boundary=("one_sided", "periodic", "one_sided"))
    for form in ("convective", "conservative", "skew", "upwind"):
        compare(lambda a, b: pf.advection(a, b, even, form=form), T, u)
    wide = torch.randn(1, 1, 4, 6, 7, dtype=torch.float64)
    compare(lambda a: pf.biharmonic(a, grid), wide)
    walls = pf.Grid(boundary=("one_sided", "reflect", "periodic"))
    compare(lambda a: pf.solve_poisson(a, walls), wide)

    def bundle(a, b, stacked):
        bank = pf.Derivatives({"T": a, "u": b}, grid, stacked=stacked)
        return bank.T.t + bank.T.advected_by(b), bank.u.div, bank.u.strain, bank.T.lap, bank.u.tt

    for stacked in (False, True):
        compare(lambda a, b: bundle(a, b, stacked), T, u)
    """)


def test_evaluating_residuals_compiles_to_one_graph_with_equal_losses_and_gradients():
    run("""
    from physfields import residuals
    sizes = {slot: {"vector": 2, "symmetric": 3}.get(kind, 1) for slot, kind in residuals.KINDS.items()}
    bank = {slot: torch.randn(2, c, 4, 6, 6, dtype=torch.float64) + 5 * (c == 1) for slot, c in sizes.items()}
    mask = torch.ones(2, 1, 4, 6, 6)
    mask[0, :, 0, :1, 5:] = 0

    def check(grid, categories, **options):
        rows = [term for term in residuals.TABLE if term.category in categories]
        slots = [slot for slot in bank if any(slot in term.reads + term.optional for term in rows)]

        def losses(*fields):
            out = residuals.evaluate(dict(zip(slots, fields)), grid, categories, **options)
            return torch.stack([r.loss for r in out.values()])

        compare(losses, *(bank[slot] for slot in slots))

    circle = pf.Grid((0.5, 1.0, 0.5), boundary="periodic")  # no edge rows: the shortest graphs
    latent = pf.Grid((TIMES[:4], 1.0, 0.5), boundary=("one_sided", "periodic", "periodic"))
    check(circle, residuals.EXPERTS)
    check(latent, residuals.EXPERTS, mask=mask, stacked=True, relative=True, weights={"fluid": 0.5})
    general = [name for name in residuals.CATEGORIES if name not in residuals.EXPERTS]
    check(circle, general, reduction="charbonnier")
    check(pf.Grid(), ["thermal"], mask=mask)
    """)


def test_other_lengths_recompile_to_right_results_even_when_sizes_are_dynamic():
    run("""
    grid = pf.Grid((0.5, 1.0, 2.0), order=4)
    for dynamic in (None, True):
        torch._dynamo.reset()
        compiled = torch.compile(lambda a: pf.laplacian(a, grid), fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for n in (7, 8, 9, 8):
            f = torch.randn(n, 1, 4, n, n + 1)
            torch.testing.assert_close(compiled(f), pf.laplacian(f, grid))
    """)


def test_a_path_that_writes_in_place_falls_back_with_one_line():
    done = run("""
    logging.basicConfig()
    grid, f = pf.Grid(path="blocks"), torch.randn(1, 1, 4, 5, 6)
    compare(lambda a: derivative(a, "x", 1, grid), f)
    """)
    assert done.stderr.count("this graph takes 'cat'") >= 1


def test_half_precision_and_autocast_compile_to_fp32():
    run("""
    f = torch.randn(1, 2, 4, 5, 6).bfloat16()
    compiled = torch.compile(lambda a: pf.strain_rate(a, pf.Grid()), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = compiled(f)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, pf.strain_rate(f.float(), pf.Grid()))
    """)


def test_inductor_gives_the_eager_values_and_gradients():
    run("""
    terms = ((0, 0, "y", 1, 1.0), (0, 1, "x", 1, 1.0), (1, 0, "y", 2, 0.5), (1, 0, "t", 1, 1.0))
    grid, f = pf.Grid((TIMES[:4], 1.0, 2.0)), torch.randn(2, 2, 4, 6, 9)
    compare(lambda a: combine(a, terms, grid, 2), f, backend="inductor")
    walls = pf.Grid((0.5, 1.0, 2.0), boundary=("one_sided", "reflect", "periodic"), order=4)
    compare(lambda a: combine(a, terms, walls, 2), torch.randn(2, 2, 7, 8, 9), backend="inductor")
    """)


def test_nan_stays_within_the_reach_when_compiled():
    run("""
    for boundary in ("one_sided", "periodic", "replicate", "zero"):
        grid = pf.Grid(boundary=boundary, order=2)
        for axis, m in (("t", 1), ("y", 2)):
            torch._dynamo.reset()
            compiled = torch.compile(lambda a: derivative(a, axis, m, grid), fullgraph=True, backend="aot_eager")
            for hole in (0, 1, 4, 8):
                f = torch.zeros(1, 1, 9, 9, 4)
                f.select(grid.dim(axis), hole).fill_(torch.nan)
                assert torch.equal(compiled(f).isnan(), derivative(f, axis, m, grid).isnan())
    """)


def test_an_import_costs_no_compiler():
    done = run("""
    import sys
    assert "torch._inductor" not in sys.modules
    assert "physfields.traced" not in sys.modules
    """)
    assert not done.stderr
    plain = subprocess.run(
        [sys.executable, "-c", "import sys, torch; before = 'torch._dynamo' in sys.modules; import physfields; "
         "assert before or 'torch._dynamo' not in sys.modules"], check=False, timeout=900,
    )  # fmt: skip
    assert plain.returncode == 0
