import numpy as np
import pytest
from scipy import special

from physworld import phase_change
from physworld.clip import FRAMES


def draws(scenario: str, n: int = 4) -> list[dict]:
    rng = np.random.default_rng(5)
    params: list[dict] = []
    while len(params) < n:
        p = phase_change.sample(rng, "train")
        params += [p] * (p["scenario"] == scenario)
    return params


@pytest.mark.parametrize(("scenario", "sign"), [("melt", 1), ("grow", -1)])
def test_the_molten_area_is_monotone(scenario: str, sign: int) -> None:
    for _, fields, _ in phase_change.simulate_batch(draws(scenario), 2):
        molten = fields["phase"].astype(np.float64).sum((1, 2, 3))
        assert (sign * np.diff(molten) >= -1e-2).all()
        assert sign * (molten[-1] - molten[0]) > 50


def test_melting_conserves_enthalpy() -> None:
    enthalpy, held = phase_change.heat_content(draws("melt"))
    assert not held.any()
    before = enthalpy.sum((1, 2), dtype=np.float64)
    for _ in range(FRAMES - 1):
        enthalpy = phase_change.conduct(enthalpy, held)
    assert np.abs(enthalpy.sum((1, 2), dtype=np.float64) / before - 1).max() < 1e-5


def test_ice_and_water_meet_at_the_melting_point() -> None:
    for scenario in phase_change.SCENARIOS:
        for _, fields, _ in phase_change.simulate_batch(draws(scenario), 2):
            phi, warmth = fields["phase"], fields["temperature"]
            assert np.abs(warmth[(phi > 0.01) & (phi < 0.99)]).max() < 1e-2
            assert (warmth[phi == 0] <= 0).all()


def test_a_flat_front_moves_as_the_square_root_of_time_by_stefans_law() -> None:
    # ice at 0 for x > 0, water held at 1: x = 2 lam sqrt(t), sqrt(pi) lam exp(lam^2) erf(lam) = 1 (Stefan number 1)
    lam = 0.6200626
    assert np.sqrt(np.pi) * lam * np.exp(lam**2) * special.erf(lam) == pytest.approx(1, abs=1e-5)
    enthalpy, held = np.zeros((1, 64, 64), np.float32), np.zeros((1, 64, 64), bool)
    enthalpy[:, :, 0], held[:, :, 0] = 2, True
    for _ in range(64):
        enthalpy = phase_change.conduct(enthalpy, held)
    front = float(np.clip(enthalpy[0, 32, 1:], 0, 1).sum()) / phase_change.CELLS + 0.25  # x = 0 at the held cell
    assert front == pytest.approx(2 * lam * np.sqrt(64), rel=0.03)


def test_the_wrong_caption_fails_on_direction_and_count() -> None:
    p = draws("melt", 1)[0]
    video = phase_change.simulate_batch([p], 1)[0][0]
    right = phase_change.expect(phase_change.caption(p).split())
    figures = phase_change.measure(video, right | {"scenario": "grow", "count": right["count"] + 1}, 1)
    assert figures["dir_ok"] == figures["count_ok"] == 0
    assert figures["nonmonotone"] > 0.8
    assert figures["regrowth"] > 0.9
