import json

import pytest
import torch

from vlmdistill import VOCABULARIES, Contrast, Targets, contrast, pack, regrid, stack, token_targets, unpack

LAWS = VOCABULARIES["laws"]


def attention(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.01


def some(t=3, times=(0.5, 1.5, 2.5)):
    return contrast({"melting": attention(t, 4, 5, seed=1)}, attention(t, 4, 5, seed=2), torch.tensor(times))


def test_the_contrast_does_not_depend_on_how_much_attention_a_map_holds():
    phenomenon, neutral, times_s = attention(2, 3, 4, seed=1), attention(2, 3, 4, seed=2), torch.tensor([0.0, 1.0])
    plain = contrast({"melting": phenomenon}, neutral, times_s).maps["melting"]
    scaled = contrast({"melting": 7 * phenomenon}, neutral / 50, times_s).maps["melting"]
    torch.testing.assert_close(plain, scaled)
    by_hand = phenomenon / phenomenon.mean() - neutral / neutral.mean()
    torch.testing.assert_close(plain, by_hand / by_hand.abs().max())
    assert plain.abs().max() == 1
    torch.testing.assert_close(plain.mean(), torch.tensor(0.0), rtol=0, atol=1e-6)


def test_what_looks_as_the_neutral_question_does_says_nothing():
    neutral = attention(2, 3, 4)
    found = contrast({"melting": neutral.clone()}, neutral, torch.tensor([0.0, 1.0]))
    assert found.maps["melting"].abs().max() == 0
    targets = token_targets(
        found, categories=LAWS, present=["melting"], grid=(2, 3, 4), times_s=torch.tensor([0.0, 1.0])
    )
    assert not targets.mask.any()


@pytest.mark.parametrize("bad", [-torch.ones(1, 2, 2), torch.zeros(1, 2, 2), torch.full((1, 2, 2), float("nan"))])
def test_maps_that_cannot_be_attention_are_refused(bad):
    with pytest.raises(ValueError, match="the map of 'melting' to be finite, not negative"):
        contrast({"melting": bad}, torch.ones(1, 2, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="the neutral map"):
        contrast({}, bad, torch.zeros(1))


def test_the_mask_holds_where_the_category_is_present_and_the_value_positive():
    maps = contrast(
        {"melting": attention(2, 4, 4, seed=1), "collision": attention(2, 4, 4, seed=2)},
        attention(2, 4, 4, seed=3),
        torch.tensor([0.0, 1.0]),
    )
    targets = token_targets(
        maps, categories=LAWS, present=["melting"], grid=(2, 4, 4), times_s=torch.tensor([0.0, 1.0])
    )
    melting, collision = LAWS.index("melting"), LAWS.index("collision")
    torch.testing.assert_close(targets.values[melting], maps.maps["melting"])
    torch.testing.assert_close(targets.values[collision], maps.maps["collision"])
    assert torch.equal(targets.mask[melting], targets.values[melting] > 0)
    assert 0 < targets.mask[melting].float().mean() < 1
    assert not targets.mask[[e for e in range(17) if e != melting]].any()


@pytest.mark.parametrize("grid", [(5, 7, 3), (1, 1, 1), (9, 8, 10), (2, 30, 52)])
def test_grids_need_not_divide_and_the_range_is_kept(grid):
    times_s = torch.linspace(0, 3, grid[0])
    targets = token_targets(some(), categories=LAWS, present=["melting"], grid=grid, times_s=times_s)
    assert targets.values.shape == targets.mask.shape == (17, *grid)
    assert targets.values.abs().max() <= 1


def test_time_is_resized_by_time_and_not_by_index():
    """A flash at 4 s of a clip whose cells bunch at the start goes to the token at 4 s."""
    times_s = torch.tensor([0.0, 0.1, 0.2, 4.0])
    flash = torch.zeros(4, 1, 1)
    flash[3] = 1
    tokens = torch.arange(9) / 2.0
    found = regrid(flash[None], times_s, (9, 1, 1), tokens)[0, :, 0, 0]
    assert found.argmax() == 8
    torch.testing.assert_close(found[1:8], (tokens[1:8] - 0.2) / 3.8)


def test_a_finer_grid_interpolates_and_holds_the_ends():
    found = regrid(
        torch.tensor([0.0, 1.0])[None, :, None, None], torch.tensor([1.0, 2.0]), (5, 1, 1), torch.arange(5.0)
    )
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]))
    found = regrid(
        torch.tensor([0.0, 1.0])[None, :, None, None], torch.tensor([1.0, 2.0]), (1, 1, 1), torch.tensor([1.25])
    )
    torch.testing.assert_close(found.flatten(), torch.tensor([0.25]))


