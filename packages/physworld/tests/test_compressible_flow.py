import numpy as np
import pytest

from physworld import compressible_flow as gas


def draws(n: int = 4, split: str = "train") -> list[dict]:
    return [gas.sample(np.random.default_rng([9, s]), split) for s in range(n)]


def test_mass_and_energy_are_conserved_until_the_front_leaves() -> None:
    q = gas.solve(draws())[:, : gas.EARLY]
    for k in (0, 3):
        total = q[:, :, k].sum((2, 3), dtype=np.float64)
        assert np.abs(total / total[:, :1] - 1).max() < 1e-4


def test_momentum_stays_zero_until_the_front_leaves() -> None:
    q = gas.solve(draws())[:, : gas.EARLY].astype(np.float64)
    momentum = q[:, :, 1:3]
    assert np.abs(momentum.sum((3, 4))).max() < 1e-3 * np.abs(momentum).sum((3, 4)).max()


@pytest.mark.parametrize("split", ["train", "ood"])
def test_density_and_pressure_stay_positive_and_inside_the_ramps(split: str) -> None:
    for _, fields, _ in gas.simulate_batch(draws(8, split), 2):
        assert fields["density"].min() > 0
        assert fields["density"].max() < gas.DENSITY.high
        assert np.exp(gas.LOG_PRESSURE.low) < fields["pressure"].min()
        assert fields["pressure"].max() < np.exp(gas.LOG_PRESSURE.high)


def test_a_shock_tube_gives_sods_plateaus() -> None:
    # Sod (1978): p* = .30313, u* = .92745; along x, uniform in y
    q = np.zeros((4, 1, 64, 64), np.float32)
    left = np.arange(64) < 32
    q[0], q[3] = np.where(left, 1, 0.125), np.where(left, 1, 0.1) / 0.4
    for _ in range(96):
        q = gas.advance(q, 1 / 14)
    pressure, speed = gas.pressure_of(q)[0, 5], (q[2] / q[0])[0, 5]
    contact = 32 + round(0.92745 * 96 / 14 * gas.CELLS)
    assert pressure[contact] == pytest.approx(0.30313, rel=2e-3)
    assert speed[contact] == pytest.approx(0.92745, rel=5e-3)


def test_a_blast_in_the_middle_stays_symmetric() -> None:
    p = draws(1)[0] | {"centres": [[16.0, 16.0]], "radii": [2.5]}
    rho, down, right, _ = gas.solve([p])[0, 10]
    assert np.allclose(rho, rho.T, atol=1e-4)
    assert np.allclose(rho, rho[::-1], atol=1e-4)
    assert np.allclose(down, right.T, atol=1e-4)


def test_frame_zero_shows_where_the_blast_is() -> None:
    p = next(p for p in draws(20) if p["count"] == "one")
    video = gas.simulate_batch([p], 1)[0][0]
    y, x = np.unravel_index(video[0, ..., 0].argmax(), (32, 32))
    assert np.hypot(y + 0.5 - p["centres"][0][0], x + 0.5 - p["centres"][0][1]) < 2


def test_the_wrong_place_and_number_show() -> None:
    for p in (p for p in draws(12) if p["count"] == "one"):
        video = gas.simulate_batch([p], 1)[0][0]
        right = gas.expect(gas.caption(p).split())
        assert gas.measure(video, right, 1)["dir_ok"] == 1
        other = {"left": "right", "right": "left", "middle": "left"}[p["place"]]
        figures = gas.measure(video, right | {"place": other, "count": 2}, 1)
        assert figures["dir_ok"] == figures["count_ok"] == 0
