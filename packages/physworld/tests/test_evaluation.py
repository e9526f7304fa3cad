"""An evaluation asks all methods the same, keeps what it has measured, and goes on where it stopped."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import physworld
from physworld import controls, simulation
from physworld.evaluation import Evaluation, evaluate, noise_seeds

TWO = ("rigid_body", "thermal")


class Film:
    """Makes the true clips of a split, changed by `change`, and remembers what it was asked."""

    def __init__(self, change=lambda clip: clip.video, split="test", fail_at=None):
        self.change, self.split, self.fail_at, self.asked = change, split, fail_at, []

    def __call__(self, captions, seeds, observed=None):
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append((tuple(captions), tuple(seeds)))
        mechanism = physworld.MECHANISMS[seeds[0] // 1_000_000 % 8]
        clips = physworld.simulate_many(mechanism, [s % 1_000_000 for s in seeds], split=self.split)
        assert [c.caption for c in clips] == list(captions)
        if observed is not None:
            assert np.array_equal(observed, [c.video[: observed.shape[1]] for c in clips])
        return [self.change(clip) for clip in clips]


def still(clip):
    return controls.static(clip.video)


@pytest.fixture(scope="module")
def found():
    real, frozen = Film(), Film(still)
    found = evaluate({"base": frozen, "real": [real, Film(still)]}, clips=8, batch=5, mechanisms=TWO)
    assert real.asked == frozen.asked
    return found


def test_true_clips_pass_and_still_ones_do_not(found):
    assert found.mean("base", "passes") == 0
    assert np.mean([found.table("real", "passes")[m][0].mean() for m in TWO]) > 0.9
    assert found.table("real")["thermal"].shape == (2, 8)
    assert found.mean("real") == pytest.approx(np.mean([found.mean("real", mechanism=m) for m in TWO]))
    scored = found.methods["base"][0].scored["rigid_body"]
    assert (scored.pass_share, len(scored.measures)) == (0, 8)
    assert scored.median("valid") in (0, 1)
    assert np.isnan(scored.median("nothing"))


def test_every_clip_of_every_mechanism_and_seed_has_noise_of_its_own():
    seeds = [s for seed in (0, 1) for m in physworld.MECHANISMS for s in noise_seeds(m, 50, seed)]
    assert len(set(seeds)) == 2 * 8 * 50


def test_differences_are_paired_and_say_how_many_runs_they_rest_on(found):
    both = found.difference("real")
    assert list(both) == [*TWO, "all"]
    assert both["all"].runs == (2, 1)
    assert both["all"].mean == pytest.approx(found.mean("real") - found.mean("base"))
    with pytest.raises(ValueError, match="one of base, real, got 'other'"):
        found.difference("other")


def test_rows_say_every_mean_and_difference_under_its_name(found):
    rows = found.rows([("real", "base")])
    assert rows[0] == ("mechanism", "pass base", "pass real", "score base", "score real", "real - base [95 %]")
    assert [row[0] for row in rows[1:]] == [*TWO, "all"]
    assert rows[-1][4] == f"{found.mean('real'):.3f}"
    assert rows[1][5] == str(found.difference("real")["rigid_body"])


def test_every_method_is_compared_with_the_base_and_the_first_one_with_its_controls(found):
    runs = found.methods["base"]
    more = replace(found, methods=dict.fromkeys(("base", "mine", "plain", "lora"), runs))
    versus_base = [("mine", "base"), ("plain", "base"), ("lora", "base")]
    assert more.pairs() == [*versus_base, ("mine", "plain"), ("mine", "lora")]
    assert replace(found, methods={"base": runs}).pairs() == []


def test_the_file_gives_the_same_evaluation_again_and_another_file_is_refused(found, tmp_path):
    assert Evaluation.load(found.save(tmp_path / "new" / "e.json")) == found
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["e.json"]
    for text in ("{}", "[1]", "no json", '{"format": 2}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match="expected an evaluation written by this package"):
            Evaluation.load(tmp_path / "x.json")


def test_a_stopped_evaluation_goes_on_and_ends_as_one_in_one_piece(tmp_path):
    how = {"clips": 5, "batch": 2, "mechanisms": TWO, "about": {"base": [{"id": 0}], "a": [{"id": 1}, {"id": 2}]}}
    whole = evaluate({"base": Film(still), "a": [Film(), Film(still)]}, **how)
    stopped = {"base": Film(still), "a": [Film(fail_at=4), Film(still)]}  # in its second batch of `thermal`
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopped, folder=tmp_path, **how)
    again, heard = {"base": Film(still), "a": [Film(), Film(still)]}, []
    resumed = evaluate(again, folder=tmp_path, watch=lambda *counts: heard.append(counts), **how)
    assert resumed == whole
    assert again["base"].asked == []
    assert [len(c) for c, _ in again["a"][0].asked] == [2, 1]  # one batch of `thermal` was there
    assert [len(c) for c, _ in again["a"][1].asked] == [2, 2, 1]
    assert heard[0] == (5, 30)
    assert heard[-1] == (30, 30)
    assert heard == sorted(heard)


def test_parts_belong_to_what_they_were_measured_of_and_grow_by_more_clips(tmp_path):
    how = {"mechanisms": ("thermal",), "folder": tmp_path, "batch": 4}
    few = evaluate({"base": Film()}, clips=2, about={"base": [{"id": 0}]}, **how)
    base, other = Film(), Film(still)
    more = evaluate({"first": base, "b": other}, clips=3, about={"first": [{"id": 0}], "b": [{"id": 1}]}, **how)
    assert [len(c) for c, _ in base.asked] == [1]
    assert [len(c) for c, _ in other.asked] == [3]
    assert more.methods["first"][0].scored["thermal"].scores[:2] == few.methods["base"][0].scored["thermal"].scores
    for changed in ({"seed": 1}, {"observed": 5}, {"split": "val"}):
        base = Film(split=changed.get("split", "test"))
        evaluate({"base": base}, clips=2, about={"base": [{"id": 0}]}, **how, **changed)
        assert [len(c) for c, _ in base.asked] == [2]
    base = Film()
    less = evaluate({"base": base}, clips=1, about={"base": [{"id": 0}]}, **how)
    assert base.asked == []
    assert len(less.methods["base"][0].scored["thermal"].scores) == 1


def test_other_ranges_are_measured_on_captions_that_no_other_split_has_and_true_clips_pass_there_too():
    found = evaluate({"real": Film(split="ood")}, clips=4, split="ood", mechanisms=TWO)
    assert found.mean("real") > 0.9


def test_evaluations_of_the_same_clips_are_joined_without_what_both_have(found):
    how = {"clips": 2, "mechanisms": ("thermal",)}
    base, shuffled = [{"id": 0}], Film(lambda clip: controls.shuffled(clip.video, clip.seed))
    one = evaluate({"base": Film(still), "a": Film()}, about={"base": base, "a": [{"id": 1}]}, **how)
    two = evaluate({"base": Film(still), "a": shuffled}, about={"base": base, "a": [{"id": 2}]}, **how)
    both = one.joined(two)
    assert (len(both.methods["base"]), [run.about for run in both.methods["a"]]) == (1, [{"id": 1}, {"id": 2}])
    with pytest.raises(ValueError, match="same clips, got clips 2 and 8"):
        one.joined(found)


def test_what_cannot_be_measured_is_refused(tmp_path):
    how = {"mechanisms": ("thermal",)}
    for wrong in ({"clips": 0}, {"clips": 1, "seed": -1}):
        with pytest.raises(ValueError, match="clips >= 1, seed >= 0"):
            evaluate({"base": Film()}, **how, **wrong)
    with pytest.raises(ValueError, match="one film for each of 2 captions, got 1"):
        evaluate({"base": lambda captions, seeds: Film()(captions, seeds)[:1]}, clips=2, **how)
    with pytest.raises(ValueError, match="one line in `about` for each run of base"):
        evaluate({"base": Film()}, clips=1, folder=tmp_path, **how)
    with pytest.raises(ValueError, match="expected a split"):
        evaluate({"base": Film()}, clips=1, split="exam", **how)
    about = {"base": [{"id": 0}]}
    evaluate({"base": Film()}, clips=1, folder=tmp_path, about=about, **how)
    next(tmp_path.glob("*.json")).write_text("{")
    with pytest.raises(ValueError, match="delete it to measure anew"):
        evaluate({"base": Film()}, clips=1, folder=tmp_path, about=about, **how)


def test_no_clip_depends_on_a_file_that_its_digest_leaves_out():
    here = Path(simulation.__file__).parent
    assert all((here / name).is_file() for name in simulation.NOT_OF_CLIPS)
    left_out = {name.removesuffix(".py") for name in simulation.NOT_OF_CLIPS} - {"__init__"}
    for file in sorted(here.glob("*.py")):
        if file.name in simulation.NOT_OF_CLIPS:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").removeprefix("physworld.") not in left_out, file
                assert node.module != "physworld" or not left_out & {name.name for name in node.names}, file
    assert simulation.code() != simulation.code("metrics.py")


def test_the_world_is_drawn_at_whole_scales():
    assert physworld.scale_of(17, 96, 96) == 3
    for size in ((16, 32, 32), (17, 64, 32), (17, 48, 48), (17, 0, 0)):
        with pytest.raises(ValueError, match=r"expected 17 square frames .* simulated world"):
            physworld.scale_of(*size)
