"""The command line, in process: every verb on the tiny recipe, and what a user gets wrong."""

import json

import pytest
import torch
from typer.testing import CliRunner

import physworld
from mmphysvideo.cli import app
from trainers import video

RUN = CliRunner()
PROMPT = "a large blue ball is thrown to the left"
SETS = ["data.clips=8", "batch=4", "save_every=2", "teacher.steps=2", "student.steps=2", "sampling.steps=1"]
SETS += ["teacher.weights.rank=2", "student.weights.rank=2", "student.align.hidden=8"]


def ask(*words):
    result = RUN.invoke(app, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    return result


def told(result):
    return json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))


def fail(*words):
    result = RUN.invoke(app, [str(w) for w in words])
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def sets():
    return [word for item in SETS for word in ("--set", item)]


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory):
    """A folder with a cache, a teacher, and a student."""
    home = tmp_path_factory.mktemp("run")
    shared = (*sets, "--cache", home / "cache", "--quiet")
    made = told(ask("cache", *shared))
    assert (made["clips"], made["computed"], made["modality"]) == (8, 16, "unified")
    teacher = told(ask("train", *shared, "--stage", "teacher", "--out", home / "teacher"))
    assert (teacher["kind"], teacher["steps"]) == ("teacher", 2)
    lessons = ("--stage", "student", "--teacher", home / "teacher" / "bundle")
    student = told(ask("train", *shared, *lessons, "--out", home / "student"))
    assert set(student["losses"]) == {"video", "align"}
    return home


def test_check_looks_at_everything(sets):
    said = ask("check", *sets).stdout
    assert "bit for bit" in said
    assert "perception (unified)" in said
    assert "student.align.cells that divide" in " ".join(
        RUN.invoke(app, ["check", *sets, "--set", "student.align.cells=[3,3]"]).stdout.split()
    )


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_plan_counts_a_stage_from_its_recipe_alone(sets, stage):
    made = told(ask("plan", *sets, "--stage", stage, "--json"))
    assert [kind["name"] for kind in made["job"]["kinds"]] == [stage]


def test_time_measures_a_step_and_what_a_student_costs(sets):
    line = told(ask("time", *sets, "--stage", "student", "--steps", "1"))
    assert {"student", "base_forward", "student_forward"} == set(line["seconds_a_step"])
    assert line["seconds_a_step"]["student"]["work"]["flops"]


def test_generate_shows_a_teacher_with_its_perception_and_a_student_beside_the_base(run, tmp_path):
    ask("generate", PROMPT, "--bundle", run / "teacher" / "bundle", "--compare", "--out", tmp_path / "t.mp4")
    about = json.loads((tmp_path / "t.json").read_text())
    assert about["shows"] == ["base", "teacher", "unified"]
    ask("generate", PROMPT, "--bundle", run / "student" / "bundle", "--out", tmp_path / "s")
    about = json.loads((tmp_path / "s.json").read_text())
    assert about["shows"] == ["student"]
    assert about["bundle"]["teacher"]  # whom it learned from
    assert video.read(tmp_path / "s.mp4").frames.shape[0] == 17
    clip = physworld.simulate("rigid_body", 0)
    from PIL import Image

    Image.fromarray(clip.video[0]).save(tmp_path / "first.png")
    ask(
        "generate",
        PROMPT,
        "--bundle",
        run / "student" / "bundle",
        "--image",
        tmp_path / "first.png",
        "--out",
        tmp_path / "i",
    )


def test_evaluate_puts_base_student_and_control_in_pairs(run, sets, tmp_path):
    control = ("--set", "student.align.source=none", "--out", run / "control")
    ask("train", *sets, "--cache", run / "cache", "--quiet", "--stage", "student", *control)
    bundles = ("--bundle", run / "student" / "bundle", "--bundle", run / "control" / "bundle")
    said = ask("evaluate", *bundles, "--clips", "1", "--quiet", "--out", tmp_path / "e.json").stdout
    kept = json.loads((tmp_path / "e.json").read_text())
    assert set(kept["methods"]) == {"base", "student", "student without alignment"}
    assert "student - student without alignment" in said


def test_export_writes_each_form(run, tmp_path):
    ask("export", run / "student", "--out", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["groups"] == ["weights"]
    ask("export", run / "student" / "bundle", "--form", "weights", "--out", tmp_path / "w")
    assert (tmp_path / "w" / "transformer" / "config.json").is_file()
    ask("export", run / "student", "--form", "lora", "--out", tmp_path / "l")
    assert (tmp_path / "l" / "pytorch_lora_weights.safetensors").is_file()
    ask("export", run / "teacher", "--out", tmp_path / "t")
    assert "expected a student for stock diffusers" in fail(
        "export", run / "teacher", "--form", "weights", "--out", tmp_path / "no"
    )
    assert "expected --form bundle, weights or lora" in fail(
        "export", run / "student", "--form", "x", "--out", tmp_path
    )


def test_what_a_user_gets_wrong_is_one_red_line(run, sets, tmp_path):
    shared = (*sets, "--cache", tmp_path / "cache", "--quiet")
    assert "expected a teacher for student.align.source=teacher" in fail(
        "train", *shared, "--stage", "student", "--out", tmp_path / "a"
    )
    assert "expected a teacher's bundle for --teacher, got a student's" in fail(
        "train", *shared, "--stage", "student", "--teacher", run / "student" / "bundle", "--out", tmp_path / "a"
    )
    assert "expected --stage teacher or student, got 'x'" in fail("train", *shared, "--stage", "x", "--out", tmp_path)
    assert "a teacher learns from no other" in fail(
        "train", *shared, "--teacher", run / "teacher" / "bundle", "--out", tmp_path / "a"
    )
    assert "already holds a run" in fail("train", *shared, "--out", run / "teacher")
    assert "data.modality" in fail("cache", *shared, "--set", "data.modality=depth")
    assert "did you mean" in fail("cache", *shared, "--set", "data.modalty=seg").lower()
    assert not (tmp_path / "cache").exists()  # nothing was made for any of them
    if not torch.cuda.is_available():
        assert "expected a CUDA device" in fail("check", *sets, "--set", "device=cuda")
