"""The command line: every verb works on a folder, and what a user gets wrong is one line, no traceback."""

import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from safetensors.torch import load_file
from transformers import VJEPA2Model
from typer.testing import CliRunner

import physworld
from backbones.vjepa2 import tiny_config
from phantom import data
from phantom.cli import app
from physworld.evaluation import Evaluation
from trainers import video
from trainers.pictures import GAP, HEADER

pytestmark = pytest.mark.filterwarnings("ignore")
RUN = CliRunner()
PROMPT = "a large blue ball is thrown to the left"
SMALL = ["physics.channels=8", "branch.heads=1", "branch.ffn_dim=32", "couple.heads=1", "sampling.steps=1"]
SMALL += ["data.clips=16", "batch=4", "steps=2", "save_every=2", "weight.ramp_steps=2", "weight.measure_every=1"]
FORCES = ["force.kind=point", "force.clips=4", "force.steps=1"]


@pytest.fixture(scope="module", autouse=True)
def few_held_out():
    """Eight clips for the held-out loss instead of 64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "HELD_CLIPS", 8)
        yield


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A V-JEPA 2 on disk, as a user has one."""
    home = tmp_path_factory.mktemp("vjepa2")
    torch.manual_seed(0)
    VJEPA2Model(tiny_config()).save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def sets(encoder_folder):
    return [part for s in (*SMALL, f"physics.encoder={encoder_folder}") for part in ("--set", s)]


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory):
    """A run with both stages, and its cache."""
    home = tmp_path_factory.mktemp("run")
    forces = [part for s in FORCES for part in ("--set", s)]
    where = ("--cache", home / "cache", "--quiet")
    assert json.loads(ask("cache", *sets, *where))["computed"] == 16
    summary = json.loads(ask("train", *sets, *forces, *where, "--out", home / "run"))
    assert (summary["clips"], summary["steps"], summary["physics"]) == (16, 3, "vjepa2")
    return home


