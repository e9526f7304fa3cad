"""Laws of the paired bootstrap."""

import numpy as np
import pytest

from bench.compare import by_mechanism, expected_by_chance, paired


def draws(seed: int, n: int, shift: float) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    return list(difficulty + shift + 0.1 * rng.normal(size=n)), list(difficulty + 0.1 * rng.normal(size=n))


def test_the_interval_covers_a_known_difference_about_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        a, b = draws(seed, 40, 0.2)
        difference = paired("a", "b", [a], [b], seed=seed, resamples=500)
        covered += difference.low <= 0.2 <= difference.high
    assert 88 <= covered <= 99


def test_pairing_cancels_the_difficulty_that_both_systems_share():
    a, b = draws(0, 16, 0.2)
    difference = paired("a", "b", [a], [b])
    assert difference.clear
    unpaired = paired("a", "b", [a], [b[::-1]])
    assert unpaired.high - unpaired.low > 4 * (difference.high - difference.low)


def test_a_system_does_not_differ_from_itself():
    difference = paired("a", "a", [[0.1, 0.7, 0.3]], [[0.1, 0.7, 0.3]])
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert not difference.clear


def test_swapping_the_systems_turns_the_interval_round():
    a, b = draws(3, 20, 0.05)
    forth, back = paired("a", "b", [a], [b]), paired("b", "a", [b], [a])
    assert forth.mean == pytest.approx(-back.mean)
    assert forth.low == pytest.approx(-back.high, abs=5e-3)


def test_every_mechanism_weighs_the_same_in_the_total():
    compared = by_mechanism("a", "b", {"x": [1.0, 1.0], "y": [0.0]}, {"x": [0.0, 0.0], "y": [0.0]})
    assert compared["all"].mean == pytest.approx(0.5)
    assert compared["all"].n == 3


def test_clips_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="same clips"):
        paired("a", "b", [[1.0, 2.0]], [[1.0]])


def test_one_interval_in_twenty_excludes_zero_by_chance():
    assert expected_by_chance(20) == pytest.approx(1.0)
