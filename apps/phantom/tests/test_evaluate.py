"""Comparisons: paired differences with intervals, diversity, and verdicts on pushes."""

import math

import numpy as np
import pytest
import torch

from phantom import evaluate as measured
from phantom.config import load_recipe
from phantom.evaluate import Evaluation, Pushes, bootstrap, compare, evaluate, push
from phantom.pushed import Followed

SMALL = ["physics.channels=8", "branch.heads=1", "branch.ffn_dim=32", "couple.heads=1", "sampling.steps=1"]


def result(scores, seed=0):
    passed = {name: {m: [True] * len(v) for m, v in row.items()} for name, row in scores.items()}
    return Evaluation(8, "test", seed, 0, passed, scores, dict.fromkeys(scores, 0.0))


def test_a_difference_is_paired_so_what_all_clips_share_cancels():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0, 1, 32)
    scores = {"base": {"thermal": list(hard)}, "phantom": {"thermal": list(hard + 0.1)}}
    found = compare([result(scores)], ["phantom"])
    assert set(found) == {"thermal", "all"}
    assert found["all"].mean == pytest.approx(0.1)
    assert (found["all"].low, found["all"].high) == pytest.approx((0.1, 0.1))  # no luck of clips is left


def test_an_interval_holds_the_mean_narrows_with_clips_and_widens_with_seeds_that_disagree():
    rng = np.random.default_rng(0)
    few, many = (bootstrap(rng.normal(0.2, 1, (1, n))) for n in (16, 1024))
    for d in (few, many):
        assert d.low < d.mean < d.high
    assert many.high - many.low < (few.high - few.low) / 4
    steady = rng.normal(0.2, 0.01, (1, 64))
    agree, differ = bootstrap(np.repeat(steady, 3, 0)), bootstrap(steady + np.array([[-0.2], [0.0], [0.2]]))
    assert differ.high - differ.low > 10 * (agree.high - agree.low)
    assert bootstrap(steady) == bootstrap(steady)


def test_too_few_clips_have_no_interval():
    assert bootstrap(np.ones((1, 7))) == measured.Difference(1.0, None, None)


def test_one_method_s_seeds_and_several_results_are_joined_and_strangers_refused():
    first = {"base": {"thermal": [0.0] * 8}, "a": {"thermal": [1.0] * 8}, "b": {"thermal": [3.0] * 8}}
    assert compare([result(first)], ["a", "b"])["all"].mean == pytest.approx(2)
    again = {name: {"thermal": [2 * v for v in row["thermal"]]} for name, row in first.items()}
    assert compare([result(first), result(again, 1)], ["a"])["thermal"].mean == pytest.approx(1.5)
    assert compare([result(first)], ["b"], other="a")["all"].mean == pytest.approx(2)
    with pytest.raises(ValueError, match="expected measured bundles among base, a, b, got c"):
        compare([result(first)], ["a", "c"])


def test_identical_samples_have_no_diversity_and_noise_has(backbone, monkeypatch):
    def same(backbone, adapter, prompts, seeds, recipe, **_):
        return torch.full((len(prompts), 3, 2, 4, 4), 0.5)

    def noise(backbone, adapter, prompts, seeds, recipe, **_):
        return torch.stack([torch.randn(3, 8, 32, 32, generator=torch.Generator().manual_seed(s)) for s in seeds])

    for made, wanted in ((same, 0.0), (noise, math.sqrt(2))):
        monkeypatch.setattr(measured, "sample", made)
        assert measured._diversity(backbone, None, load_recipe(None, SMALL), ["a", "b"], 0) == pytest.approx(
            wanted, abs=0.02
        )


def test_true_clips_pass_and_all_sides_get_the_same_noise(backbone, monkeypatch):
    """With the pictures of the world in place of a model's: the measurement itself, without a model."""
    asked = []

    def world(backbone, adapter, prompts, seeds, recipe, *, observed=None, physics=None):
        asked.append((adapter, tuple(seeds)))
        truth = measured.physworld.simulate_many("thermal", range(len(prompts)), split="test")
        films = measured.frames_of(np.stack([c.video for c in truth]))
        if observed is not None:
            assert torch.allclose(films[:, :, :5], observed)
        return films if adapter is None else films.roll(1, 2)

    monkeypatch.setattr(measured, "sample", world)
    recipe, how = load_recipe(None, SMALL), {"clips": 8, "observed": 5, "quiet": True}
    found = evaluate(backbone, {"rolled": 1}, recipe, mechanisms=["thermal"], **how)
    assert np.mean(found.scores["base"]["thermal"]) > 0.9
    assert all(found.passed["base"]["thermal"])
    assert compare([found], ["rolled"])["all"].high < 0  # heat that comes back is seen
    (_, base), (_, rolled) = [a for a in asked if len(a[1]) == 8]
    assert base == rolled


def test_what_is_no_clip_of_the_world_is_not_measured(backbone):
    recipe = load_recipe(None, [*SMALL, "data.height=64"])
    with pytest.raises(ValueError, match=r"expected 17 square frames .* simulated world"):
        evaluate(backbone, {}, recipe, clips=2, quiet=True)


def follows(angle, rank, permanence=0.9):
    return Followed(n=8, of=8, permanence=permanence, angle_error=float(angle), speed_rank=float(rank))


def test_pushes_are_judged_against_base_and_control_and_only_where_the_base_keeps_its_ball():
    rows = {"base": follows(30, 0.1), "a": follows(10, 0.8), "a, others' pushes": follows(40, 0.0)}
    assert Pushes(8, "test", 0, rows).passes("a") is True
    for worse in ({"a": follows(35, 0.8)}, {"a": follows(10, 0.05)}, {"a, others' pushes": follows(10, 0.8)}):
        assert Pushes(8, "test", 0, rows | worse).passes("a") is False
    assert Pushes(8, "test", 0, rows | {"a": follows(math.nan, math.nan)}).passes("a") is False
    assert Pushes(8, "test", 0, rows | {"base": follows(30, 0.1, 0.79)}).passes("a") is None


def test_pushes_begin_at_the_true_first_frame_and_the_control_gets_those_of_others(backbone, make, tmp_path):
    adapter = make(load_recipe(None, [*SMALL, "force.kind=point"]), stirred=True)
    seen = []
    honest = adapter.pushed

    def listen(force, z):
        seen.append(force)
        return honest(force, z)

    adapter.pushed = listen
    found = push(backbone, {"phantom": adapter}, adapter.recipe, clips=2, quiet=True)
    assert list(found.followed) == ["base", "phantom", "phantom, others' pushes"]
    assert found.followed["base"].of == 2
    own, other = seen[0], seen[-1]
    assert torch.equal(own, other.roll(1, 0))
    assert not torch.equal(own, other)
    assert found.save(tmp_path / "x" / "pushes.json").read_text().startswith('{"clips": 2')
    with pytest.raises(ValueError, match="expected a force of the kind that the adapter was trained with"):
        push(backbone, {"a": make(load_recipe(None, SMALL))}, adapter.recipe, clips=2, quiet=True)
    with pytest.raises(ValueError, match="expected at least 2 clips"):
        push(backbone, {"a": adapter}, adapter.recipe, clips=1, quiet=True)
