"""The embedded physics encoder: masks, what reaches the student, the run from data to a shipped folder, the probe."""

import json

import numpy as np
import pytest
import torch
from transformers import VJEPA2Model
from typer.testing import CliRunner

from backbones import VJEPA2Encoder
from trainers import load_config
from world import probe as probing
from world.cli import app
from world.encoder import EncoderRecipe, Jepa, masks, pixels_of, train

TOY = ["patch=16", "width=24", "layers=1", "heads=2", "predictor_width=24", "predictor_layers=1", "predictor_heads=2"]
TOY += ["batch=4", "validation_clips=4", "warmup_steps=2", "block=[1,1]"]


@pytest.fixture(scope="module")
def recipe():
    return load_config(EncoderRecipe, None, overrides=TOY)


@pytest.fixture(scope="module")
def run(dataset, recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoder")
    train(dataset, out, recipe=recipe, steps=12)
    return out


@pytest.mark.parametrize("seed", range(8))
def test_seen_and_hidden_cells_make_the_whole_clip(seed):
    recipe = EncoderRecipe()
    seen, hidden = masks(3, 9, 4, recipe, torch.Generator().manual_seed(seed))
    assert len(seen) == len(hidden) == 3
    for row in torch.cat([seen, hidden], 1):
        assert sorted(row.tolist()) == list(range(9 * 16))
    assert bool((seen.diff(dim=1) > 0).all())


def test_both_kinds_of_masks_occur():
    counts = {masks(1, 9, 4, EncoderRecipe(), torch.Generator().manual_seed(k))[0].shape[1] for k in range(40)}
    assert counts & {16 * first for first in range(2, 7)}
    assert counts & {9 * (16 - a * b) for a in (2, 3) for b in (2, 3)}


def test_what_is_hidden_does_not_reach_the_student(recipe):
    jepa = Jepa(recipe, frames=18, size=32).eval()
    pixels = torch.randn(1, 18, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen, hidden = torch.arange(8)[None], torch.arange(8, 36)[None]
    with torch.no_grad():
        before = jepa(pixels, seen, hidden)
        for layer in jepa.teacher.layer:  # a teacher that says the same whatever it sees
            layer.mlp.fc2.weight.zero_()
        jepa.teacher.layernorm.weight.zero_()
        still = jepa(pixels, seen, hidden)
        pixels[:, 4:] = 9.0  # tubelets 2 and later
        changed = jepa(pixels, seen, hidden)
        pixels[:, 0] = 9.0
        told = jepa(pixels, seen, hidden)
    assert before != still
    assert still == changed
    assert told != changed


def test_the_teacher_gets_no_gradient_and_follows(recipe):
    jepa = Jepa(recipe, frames=18, size=32)
    seen, hidden = torch.arange(8)[None], torch.arange(8, 36)[None]
    jepa(torch.randn(1, 18, 3, 32, 32), seen, hidden).backward()
    assert all(p.grad is None for p in jepa.teacher.parameters())
    with torch.no_grad():
        for p in jepa.student.encoder.parameters():
            p.add_(1.0)
    before = [p.clone() for p in jepa.teacher.parameters()]
    jepa.follow(0.75)
    assert all(torch.allclose(p, b + 0.25) for p, b in zip(jepa.teacher.parameters(), before, strict=True))


def test_a_run_leaves_a_stock_folder_whose_encoder_is_the_teacher(run):
    found = VJEPA2Encoder.load(run / "weights")
    stock = VJEPA2Model.from_pretrained(run / "weights").eval()
    videos = np.zeros((1, 17, 32, 32, 3), np.uint8)
    with torch.no_grad():
        ours = found.encode(torch.full((1, 3, 17, 32, 32), -1.0), pad="first").last.flatten(1, 3)
        theirs = stock(pixels_of(torch.from_numpy(videos)), skip_predictor=True).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert json.loads((run / "weights" / "encoder.json").read_text())["steps"] == 12


def test_an_interrupted_run_ends_with_the_same_encoder(dataset, recipe, tmp_path):
    steady = recipe.model_copy(update={"hold": 0.99, "teacher": (0.9, 0.9)})  # neither knows how long the run is
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(dataset, whole, recipe=steady, steps=8)
    train(dataset, halves, recipe=steady, steps=5)
    train(dataset, halves, recipe=steady, steps=8, resume=True)
    a, b = (VJEPA2Encoder.load(out / "weights").encoder.state_dict() for out in (whole, halves))
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_pictures_that_do_not_divide_into_cells_are_refused(dataset, recipe, tmp_path):
    with pytest.raises(ValueError, match=r"cells of 7 pixels, got 32 x 32: set patch"):
        train(dataset, tmp_path, recipe=recipe.model_copy(update={"patch": 7}), steps=1)


def test_ridge_reads_a_linear_quantity_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(200, 20, generator=g), torch.randn(20, generator=g)
    read = probing._read(x[:150], x[:150] @ w, x[150:])
    assert float((read - x[150:] @ w).square().mean().sqrt() / (x @ w).std()) < 0.05
    noise = torch.randn(200, generator=g)
    blind = probing._read(x[:150], noise[:150], x[150:])
    assert 0.9 < float((blind - noise[150:]).square().mean().sqrt() / noise.std()) < 1.3


def test_distractors_change_the_picture_and_keep_the_law():
    videos = np.full((2, 17, 32, 32, 3), 90, np.uint8)
    still, lit = (probing.RENDERINGS[k](videos, np.random.default_rng(0)) for k in ("texture", "light"))
    assert np.array_equal(still[:, :1].repeat(17, 1), still)
    assert not np.array_equal(still[0], still[1])
    assert not np.array_equal(lit[:, 0], lit[:, 8])
    assert lit.min() >= 90


def test_probe_and_export_from_the_command_line(run, tmp_path, monkeypatch):
    few = {k: v for k, v in probing.QUANTITIES.items() if v[0] in ("rigid_body", "thermal")}
    monkeypatch.setattr(probing, "QUANTITIES", few)
    runner = CliRunner()
    report, out = tmp_path / "probe.json", tmp_path / "shipped"
    weights = ["--weights", str(run / "weights")]
    result = runner.invoke(app, ["probe", *weights, "--out", str(report), "--fit", "16", "--test", "8", "--seeds", "1"])
    assert result.exit_code == 0, result.output
    rows = json.loads(report.read_text())
    assert {row["rendering"] for row in rows} == set(probing.RENDERINGS)
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows)
    wanted = ["export-encoder", "--run", str(run), "--probe", str(report), "--out", str(out)]
    result = runner.invoke(app, wanted)
    assert result.exit_code == 0, result.output
    card = (out / "README.md").read_text()
    assert "| gravity, px/frame^2 |" in card
    assert "world train encoder" in card
    VJEPA2Encoder.load(out)
    refused = runner.invoke(app, [*wanted, "--most-mb", "0.001"])
    assert refused.exit_code == 2
    assert "lower width or layers" in refused.output
