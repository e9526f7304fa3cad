import numpy as np
import pytest

from physworld import thermal


def plate(**change) -> dict:
    return thermal.sample(np.random.default_rng(3), "train") | change


def test_heat_is_conserved() -> None:
    heat = thermal.temperature(plate(), 1)
    total = heat.sum((1, 2))
    assert np.abs(total / total[0] - 1).max() < 1e-10


def test_extremes_never_grow() -> None:
    heat = thermal.temperature(plate(D=0.42), 2)
    assert (np.diff(heat.max((1, 2))) < 0).all()
    assert (np.diff(heat.min((1, 2))) > -1e-6).all()


def test_a_spot_far_from_the_edges_spreads_as_the_heat_kernel() -> None:
    d, width = 0.3, 2.0
    heat = thermal.temperature(plate(D=d, spots=[[16.0, 15.0, width, 1.0]]), 2)
    y, x = np.mgrid[:64, :64] / 2 + 0.25
    variance = width**2 + 2 * d * 8
    exact = width**2 / variance * np.exp(-((y - 16) ** 2 + (x - 15) ** 2) / (2 * variance))
    assert np.abs(heat[8] - exact).max() < 1e-3


def test_no_heat_flows_through_the_edges() -> None:
    heat = thermal.temperature(plate(D=0.42, spots=[[16.0, 3.0, 2.0, 1.0]]), 2)[-1]
    across_edge, inside = heat[32, 1] - heat[32, 0], heat[32, 9] - heat[32, 8]
    assert abs(across_edge) < 0.2 * abs(inside)


@pytest.mark.parametrize("d", [0.06, 0.14, 0.42, 0.8])
def test_the_diffusivity_is_read_from_the_pixels(d: float) -> None:
    params = plate(D=d)
    video = thermal.simulate_batch([params], 1)[0][0]
    figures = thermal.measure(video, {"count": thermal.COUNTS[params["count"]], "D": d}, 1)
    assert figures["D_relerr"] < 0.02
    assert figures["heat_resid"] < 0.1


def test_a_wrong_count_and_a_wrong_diffusivity_show() -> None:
    params = plate(D=0.14)
    video = thermal.simulate_batch([params], 1)[0][0]
    figures = thermal.measure(video, {"count": thermal.COUNTS[params["count"]] + 1, "D": 0.42}, 1)
    assert figures["count_ok"] == 0
    assert figures["D_relerr"] > 0.5


def test_a_reversed_plate_breaks_the_maximum_principle() -> None:
    params = plate(D=0.42)
    video, expected = thermal.simulate_batch([params], 1)[0][0], thermal.expect(thermal.caption(params).split())
    assert thermal.measure(video, expected, 1)["maxprinc"] < 0.01
    assert thermal.measure(video[::-1], expected, 1)["maxprinc"] > 0.2
