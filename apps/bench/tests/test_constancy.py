"""What a film keeps is measured against films that keep it and films that do not."""

import numpy as np
import pytest

import physworld
from bench import constancy, law_results
from physworld import controls

RED = (220, 30, 30)


def disc(frames: int, step: float = 1.0, side: int = 64, grow: float = 0.0) -> np.ndarray:
    """A textured field with a red disc that goes right."""
    y, x = np.mgrid[0:side, 0:side]
    texture = np.random.default_rng(0).integers(40, 90, (side, side, 1), dtype=np.uint8).repeat(3, 2)
    film = np.repeat(texture[None], frames, 0)
    for t in range(frames):
        film[t][(x - 20 - step * t) ** 2 + (y - 32) ** 2 <= (9 + grow * t) ** 2] = RED
    return film


def carried(frames: int, step: int) -> np.ndarray:
    """A smooth texture that moves as a whole."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:64, 0:128]
    waves = rng.uniform(0.05, 0.25, (6, 2)) * rng.choice([-1, 1], (6, 2))
    wide = sum(np.sin(ky * y + kx * x + p) for (ky, kx), p in zip(waves, rng.uniform(0, 6, 6), strict=True))
    wide = np.rint(127 + 18 * wide).clip(0, 255).astype(np.uint8)[..., None].repeat(3, 2)
    return np.stack([wide[:, step * t : step * t + 64] for t in range(frames)])


def test_an_amount_that_is_kept_does_not_drift_and_one_that_grows_does():
    kept, growing = (constancy.amount(disc(8, grow=g), RED) for g in (0.0, 0.5))
    assert constancy.drift(kept) < 0.02
    assert constancy.drift(growing) > 0.2
    with pytest.raises(ValueError, match="found none"):
        constancy.drift(constancy.amount(disc(2), (0, 255, 0)))


def test_what_leaves_one_vessel_arrives_in_the_other():
    film = np.zeros((10, 20, 40, 3), np.uint8)
    leaky = film.copy()
    for t in range(10):
        film[t, 10 + t : 20, :10] = film[t, 20 - t : 20, 30:] = RED
        leaky[t, 10 + t : 20, :10] = leaky[t, 20 - t // 2 : 20, 30:] = RED
    left, right = (0, 20, 0, 20), (0, 20, 20, 40)

    def lost(frames):
        return constancy.transfer(*(constancy.amount(frames, RED, box=box) for box in (left, right)))

    assert lost(film) == pytest.approx(0, abs=1e-9)
    assert lost(leaky) == pytest.approx(5 / 9, abs=0.01)
    with pytest.raises(ValueError, match="poured"):
        constancy.transfer(np.ones(3), np.ones(3))


def test_things_that_split_or_vanish_are_noticed():
    film = disc(8)
    found = constancy.things(film, RED)
    assert (found.count, found.constant) == (1, 1)
    film[5, :, 24:27] = 0  # cut in two
    film[6] = 0
    found = constancy.things(film, RED)
    assert found.count == 1
    assert found.constant == 0.75
    assert found.area_spread > 0.1


def test_divergence_is_zero_for_a_vortex_and_not_for_a_burst_seen_by_a_region():
    y, x = np.mgrid[-16:17, -16:17].astype(float)
    both = np.stack([np.where(x < 0, -y, x), np.where(x < 0, x, y)], -1)[None]
    left, right = (x < -3), (x > 3)
    assert constancy.divergence(both, left) == pytest.approx(0, abs=1e-9)
    assert constancy.divergence(both, right) == pytest.approx(np.sqrt(2), rel=1e-6)


def test_a_known_flow_carries_a_film_onto_itself():
    film = carried(5, 3)
    right = np.zeros((4, 64, 64, 2))
    right[..., 0] = -3  # the picture goes left as the window goes right
    assert constancy.warp_error(film, right) < 1e-6
    assert constancy.warp_error(film, -right) > 0.05
    assert constancy.warp_error(film) < 0.01
    assert constancy.motion_px(constancy.flow(film)) == pytest.approx(3, abs=0.4)


def test_shuffled_films_warp_worse_than_real_ones_and_frozen_ones_are_discarded():
    for mechanism in ("fluid", "rigid_body"):
        film = physworld.simulate(mechanism, 2, scale=2).video
        real, mixed, still = (
            law_results.film_figures(frames)[0] for frames in (film, controls.shuffled(film, 0), controls.static(film))
        )
        assert real["warp_error"] < mixed["warp_error"]
        assert real["discarded"] == 0
        assert still["discarded"] == 1
        assert still["warp_error"] is None


def test_stirred_ink_diverges_less_than_a_blast():
    flows = {name: constancy.flow(physworld.simulate(name, 4).video) for name in ("fluid", "compressible_flow")}
    found = {name: constancy.divergence(f, constancy.moving_region(f)) for name, f in flows.items()}
    assert found["fluid"] < found["compressible_flow"]


def test_a_colour_s_figures_are_told_for_each_body():
    film = disc(8)
    film[:, 50:58, 4:12] = (30, 30, 230)
    values, details = law_results.film_figures(film, [RED, (30, 30, 230)])
    assert values["count_constant"] == values["count_constant_2"] == 1
    assert values["amount_drift"] < 0.02
    assert not details
    _, details = law_results.film_figures(film, [(0, 255, 0)])
    assert "found nothing" in details["colour 1"]
