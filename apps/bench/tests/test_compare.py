"""Laws of comparing runs: pairs by prompt, no mixing of experiments, folders of videos as they are."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import physworld
from bench import compare, results
from bench.cli import app
from bench.results import Item, Rater
from trainers import video


def test_two_results_are_paired_by_prompt_whatever_their_order(eight, tmp_path):
    one, other = eight(name="one"), eight(0.4, name="other")
    turned = [s.model_copy(update={"items": s.items[::-1]}) for s in other.systems]
    results.write(one, tmp_path / "a")
    results.write(other.model_copy(update={"systems": tuple(turned)}), tmp_path / "b")
    found = compare.compare([tmp_path / "a", tmp_path / "b"])
    assert [s.name for s in found.systems] == ["base", "one", "other"]  # the base is measured alike and counts once
    gains = {c.a: c for c in found.comparisons if not c.group and c.b == "base"}
    assert gains["one"].mean == pytest.approx(0.2, abs=0.03)
    assert gains["other"].mean == pytest.approx(0.4, abs=0.03)
    assert gains["one"].n == 16
    assert gains["one"].p_corrected >= gains["one"].p


def test_runs_of_other_prompts_or_another_rater_are_not_compared(eight, tmp_path):
    one = eight()
    results.write(one, tmp_path / "a")
    for change, said in (
        ({"prompt_set": one.prompt_set.model_copy(update={"name": "world ood"})}, "prompt set"),
        ({"rater": Rater(name="a judge", kind="judge")}, "rater"),
        ({"rater": Rater(name="physworld", kind="law", version="other")}, "version of the rater"),
        ({"benchmark": "videophy"}, "benchmark"),
    ):
        results.write(one.model_copy(update=change), tmp_path / "b")
        with pytest.raises(ValueError, match=f"same {said}.*two experiments"):
            compare.compare([tmp_path / "a", tmp_path / "b"])


def test_prompts_that_one_side_lacks_are_left_out_and_counted(eight, tmp_path):
    one, other = eight(name="one"), eight(name="other")
    fewer = tuple(s.model_copy(update={"items": s.items[:-3], "name": s.name + "2"}) for s in other.systems)
    results.write(one, tmp_path / "a")
    results.write(other.model_copy(update={"systems": fewer}), tmp_path / "b")
    found = compare.compare([tmp_path / "a", tmp_path / "b"])
    assert found.prompt_set.count == 13
    assert "3 prompts that not all systems have" in found.notes[0]
    assert all(c.low is None for c in found.comparisons if c.group == "thermal")  # five are too few


def test_the_same_name_measured_otherwise_keeps_both(eight, tmp_path):
    results.write(eight(0.1), tmp_path / "a")
    results.write(eight(0.5), tmp_path / "b")
    assert [s.name for s in compare.compare([tmp_path / "a", tmp_path / "b"]).systems] == ["base", "nudge", "nudge (b)"]


def world_folder(folder, *, clips: int = 1, still: bool = False):
    lines = []
    for i in range(clips):
        clip = physworld.simulate("thermal", i, split="test")
        film = np.repeat(clip.video[:1], len(clip.video), 0) if still else clip.video
        video.write(folder / f"clips/{i}.mp4", film, 16, lossless=True)
        lines.append(clip.record() | {"id": f"test-thermal-{i:06d}", "file": f"clips/{i}.mp4"})
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_folders_of_videos_are_measured_as_they_are_and_compared(tmp_path):
    real, still = world_folder(tmp_path / "real"), world_folder(tmp_path / "still", still=True)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    found = compare.compare([real, still], out=tmp_path / "out", workers=1)
    assert {s.name: s.metrics["pass"].value for s in found.systems} == {"real": 1.0, "still": 0.0}
    assert found.prompt_set.name == "world test"
    assert sorted(p.relative_to(tmp_path) for d in (real, still) for p in [d, *d.rglob("*")]) == before
    assert all((tmp_path / "out" / str(s.items[0].video)).is_file() for s in found.systems)


def test_a_bad_video_is_left_out_with_a_line_and_never_leads_out_of_the_folder(tmp_path):
    folder = world_folder(tmp_path / "run")
    (folder / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "secret.mp4").write_bytes(b"x")
    caption = physworld.simulate("thermal", 0).caption
    with (folder / "records.jsonl").open("a") as lines:
        for file, said in (
            ("broken.mp4", caption),
            ("../secret.mp4", caption),
            ("lost.mp4", caption),
            ("b.mp4", "cat"),
        ):
            lines.write(json.dumps({"file": file, "captions": said}) + "\n")
    found = compare.measured(folder, workers=1)
    assert len(found.systems[0].items) == 1
    assert len(found.notes) == 4
    assert "inside the folder" in found.notes[1]
    assert "no such file" in found.notes[2]
    assert "not a caption of this world" in found.notes[3]


def test_the_command_prints_the_table_and_refuses_a_folder_without_results(eight, tmp_path):
    results.write(eight(), tmp_path / "a")
    answer = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), "--out", str(tmp_path / "out")])
    assert answer.exit_code == 0, answer.stderr
    assert "nudge - base" in answer.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    answer = CliRunner().invoke(app, ["compare", str(tmp_path / "nothing")])
    assert answer.exit_code == 1
    assert "expected a result file or a folder" in answer.stderr


def test_a_share_has_a_width_at_its_ends_and_few_clips_have_no_interval():
    assert compare.figure("pass", [np.zeros((1, 16))]).high == pytest.approx(0.194, abs=1e-3)
    assert compare.figure("score", [np.full((1, 16), 0.5)]).low == pytest.approx(0.5)
    assert compare.figure("score", [np.zeros((1, 7))]).low is None
    assert Item(id="x").values == {}


def test_groups_are_corrected_for_all_groups_and_the_whole_for_all_pairs_alone(eight):
    compared = eight().comparisons
    assert {c.family for c in compared if c.group} == {2}  # one pair, two groups
    assert {c.family for c in compared if not c.group} == {1}
    assert all(c.p_corrected == c.p for c in compared if not c.group)
    least = min(c.p for c in compared if c.group)
    assert least > 0
    assert min(c.p_corrected for c in compared if c.group) == pytest.approx(
        2 * least
    )  # Holm: the smallest counts twice
