"""Other people's operators as oracles: findiff, scipy, py-pde, torch.gradient; skipped where not installed."""

import pytest
import torch

import physfields as pf

D = torch.float64
STEPS = (0.5, 0.25, 2.0)


def field(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def bring(name):
    return pytest.importorskip(name, reason=f"{name} is an oracle of the dev group: uv sync --group dev")


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("axis", ["t", "y", "x"])
def test_one_sided_derivatives_are_findiff_s_in_the_interior_and_as_exact_at_the_edges(axis, m, order):
    findiff = bring("findiff")
    i, radius, grid = "tyx".index(axis), (m + 1) // 2 - 1 + order // 2, pf.Grid(STEPS, order=order)
    theirs = findiff.Diff(i, STEPS[i], acc=order) ** m
    f = field(14, 14, 14)
    ours = pf.partial(f[None, None], {axis: m}, grid)[0, 0]
    inner = (i, radius, 14 - 2 * radius)  # at the edges theirs leans outright, ours as little as it must
    torch.testing.assert_close(
        ours.narrow(*inner), torch.as_tensor(theirs(f.numpy())).narrow(*inner), rtol=1e-9, atol=1e-9
    )
    x = torch.arange(14, dtype=D).reshape([-1 if a == axis else 1 for a in "tyx"]) * (STEPS[i] / 7)
    p = (1 - x) ** (order + m - 1) + field(14, 14, 14)[:1, :1, :1] * x
    p = p.expand(14, 14, 14).contiguous()
    torch.testing.assert_close(
        pf.partial(p[None, None], {axis: m}, pf.Grid([s / 7 for s in STEPS], order=order))[0, 0],
        torch.as_tensor((findiff.Diff(i, STEPS[i] / 7, acc=order) ** m)(p.numpy())),
        rtol=1e-6,
        atol=1e-6,
    )


def test_mixed_derivatives_are_findiff_s():
    findiff = bring("findiff")
    f = field(9, 10, 11)
    theirs = torch.as_tensor((findiff.Diff(0, STEPS[0]) * findiff.Diff(2, STEPS[2]) ** 2)(f.numpy()))
    ours = pf.partial(f[None, None], {"t": 1, "x": 2}, pf.Grid(STEPS))[0, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [2, 4])
def test_uneven_derivatives_are_as_exact_as_findiff_s(order):
    findiff = bring("findiff")
    t = torch.cumsum(torch.rand(12, dtype=D, generator=torch.Generator().manual_seed(3)) + 0.2, dim=0)
    f = (0.4 * t).sin()
    ours = pf.partial(f.reshape(1, 1, -1, 1, 1), {"t": 1}, pf.Grid((t, 1.0, 1.0), order=order)).flatten()
    theirs = torch.as_tensor(findiff.Diff(0, t.numpy(), acc=order)(f.numpy()))
    truth = 0.4 * (0.4 * t).cos()
    assert (ours - truth).abs().max() < 1.1 * (theirs - truth).abs().max()


@pytest.mark.parametrize(
    ("boundary", "mode"), [("periodic", "wrap"), ("replicate", "nearest"), ("reflect", "mirror"), ("zero", "constant")]
)
def test_ghost_cells_are_scipy_s(boundary, mode):
    ndimage = bring("scipy.ndimage")
    f = field(1, 1, 1, 9, 8)
    grid = pf.Grid((1.0, 1.0, 1.0), boundary=("one_sided", boundary, boundary))
    torch.testing.assert_close(
        pf.laplacian(f, grid)[0, 0, 0], torch.as_tensor(ndimage.laplace(f[0, 0, 0].numpy(), mode=mode))
    )
    slope = ndimage.correlate1d(f[0, 0, 0].numpy(), [-0.5, 0.0, 0.5], axis=1, mode=mode)
    torch.testing.assert_close(pf.partial(f, {"x": 1}, grid)[0, 0, 0], torch.as_tensor(slope))
    padded = torch.as_tensor(ndimage.generic_filter(f[0, 0, 0].numpy(), lambda w: w[0], size=(1, 3), mode=mode))
    torch.testing.assert_close(pf.halo(f, 1, grid, axes=("x",))[0, 0, 0, :, :-2], padded)


def test_the_integral_is_scipy_s_trapezoid():
    integrate = bring("scipy.integrate")
    times = (0.0, 0.625, 1.625, 2.625, 3.0)
    v = field(2, 2, 5, 3, 4)
    theirs = integrate.cumulative_trapezoid(v.numpy(), times, axis=2, initial=0)
    ours = pf.cumulative_integral(v, pf.Grid((times, 1.0, 1.0)), anchor="first")
    torch.testing.assert_close(ours, torch.as_tensor(theirs))


@pytest.mark.parametrize(("boundary", "kind"), [("reflect", 1), ("replicate", 2)])
def test_a_poisson_solve_between_walls_is_scipy_s_cosine_transform(boundary, kind):
    fft = bring("scipy.fft")
    f = field(1, 1, 1, 9, 8)
    grid = pf.Grid((1.0, 0.5, 0.25), boundary=("one_sided", boundary, boundary))
    spectrum = fft.dctn(f[0, 0, 0].numpy(), type=kind)
    waves = [
        (2 * (torch.arange(n, dtype=D) * torch.pi / (n - (kind == 1))).cos() - 2) / h**2
        for n, h in ((9, 0.5), (8, 0.25))
    ]
    symbol = (waves[0][:, None] + waves[1]).numpy()
    symbol[0, 0], spectrum[0, 0] = 1.0, 0.0
    theirs = torch.as_tensor(fft.idctn(spectrum / symbol, type=kind))
    torch.testing.assert_close(pf.solve_poisson(f, grid)[0, 0, 0], theirs)


@pytest.mark.slow  # py-pde compiles its operators with numba, half a minute
@pytest.mark.parametrize("dims", [2, 3])
def test_periodic_vector_calculus_is_py_pde_s(dims):
    pde = bring("pde")
    sizes = (8, 9, 7)[:dims]
    lattice = pde.CartesianGrid([[0, n * 0.5] for n in sizes], list(sizes), periodic=True)
    grid = pf.Grid((1.0, *(0.5,) * dims), boundary=("one_sided",) + ("periodic",) * dims)
    f, u = field(*sizes), field(dims, *sizes, seed=1)
    scalar, vector = pde.ScalarField(lattice, f.numpy()), pde.VectorField(lattice, u.numpy())
    pairs = [
        (pf.laplacian(f[None, None, None], grid)[0, 0, 0], scalar.laplace("auto_periodic_neumann")),
        (pf.gradient(f[None, None, None], grid)[0, 0, :, 0], scalar.gradient("auto_periodic_neumann")),
        (pf.divergence(u[None, :, None], grid)[0, 0, 0], vector.divergence("auto_periodic_neumann")),
        (pf.jacobian(u[None, :, None], grid)[0, :, :, 0], vector.gradient("auto_periodic_neumann").transpose()),
    ]
    for ours, theirs in pairs:
        expected = torch.as_tensor(theirs.data)
        if ours.ndim == dims + 2 and not torch.allclose(ours, expected):
            expected = expected.transpose(0, 1)  # [component, axis] or [axis, component], by its version
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("times", [0.25, (0.0, 0.625, 1.625, 2.625, 3.0, 4.5)])
def test_first_derivatives_of_order_two_are_torch_gradient_s(times):
    f, uneven = field(6, 7, 8), isinstance(times, tuple)
    theirs = torch.gradient(f, spacing=(torch.tensor(times, dtype=D),) if uneven else times, dim=0, edge_order=2)[0]
    ours = pf.partial(f[None, None], {"t": 1}, pf.Grid((times, 1.0, 1.0)))[0, 0]
    torch.testing.assert_close(ours, theirs)
