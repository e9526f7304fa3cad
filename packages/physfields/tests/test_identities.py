"""Discrete identities, to rounding: what vector calculus promises holds for the differences themselves."""

import math

import pytest
import torch

import physfields as pf

D = torch.float64
SPACE = (0.7, 0.5, 2.0, 1.5)


def field(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def grid_of(dims, boundary, order):
    return pf.Grid(SPACE if dims == 3 else SPACE[1:], boundary=boundary, order=order)


@pytest.mark.parametrize("boundary", ["one_sided", "periodic", "replicate", "reflect", "zero", "sbp"])
@pytest.mark.parametrize("order", [2, 4])
def test_in_space_gradients_have_no_curl_and_curls_no_divergence(boundary, order):
    grid, n = grid_of(3, boundary, order), (2, 9, 8, 10)
    grad = pf.gradient(field(2, 1, *n), grid)[:, 0]
    assert pf.curl(grad, grid).abs().max() < 1e-12
    assert pf.divergence(pf.curl(field(2, 3, *n, seed=1), grid), grid).abs().max() < 1e-12


@pytest.mark.parametrize("order", [2, 4, 6])
def test_a_rotation_in_space_has_no_strain_and_spins_about_its_axis(order):
    grid = grid_of(3, "one_sided", order)
    _, z, y, x = pf.exact.mesh(grid, (2, 8, 8, 8))
    wz, wy, wx = 0.3, -0.2, 0.5  # omega x r in x, y, z right-handed
    v = torch.cat([wx * y - wy * x, wz * x - wx * z, wy * z - wz * y], dim=1)
    assert pf.strain_rate(v, grid).abs().max() < 1e-13
    assert pf.divergence(v, grid).abs().max() < 1e-13
    torch.testing.assert_close(pf.spin(v, grid)[0, :, 0, 3, 3, 3], torch.tensor([wz, wy, wx], dtype=D))


def test_a_plane_flow_in_space_has_the_plane_s_curl_strain_and_divergence():
    flat, deep = pf.Grid((0.7, 2.0, 1.5)), pf.Grid(SPACE)
    u = field(2, 2, 3, 8, 7)
    v = torch.cat([torch.zeros_like(u[:, :1]), u], dim=1)[:, :, :, None].expand(-1, -1, -1, 5, -1, -1)
    torch.testing.assert_close(pf.curl(v, deep)[:, :1, :, 2], pf.curl(u, flat))
    torch.testing.assert_close(pf.divergence(v, deep)[:, :, :, 2], pf.divergence(u, flat))
    zz, yy, xx, zy, zx, yx = pf.strain_rate(v, deep)[:, :, :, 2].unbind(dim=1)
    torch.testing.assert_close(torch.stack([yy, xx, yx], dim=1), pf.strain_rate(u, flat))
    assert not torch.stack([zz, zy, zx]).any()


def test_the_axes_of_space_are_interchangeable():
    u, grid = field(1, 3, 3, 5, 6, 7), pf.Grid(SPACE)
    turned = u.permute(0, 1, 2, 5, 4, 3).flip(1)  # z and x change places, as axes and as components
    swapped = pf.Grid((SPACE[0], SPACE[3], SPACE[2], SPACE[1]))
    torch.testing.assert_close(
        pf.curl(turned, swapped), -pf.curl(u, grid).permute(0, 1, 2, 5, 4, 3).flip(1)
    )  # a curl is axial: a reflection turns it round
    torch.testing.assert_close(pf.divergence(turned, swapped), pf.divergence(u, grid).permute(0, 1, 2, 5, 4, 3))


def test_turning_the_plane_turns_vectors_and_flips_the_curl():
    u, grid, turned = field(1, 2, 3, 6, 7), pf.Grid((1.0, 0.5, 2.0)), pf.Grid((1.0, 2.0, 0.5))
    other = u.transpose(-1, -2).flip(1)
    torch.testing.assert_close(pf.divergence(other, turned), pf.divergence(u, grid).transpose(-1, -2))
    torch.testing.assert_close(pf.curl(other, turned), -pf.curl(u, grid).transpose(-1, -2))
    strain = pf.strain_rate(u, grid).transpose(-1, -2)
    torch.testing.assert_close(pf.strain_rate(other, turned), strain[:, [1, 0, 2]])
    torch.testing.assert_close(pf.laplacian(other, turned), pf.laplacian(u, grid).transpose(-1, -2).flip(1))


@pytest.mark.parametrize("dims", [2, 3])
def test_twice_the_divergence_of_strain_is_the_laplacian_plus_grad_div(dims):
    grid = grid_of(dims, "one_sided", 2)
    at = pf.exact.mesh(grid, (2,) + (7,) * dims)
    u = torch.cat([axis * other for axis, other in zip(at[1:], (*at[2:], at[1]), strict=True)], dim=1) + at[1] ** 2
    left = pf.tensor_divergence(2 * pf.strain_rate(u, grid), grid)
    right = pf.vector_laplacian(u, grid) + pf.gradient(pf.divergence(u, grid), grid)[:, 0]
    torch.testing.assert_close(left, right)  # quadratic: exact at order 2


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("dims", [2, 3])
def test_periodic_transport_keeps_what_its_form_promises(dims, order):
    grid, n = grid_of(dims, "periodic", order), (1,) + (8,) * dims
    f, u = field(2, 1, *n), field(2, dims, *n, seed=1)
    assert pf.advection(f, u, grid, form="conservative").sum().abs() < 1e-10
    assert (f * pf.advection(f, u, grid, form="skew")).sum().abs() < 1e-10
    assert (f * pf.advection(f, u, grid)).sum().abs() > 1e-3
    assert pf.advection(torch.ones_like(f), u, grid).abs().max() < 1e-14


@pytest.mark.parametrize(("order", "edge"), [(2, 1), (4, 2)])
def test_sbp_differences_integrate_by_parts_exactly(order, edge):
    n = 17
    grid = pf.Grid((1.0, 1.0, 0.25), boundary="sbp", order=order)
    f, g = field(1, 1, 1, 1, n), field(1, 1, 1, 1, n, seed=1)
    weights = torch.as_tensor(grid.norm("x", n), dtype=D)
    parts = (weights * (f * pf.partial(g, {"x": 1}, grid) + g * pf.partial(f, {"x": 1}, grid))).sum()
    torch.testing.assert_close(parts, f[0, 0, 0, 0, -1] * g[0, 0, 0, 0, -1] - f[0, 0, 0, 0, 0] * g[0, 0, 0, 0, 0])
    x = torch.tensor(grid.coordinates("x", n), dtype=D)
    for degree in range(edge + 1):  # exact up to the edge's own order
        got = pf.partial((x**degree).expand(1, 1, 1, 1, n), {"x": 1}, grid).flatten()
        torch.testing.assert_close(got, degree * x ** max(degree - 1, 0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("times", [0.5, (0.0, 0.625, 1.625, 2.625, 3.0)])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_box_residual_of_our_integrator_is_rounding(dims, times):
    grid = pf.Grid((times, *SPACE[-dims:]))
    v = field(2, dims, 5, *(4,) * dims)
    for anchor in ("first", "middle", "last", 3):
        assert pf.box_residual(pf.cumulative_integral(v, grid, anchor=anchor), v, grid).abs().max() < 1e-13
    central = pf.time_derivative(pf.cumulative_integral(v, grid), grid) - v
    assert central.abs().max() > 1e-2  # the form that would fight its own integrator


def test_motion_filmed_at_24_fps_and_picked_for_16_has_no_acceleration_at_its_true_times():
    frames = [math.floor(i * 24 / 16 + 0.5) for i in range(12)]
    times = torch.tensor([f / 24 for f in frames], dtype=D)
    d = torch.stack([5.0 + 30.0 * times, -20.0 * times], dim=0).reshape(1, 2, 12, 1, 1)
    assert pf.time_derivative(d, pf.Grid.from_video_times(times), n=2).abs().max() < 1e-6
    assert pf.time_derivative(d, pf.Grid((1 / 16, 1.0, 1.0)), n=2).abs().max() > 10  # px/s^2 that nobody filmed


@pytest.mark.parametrize("order", [2, 4])
def test_latent_times_of_a_causal_autoencoder_are_exact_for_quadratics(order):
    grid = pf.Grid.from_video_times(range(25), stride=4, order=order)
    t = torch.tensor(grid.step("t"), dtype=D)
    assert t[1] - t[0] < t[2] - t[1]
    f = (3 - 2 * t + 0.5 * t**2).reshape(1, 1, -1, 1, 1)
    torch.testing.assert_close(pf.time_derivative(f, grid).flatten(), -2 + t)
    torch.testing.assert_close(pf.time_derivative(f, grid, n=2).flatten(), torch.ones_like(t))


# Poisson and Helmholtz


@pytest.mark.parametrize("boundary", ["periodic", "reflect", "replicate", "zero"])
@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_laplacian_of_a_poisson_solution_is_its_source(boundary, order, dims):
    grid, f = grid_of(dims, ("one_sided",) + (boundary,) * dims, order), field(2, 2, 3, *(9, 10, 8)[:dims])
    if boundary in ("replicate", "zero") and order > 2:
        with pytest.raises(ValueError, match="order 2 alone"):
            pf.solve_poisson(f, grid)
        return
    p = pf.solve_poisson(f, grid)
    rest = pf.laplacian(p, grid) - f
    if boundary != "zero":  # but for the mean of each frame
        rest = rest - rest[(..., *[slice(1)] * dims)]
    assert rest.abs().max() < 1e-11


def test_a_poisson_solution_converges_to_the_true_one_and_carries_gradients():
    def error(n, order):
        h = 2 * math.pi / n
        grid = pf.Grid((1.0, h, h), boundary="periodic", order=order)
        _, y, x = pf.exact.mesh(grid, (1, n, n))
        truth = (y.cos() + 0.5) * (2 * x).sin()
        source = -(4 * truth + y.cos() * (2 * x).sin())
        return float((pf.solve_poisson(source, grid) - truth).abs().max())

    for order in (2, 4, 6):
        assert math.log2(error(24, order) / error(48, order)) == pytest.approx(order, abs=0.15)
    f, grid = field(1, 1, 1, 5, 6).requires_grad_(), pf.Grid(boundary="reflect")
    assert torch.autograd.gradcheck(lambda g: pf.solve_poisson(g, grid), f, fast_mode=True)


def test_a_poisson_solve_asks_for_a_boundary_value():
    with pytest.raises(ValueError, match="'one_sided'"):
        pf.solve_poisson(field(1, 1, 1, 5, 5), pf.Grid())
    with pytest.raises(ValueError, match="coordinates"):
        pf.solve_poisson(field(1, 1, 1, 3, 5), pf.Grid((1.0, (0.0, 1.0, 3.0), 1.0), boundary="reflect"))


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("shape", [(8, 9), (9, 7), (8, 8, 9)])
def test_a_helmholtz_split_is_curl_free_plus_divergence_free_plus_mean(order, shape):
    grid, u = grid_of(len(shape), "periodic", order), field(2, len(shape), 2, *shape)
    parts = pf.helmholtz_split(u, grid)
    torch.testing.assert_close(parts.compressive + parts.solenoidal + parts.harmonic, u)
    assert pf.curl(parts.compressive, grid).abs().max() < 1e-12
    assert pf.divergence(parts.solenoidal, grid).abs().max() < 1e-12
    assert pf.divergence(parts.harmonic, grid).abs().max() < 1e-12
    assert pf.curl(parts.harmonic, grid).abs().max() < 1e-12
    assert abs(float((parts.compressive * parts.solenoidal).sum())) < 1e-10  # orthogonal
    with pytest.raises(ValueError, match="periodic"):
        pf.helmholtz_split(u, grid_of(len(shape), "reflect", order))


# Halos


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("boundary", ["one_sided", "periodic", "replicate", "reflect", "zero"])
def test_central_stencils_on_a_halo_are_the_derivatives(boundary, order):
    grid, f = pf.Grid((1.0, 0.5, 2.0), boundary=boundary, order=order), field(2, 2, 1, 9, 10)
    r = order // 2
    wide = pf.halo(f, r, grid, axes=("x",))
    inner = pf.partial(wide, {"x": 2}, pf.Grid((1.0, 0.5, 2.0), order=order))[..., r:-r]
    torch.testing.assert_close(inner, pf.partial(f, {"x": 2}, grid))
    assert pf.halo(f, 2, grid).shape == (2, 2, 1, 13, 14)


def test_a_halo_of_coordinates_is_exact_for_the_polynomial_it_continues():
    x = torch.tensor([0.0, 0.5, 1.5, 2.5, 4.0], dtype=D)
    f = (x**3 - x).reshape(1, 1, 5, 1, 1)
    wide = pf.halo(f, 2, pf.Grid((x.tolist(), 1.0, 1.0)), axes=("t",)).flatten()
    outside = torch.tensor([-1.5, -0.5, 5.5, 6.5], dtype=D)
    torch.testing.assert_close(wide[[0, 1, -2, -1]], outside**3 - outside)


def test_halos_refuse_axes_that_are_too_short():
    with pytest.raises(ValueError, match=r"axis y has 3 nodes.* at least 4"):
        pf.halo(field(1, 1, 1, 3, 9), 1, pf.Grid())
    with pytest.raises(ValueError, match="at least 4"):
        pf.halo(field(1, 1, 1, 3, 9), 3, pf.Grid(boundary="reflect"))
    with pytest.raises(ValueError, match="width"):
        pf.halo(field(1, 1, 1, 5, 9), -1, pf.Grid())
