"""Laws of the paired bootstrap."""

import numpy as np
import pytest

from physworld.paired import (
    LEAST,
    benjamini_hochberg,
    by_mechanism,
    expected_by_chance,
    holm,
    paired,
    resampled_means,
    share_margin,
)


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
    assert (few.low, few.high, few.p) == (None, None, None)
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
    with pytest.raises(ValueError, match=r"as many runs of a in every stratum, got \[2, 1\]"):
        paired("a", "b", [[[1.0], [2.0]], [1.0]], [[1.0], [1.0]])


def test_resampled_means_spread_as_the_mean_of_clips_does():
    values = np.random.default_rng(0).normal(size=(1, 50))
    means = resampled_means([values], [np.zeros((1, 50))], resamples=20_000)
    assert means.std() == pytest.approx(values.std(ddof=1) / 50**0.5, rel=0.02)  # s / sqrt(n), of the unbiased s
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)


@pytest.mark.parametrize("runs", [2, 3, 10])
def test_training_runs_add_the_whole_variance_of_their_mean_even_where_there_are_two(runs):
    shift = np.linspace(-0.3, 0.3, runs)[:, None]
    clips = np.random.default_rng(1).normal(size=(1, 40))
    spread = resampled_means([clips + shift], [np.zeros((1, 40))], resamples=20_000).var()
    assert spread == pytest.approx(shift.var(ddof=1) / runs + clips.var(ddof=1) / 40, rel=0.03)


def test_a_run_is_drawn_for_all_mechanisms_at_once():
    """What a training seed shifts, it shifts everywhere: strata do not average it away."""
    shift = np.array([[-1.0], [1.0]]) * np.ones((2, 8))
    one, many = (resampled_means([shift] * k, [np.zeros((1, 8))] * k).std() for k in (1, 8))
    assert many == pytest.approx(one, rel=0.05)
    clips = np.random.default_rng(2).normal(size=(1, 8))
    one, many = (resampled_means([clips] * k, [np.zeros((1, 8))] * k).std() for k in (1, 8))
    assert many == pytest.approx(one / 8**0.5, rel=0.05)


def test_runs_of_the_other_side_count_as_well():
    a, b = np.zeros((1, 8)), np.array([[-1.0], [1.0]]) * np.ones((2, 8))
    difference = paired("a", "b", [a], [b])
    assert (difference.low, difference.high) == (-1.0, 1.0)
    assert difference.runs == (1, 2)
    assert paired("a", "b", [a], [b.mean(0)]).high == 0.0


def test_the_p_value_is_the_level_at_which_the_interval_begins_to_hold_zero():
    a, b = draws(4, 20, 0.06)
    p = paired("a", "b", [a], [b]).p
    assert 0.002 < p < 0.5
    assert paired("a", "b", [a], [b], level=1 - p - 0.01).clear
    assert not paired("a", "b", [a], [b], level=1 - p + 0.01).clear
    assert paired("a", "a", [a], [a]).p == 1.0


def test_holm_and_benjamini_hochberg_give_what_their_papers_and_scipy_give():
    from scipy.stats import false_discovery_control

    # Benjamini and Hochberg (1995), section 4.1: fifteen tests, four discoveries at .05; by Holm, too, three
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528]
    p += [0.759, 1.0]
    mixed = np.random.default_rng(0).permutation(15)
    shuffled = [p[i] for i in mixed]
    found = benjamini_hochberg(shuffled)
    assert found == pytest.approx(false_discovery_control(shuffled))
    assert sum(q <= 0.05 for q in found) == 4
    adjusted = holm(shuffled)
    assert sum(q <= 0.05 for q in adjusted) == 3
    assert adjusted[list(mixed).index(0)] == pytest.approx(0.0015)
    assert all(h >= q >= raw for h, q, raw in zip(adjusted, found, shuffled, strict=True))
    assert holm([]) == benjamini_hochberg([]) == []


def test_one_interval_in_twenty_excludes_zero_by_chance():
    assert expected_by_chance(20) == pytest.approx(1.0)