def test_a_coarser_grid_averages():
    alternating = (torch.arange(20) % 2).float()[None, :, None, None]
    found = regrid(alternating, torch.arange(20.0), (4, 1, 1), torch.tensor([2.0, 7.0, 12.0, 17.0]))
    torch.testing.assert_close(found, torch.full_like(found, 0.5))
    corner = torch.zeros(1, 1, 8, 8)
    corner[..., 0, 0] = 1  # no cell's centre of a 2 x 2 grid is near it
    assert regrid(corner, torch.zeros(1), (1, 2, 2), torch.zeros(1))[0, 0, 0, 0] > 0.01


def test_what_grows_linearly_in_time_stays_exact_between_the_ends():
    times_s = torch.tensor([0.0, 0.7, 1.0, 2.5, 4.0])
    tokens = torch.tensor([0.6, 0.8, 1.6, 3.0])
    found = regrid((3 * times_s)[None, :, None, None], times_s, (4, 1, 1), tokens)
    torch.testing.assert_close(found.flatten(), 3 * tokens)


def test_the_same_grid_changes_nothing():
    maps, times_s = attention(2, 5, 6, 7), torch.tensor([0.0, 0.1, 0.5, 2.0, 2.2])
    torch.testing.assert_close(regrid(maps, times_s, (5, 6, 7), times_s), maps, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("categories", "present", "message"),
    [
        (LAWS, ["meltin"], "'meltin' is not in the vocabulary; did you mean 'melting'"),
        (VOCABULARIES["mechanisms"], [], "'melting' is not in the vocabulary"),
        (LAWS, ["collision"], r"no map for the present categories \['collision'\]"),
    ],
)
def test_categories_that_do_not_fit_are_refused(categories, present, message):
    with pytest.raises(ValueError, match=message):
        token_targets(some(), categories=categories, present=present, grid=(1, 2, 2), times_s=torch.zeros(1))


def test_absences_may_be_present_and_are_masked():
    targets = token_targets(
        some(),
        categories=VOCABULARIES["wisa"],
        present=["melting", "no change"],
        grid=(1, 2, 2),
        times_s=torch.zeros(1),
    )
    assert not targets.mask[VOCABULARIES["wisa"].index("no change")].any()


@pytest.mark.parametrize(
    ("grid", "times", "message"),
    [
        ((2, 2, 2), [0.0], "one time for each"),
        ((2, 2, 2), [1.0, 1.0], "strictly"),
        ((1, 2, 2), [float("nan")], "finite"),
    ],
)
def test_times_that_do_not_fit_the_grid_are_refused(grid, times, message):
    with pytest.raises(ValueError, match=message):
        token_targets(some(), categories=LAWS, present=[], grid=grid, times_s=torch.tensor(times))


def test_a_contrast_is_checked():
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        Contrast({"melting": torch.full((1, 2, 2), 2.0)}, torch.zeros(1))
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        Contrast({"melting": torch.full((1, 2, 2), float("nan"))}, torch.zeros(1))
    with pytest.raises(ValueError, match="strictly"):
        Contrast({}, torch.tensor([1.0, 0.0]))


def test_what_is_packed_is_half_precision_and_plain_json_and_comes_back():
    maps = Contrast(some().maps, some().times_s, {"model": "tiny", "layers": [1], "questions": {"melting": "Describe"}})
    tensors, meta = pack(maps)
    assert {name: value.dtype for name, value in tensors.items()} == {
        "vlm.melting": torch.float16,
        "vlm.times_s": torch.float32,
    }
    back = unpack({**tensors, "latent": torch.zeros(1)}, json.loads(json.dumps(meta)))
    assert back.meta == maps.meta
    torch.testing.assert_close(back.maps["melting"], maps.maps["melting"], rtol=1e-3, atol=1e-6)
    assert torch.equal(back.times_s, maps.times_s)


def test_entries_that_are_old_or_not_whole_are_refused():
    tensors, meta = pack(some())
    with pytest.raises(ValueError, match="format 1, got None"):
        unpack(tensors, {})
    with pytest.raises(ValueError, match="not whole"):
        unpack({"vlm.melting": tensors["vlm.melting"]}, meta)


def test_stacked_targets_are_in_the_order_of_tokens():
    values = torch.arange(24.0).reshape(2, 3, 2, 2)
    batch, mask = stack([Targets(values, values > 3), Targets(-values, values < 0)])
    assert batch.shape == mask.shape == (2, 12, 2)
    assert batch[0, :, 1].tolist() == list(range(12, 24))
    assert batch[1, 5, 0] == -5
    assert mask[0].sum() == 20
