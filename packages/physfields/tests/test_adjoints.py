"""The explicit adjoints: transposed to rounding, differentiable to any order, batched, repeatable, on every path."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import physfields as pf
from physfields.matrix import even_rows, nodes_needed, uneven_rows
from physfields.stencil import combine, derivative

D = torch.float64
BOUNDARIES = ("one_sided", "periodic", "replicate", "reflect", "zero", "sbp")
UNEVEN = (0.0, 0.625, 1.625, 2.625, 3.625, 4.5, 6.0, 6.25, 7.5, 8.0, 8.5, 9.25, 10.0, 11.5)
PATHS = ("rows", "blocks", "cat")
DIVERGENCE = ((0, 0, "y", 1, 1.0), (0, 1, "x", 1, 1.0))
MIXED = (  # overlapping outputs, ranges with steps, an output that nothing writes
    (range(0, 4, 2), range(2), "y", 1, 1.0),
    (range(2), range(2), "x", 2, -0.5),
    (0, 1, "t", 1, 2.0),
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own


def field(*shape, seed=0, dtype=D):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lengths(boundary, order, m):
    """The smallest legal axis, and one with an interior."""
    needed = nodes_needed(m, order, boundary)
    return needed, needed + 5


CASES = [
    (boundary, order, m, n)
    for boundary in BOUNDARIES
    for order in (2, 4, 6)
    for m in (1, 2)
    for n in lengths(boundary, order, m)
]


@pytest.mark.parametrize(("boundary", "order", "m", "n"), CASES)
def test_the_derivative_is_its_matrix_and_the_gradient_its_transpose(boundary, order, m, n):
    dense = torch.zeros(n, n, dtype=D)
    for i, row in enumerate(even_rows(n, m, order, boundary)):
        for j, w in row.items():
            dense[i, j] = float(w) / 0.5**m
    f, g = field(2, 1, 1, 2, n), field(2, 1, 1, 2, n, seed=1)
    for path in PATHS:
        grid = pf.Grid((1.0, 1.0, 0.5), boundary=boundary, order=order, path=path)
        leaf = f.clone().requires_grad_()
        out = derivative(leaf, "x", m, grid)
        torch.testing.assert_close(out, f @ dense.T, rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(torch.autograd.grad(out, leaf, g)[0], g @ dense, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("boundary", "order", "m", "n"), CASES)
def test_the_inner_product_moves_from_the_derivative_to_the_adjoint(boundary, order, m, n):
    grid = pf.Grid(0.5, boundary=boundary, order=order)
    for axis in "tyx":
        shape = [n if a == axis else 2 for a in "tyx"]
        f, g = field(2, 2, *shape).requires_grad_(), field(2, 2, *shape, seed=1)
        out = derivative(f, axis, m, grid)
        (back,) = torch.autograd.grad(out, f, g)
        assert ((out * g).sum() - (f * back).sum()).abs() <= 1e-12 * out.norm() * g.norm()


@pytest.mark.parametrize("boundary", ["one_sided", "replicate", "reflect", "zero"])
@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("m", [1, 2])
def test_uneven_axes_have_exact_adjoints_too(boundary, order, m):
    x = UNEVEN[: order + m + 4]
    dense = torch.zeros(len(x), len(x), dtype=D)
    for i, row in enumerate(uneven_rows(x, m, order, boundary)):
        for j, w in row.items():
            dense[i, j] = float(w)
    f, g = field(1, 2, len(x), 2, 3).requires_grad_(), field(1, 2, len(x), 2, 3, seed=1)
    size = float(dense.abs().max())
    for path in PATHS:
        out = derivative(f, "t", m, pf.Grid((x, 1.0, 1.0), boundary=boundary, order=order, path=path))
        (back,) = torch.autograd.grad(out, f, g)
        torch.testing.assert_close(out, torch.einsum("ij,bcjyx->bciyx", dense, f), rtol=1e-11, atol=1e-12 * size)
        torch.testing.assert_close(back, torch.einsum("ij,bciyx->bcjyx", dense, g), rtol=1e-11, atol=1e-12 * size)
        assert ((out * g).sum() - (f * back).sum()).abs() <= 1e-12 * out.norm() * g.norm()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_combination_is_the_sum_of_its_terms(boundary, path):
    grid, f = pf.Grid((0.5, 1.0, 2.0), boundary=boundary, path=path), field(2, 2, 4, 5, 6)
    out = combine(f, MIXED, grid, 4)
    expected = torch.zeros(2, 4, 4, 5, 6, dtype=D)
    for into, of, axis, m, factor in MIXED:
        pairs = zip(into, of, strict=True) if isinstance(into, range) else [(into, of)]
        for i, j in pairs:
            expected[:, i] += factor * derivative(f[:, j], axis, m, grid)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert not out[:, 3].any()


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_every_kind_are_right_on_the_smallest_grid(boundary, path):
    grid = pf.Grid((0.5, 1.0, 2.0), boundary=boundary, path=path)
    f = field(1, 2, 3, 3, 4).requires_grad_()

    def mixed(a):
        return combine(a, MIXED, grid, 4)

    everything = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(mixed, f, fast_mode=True, **everything)
    assert gradgradcheck(lambda a: mixed(a).square(), f, check_fwd_over_rev=True, fast_mode=True)


def test_gradients_of_higher_orders_are_right():
    for order, n in ((4, 6), (6, 8)):
        grid = pf.Grid((UNEVEN[:n], 1.0, 2.0), order=order, boundary=("one_sided", "periodic", "reflect"))
        f = field(1, 1, n, n, n).requires_grad_()
        for axis in "tyx":
            for m in (1, 2):

                def operator(a, axis=axis, m=m, grid=grid):
                    return derivative(a, axis, m, grid)

                assert gradcheck(operator, f, check_forward_ad=True, fast_mode=True)
                assert gradgradcheck(lambda a: operator(a).square(), f, fast_mode=True)


def test_vmap_over_any_dimension_equals_the_loop():
    grid, f = pf.Grid(boundary=("one_sided", "periodic", "zero")), field(3, 2, 2, 3, 4, 5)  # (extra, b, c, t, y, x)
    for dim in range(6):
        stacked = f.movedim(0, dim)
        mapped = torch.func.vmap(lambda a: combine(a, DIVERGENCE, grid, 1), in_dims=dim)(stacked)
        torch.testing.assert_close(mapped, torch.stack([combine(s, DIVERGENCE, grid, 1) for s in f]))


def test_per_sample_gradients_equal_the_loop():
    grid, f, g = pf.Grid(), field(3, 2, 4, 4, 4), field(3, 1, 4, 4, 4, seed=1)

    def loss(one, cotangent):
        return (combine(one[None], DIVERGENCE, grid, 1).square() * cotangent).sum()

    mapped = torch.func.vmap(torch.func.grad(loss))(f, g)
    torch.testing.assert_close(mapped, torch.stack([torch.func.grad(loss)(a, b) for a, b in zip(f, g, strict=True)]))


def test_the_hessian_of_a_quadratic_loss_is_the_matrix_and_its_transpose():
    grid, f = pf.Grid(), field(1, 1, 1, 1, 5)

    def loss(a):
        return 0.5 * derivative(a, "x", 1, grid).square().sum()

    dense = torch.zeros(5, 5, dtype=D)
    for i, row in enumerate(even_rows(5, 1, 2, "one_sided")):
        for j, w in row.items():
            dense[i, j] = float(w)
    torch.testing.assert_close(torch.func.hessian(loss)(f).reshape(5, 5), dense.T @ dense)
    _, hvp = torch.func.jvp(torch.func.grad(loss), (f,), (f,))
    torch.testing.assert_close(hvp.flatten(), dense.T @ dense @ f.flatten())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_strides_do_not_matter(path, dtype):
    grid, f = pf.Grid((UNEVEN[:5], 1.0, 0.5), order=2, path=path), field(2, 3, 5, 6, 7, dtype=dtype)
    turned = f.permute(4, 2, 0, 1, 3).contiguous().permute(2, 3, 1, 4, 0)
    assert not turned.is_contiguous()
    spread = f[:, :1].expand(-1, 3, -1, -1, -1)
    for axis in "tyx":
        expected = derivative(f, axis, 1, grid)
        assert torch.equal(derivative(turned, axis, 1, grid), expected) or torch.allclose(
            derivative(turned, axis, 1, grid), expected, rtol=1e-5 if dtype == torch.float32 else 1e-13
        )
        torch.testing.assert_close(derivative(spread, axis, 1, grid), derivative(spread.contiguous(), axis, 1, grid))


def test_the_three_paths_agree_in_value_and_gradient():
    f = field(2, 2, 7, 8, 9)
    for boundary in BOUNDARIES:
        found = []
        for path in PATHS:
            grid, leaf = pf.Grid(0.5, boundary=boundary, path=path), f.clone().requires_grad_()
            out = combine(leaf, MIXED, grid, 4)
            found.append((out, torch.autograd.grad(out.square().sum(), leaf)[0]))
        for out, gradient in found[1:]:
            torch.testing.assert_close(out, found[0][0], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(gradient, found[0][1], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_repeat_bit_for_bit_under_deterministic_algorithms(path):
    grid, f = pf.Grid(path=path), field(2, 2, 4, 5, 6, dtype=torch.float32)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = [torch.func.grad(lambda a: combine(a, MIXED, grid, 4).square().sum())(f) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("order", [2, 4])
def test_nan_stays_within_the_reach_on_every_path(boundary, path, order):
    n = 13 if boundary != "sbp" else 17
    for m in (1, 2):
        rows = even_rows(n, m, order, boundary)
        block = {i for i in range(n) if boundary == "one_sided" and not order <= i < n - order}
        for hole in (0, 1, 2, 3, 5, 8, n - 2):
            f = torch.zeros(1, 1, 1, 1, n, dtype=D)
            f[..., hole] = torch.nan
            got = derivative(f, "x", m, pf.Grid(boundary=boundary, path=path, order=order)).isnan().flatten()
            reads = {i for i, row in enumerate(rows) if hole in row}
            spoilt = set(got.nonzero().flatten().tolist())
            assert reads <= spoilt
            assert spoilt <= reads | block  # one-sided rows of one end may share their columns


def test_a_constant_has_no_derivative_on_every_path_to_the_last_bit():
    for path in PATHS:
        for dtype in (torch.float32, D):
            f = torch.full((1, 1, 8, 9, 10), 300.1, dtype=dtype)
            for boundary in ("one_sided", "periodic", "replicate", "reflect"):
                out = combine(
                    f, ((0, 0, "y", 1, 0.3), (0, 0, "x", 1, 0.7)), pf.Grid(0.1, boundary=boundary, path=path), 1
                )
                assert not out[..., 1:-1, 1:-1].any()
                assert out.abs().max() <= 4 * 300.1 * torch.finfo(dtype).eps / 0.1


class Launches(TorchDispatchMode):
    """Dispatched operators that are no view."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += not func.is_view and func.overloadpacket not in (torch.ops.aten.new_empty, torch.ops.aten.detach)
        return func(*args, **(kwargs or {}))


