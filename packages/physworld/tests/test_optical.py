import numpy as np
import pytest

from physworld import optical


def draws(scenario: str, n: int = 4, **change) -> list[dict]:
    rng = np.random.default_rng(5)
    params: list[dict] = []
    while len(params) < n:
        p = optical.sample(rng, "train")
        params += [p | change] * (p["scenario"] == scenario)
    return params


@pytest.mark.parametrize("c", [0.35, 0.5, 0.9, 1.15])
def test_the_wave_speed_of_ripples_is_read_within_three_per_cent(c: float) -> None:
    for p, (video, _, _) in zip(ps := draws("ripple", c=c), optical.simulate_batch(ps, 1), strict=True):
        figures = optical.measure(video, {"scenario": "ripple", "count": optical.COUNTS[p["count"]], "c": c}, 1)
        assert figures["c_relerr"] < 0.03
        assert 0.9 < figures["energy_ratio"] < 1.1


def test_a_plane_pulse_crosses_its_path_in_the_time_that_c_says() -> None:
    p = draws("slit", 1, c=0.9, wall=28, start=8.0, width=1.6, heading="right")[0]
    wave = optical.pulses([p])[0]
    x = np.arange(64) / 2 + 0.25
    crest = [(row**2 * x).sum() / (row**2).sum() for row in wave[:, 8]]
    assert np.diff(crest[:16]).mean() == pytest.approx(0.9, rel=0.03)


@pytest.mark.parametrize("heading", optical.TURNS)
def test_a_pulse_moves_where_its_caption_says(heading: str) -> None:
    p = draws("slit", 1, heading=heading)[0]
    video, fields, _ = optical.simulate_batch([p], 1)[0]
    power = np.square(fields["wave"][..., 0].astype(np.float64))
    y, x = np.mgrid[:32, :32]
    moved = {"y": (power * y).sum((1, 2)), "x": (power * x).sum((1, 2))}
    axis, sign = {"right": ("x", 1), "left": ("x", -1), "down": ("y", 1), "up": ("y", -1)}[heading]
    middle = moved[axis] / power.sum((1, 2))
    assert sign * (middle[4] - middle[0]) > 1
    expected = optical.expect(optical.caption(p).split())
    assert optical.measure(video, expected, 1)["dir_ok"] == 1
    opposite = {"right": "left", "left": "right", "up": "down", "down": "up"}[heading]
    assert optical.measure(video, expected | {"heading": opposite}, 1)["dir_ok"] == 0


def test_a_wall_stops_the_wave_and_a_slit_lets_some_through() -> None:
    open_ = draws("slit", 1, c=0.9, heading="right")[0]
    closed = open_ | {"slits": []}
    behind = slice((open_["wall"] + 1) * 2, None)
    through, stopped = optical.pulses([open_, closed])[:, :, :, behind]
    assert np.abs(stopped).max() < 0.05  # the pulse's own tail at the start
    assert np.abs(through).max() > 0.15


def test_the_wave_is_zero_and_not_valid_on_the_wall() -> None:
    _, fields, valid = optical.simulate_batch(draws("slit", 1), 1)[0]
    wall = ~valid["wave"][0]
    assert wall.any()
    assert np.abs(fields["wave"][:, wall]).max() == 0


def test_openings_and_drops_are_counted() -> None:
    for scenario in optical.SCENARIOS:
        for p, (video, _, _) in zip(ps := draws(scenario, 6), optical.simulate_batch(ps, 1), strict=True):
            right = optical.expect(optical.caption(p).split())
            assert optical.measure(video, right, 1)["count_ok"] == 1
            assert optical.measure(video, right | {"count": right["count"] + 1}, 1)["count_ok"] == 0


def test_a_wave_of_the_wrong_speed_shows() -> None:
    for scenario in optical.SCENARIOS:
        p = draws(scenario, 1, c=0.9)[0]
        video, expected = optical.simulate_batch([p], 1)[0][0], optical.expect(optical.caption(p).split())
        assert optical.measure(video, expected | {"c": 0.5}, 1)["c_relerr"] > 0.5