def ask(*words):
    result = RUN.invoke(app, [str(w) for w in words])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def fail(*words):
    result = RUN.invoke(app, [str(w) for w in words])
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_check_looks_at_everything_and_writes_nothing(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = " ".join(ask("check", *sets, "--cache", tmp_path / "cache").split())
    for said in ("bit for bit", "PSNR", "24 features on (5, 4, 4)", "unknown before a run"):
        assert said in shown
    assert not list(tmp_path.iterdir())


def test_check_counts_the_resets_of_an_earlier_run_and_refuses_many(sets, tmp_path):
    log = tmp_path / "log.jsonl"
    for spikes, said in ((0, "0 expected a ramp"), (3, "expected at most one reset")):
        norms = [1.0] * 4 + ([1.0, 99.0] if spikes else [1.0, 1.0]) * 10
        log.write_text("".join(json.dumps({"recursive": {"physics": {"average": n}}}) + "\n" for n in norms))
        words = ("check", *sets, "--set", "weight.ramp_steps=40", "--run", tmp_path, "--cache", tmp_path / "c")
        shown = fail(*words) if spikes else " ".join(ask(*words).split())
        assert said in shown


def test_time_measures_a_step_and_plan_goes_by_it(sets, tmp_path):
    line = json.loads(ask("time", *sets, "--steps", 1))
    assert set(line["seconds_a_step"]) == {"joint", "frozen"}
    assert line["parameters"] > 0
    line["device_name"] = "NVIDIA H100 80GB HBM3"
    (tmp_path / "time.jsonl").write_text(json.dumps(line))
    made = json.loads(ask("plan", *sets, "--measured", tmp_path / "time.jsonl", "--gpu", "h100", "--json"))
    (row,) = made["rows"]
    assert row["basis"]["joint"] == "measured"
    assert row["seconds"]["joint"] == line["seconds_a_step"]["joint"]["wall_s"]
    # 16 clips: latents 16 x 5 x 8 x 8, text, features of 24 dimensions on 5 latents, of beginnings 1 + 2 + 3
    assert made["cache_bytes"] > 16 * (4 * 16 * 5 * 64 + 2 * 24 * 16 * (5 + 6))


def test_generate_compares_from_one_noise_keeps_z_and_tells_its_story(run):
    out = run / "ball.mp4"
    words = ("generate", PROMPT, "--bundle", run / "run" / "bundle", "--seed", 4, "--out", out)
    written = ask(*words, "--compare", "--save-physics", "--force", "0.5,0.5,90,1").split()
    names = ["ball.mp4", "ball-force.png", "ball-physics.safetensors", "ball-physics.png", "ball.json"]
    assert [w.rpartition("/")[2] for w in written] == names
    frames = video.read(out).frames
    assert frames.shape[1:3] == (HEADER + 256, 256 + GAP + 256)
    assert load_file(run / "ball-physics.safetensors")["z"].shape == (1, 8, 5, 4, 4)
    assert imread(run / "ball-physics.png").std() > 0
    story = json.loads(out.with_suffix(".json").read_text())
    assert (story["prompt"], story["seed"], story["shows"]) == (PROMPT, 4, ["base", "phantom"])
    assert story["physics"]["kind"] == "vjepa2"
    assert story["physics"]["grid"] == [5, 4, 4]
    assert story["force"] == {"kind": "point", "x": 0.5, "y": 0.5, "angle": 90.0, "strength": 1.0}
    assert story["bundle"]["steps"] == {"joint": 2, "force": 1}
    assert {"phantom", "physbackbones", "transformers"} <= set(story["versions"])


def test_generate_goes_on_from_an_image_or_a_video_and_says_what_it_cuts(run, tmp_path, backbone):
    bundle = ("--bundle", run / "run" / "bundle")
    Image.new("RGB", (100, 80), (200, 30, 30)).save(tmp_path / "red.png")
    ask("generate", PROMPT, *bundle, "--image", tmp_path / "red.png", "--out", tmp_path / "i")
    first = video.read(tmp_path / "i.mp4").frames[0]
    assert first[..., 0].mean() > first[..., 1].mean() + 80
    clip = physworld.simulate("rigid_body", 0)
    video.write(tmp_path / "film.mp4", clip.video[:8], 16, lossless=True)
    result = RUN.invoke(
        app,
        ["generate", PROMPT, *map(str, bundle), "--video", str(tmp_path / "film.mp4"), "--out", str(tmp_path / "v")],
    )
    assert result.exit_code == 0, result.output
    assert "8 frames, of which the first 5" in " ".join(result.stderr.split())
    assert json.loads((tmp_path / "v.json").read_text())["observed_frames"] == 5
    shown = video.read(tmp_path / "v.mp4").frames[:5, ::8, ::8].astype(int)
    seen = video.from_bytes(clip.video[None, :5])
    assert np.abs(shown - video.to_bytes(backbone.decode(backbone.encode(seen)))[0]).mean() < 6


def test_generate_follows_the_physics_of_a_clip(run, tmp_path):
    clip = physworld.simulate("rigid_body", 0)
    video.write(tmp_path / "film.mp4", clip.video, 16, lossless=True)
    words = ("generate", PROMPT, "--bundle", run / "run" / "bundle", "--save-physics", "--out", tmp_path / "f")
    ask(*words, "--follow", tmp_path / "film.mp4")
    z = load_file(tmp_path / "f-physics.safetensors")["z"]
    ask(*words)
    assert not torch.allclose(load_file(tmp_path / "f-physics.safetensors")["z"], z)
    assert json.loads((tmp_path / "f.json").read_text())["follows"] is None


def test_continue_writes_a_folder_of_futures_of_base_and_bundle(run, tmp_path):
    home = tmp_path / "beginnings"
    home.mkdir()
    for seed in range(2):
        clip = physworld.simulate("rigid_body", seed)
        video.write(home / f"{seed + 1:04d}_ball.mp4", clip.video[:5], 16, lossless=True)
        (home / f"{seed + 1:04d}_ball.txt").write_text(clip.caption)
    (home / "0003_mute.mp4").write_bytes(b"")
    words = ("continue", home, "--bundle", run / "run" / "bundle", "--observed", 5, "--quiet")
    for side, more in (("phantom", ()), ("base", ("--base",))):
        said = json.loads(ask(*words, "--out", tmp_path / side, *more))
        assert said == {"out": str(tmp_path / side), "videos": 2, "left_out": 1, "frames": 12, "fps": 16.0}
        assert json.loads((tmp_path / f"{side}.json").read_text())["shows"] == side
    assert "expected 4m+1 observed frames" in fail(*words[:-2], "4", "--out", tmp_path / "x")


def test_evaluate_compares_bundles_and_pushes_balls(run, tmp_path):
    bundle = ("--bundle", run / "run" / "bundle")
    shown = " ".join(ask("evaluate", *bundle, "--clips", 1, "--out", tmp_path / "e.json", "--quiet").split())
    for said in ("thermal", "all", "diversity", "1 captions a mechanism", "phantom - base"):
        assert said in shown
    made = Evaluation.load(tmp_path / "e.json")
    assert {name: len(runs) for name, runs in made.methods.items()} == {"base": 1, "phantom": 1}
    assert all(row.shape == (1, 1) for row in made.table("base").values())
    shown = " ".join(ask("evaluate", *bundle, "--forces", "--clips", 2, "--quiet").split())
    assert "phantom, others' pushes" in shown
    assert "its pushes" in shown
    assert "got both" in fail("evaluate", *bundle, "--forces", "--observed", 1)


def test_export_writes_what_training_wrote_without_cache(run, tmp_path):
    said = json.loads(ask("export", run / "run", "--out", tmp_path / "b"))
    assert said["mean_change"] > 0
    for name in ("bundle.safetensors",):
        a, b = (load_file(home / name) for home in (run / "run" / "bundle", tmp_path / "b"))
        assert a.keys() == b.keys()
        assert any("injector" in key for key in a)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert "expected the folder of a run" in fail("export", tmp_path, "--out", tmp_path / "c")


def test_a_run_is_resumed_and_stopped_after_a_stage(run, sets, tmp_path):
    where = (*sets, "--cache", run / "cache", "--quiet", "--out", tmp_path / "r")
    assert json.loads(ask("train", *where))["steps"] == 2
    assert (
        json.loads(ask("train", *where, "--set", "steps=3", "--set", "optim.schedule=constant", "--resume"))["steps"]
        == 3
    )
    assert "expected a stage among joint, got 'force'" in fail("train", *where, "--stage", "force", "--resume")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--set", "branch.head=3"), "did you mean 'heads'"),
        (("train", "--set", "physics.channels=many"), "physics.channels"),
        (("train", "--config", "tinny"), "tinny"),
        (("train", "--set", "branch.heads=1"), "cannot pass a narrower network"),
        (("train", "--set", "device=cuda"), "found none on this machine"),
        (("plan", "--gpu", "RTX-4900"), "did you mean 'RTX-4090'"),
        (("plan", "--set", "physics.encoder=nowhere"), "expected physics.encoder to be 'world', a folder"),
        (("check", "--set", "physics.encoder=/tmp"), "expected a folder or hub id of a V-JEPA 2"),
        (("generate", "ink", "--bundle", "nowhere"), "expected a bundle folder"),
        (("generate", "ink", "--out", "x.gif"), "name of an mp4"),
        (("generate", "ink", "--force", "1,2,3"), "expected x,y,angle,strength (numbers), got '1,2,3'"),
        (("generate", "ink", "--force", "0,0,0,0", "--wind", "0,0"), "got both"),
        (("continue", "nowhere", "--out", "x"), "expected a folder of videos or pictures"),
        (("cache", "--set", "data.source=nowhere.jsonl"), "found nothing"),
        (("cache", "--set", "data.frames=33"), "expected 17 square frames"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_clear_line(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in fail(*words)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".mp4", ".yaml", ".safetensors")]


def test_what_generate_cannot_read_is_one_clear_line(run, tmp_path):
    words = ("generate", PROMPT, "--bundle", run / "run" / "bundle", "--out", tmp_path / "x.mp4")
    (tmp_path / "broken").write_bytes(b"nothing")
    broken = tmp_path / "broken"
    assert "expected a picture at" in fail(*words, "--image", broken)
    assert "broken" in fail(*words, "--video", broken)
    assert "broken" in fail(*words, "--follow", broken)
    assert "expected --image or --video, got both" in fail(*words, "--image", broken, "--video", broken)
    assert "trained with (point), got wind" in fail(*words, "--wind", "0,1")
    assert "did you mean --bundle" in fail("generate", PROMPT, "--bundle", run / "run", "--out", tmp_path / "x.mp4")
    assert not (tmp_path / "x.mp4").exists()


def test_a_force_on_a_bundle_that_was_taught_none_is_refused(run, sets, tmp_path):
    ask("train", *sets, "--cache", run / "cache", "--quiet", "--set", "steps=1", "--out", tmp_path / "r")
    words = ("generate", PROMPT, "--bundle", tmp_path / "r" / "bundle", "--out", tmp_path / "x.mp4")
    assert "train it with --set force.kind=point" in fail(*words, "--force", "0.5,0.5,0,1")


def test_a_bundle_is_taught_forces_without_its_first_stage(run, sets, tmp_path):
    forces = [part for s in FORCES for part in ("--set", s)]
    where = ("--cache", run / "cache", "--quiet", "--from", run / "run" / "bundle")
    said = json.loads(ask("train", *sets, *forces, *where, "--out", tmp_path / "r"))
    assert (said["clips"], said["steps"]) == (4, 1)
    told = json.loads((tmp_path / "r" / "bundle" / "bundle.json").read_text())
    assert [stage["name"] for stage in told["stages"]] == ["joint", "force", "force"]
    before, after = (load_file(home / "bundle" / "bundle.safetensors") for home in (run / "run", tmp_path / "r"))
    assert torch.equal(before["basis.components"], after["basis.components"])
    assert "add --set force.kind=point" in fail("train", *sets, *where, "--out", tmp_path / "s")


def test_clips_without_captions_or_too_short_are_listed_and_left_out(run, sets, tmp_path):
    home = tmp_path / "clips"
    home.mkdir()
    clip = physworld.simulate("rigid_body", 0)
    long = np.concatenate([clip.video, clip.video[:3]])
    video.write(home / "mute.mp4", clip.video, 16, lossless=True)
    words = ("cache", *sets, "--set", f"data.source={home}", "--cache", tmp_path / "cache", "--quiet")
    assert "it has no caption" in fail(*words)
    for name, frames in (("odd", long), ("short", clip.video[:12]), ("whole", clip.video)):
        video.write(home / f"{name}.mp4", frames, 16, lossless=True)
        (home / f"{name}.txt").write_text(PROMPT)
    result = RUN.invoke(app, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    assert (json.loads(result.stdout)["clips"], json.loads(result.stdout)["skipped"]) == (2, 2)
    said = " ".join(result.stderr.split())
    assert "left out: mute.mp4" in said
    assert "left out: short.mp4: expected 17 frames" in said
