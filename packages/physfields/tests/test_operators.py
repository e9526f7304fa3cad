"""Operators against exact derivatives, their adjoints, and the identities of vector calculus, in float64."""

import math

import pytest
import torch
from torch.autograd import gradcheck

import physfields as pf

D = torch.float64
UNEVEN = (0.0, 0.625, 1.625, 2.625, 3.625, 4.5, 6.0, 6.25, 7.5)


def field(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def line(values, axis):
    return values.reshape([1, 1] + [len(values) if a == axis else 1 for a in "tyx"])


def rows(axis, m, order, boundary, n, *, coordinates=False):
    """|error| of D^m exp(ikx) on n + 1 nodes of [0, 1] (n nodes of a circle): sine and cosine never vanish together."""
    periodic = boundary == "circle"
    x = torch.arange(n if periodic else n + 1, dtype=D) / n
    k = 2 * math.pi if periodic else 2.0
    steps = [x.tolist() if coordinates and a == axis else 1 / n for a in "tyx"]
    grid = pf.Grid(steps, boundary="periodic" if periodic else boundary, order=order)
    errors = [
        pf.partial(line((k * x + phase).sin(), axis), {axis: m}, grid).flatten()
        - k**m * (k * x + phase + m * math.pi / 2).sin()
        for phase in (0.5, 0.5 + math.pi / 2)
    ]
    return torch.hypot(*errors)


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("axis", ["t", "y", "x"])
def test_one_sided_rows_converge_at_the_order_up_to_the_edge(axis, m, order):
    n = {2: 64, 4: 32, 6: 16}[order]  # beyond, the rounding of float64 shows
    coarse, fine = rows(axis, m, order, "one_sided", n), rows(axis, m, order, "one_sided", 2 * n)
    for i in range(order // 2):  # edge rows, outside in, from both ends
        assert math.log2(coarse[i] / fine[i]) == pytest.approx(order, abs=0.15)
        assert math.log2(coarse[-1 - i] / fine[-1 - i]) == pytest.approx(order, abs=0.15)
    assert math.log2(coarse[n // 4] / fine[n // 2]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("m", [1, 2])
def test_periodic_rows_converge_at_the_order(m, order):
    coarse, fine = rows("x", m, order, "circle", 32), rows("x", m, order, "circle", 64)
    for i in (0, 1, 11, 31):
        assert math.log2(coarse[i] / fine[2 * i]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("m", [1, 2])
def test_rows_with_coordinates_reach_the_order(m, order):
    n = {2: 64, 4: 32, 6: 16}[order]
    coarse = rows("t", m, order, "one_sided", n, coordinates=True)
    fine = rows("t", m, order, "one_sided", 2 * n, coordinates=True)
    for i in (0, 1, -1, -2):
        assert math.log2(coarse[i] / fine[i]) > order - 0.15
    assert math.log2(coarse[n // 4] / fine[n // 2]) > order - 0.15


@pytest.mark.parametrize(
    ("boundary", "slopes"),
    [("zero", (-1, -2)), ("periodic", (-1, -2)), ("replicate", (0, -1)), ("reflect", (0, -1))],
)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("order", [2, 4, 6])
def test_other_boundaries_are_as_wrong_at_the_edge_as_documented(boundary, slopes, m, order):
    coarse, fine = rows("x", m, order, boundary, 256), rows("x", m, order, boundary, 512)
    for edge in (0, -1):
        assert math.log2(coarse[edge] / fine[edge]) == pytest.approx(slopes[m - 1], abs=0.15)


@pytest.mark.parametrize(("order", "edge"), [(2, 1), (4, 2)])
def test_sbp_rows_have_half_the_order_at_the_edge_and_all_of_it_inside(order, edge):
    coarse, fine = rows("x", 1, order, "sbp", 64), rows("x", 1, order, "sbp", 128)
    assert math.log2(coarse[0] / fine[0]) == pytest.approx(edge, abs=0.15)
    assert math.log2(coarse[-1] / fine[-1]) == pytest.approx(edge, abs=0.15)
    assert math.log2(coarse[32] / fine[64]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("boundary", ["one_sided", "replicate", "reflect", "zero"])
@pytest.mark.parametrize("order", [2, 4, 6])
def test_coordinates_that_happen_to_be_even_give_the_even_weights(boundary, order):
    f, x = field(2, 1, 9, 1, 1), tuple(0.5 * i for i in range(9))
    even = pf.partial(f, {"t": 1}, pf.Grid((0.5, 1.0, 1.0), boundary=boundary, order=order))
    uneven = pf.partial(f, {"t": 1}, pf.Grid((x, 1.0, 1.0), boundary=boundary, order=order))
    torch.testing.assert_close(uneven, even, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("m", [1, 2])
def test_uneven_coordinates_are_exact_for_polynomials_in_every_row(m, order):
    x = torch.tensor(UNEVEN, dtype=D)
    for degree in range(order + m):
        exact = math.perm(degree, m) * x ** max(degree - m, 0)
        got = pf.partial(line(x**degree, "t"), {"t": m}, pf.Grid((UNEVEN, 1.0, 1.0), order=order)).flatten()
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9 * float(x[-1]) ** degree)


def test_uniform_motion_at_uneven_times_has_no_acceleration():
    t = torch.tensor([0, 1 / 24, 3 / 24, 4 / 24, 6 / 24, 7 / 24], dtype=D)  # 24 fps picked for 16
    d = line(3.0 + 5.0 * t, "t")
    assert pf.time_derivative(d, pf.Grid((t, 1.0, 1.0)), n=2).abs().max() < 1e-9
    assert pf.time_derivative(d, pf.Grid((1 / 16, 1.0, 1.0)), n=2).abs().max() > 1.0


def test_a_constant_has_no_derivative():
    f = torch.full((1, 1, 8, 8, 8), 0.1, dtype=D)
    for order in (2, 4, 6):
        assert pf.gradient(f, pf.Grid(order=order), axes=("t", "y", "x")).abs().max() < 1e-15


def test_mixed_derivatives_commute_and_match_a_polynomial():
    t, y, x = pf.exact.mesh(grid := pf.Grid((0.5, 0.25, 0.5)), (4, 7, 8))
    f = t * y**2 * x + y * x**2
    torch.testing.assert_close(pf.partial(f, {"y": 1, "x": 1}, grid), 2 * t * y + 2 * x)
    hessian = pf.hessian(f, grid)
    torch.testing.assert_close(hessian[:, :, 0, 1], hessian[:, :, 1, 0])
    torch.testing.assert_close(hessian[:, :, 0, 0], 2 * t * x)
    torch.testing.assert_close(pf.laplacian(f, grid), hessian[:, :, 0, 0] + hessian[:, :, 1, 1])


@pytest.mark.parametrize("order", [2, 4, 6])
def test_a_rotation_has_no_divergence_and_no_strain_and_a_curl_of_the_right_sign(order):
    grid = pf.Grid((1.0, 0.5, 0.25), order=order)
    v = pf.exact.rigid_motion(pf.exact.mesh(grid, (3, 9, 10)), rate=0.3)["velocity"]
    assert pf.divergence(v, grid).abs().max() < 1e-13
    assert pf.strain_rate(v, grid).abs().max() < 1e-13
    torch.testing.assert_close(pf.curl(v, grid), torch.full_like(v[:, :1], 0.6))
    torch.testing.assert_close(pf.spin(v, grid), torch.full_like(v[:, :1], 0.3))
    # x turns towards y: right of the centre the motion is downwards, +y
    assert v[0, 0, 0, 0, -1] > v[0, 0, 0, 0, 0]


def test_replicate_edges_take_a_rotation_for_strain():
    grid = pf.Grid(boundary="replicate")
    v = pf.exact.rigid_motion(pf.exact.mesh(grid, (3, 9, 9)), rate=0.3)["velocity"]
    assert pf.strain_rate(v, grid).abs().max() == pytest.approx(0.075)  # (0.3 / 2 - 0.3) / 2


@pytest.mark.parametrize("boundary", ["one_sided", "periodic"])
@pytest.mark.parametrize("order", [2, 4, 6])
def test_gradients_have_no_curl_and_curls_no_divergence(boundary, order):
    grid, f = pf.Grid((1.0, 0.5, 2.0), boundary=boundary, order=order), field(2, 1, 2, 8, 9)
    grad = pf.gradient(f, grid)[:, 0]
    assert pf.curl(grad, grid).abs().max() < 1e-12
    turned = torch.stack([pf.partial(f, {"x": 1}, grid)[:, 0], -pf.partial(f, {"y": 1}, grid)[:, 0]], dim=1)
    assert pf.divergence(turned, grid).abs().max() < 1e-12


def test_a_periodic_divergence_sums_to_nothing():
    total = pf.divergence(field(2, 2, 3, 8, 8), pf.Grid(boundary="periodic", order=6)).sum(dim=(-1, -2))
    assert total.abs().max() < 1e-12


def test_jacobian_strain_and_spin_agree():
    grid, u = pf.Grid((1.0, 0.5, 2.0)), field(2, 2, 3, 6, 7)
    J = pf.jacobian(u, grid)
    torch.testing.assert_close(J[:, 0, 1], pf.partial(u[:, :1], {"x": 1}, grid)[:, 0])
    torch.testing.assert_close(pf.divergence(u, grid)[:, 0], J[:, 0, 0] + J[:, 1, 1])
    strain, spin = pf.strain_rate(u, grid), pf.spin(u, grid)
    torch.testing.assert_close(strain[:, 2] + spin[:, 0], J[:, 0, 1])
    torch.testing.assert_close(strain[:, 2] - spin[:, 0], J[:, 1, 0])
    torch.testing.assert_close(strain[:, :2], torch.stack([J[:, 0, 0], J[:, 1, 1]], dim=1))


def test_the_divergence_of_twice_the_strain_is_the_laplacian_plus_grad_div():
    _, y, x = pf.exact.mesh(grid := pf.Grid(0.5), (1, 8, 9))
    u = torch.cat([y**2 * 1.5 + x**2 + 2 * y * x, y**2 - x**2 + 0.5 * y * x], dim=1)  # quadratic: exact at order 2
    left = pf.tensor_divergence(2 * pf.strain_rate(u, grid), grid)
    right = pf.vector_laplacian(u, grid) + pf.gradient(pf.divergence(u, grid), grid)[:, 0]
    torch.testing.assert_close(left, right)


def test_advection_forms_differ_by_the_divergence():
    grid = pf.Grid((1.0, 0.5, 0.5), order=4)
    t, y, x = pf.exact.mesh(grid, (1, 9, 9))
    f, u = y + 2 * x, torch.cat([0.5 * y + x, x - y], dim=1)
    plain = pf.advection(f, u, grid)
    torch.testing.assert_close(plain, u[:, :1] + 2 * u[:, 1:])
    torch.testing.assert_close(pf.advection(f, u, grid, form="conservative"), plain + 1.5 * f)
    torch.testing.assert_close(pf.advection(f, u, grid, form="skew"), plain + 0.75 * f)
    steady = pf.advection(f, u, grid, form="convective")
    grid = pf.Grid((0.5, 0.5, 0.5))
    t, y, x = pf.exact.mesh(grid, (4, 9, 9))
    u = u.expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(pf.material_derivative(y + 2 * x + 3 * t, u, grid), steady.expand(-1, -1, 4, -1, -1) + 3)


@pytest.mark.parametrize("times", [0.5, UNEVEN])
@pytest.mark.parametrize("anchor", ["first", "middle", "last", 3])
def test_the_box_residual_of_the_integral_vanishes_and_its_anchor_is_zero(times, anchor):
    grid, v = pf.Grid((times, 1.0, 1.0)), field(2, 2, 9, 3, 3)
    d = pf.cumulative_integral(v, grid, anchor=anchor)
    box = pf.time_derivative(d, grid, at="half") - pf.face_mean(v, "t", grid)
    assert box.abs().max() < 1e-13
    index = {"first": 0, "middle": 4, "last": 8}.get(anchor, anchor)
    assert not d[:, :, index].any()


def test_face_differences_see_the_checkerboard_that_central_ones_miss():
    i = torch.arange(8)
    board = ((-1.0) ** (i[:, None] + i)).to(D).reshape(1, 1, 1, 8, 8)
    grid = pf.Grid(0.5, boundary="periodic")
    assert not pf.gradient(board, grid).any()
    assert pf.face_difference(board, "x", grid).abs().eq(4.0).all()
    assert pf.face_difference(board, "y", pf.Grid(0.5)).shape[-2] == 7


def test_flow_in_xy_order_becomes_yx():
    flow = field(1, 2, 2, 3, 3)
    turned = pf.from_flow_xy(flow)
    torch.testing.assert_close(turned[:, 0], flow[:, 1])
    torch.testing.assert_close(pf.from_flow_xy(turned), flow)


LINEAR = {
    "gradient": (1, lambda f, g: pf.gradient(f, g, axes=("t", "y", "x"))),
    "hessian": (1, pf.hessian),
    "divergence": (2, pf.divergence),
    "curl": (2, pf.curl),
    "laplacian": (2, pf.laplacian),
    "strain_rate": (2, pf.strain_rate),
    "tensor_divergence": (3, pf.tensor_divergence),
    "acceleration": (1, lambda f, g: pf.time_derivative(f, g, n=2)),
    "half_step": (1, lambda f, g: pf.time_derivative(f, g, at="half")),
    "face_difference": (1, lambda f, g: pf.face_difference(f, "x", g)),
    "cumulative_integral": (1, pf.cumulative_integral),
}
GRIDS = {
    "smallest": (pf.Grid((0.5, 1.0, 2.0)), (4, 4, 4)),
    "uneven": (pf.Grid((UNEVEN[:5], 1.0, 0.5)), (5, 4, 5)),
    "periodic": (pf.Grid((0.5, 1.0, 2.0), boundary="periodic"), (4, 4, 4)),
    "ghosts": (pf.Grid((UNEVEN[:5], 1.0, 0.5), boundary=("replicate", "reflect", "zero")), (5, 4, 5)),
    "sixth": (pf.Grid((0.5, 1.0, 2.0), order=6), (8, 8, 8)),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_operator_is_linear_and_its_gradient_is_its_adjoint(name, grid):
    (components, operator), (grid, shape) = LINEAR[name], GRIDS[grid]
    f, h = (field(2, components, *shape, seed=s) for s in (1, 2))
    torch.testing.assert_close(operator(2 * f - 3 * h, grid), 2 * operator(f, grid) - 3 * operator(h, grid))
    out, adjoint = torch.func.vjp(lambda a: operator(a, grid), f)
    g = field(*out.shape, seed=3)
    (back,) = adjoint(g)
    forward = (operator(h, grid) * g).sum()
    assert abs(float(forward - (h * back).sum())) < 1e-12 * float(operator(h, grid).norm() * g.norm())


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_of_linear_operators_match_finite_differences(name):
    components, operator = LINEAR[name]
    grid, shape = GRIDS["uneven"]
    assert gradcheck(lambda f: operator(f, grid), field(1, components, *shape).requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("form", ["convective", "conservative", "skew"])
def test_gradients_of_advection_match_finite_differences(form):
    grid, shape = GRIDS["smallest"]
    inputs = field(1, 1, *shape).requires_grad_(), field(1, 2, *shape).requires_grad_()
    assert gradcheck(lambda f, u: pf.advection(f, u, grid, form=form), inputs, fast_mode=True)
    assert gradcheck(lambda f, u: pf.material_derivative(f, u, grid), inputs, fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own forward mode
def test_forward_mode_and_vmap_see_through_the_operators():
    grid, shape = GRIDS["uneven"]
    f, tangent = field(3, 1, *shape), field(3, 1, *shape, seed=1)
    _, jvp = torch.func.jvp(lambda a: pf.hessian(a, grid), (f,), (tangent,))
    torch.testing.assert_close(jvp, pf.hessian(tangent, grid))
    mapped = torch.func.vmap(lambda a: pf.laplacian(a[None], grid)[0])(f)
    torch.testing.assert_close(mapped, pf.laplacian(f, grid))


@pytest.mark.parametrize("name", LINEAR)
def test_a_batch_equals_the_loop_over_its_samples(name):
    (components, operator), (grid, shape) = LINEAR[name], GRIDS["uneven"]
    f = field(3, components, *shape)
    torch.testing.assert_close(operator(f, grid), torch.cat([operator(one[None], grid) for one in f]), rtol=0, atol=0)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_flipping_an_axis_flips_the_sign_of_the_odd_derivative_only(axis):
    grid, f, name = pf.Grid((0.5, 1.0, 2.0), order=4), field(1, 1, 7, 7, 7), "tyx"[axis - 2]
    torch.testing.assert_close(pf.partial(f.flip(axis), {name: 1}, grid), -pf.partial(f, {name: 1}, grid).flip(axis))
    torch.testing.assert_close(pf.partial(f.flip(axis), {name: 2}, grid), pf.partial(f, {name: 2}, grid).flip(axis))


@pytest.mark.parametrize("m", [1, 2])
def test_scaling_the_spacing_scales_the_derivative(m):
    f = field(1, 1, 5, 5, 5)
    for spacing in (3.0, tuple(3.0 * c for c in UNEVEN[:5])):
        base = 1.0 if isinstance(spacing, float) else UNEVEN[:5]
        wide, narrow = (pf.partial(f, {"t": m}, pf.Grid((s, 1.0, 1.0))) for s in (spacing, base))
        torch.testing.assert_close(wide, narrow / 3.0**m)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_and_returned_in_fp32_even_under_autocast(dtype):
    f = field(1, 2, 5, 5, 5).to(dtype)
    grid = pf.Grid.from_latent_times(UNEVEN[:5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = pf.laplacian(f, grid), pf.strain_rate(f, grid), pf.cumulative_integral(f, grid)
    for value, operator in zip(got, (pf.laplacian, pf.strain_rate, pf.cumulative_integral), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, operator(f.float(), grid), rtol=0, atol=0)
    assert pf.laplacian(f.double(), grid).dtype == D


def test_bad_fields_raise_with_what_was_expected():
    grid = pf.Grid()
    with pytest.raises(ValueError, match="floating"):
        pf.laplacian(torch.zeros(1, 1, 4, 4, 4, dtype=torch.int64), grid)
    with pytest.raises(ValueError, match=r"\(b, c, t, y, x\)"):
        pf.laplacian(torch.zeros(1, 4, 4, 4), grid)
    with pytest.raises(ValueError, match="expected 2 components"):
        pf.divergence(torch.zeros(1, 3, 4, 4, 4), grid)
    with pytest.raises(ValueError, match="expected orders"):
        pf.partial(torch.zeros(1, 1, 4, 4, 4), {"z": 1}, grid)
    with pytest.raises(ValueError, match="anchor"):
        pf.cumulative_integral(torch.zeros(1, 1, 4, 4, 4), grid, anchor=4)


@pytest.mark.parametrize(("order", "m"), [(2, 1), (2, 2), (4, 2), (6, 1)])
def test_a_too_short_axis_says_how_many_nodes_it_needs_only_when_it_is_differentiated(order, m):
    grid, need = pf.Grid(order=order), order + m
    f = field(1, 1, need - 1, need, need)
    with pytest.raises(ValueError, match=f"axis t has {need - 1} nodes.* at least {need}"):
        pf.partial(f, {"t": m}, grid)
    assert pf.partial(f, {"x": m}, grid).shape == f.shape


def test_a_single_frame_has_derivative_zero_only_when_asked():
    f = field(1, 1, 1, 4, 4)
    with pytest.raises(ValueError, match="at least 3"):
        pf.partial(f, {"t": 1}, pf.Grid())
    assert not pf.partial(f, {"t": 1}, pf.Grid(singleton="zero")).any()


def test_nan_stays_within_the_reach_of_the_stencil():
    f = field(1, 1, 1, 1, 9)
    f[..., 4] = torch.nan
    assert pf.partial(f, {"x": 2}, pf.Grid()).isnan().flatten().nonzero().flatten().tolist() == [3, 4, 5]


def test_the_bank_gives_the_operators_values_and_computes_each_once():
    grid, u, p = pf.Grid((0.5, 1.0, 2.0)), field(2, 2, 4, 5, 6), field(2, 1, 4, 5, 6)
    bank = pf.Derivatives({"u": u, "p": p}, grid)
    pairs = [
        (bank.u.div, pf.divergence(u, grid)),
        (bank.u.curl, pf.curl(u, grid)),
        (bank.u.strain, pf.strain_rate(u, grid)),
        (bank.u.lap, pf.laplacian(u, grid)),
        (bank.u.tt, pf.time_derivative(u, grid, n=2)),
        (bank.u.advected_by(u), pf.advection(u, u, grid)),
        (bank.p.grad, pf.gradient(p, grid)[:, 0]),
        (bank["p"].t, pf.time_derivative(p, grid)),
        (bank.p.difference("t"), pf.time_derivative(p, grid, at="half")),
    ]
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert bank.u.x is bank.u.x
    assert bank.p.mean("t") is bank.p.mean("t")
    with pytest.raises(AttributeError):
        _ = bank.T
    with pytest.raises(ValueError, match="equal"):
        pf.Derivatives({"u": u, "p": p[:1]}, grid)