def launches(function):
    function()  # tables are made at the first call
    with Launches() as mode:
        function()
    return mode.total


@pytest.mark.parametrize(("m", "forward", "both"), [(1, 6, 12), (2, 7, 15)])
def test_a_derivative_is_a_handful_of_kernels_in_the_form_for_gpus(m, forward, both):
    grid, f = pf.Grid(0.5, path="blocks"), field(2, 3, 9, 9, 9).requires_grad_()
    g = torch.ones_like(f)
    for axis in "tyx":
        assert launches(lambda a=axis: derivative(f.detach(), a, m, grid)) <= forward
        assert launches(lambda a=axis: torch.autograd.grad(derivative(f, a, m, grid), f, g)) <= both


def test_a_stacked_bank_gives_the_same_derivatives_in_at_most_140_and_350_kernels():
    u, p, rho, T = (field(2, c, 5, 6, 7, seed=c + k).requires_grad_() for k, c in enumerate((2, 1, 1, 1)))
    leaves = u, p, rho, T

    def bundle(grid, stacked):
        bank = pf.Derivatives({"u": u, "p": p, "rho": rho, "T": T}, grid, stacked=stacked)
        advected = bank.T.t + bank.T.advected_by(u)
        momentum = rho * (bank.u.t + bank.u.advected_by(u)) + bank.p.grad - 0.1 * bank.u.lap
        continuity = bank.rho.t + pf.divergence(rho * u, grid)
        return (bank.p.grad, bank.u.div, bank.u.curl, bank.p.lap, bank.u.strain, advected, momentum, continuity,
                advected - 0.1 * bank.T.lap, bank.p.tt - bank.p.lap)  # fmt: skip

    def both(grid, stacked):
        out = bundle(grid, stacked)
        return torch.autograd.grad(out, leaves, [torch.ones_like(o) for o in out])

    gpu, plain = pf.Grid((0.5, 1.0, 2.0), path="blocks"), pf.Grid((0.5, 1.0, 2.0))
    for a, b in zip(bundle(gpu, True), bundle(plain, False), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(both(gpu, True), both(plain, False), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert launches(lambda: bundle(gpu, True)) <= 140
    assert launches(lambda: both(gpu, True)) <= 350


def test_a_partly_stacked_bank_differentiates_the_rest_alone():
    u, p = field(1, 2, 4, 4, 4), field(1, 1, 4, 4, 4, seed=1)
    bank = pf.Derivatives({"u": u, "p": p, "q": p}, pf.Grid(), stacked=["u", "p"])
    torch.testing.assert_close(bank.u.div, pf.divergence(u, pf.Grid()))
    torch.testing.assert_close(bank.q.tt, pf.time_derivative(p, pf.Grid(), n=2))
    assert bank.u.x is bank.u.x
    with pytest.raises(ValueError, match="expected stacked out of"):
        pf.Derivatives({"u": u}, pf.Grid(), stacked=["v"])
    with pytest.raises(ValueError, match="one dtype"):
        pf.Derivatives({"u": u, "p": p.float()}, pf.Grid(), stacked=True)


def test_space_has_three_axes():
    grid, f = pf.Grid((0.5, 0.25, 1.0, 2.0), order=4), field(1, 1, 6, 7, 8, 9)
    t, z, y, x = torch.meshgrid(
        *(torch.tensor(grid.coordinates(a, n), dtype=D) for a, n in zip(grid.axes, f.shape[2:], strict=True)),
        indexing="ij",
    )
    wave = (t + 2 * z**2 - y * x).expand(1, 1, 6, 7, 8, 9)
    for axis, m, expected in (
        ("t", 1, torch.ones_like(t)),
        ("z", 2, 4 * torch.ones_like(t)),
        ("y", 1, -x),
        ("x", 1, -y),
    ):
        torch.testing.assert_close(derivative(wave, axis, m, grid)[0, 0], expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="axis out of"):
        derivative(f, "z", 1, pf.Grid())


def test_orders_of_accuracy_beyond_two_derivatives_need_their_nodes():
    grid, f = pf.Grid(order=4), field(1, 1, 1, 1, 12)
    x = torch.arange(12, dtype=D)
    for m in (3, 4):
        got = derivative((x**5).expand(1, 1, 1, 1, 12), "x", m, grid)
        torch.testing.assert_close(got.flatten(), math.perm(5, m) * x ** (5 - m), rtol=1e-9, atol=1e-6)
    with pytest.raises(ValueError, match="at least 8"):
        derivative(f[..., :7], "x", 4, grid)
