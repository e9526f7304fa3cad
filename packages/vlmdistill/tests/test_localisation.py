import pytest
import torch

from vlmdistill import Localisation, bar, localise, macro, random_router


def planted(seed=0, shape=(3, 6, 8)):
    g = torch.Generator().manual_seed(seed)
    truth = torch.zeros(shape, dtype=torch.bool)
    truth[:, 2:4, 3:5] = True
    return torch.randn(shape, generator=g), truth


def test_a_map_that_is_the_mask_finds_all():
    _, truth = planted()
    found = localise(truth.float(), truth)
    assert (found.average_precision, found.iou, found.pointing, found.above_chance) == (1, 1, 1, 1)
    assert found.prevalence == pytest.approx(4 / 48)


def test_a_constant_map_scores_as_chance_in_whatever_order_it_is_stored():
    _, truth = planted()
    k, n = int(truth.sum()), truth.numel()
    chance = k * k / n
    found = localise(torch.full(truth.shape, 0.3), truth)
    assert found.average_precision == pytest.approx(k / n)
    assert found.above_chance == pytest.approx(0)
    assert found.pointing == pytest.approx(k / n)
    assert found.iou == pytest.approx(chance / (2 * k - chance))


def test_a_map_that_avoids_the_phenomenon_is_below_chance():
    noise, truth = planted()
    found = localise(noise - 100 * truth, truth)
    assert found.above_chance < 0
    assert found.iou == found.pointing == 0


def test_average_precision_is_that_of_the_definition():
    """Sorted by hand: hits at ranks 1, 3, 6 of 3 give (1/1 + 2/3 + 3/6) / 3."""
    truth = torch.tensor([1, 0, 1, 0, 0, 1, 0], dtype=torch.bool).reshape(1, 1, 7)
    scores = torch.tensor([7.0, 6, 5, 4, 3, 2, 1]).reshape(1, 1, 7)
    assert localise(scores, truth).average_precision == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)


def test_the_scores_depend_on_the_order_alone():
    noise, truth = planted()
    scores = noise + 2 * truth
    assert localise(scores, truth) == localise(scores.exp() * 5 - 3, truth)


def test_the_pointing_game_is_played_in_the_frames_that_hold_the_phenomenon():
    truth = torch.zeros(3, 1, 4, dtype=torch.bool)
    truth[0, 0, 0] = truth[1, 0, 1] = True
    scores = torch.zeros(3, 1, 4)
    scores[0, 0, 0] = scores[1, 0, 2] = scores[2, 0, 3] = 1
    assert localise(scores, truth).pointing == 0.5


@pytest.mark.parametrize("fill", [False, True])
def test_a_phenomenon_nowhere_or_everywhere_is_refused(fill):
    with pytest.raises(ValueError, match="nowhere or everywhere"):
        localise(torch.zeros(1, 2, 2), torch.full((1, 2, 2), fill))


def test_a_map_that_is_not_a_number_is_refused():
    noise, truth = planted()
    noise[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        localise(noise, truth)


def test_the_macro_mean_counts_each_mechanism_once_and_leaves_out_what_fills_the_clip():
    good, poor = Localisation(1.0, 1.0, 1.0, 0.1), Localisation(0.1, 0.0, 0.0, 0.1)
    wide = Localisation(1.0, 1.0, 1.0, 0.6)
    assert macro({"a": [good] * 9, "b": [poor], "c": [wide], "d": []}) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"prevalence below 0\.5"):
        macro({"c": [wide], "d": []})


def test_the_bar_is_passed_above_the_floor_and_above_random_routers():
    g = torch.Generator().manual_seed(1)
    tokens = torch.randn(144, 16, generator=g)
    _, truth = planted()

    def score_of(column):
        return localise(column.reshape(3, 6, 8), truth).above_chance

    def random_score(seed):
        return score_of(random_router(tokens, 8, seed)[:, 0])

    found = bar(score_of(truth.float().flatten()), random_score)
    assert found.passes
    assert 0 < found.random_quantile < 0.3
    drawn = torch.tensor([random_score(seed) for seed in range(200)], dtype=torch.float64)
    assert found.random_quantile == pytest.approx(float(drawn.quantile(0.975)))
    assert not bar(found.random_quantile, random_score, floor=0.0).passes, "a random router's own score is not above it"
    assert not bar(0.29, lambda seed: 0.0).passes, "above random, below the floor"


def test_a_random_router_is_the_same_for_a_seed_and_blind_to_the_scale_of_features():
    tokens = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(random_router(tokens, 4, 1), random_router(tokens, 4, 1))
    assert not torch.equal(random_router(tokens, 4, 1), random_router(tokens, 4, 2))
    torch.testing.assert_close(random_router(100 * tokens + 3, 4, 1), random_router(tokens, 4, 1), rtol=0, atol=1e-5)


def test_a_bar_of_no_draws_is_refused():
    with pytest.raises(ValueError, match="at least one draw"):
        bar(0.5, lambda seed: 0.0, draws=0)
