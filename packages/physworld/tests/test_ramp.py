import numpy as np
import pytest

from physworld import compressible_flow, fluid, optical, phase_change, thermal
from physworld.ramp import Ramp, blobs, legible, peaks, pool, scatter

RAMPS = {
    "thermal": thermal.RAMP,
    "phase": phase_change.RAMP,
    "wave": optical.RAMP,
    "ink": fluid.RAMP,
    "density": compressible_flow.DENSITY,
    "pressure": compressible_flow.LOG_PRESSURE,
}


@pytest.mark.parametrize("name", RAMPS)
def test_reading_a_ramp_backwards_gives_the_field_within_one_grey_level(name: str) -> None:
    ramp = RAMPS[name]
    field = np.linspace(ramp.low, ramp.high, 2001)
    back, off = ramp.read(ramp.colour(field))
    assert np.abs(back - field).max() <= (ramp.high - ramp.low) / 255
    assert off.max() < 1 / 255


@pytest.mark.parametrize("name", RAMPS)
def test_different_field_values_have_different_colours(name: str) -> None:
    ramp = RAMPS[name]
    colours = ramp.colour(np.linspace(ramp.low, ramp.high, 120))
    assert len(np.unique(colours, axis=0)) == 120


def test_a_field_beyond_the_ramp_saturates() -> None:
    ramp = Ramp(((0, 0, 0), (100, 0, 0), (100, 200, 0)), -1, 1)
    assert ramp.colour(np.array([-5.0, 5.0])).tolist() == [[0, 0, 0], [100, 200, 0]]


def test_the_distance_from_a_ramp_is_that_to_its_nearest_colour() -> None:
    ramp = Ramp(((0, 0, 0), (100, 0, 0), (100, 200, 0)))
    field, off = ramp.read(np.array([[50, 0, 51], [100, 100, 0], [255, 255, 255]]))
    assert field[:2] == pytest.approx([0.25, 0.75])
    assert off[0] == pytest.approx(51 / np.sqrt(3) / 255)
    assert off[1] == 0
    assert off[2] == pytest.approx(np.sqrt((155**2 + 55**2 + 255**2) / 3) / 255)


def test_pooling_keeps_the_mean() -> None:
    field = np.random.default_rng(0).normal(size=(3, 8, 8))
    assert pool(field, 2).mean() == pytest.approx(field.mean())
    assert pool(field, 2)[0, 0, 0] == pytest.approx(field[0, :2, :2].mean())


def test_noise_and_constants_are_not_legible_and_a_smooth_field_is() -> None:
    noise = np.random.default_rng(0).normal(size=(5, 32, 32)).astype(np.float32)
    near = np.zeros_like(noise)
    wave = np.broadcast_to(np.sin(np.arange(32, dtype=np.float32) / 4), noise.shape)
    assert legible(wave, near)
    assert not legible(wave, near + np.float32(0.3))
    assert not legible(noise, near)
    assert not legible(near, near)


def test_peaks_and_blobs_are_counted() -> None:
    y, x = np.mgrid[:32, :32]
    field = sum(np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8) for cy, cx in [(8, 8), (8, 22), (24, 16)])
    assert peaks(field, 1, above=0.3, apart=4) == 3
    assert blobs(field > 0.5, 4) == 3
    assert blobs(field > 0.5, 400) == 0


def test_scattered_points_keep_their_distance() -> None:
    points = scatter(np.random.default_rng(1), 3, low=5.0, high=27.0, apart=11.0)
    assert min(np.linalg.norm(points[i] - points[j]) for i, j in [(0, 1), (0, 2), (1, 2)]) >= 11
    assert points.min() >= 5
    assert points.max() <= 27
