"""Each boundary rule is what its matrix says: order at every row, polynomials, conservation; and how a grid is made."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

import physfields as pf
from physfields.grid import latent_times
from physfields.matrix import even_rows, nodes_needed, uneven_rows
from physfields.sbp import sbp_length, sbp_norm, sbp_rows
from physfields.stencil import derivative

D = torch.float64
ORDERS = (2, 4, 6)


def moments(rows, positions, m, degree):
    """Exact error of D^m on x^degree in every row."""
    x = [Fraction(p) for p in positions]
    truth = [math.perm(degree, m) * xi ** (degree - m) if degree >= m else Fraction(0) for xi in x]
    return [
        sum((w * x[j] ** degree for j, w in row.items()), Fraction(0)) - t for row, t in zip(rows, truth, strict=True)
    ]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_one_sided_rows_are_exact_for_polynomials_below_order_plus_m(order, m):
    needed = nodes_needed(m, order, "one_sided")
    for n in (needed, needed + 4):
        rows = even_rows(n, m, order, "one_sided")
        for degree in range(order + m):
            assert not any(moments(rows, range(n), m, degree))
        assert all(moments(rows, range(n), m, order + m)[i] for i in (0, n - 1))


@pytest.mark.parametrize("order", ORDERS)
def test_summation_by_parts_holds_exactly_at_the_smallest_and_at_any_length(order):
    for n in (sbp_length(order), sbp_length(order) + 1, sbp_length(order) + 7):
        norm, rows = sbp_norm(order, n), sbp_rows(order, n)
        for i in range(n):
            for j in range(n):
                q = norm[i] * rows[i].get(j, Fraction(0)) + norm[j] * rows[j].get(i, Fraction(0))
                assert q == ((i == j == n - 1) - (i == j == 0))
        for degree in range(order // 2 + 1):
            assert not any(moments(rows, range(n), 1, degree))
        inside = range(sbp_length(order) // 2, n - sbp_length(order) // 2)
        for degree in range(order + 1):
            assert not any(moments(rows, range(n), 1, degree)[i] for i in inside)
        for degree in range(order):  # a quadrature rule of the interior's order
            assert sum(w * Fraction(i) ** degree for i, w in enumerate(norm)) == Fraction(
                (n - 1) ** (degree + 1), degree + 1
            )


@pytest.mark.parametrize("order", ORDERS)
def test_what_enters_and_leaves_through_the_ends_is_all_that_an_sbp_field_gains(order):
    n = 20
    grid = pf.Grid((1.0, 1.0, 0.25), boundary="sbp", order=order)
    f, g = (torch.randn(n, dtype=D, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    norm = torch.tensor(grid.norm("x", n), dtype=D)

    def d(a, m=1):
        return derivative(a.reshape(1, 1, 1, 1, n), "x", m, grid).flatten()

    assert (norm * (g * d(f) + d(g) * f)).sum().item() == pytest.approx((g[-1] * f[-1] - g[0] * f[0]).item(), abs=1e-12)
    ends = g[-1] * d(f)[-1] - g[0] * d(f)[0]
    assert (norm * (g * d(f, 2) + d(g) * d(f))).sum().item() == pytest.approx(ends.item(), abs=1e-10)
    assert (norm.sum() - (n - 1) * 0.25).abs() < 1e-12


def slopes(boundary, order, m, coarse, phase=0.5):
    errors = []
    for n in (coarse, 2 * coarse):
        x = torch.arange(n + 1, dtype=D) / n
        grid = pf.Grid((1.0, 1.0, 1 / n), boundary=boundary, order=order)
        each = [
            derivative((2 * x + p).sin().reshape(1, 1, 1, 1, -1), "x", m, grid).flatten()
            - 2**m * (2 * x + p + m * math.pi / 2).sin()
            for p in (phase, phase + math.pi / 2)
        ]
        errors.append(torch.hypot(*each))
    return errors


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("boundary", "first", "second"),
    [("zero", -1, -2), ("periodic", -1, -2), ("replicate", 0, -1), ("reflect", 0, -1), ("sbp", None, None)],
)
def test_the_edge_is_as_accurate_as_the_table_says(boundary, order, first, second):
    # sbp: half the order, and one less for the derivative of the derivative
    expected = (order // 2, order // 2 - 1) if boundary == "sbp" else (first, second)
    for m in (1, 2):
        coarse, fine = slopes(boundary, order, m, 128 if boundary != "sbp" else 64)
        for end in (0, -1):
            assert math.log2(coarse[end] / fine[end]) == pytest.approx(expected[m - 1], abs=0.15)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("boundary", ["zero", "periodic", "replicate", "reflect", "one_sided", "sbp"])
def test_inside_every_boundary_has_the_order(boundary, order):
    n = {2: 64, 4: 32, 6: 24}[order]
    for m in (1, 2):
        coarse, fine = slopes(boundary, order, m, n)
        assert math.log2(coarse[n // 2] / fine[n]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("boundary", ["replicate", "reflect", "zero"])
@pytest.mark.parametrize("order", ORDERS)
def test_folded_rows_equal_central_rows_on_a_halo(boundary, order):
    n, r, f = 9, order // 2 + 1, torch.randn(9, dtype=D, generator=torch.Generator().manual_seed(3))
    wide = pf.stencil.halo(f, -1, r, r, boundary)
    for m in (1, 2):
        reach = (m + 1) // 2 - 1 + order // 2
        w = pf.fd_weights(range(-reach, reach + 1), m)
        central = sum(float(w[k]) * wide[r - reach + k : r - reach + k + n] for k in range(2 * reach + 1))
        got = derivative(f.reshape(1, 1, 1, 1, n), "x", m, pf.Grid(boundary=boundary, order=order)).flatten()
        torch.testing.assert_close(got, central, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("m", [1, 2])
def test_wan_latent_times_are_exact_for_polynomials_in_every_row(order, m):
    times = latent_times([k / 4 for k in range(81)])
    rows = uneven_rows(times, m, order, "one_sided")
    for degree in range(order + m):
        assert not any(moments(rows, times, m, degree))


def test_wan_latents_see_a_parabola_accelerate_evenly():
    grid = pf.Grid.from_video_times([k / 4 for k in range(81)], stride=4)
    assert grid.spacing[0][:3] == (0.0, 0.625, 1.625)
    assert all(b - a == 1.0 for a, b in pairwise(grid.spacing[0][1:]))
    t = torch.tensor(grid.spacing[0], dtype=D).reshape(1, 1, 21, 1, 1)
    torch.testing.assert_close(pf.time_derivative(3 * t**2 - t, grid, n=2), torch.full_like(t, 6.0), rtol=1e-11, atol=0)


def test_uniform_motion_filmed_at_24_and_resampled_to_16_does_not_accelerate():
    picked = [round(k * 24 / 16) / 24 for k in range(17)]
    t = torch.tensor(picked, dtype=D).reshape(1, 1, -1, 1, 1)
    true, nominal = pf.Grid.from_video_times(picked), pf.Grid((1 / 16, 1.0, 1.0))
    for dtype, limit in ((D, 1e-6), (torch.float32, 1e-1)):
        assert pf.time_derivative((0.3 + 2 * t).to(dtype), true, n=2).abs().max() < limit
    assert pf.time_derivative(0.3 + 2 * t, nominal, n=2).abs().max() > 5


def test_latent_times_are_the_means_of_the_frames_they_cover():
    assert latent_times(range(9), 4) == (0.0, 2.5, 6.5)
    assert latent_times(range(8), 4, first=4) == (1.5, 5.5)
    assert latent_times(torch.tensor([0.0, 0.5]), 1) == (0.0, 0.5)
    for times, stride, first in ((range(8), 4, 1), (range(9), 0, 1), (range(9), 4, 5), ([], 4, 1)):
        with pytest.raises(ValueError, match="latent_times: expected"):
            latent_times(times, stride, first=first)


@pytest.mark.parametrize("boundary", ["one_sided", "periodic", "replicate", "sbp"])
def test_the_norm_integrates_a_constant_and_a_line(boundary):
    grid, n = pf.Grid((1.0, 1.0, 0.5), boundary=boundary), 9
    norm = grid.norm("x", n)
    length = 0.5 * (n if boundary == "periodic" else n - 1)
    assert sum(norm) == pytest.approx(length)
    if boundary != "periodic":
        assert sum(w * x for w, x in zip(norm, grid.coordinates("x", n), strict=True)) == pytest.approx(length**2 / 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"spacing": (1.0, 1.0, (0.0, 1.0, 3.0)), "boundary": "sbp"}, "sbp axis x expects a number"),
        ({"axes": ("y", "x")}, "expected axes"),
        ({"axes": ("t", "y", "x"), "spacing": (1.0,) * 4}, "one spacing for each"),
        ({"spacing": (1.0, True, 1.0)}, "expected numbers"),
        ({"spacing": (1.0, (), 1.0)}, "increasing"),
        ({"order": True}, "expected order"),
        ({"path": "fast"}, "expected path"),
    ],
)
def test_grids_say_what_they_expected(arguments, says):
    with pytest.raises(ValueError, match=says):
        pf.Grid(**arguments)


def test_four_values_mean_three_axes_of_space():
    for grid in (
        pf.Grid((1.0, 2.0, 3.0, 4.0)),
        pf.Grid(boundary=("one_sided",) * 4),
        pf.Grid(axes=("t", "z", "y", "x")),
    ):
        assert grid.axes == ("t", "z", "y", "x")
        assert grid.space == ("z", "y", "x")
        assert (grid.dim("t"), grid.dim("x")) == (-4, -1)
    assert pf.Grid().dim("t") == -3
    with pytest.raises(ValueError, match="expected an axis"):
        pf.Grid().dim("z")


def test_a_grid_survives_its_key_and_is_a_compile_constant():
    grid = pf.Grid(
        ((0.0, 0.1, 0.7), 1.0, 2.0, 3.0), boundary=("one_sided", "sbp", "zero", "periodic"), order=(2, 4, 2, 6)
    )
    again = pf.Grid.from_key(grid.key)
    assert again == grid
    assert hash(again) == hash(grid)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("boundary", ["one_sided", "sbp", "periodic", "reflect", "replicate", "zero"])
def test_erosion_keeps_no_node_whose_rows_read_a_hole(boundary, order):
    n = 26
    grid = pf.Grid(boundary=boundary, order=order)
    rows = [even_rows(n, m, order, boundary) for m in (1, 2)]
    for hole in range(n):
        mask = torch.ones(1, 1, 1, 1, n)
        mask[..., hole] = 0
        kept = pf.erode_valid(mask, grid, (0, 0, order // 2)).flatten().tolist()
        assert not any(kept[i] and any(hole in each[i] for each in rows) for i in range(n))
    mask = torch.ones(1, 1, 1, 1, n)
    assert pf.erode_valid(mask, grid, (0, 0, order // 2)).all()
