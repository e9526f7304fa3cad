"""Laws of the paired bootstrap."""

import numpy as np
import pytest

from bench.compare import LEAST, by_mechanism, expected_by_chance, paired, share_margin


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
    values = [0.1, 0.7, 0.3, 0.2, 0.9, 0.4, 0.0, 1.0]
    difference = paired("a", "a", [values], [values])
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


def test_too_few_clips_have_no_interval_even_when_they_agree():
    few = paired("a", "b", [[1.0] * (LEAST - 1)], [[0.0] * (LEAST - 1)])
    assert few.mean == 1.0
    assert np.isnan([few.low, few.high]).all()
    assert not few.clear
    assert paired("a", "b", [[1.0] * LEAST], [[0.0] * LEAST]).clear
    assert not paired("a", "b", [[1.0] * 40, [1.0]], [[0.0] * 40, [0.0]]).clear  # the smallest stratum decides


def test_the_margin_of_a_share_is_half_its_wilson_interval():
    n, z = 16, 1.959964
    centre, half = 0.5, z / (1 + z * z / n) * (0.25 / n + z * z / (4 * n * n)) ** 0.5  # Wilson (1927) at p = 1/2
    assert share_margin(n) == pytest.approx(half, abs=1e-6)
    assert centre - share_margin(4) > 0
    assert share_margin(128) < share_margin(16)


def test_clips_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="same clips"):
        paired("a", "b", [[1.0, 2.0]], [[1.0]])


def test_one_interval_in_twenty_excludes_zero_by_chance():
    assert expected_by_chance(20) == pytest.approx(1.0)
