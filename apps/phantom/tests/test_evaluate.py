"""An evaluation asks all sides the same, measures diversity, and judges pushes."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from phantom import evaluate as measured
from phantom.config import load_recipe
from phantom.evaluate import Pushes, evaluate, push
from phantom.pushed import Ball, Followed
from trainers import video

SMALL = ["physics.channels=8", "branch.heads=1", "branch.ffn_dim=32", "couple.heads=1", "sampling.steps=1"]


def test_identical_samples_have_no_diversity_and_noise_has(backbone, monkeypatch):
    def same(backbone, adapter, prompts, seeds, recipe, **_):
        return torch.full((len(prompts), 3, 2, 4, 4), 0.5)

    def noise(backbone, adapter, prompts, seeds, recipe, **_):
        return torch.stack([torch.randn(3, 8, 32, 32, generator=torch.Generator().manual_seed(s)) for s in seeds])

    for made, wanted in ((same, 0.0), (noise, math.sqrt(2))):
        monkeypatch.setattr(measured, "sample", made)
        found = measured._diversity(backbone, None, load_recipe(None, SMALL), "thermal", clips=2, split="test", seed=0)
        assert found == pytest.approx(wanted, abs=0.02)


def test_true_clips_pass_and_all_sides_get_the_same_noise(backbone, monkeypatch):
    """With the pictures of the world in place of a model's: the measurement itself, without a model."""
    asked = []

    def world(backbone, adapter, prompts, seeds, recipe, *, observed=None, physics=None):
        asked.append((adapter, tuple(seeds)))
        truth = measured.physworld.simulate_many("thermal", range(len(prompts)), split="test")
        films = video.from_bytes(np.stack([c.video for c in truth]))
        if observed is not None:
            assert torch.allclose(films[:, :, :5], observed)
        return films if adapter is None else films.roll(1, 2)

    monkeypatch.setattr(measured, "sample", world)
    recipe, how = load_recipe(None, SMALL), {"clips": 8, "observed": 5, "quiet": True}
    rolled = SimpleNamespace(origin={}, recipe=recipe)
    found = evaluate(backbone, {"rolled": [rolled]}, recipe, mechanisms=["thermal"], **how)
    assert found.mean("base") > 0.9
    assert found.mean("base", "passes") == 1
    assert found.difference("rolled")["all"].high < 0  # heat that comes back is seen
    assert set(found.more["diversity"]) == {"base", "rolled"}
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


def row(angles, speeds=None, n=16):
    """A row of balls: errors of direction, and speeds that follow their strengths in this order."""
    speeds = range(n) if speeds is None else speeds
    balls = tuple(
        None if a is None else Ball(a, i / n, float(s)) for i, (a, s) in enumerate(zip(angles, speeds, strict=True))
    )
    kept = [b.angle_error for b in balls if b is not None]
    rank = 0.9 if list(speeds) == sorted(speeds) else 0.0
    return Followed(len(kept), n, 0.9, float(np.median(kept)), rank, balls)


def test_differences_are_paired_over_the_balls_that_are_whole_on_both_sides():
    mixed = [15, 3, 9, 0, 12, 6, 1, 14, 4, 8, 11, 2, 13, 5, 10, 7]
    rows = {"base": row([None, *[30.0] * 15], mixed), "a": row([4.0 + i for i in range(16)])}
    rows |= {"a, others' pushes": row([34.0 + i for i in range(15)] + [None], mixed), "b": row([34.0] * 16)}
    rows |= {"b, others' pushes": row([34.0] * 16)}
    pushes = Pushes(16, "test", 0, rows)
    nearer = pushes.direction("a", "a, others' pushes")
    assert (nearer.mean, nearer.n) == (pytest.approx(-30), 15)
    assert nearer.high < 0
    speed = pushes.speed("a", "base")
    assert (speed.n, speed.a, speed.b) == (15, "a", "base")
    assert 0.2 < speed.low < speed.mean < speed.high
    assert pushes.against("a") == ["base", "a, others' pushes", "b"]
    assert pushes.passes("a") is True
    assert pushes.passes("b") is False
    few = Pushes(4, "test", 0, {"a": row([None, 1.0, 2.0, 3.0], range(4), 4), "b": row([1.0, None, None, None], n=4)})
    assert few.direction("a", "b") is None
    assert few.speed("a", "b") is None


def test_too_few_balls_for_an_interval_are_no_verdict():
    rows = {name: row([30.0] * 7, n=7) for name in ("base", "a, others' pushes")} | {"a": row([1.0] * 7, range(7), 7)}
    rows = {
        name: Followed(7, 7, 0.9, 1.0 if name == "a" else 30.0, float(name == "a"), f.balls) for name, f in rows.items()
    }
    assert Pushes(7, "test", 0, rows).passes("a") is None


def test_a_direction_that_is_nearer_by_less_than_its_interval_is_no_following():
    noise = [(-1.0) ** i * 20 for i in range(16)]
    rows = {"base": row([30 + x for x in noise]), "a, others' pushes": row([30 + x for x in noise])}
    rows = {name: Followed(16, 16, 0.9, 30.0, 0.0, f.balls) for name, f in rows.items()}
    rows["a"] = Followed(16, 16, 0.9, 29.0, 0.9, row([29 - x for x in noise]).balls)
    assert Pushes(16, "test", 0, rows).passes("a") is False


def test_the_pushes_of_all_rows_are_captioned_alike_and_without_a_direction(backbone, make, monkeypatch, tmp_path):
    said = []

    def world(backbone, adapter, prompts, seeds, recipe, *, observed=None, physics=None):
        said.append(tuple(prompts))
        return video.from_bytes(np.stack([c.video for c in truth]))

    monkeypatch.setattr(measured, "sample", world)
    truth = measured.physworld.simulate_many("rigid_body", range(8), split="test")
    adapter = make(load_recipe(None, [*SMALL, "force.kind=point"]))
    found = push(backbone, {"a": adapter}, adapter.recipe, clips=8, quiet=True)
    assert len(said) == 3
    assert len(set(said)) == 1
    assert not any(word in caption.split() for caption in said[0] for word in ("left", "right"))
    assert found.followed["a"].angle_error < 3
    kept = json.loads(found.save(tmp_path / "pushes.json").read_text())
    assert len(kept["followed"]["a"]["balls"]) == 8
    assert [d["b"] for d in kept["differences"]] == ["base", "a, others' pushes"]
    assert kept["differences"][0]["direction"]["mean"] == 0
