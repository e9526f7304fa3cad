"""The command line: what each verb writes, and what it says to a mistake."""

import json

import pytest
import torch
from typer.testing import CliRunner

from physworld.evaluation import Evaluation
from prophy.cli import app

runner = CliRunner()


@pytest.fixture(scope="module")
def sets(small_sets):
    flags = [*small_sets, "sampling.steps=2", "batch=2", "semantic.first_batch=2", "branch.blocks=1", "steps=2"]
    return [part for s in flags for part in ("--set", s)]


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory):
    """A run on the embedded backbone, from cache to bundle."""
    home = tmp_path_factory.mktemp("run")
    done = runner.invoke(app, ["train", *sets, "--out", str(home / "run"), "--cache", str(home / "cache"), "--quiet"])
    assert done.exit_code == 0, done.output
    return home, json.loads(done.stdout.splitlines()[-1])


def test_train_says_who_taught_the_tokens_and_writes_a_bundle(run):
    home, said = run
    assert said["token_targets"] == "exact fields of the simulated world"
    assert said["steps"] == 4
    assert (home / "run/bundle/bundle.json").exists()
    assert (home / "run/recipe.yaml").exists()
    lines = [json.loads(line) for line in (home / "run/log.jsonl").read_text().splitlines()]
    assert {"diffusion", "coarse", "align", "balance", "log/refine_entropy", "log/refine_dead"} <= set(
        lines[-1]["terms"]
    )


def test_generate_compares_draws_and_notes(run, tmp_path):
    home, _ = run
    out = tmp_path / "ball.mp4"
    call = ["generate", "a large blue ball is thrown to the left", "--bundle", str(home / "run/bundle")]
    done = runner.invoke(app, [*call, "--compare", "--maps", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert {p.name for p in tmp_path.iterdir()} == {"ball.mp4", "ball.json", "ball-maps.png", "ball-experts.png"}
    about = json.loads((tmp_path / "ball.json").read_text())
    assert about["shows"] == ["base", "prophy"]
    assert len(about["refinement"]) == 2
    assert sum(about["semantic_routing"]) == pytest.approx(1, abs=1e-3)
    inverted = runner.invoke(app, [*call, "--set", "sampling.inverted=true", "--out", str(tmp_path / "turned")])
    assert inverted.exit_code == 0, inverted.output
    turned = json.loads((tmp_path / "turned.json").read_text())
    assert turned["semantic_routing"] != about["semantic_routing"]


def test_export_gives_the_same_bundle(run, tmp_path):
    from backbones import bundle

    home, _ = run
    done = runner.invoke(app, ["export", str(home / "run"), "--out", str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    first, second = (bundle.load(p).tensors for p in (home / "run/bundle", tmp_path / "b"))
    assert all(torch.equal(v, second[g][n]) for g, part in first.items() for n, v in part.items())


def test_evaluate_pairs_bundles_and_reports_the_routers(run, tmp_path, monkeypatch):
    from prophy import routers

    home, _ = run
    monkeypatch.setattr(routers, "CAPTIONS", 4)
    monkeypatch.setattr(routers, "RANDOM_ROUTERS", 3)
    bundle = str(home / "run/bundle")
    call = [
        "evaluate",
        "--bundle",
        bundle,
        "--bundle",
        bundle,
        "--clips",
        "1",
        "--out",
        str(tmp_path / "e.json"),
        "--quiet",
    ]
    done = runner.invoke(app, call)
    assert done.exit_code == 0, done.output
    found = Evaluation.load(tmp_path / "e.json")
    assert {name: len(runs) for name, runs in found.methods.items()} == {"base": 1, "prophy": 2}
    assert found.pairs() == [("prophy", "base")]
    assert found.difference("prophy")["all"].runs == (2, 1)
    assert set(found.more["routers"]) == {"0-prophy", "1-prophy"}
    report = found.more["routers"]["0-prophy"]
    assert len(report["semantic"]["pearson"]) == 8
    assert report["refinement"]["passes"] == (report["refinement"]["score"] >= 0.3)
    assert 0 < report["refinement"]["attention"] <= 1
    for drawn in ("pearson", "places"):
        assert (tmp_path / f"e-0-prophy-{drawn}.png").stat().st_size > 1000
    assert "localisation" in done.stdout


def test_check_looks_at_everything_and_writes_nothing(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(app, ["check", *sets, "--cache", str(tmp_path / "cache")])
    assert done.exit_code == 0, done.output
    for said in ("bit for bit", "exact fields", "PSNR", "rigid_body 2", "GB free", "even within"):
        assert said in " ".join(done.stdout.split())
    assert not list(tmp_path.iterdir())


def test_time_measures_every_kind_of_step_and_plan_goes_by_it(sets, tmp_path):
    done = runner.invoke(app, ["time", *sets, "--steps", "1"])
    assert done.exit_code == 0, done.output
    line = json.loads(done.stdout)
    assert set(line["seconds_a_step"]) == {"semantic", "prophy", "frozen"}
    line |= {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3"}
    (tmp_path / "time.jsonl").write_text(json.dumps(line))
    words = ["plan", *sets, "--gpu", "h100", "--measured", str(tmp_path / "time.jsonl"), "--clips", "1000"]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    for said in ("semantic", "prophy", "1,000 clips", "maps", "measured"):
        assert said in done.stdout
    made = json.loads(runner.invoke(app, [*words, "--json"]).stdout)
    assert made["rows"][0]["seconds"]["prophy"] == pytest.approx(line["seconds_a_step"]["prophy"]["wall_s"])
    assert made["rows"][0]["fits"]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (["train", "--set", "refine.experst=3"], "did you mean 'experts'?"),
        (["annotate"], "targets.vlm=FOLDER"),
        (["annotate", "--set", "targets.vlm=/nowhere"], "config.json"),
        (["generate", "x", "--bundle", "/nowhere"], "expected a bundle folder"),
        (["generate", "x", "--out", "x.gif"], "expected the name of an mp4"),
        (["export", "/nowhere", "--out", "b"], "recipe.yaml"),
        (["plan", "--set", "branch.blocks=9"], "branch.blocks"),
        (["train", "--stage", "coupel"], "expected a stage"),
        (["cache", "--set", "data.source=/nowhere.json", "--set", "targets.source=none"], "found nothing"),
        (["time", "--set", "device=cuda"], "CUDA"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_one(call, sentence, tmp_path):
    if call[0] in ("train", "cache", "annotate"):
        call = [*call, "--cache", str(tmp_path)]
    if call[-1] == "device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = runner.invoke(app, call)
    assert done.exit_code == 1, done.output
    assert sentence in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.output
