"""The command line: what each verb writes, and what it says to a mistake."""

import json

import pytest
import torch
from typer.testing import CliRunner

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
    from prophy import evaluate, routers

    home, _ = run
    monkeypatch.setattr(routers, "CAPTIONS", 4)
    monkeypatch.setattr(routers, "RANDOM_ROUTERS", 3)
    monkeypatch.setattr(evaluate, "MECHANISMS", evaluate.MECHANISMS)
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
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["runs"] == {"base": 1, "prophy": 2}
    assert set(found["differences"]) == {"prophy - base"}
    assert set(found["routers"]) == {"0-prophy", "1-prophy"}
    report = found["routers"]["0-prophy"]
    assert len(report["semantic"]["pearson"]) == 8
    assert report["refinement"]["passes"] == (report["refinement"]["score"] >= 0.3)
    assert 0 < report["refinement"]["attention"] <= 1
    for drawn in ("pearson", "places"):
        assert (tmp_path / f"e-0-prophy-{drawn}.png").stat().st_size > 1000
    assert "localisation" in done.stdout


def test_check_and_plan_show_what_will_happen(sets, tmp_path):
    done = runner.invoke(app, ["check", *sets, "--cache", str(tmp_path), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "bit for bit" in done.stdout
    assert "exact fields" in done.stdout
    done = runner.invoke(app, ["plan", *sets])
    assert done.exit_code == 0, done.output
    assert "semantic" in done.stdout
    assert "prophy" in done.stdout


def test_time_is_one_json_line(sets):
    done = runner.invoke(app, ["time", *sets, "--steps", "1"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["seconds"]) == {"step", "frozen_forward"}


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
        (["plan", "--set", "device=cuda"], "CUDA"),
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
