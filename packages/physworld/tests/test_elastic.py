"""The block carries a true wave, the spring a true oscillation, and the records tell them apart."""

from typing import Any

import numpy as np
import pytest

from physworld import elastic, simulate_many
from physworld.clip import SIZE, Clip


@pytest.fixture(scope="module")
def clips() -> dict[str, list[Clip]]:
    made = simulate_many("elastic", range(16), split="test", scale=2)
    return {scenario: [c for c in made if c.scenario == scenario][:3] for scenario in elastic.SCENARIOS}


def laplacian(f: np.ndarray, h: float) -> np.ndarray:
    """Fourth-order Laplacian of (t, y, x, c) away from the edges (two cells fall off on each side)."""

    def second(g: np.ndarray, axis: int) -> np.ndarray:
        weights = {-2: -1 / 12, -1: 4 / 3, 0: -5 / 2, 1: 4 / 3, 2: -1 / 12}
        return sum(w * np.roll(g, -k, axis) for k, w in weights.items()) / h**2  # pyright: ignore[reportReturnType]

    return (second(f, 1) + second(f, 2))[:, 2:-2, 2:-2]


def exact(params: dict[str, Any], t: np.ndarray) -> np.ndarray:
    """Displacement along the pluck at any times, on a 64 x 64 grid, from the stored modes."""
    k = np.arange(1, elastic.MODES + 1) * np.pi / SIZE
    axis = (np.arange(64) + 0.5) / 2
    s = np.sin(axis[:, None] * k)
    turn = params["c"] * np.sqrt(k[:, None] ** 2 + k**2)
    sign = elastic._AXES[params["direction"]][1]
    return s @ (sign * params["modes"] * np.cos(turn * t[:, None, None])) @ s.T


def test_the_plucked_block_obeys_the_wave_equation_with_its_own_c(clips: dict[str, list[Clip]]) -> None:
    for clip in clips["lattice"]:
        dt = 0.02
        t = np.array([5.0 - dt, 5.0, 5.0 + dt])
        w = exact(clip.params, t)
        np.testing.assert_allclose(w[1], clip.fields["wave"][5, ..., 0], atol=2e-3)
        acceleration = ((w[0] - 2 * w[1] + w[2]) / dt**2)[2:-2, 2:-2]
        force = clip.params["c"] ** 2 * laplacian(w[1][None, ..., None], 0.5)[0, ..., 0]
        assert np.abs(acceleration - force).max() < 2e-3 * np.abs(acceleration).max()


def test_the_divergence_of_the_stress_is_the_acceleration(clips: dict[str, list[Clip]]) -> None:
    for clip in clips["lattice"]:
        dt = 0.02
        w = exact(clip.params, np.array([4.0 - dt, 4.0, 4.0 + dt]))
        acceleration = (w[0] - 2 * w[1] + w[2]) / dt**2
        stress = clip.fields["stress"][4].astype(np.float64)
        component, _ = elastic._AXES[clip.params["direction"]]
        normal = np.gradient(stress[..., component], 0.5, axis=component)
        shear = np.gradient(stress[..., 2], 0.5, axis=1 - component)
        error = (normal + shear - acceleration)[2:-2, 2:-2]
        assert np.sqrt((error**2).mean() / (acceleration**2).mean()) < 0.04  # half precision, second-order differences


def test_strain_is_the_symmetric_gradient_of_the_displacement(clips: dict[str, list[Clip]]) -> None:
    for clip in clips["lattice"]:
        d = clip.fields["displacement"].astype(np.float64)
        dy, dx = np.gradient(d, 0.5, axis=1), np.gradient(d, 0.5, axis=2)
        strain = np.stack([dy[..., 0], dx[..., 1], 0.5 * (dx[..., 0] + dy[..., 1])], -1)
        np.testing.assert_allclose(strain[:, 2:-2, 2:-2], clip.fields["strain"][:, 2:-2, 2:-2], atol=0.01)


def test_the_spring_obeys_an_oscillator_and_not_a_wave(clips: dict[str, list[Clip]]) -> None:
    for clip in clips["spring"]:
        track, w = clip.params["track"], clip.params["w"]
        component = int(np.ptp(track[:, 1]) > np.ptp(track[:, 0]))
        d = track[:, component]
        swing = d[:-2] - 2 * np.cos(w) * d[1:-1] + d[2:]  # constant for a sinusoid about any rest
        assert np.ptp(swing) < 1e-9
        assert "wave" not in clip.fields
        assert clip.record()["scenario"] == "spring"


def test_the_metric_reads_c_and_the_period_back_from_pixels(clips: dict[str, list[Clip]]) -> None:
    for clip in (*clips["lattice"], *clips["spring"]):
        found = elastic.measure(clip.video, elastic.expect(clip.caption.split()), 2)
        law = clip.params["c" if clip.scenario == "lattice" else "period"]
        assert found["rate"] == pytest.approx(law, rel=0.03)
        assert found["law_rms_px"] < 0.06
