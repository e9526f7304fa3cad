"""The simulated world's harness at toy size: what is paired, what is kept, what is gone on with."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bench import generate, results, world
from bench.generate import System
from physworld.evaluation import Scored, noise_seeds
from trainers import video


def test_references_bound_what_can_be_measured(folder):
    result = results.read(folder)
    share = {s.name: s.groups["thermal"]["pass"].value for s in result.systems}
    assert share["real"] == 1.0
    assert share["static"] == 0.0
    assert {s.name: s.role for s in result.systems} == {
        "base": "system",
        "nudge": "system",
        "real": "real",
        "VAE": "floor",
        "static": "control",
        "reversed": "control",
        "shuffled": "control",
    }


def test_systems_share_prompts_and_noise_and_an_adapter_moves_the_clip(folder):
    result = results.read(folder)
    base, nudge = result.system("base"), result.system("nudge")
    assert [(i.id, i.prompt, i.seed) for i in base.items] == [(i.id, i.prompt, i.seed) for i in nudge.items]
    assert len({i.seed for i in base.items}) == len(base.items)
    films = [video.read(folder / str(s.items[1].video)).frames for s in (base, nudge)]
    assert not np.array_equal(*films)
    assert all(i.seed is None for i in result.system("real").items)


def test_the_same_command_reads_what_was_measured_and_gives_the_same_bytes(folder, setting, nudge, monkeypatch):
    before = (folder / "result.json").read_bytes()
    monkeypatch.setattr(generate, "to_bytes", lambda _: pytest.fail("a measured clip was sampled again"))
    systems = (System("base"), System("nudge", (nudge,)))
    again = {"mechanisms": ("rigid_body", "thermal"), "workers": 1, "quiet": True}
    title = json.loads(before)["title"]
    (same,) = world.run(setting, systems, folder.parent, **again, title=title, badge="demo, not a claim")
    mine, kept = results.read(same), json.loads(before)
    assert json.loads(mine.model_dump_json())["systems"] == kept["systems"]
    (folder / "result.json").write_bytes(before)


def test_training_runs_and_noise_seeds_of_one_system_are_averaged_by_caption(setting, bundle_of, tmp_path):
    runs = tuple(bundle_of(tmp_path / str(i), 0.1 * (i + 1), seed=i) for i in range(2))
    asked = replace(setting, seeds=(0, 1), splits=("ood",))
    systems = (System("base"), System("nudge", runs))
    (folder,) = world.run(asked, systems, tmp_path / "out", mechanisms=("thermal",), workers=1, quiet=True)
    result = results.read(folder)
    assert result.prompt_set.name == "world ood"
    nudge = result.system("nudge")
    assert len(nudge.items) == 4
    assert nudge.training_seeds == (0, 1)
    assert nudge.metrics["score"].n == 1
    mean = np.mean([i.values["score"] for i in nudge.items])
    assert nudge.metrics["score"].value == pytest.approx(mean)
    assert {i.seed for i in nudge.items} == {noise_seeds("thermal", 1, s).start for s in (0, 1)}


def test_a_missing_bundle_or_backbone_stops_before_anything_is_made(setting, tmp_path):
    lost = (System("base"), System("lost", (tmp_path / "lost",)))
    with pytest.raises(ValueError, match="lost cannot be compared: expected a bundle folder"):
        world.run(setting, lost, tmp_path / "out", workers=1)
    with pytest.raises(ValueError, match="/no/such/backbone"):
        world.run(replace(setting, backbone="/no/such/backbone"), (System("base"),), tmp_path / "out", workers=1)
    with pytest.raises(ValueError, match="own name"):
        world.run(setting, (System("base"), System("real")), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_a_name_given_twice_is_another_training_run(nudge, bundle_of, tmp_path):
    other = bundle_of(tmp_path / "other", 0.3)
    found = world.named([f"mine={nudge}", f"mine={other}", str(other)])
    assert [(s.name, len(s.bundles)) for s in found] == [("mine", 2), ("nudge", 1)]
    assert [s.name for s in world.named(["plain", "prophy-plain"])] == ["plain", "prophy-plain"]


def test_a_figure_is_the_mean_over_noise_and_keeps_runs_apart():
    def scored(value: float) -> Scored:
        return Scored((True, False), (value, value + 0.1), ({}, {}))

    figures = {("fluid", seed, run): scored(seed + 10.0 * run) for seed in (0, 1) for run in (0, 1)}
    assert world.table(figures, "scores", ["fluid"])["fluid"] == pytest.approx(np.array([[0.5, 0.6], [10.5, 10.6]]))


def test_a_control_that_passes_where_it_should_fail_is_named(folder):
    result = results.read(folder)
    assert world.blind(result) == []

    def passing(group: str):
        reversed_ = result.system("reversed")
        groups = {**reversed_.groups, group: {"pass": results.Metric(value=1.0, n=1)}}
        changed = reversed_.model_copy(update={"groups": groups})
        systems = tuple(changed if s.name == "reversed" else s for s in result.systems)
        return world.blind(result.model_copy(update={"systems": systems}))

    assert passing("thermal") == ["thermal, reversed: 1 of 1"]
    assert passing("rigid_body") == []  # flight runs backwards just as well


def test_names_become_files_that_stay_in_their_folder():
    assert generate.slug("../../etc/passwd") == "etc-passwd"
    assert generate.slug("<b>&") == "b"
    assert generate.slug("…") == "system"
