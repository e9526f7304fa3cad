"""From a data set to shipped weights, at toy size."""

import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import backbones
from world import vae as autoencoder
from world.backbone import train
from world.cli import app
from world.clips import read_clips
from world.evaluate import evaluate, one_per_scenario, sample_sheet, tables
from world.export import export
from world.recipe import SHIPPED, Recipe, VAERecipe, read_recipe

TOY = [
    "network.layers=1",
    "network.heads=2",
    "network.head_dim=32",
    "network.ffn=64",
    "network.channels=8",
    "batch=4",
    "validation_clips=4",
    "validate_every=10",
    "compile=false",
    "lr=0.01",
    "warmup_steps=2",
]


@pytest.fixture(scope="module")
def vae(dataset, tmp_path_factory):
    clips = read_clips(dataset)
    model = autoencoder.fit_pca(clips, channels=8)
    folder = tmp_path_factory.mktemp("vae")
    report = autoencoder.measure(model, clips, kind="pca", training_clips=len(clips), seconds=0.1)
    assert report.psnr_db > 20
    autoencoder.save(model, folder, report)
    return folder


@pytest.fixture(scope="module")
def run(dataset, vae, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train(dataset, vae, out, recipe=read_recipe(None, TOY), steps=30)
    return out


def test_training_lowers_the_validation_loss(run):
    values = [json.loads(line)["validation"] for line in (run / "validation.jsonl").read_text().splitlines()]
    assert len(values) == 3
    assert values[-1] < values[0]


def test_an_interrupted_run_resumes_to_the_same_weights(dataset, vae, run, tmp_path):
    recipe = read_recipe(None, [*TOY, "hold=0.99"])
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(dataset, vae, whole, recipe=recipe, steps=4)

    class Killed(Exception):
        pass

    def kill(line):
        raise Killed

    import world.backbone as module

    stock = module.fit

    def killed_fit(*args, **kwargs):
        return stock(*args, **{**kwargs, "save_every": 2, "log": kill, "log_every": 3})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit", killed_fit)
        with pytest.raises(Killed):
            train(dataset, vae, halves, recipe=recipe, steps=4)
    train(dataset, vae, halves, recipe=recipe, steps=4, resume=True)
    name = "weights/transformer/diffusion_pytorch_model.safetensors"
    a, b = load_file(whole / name), load_file(halves / name)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_export_is_a_stock_pipeline_with_a_card_and_keeps_its_size(run, tmp_path):
    size = export(run, tmp_path / "world")
    assert size < 15e6
    backbone = backbones.load(tmp_path / "world")
    assert backbone.spec.per_token_time
    video = backbones.sample(backbone, ["a large blue ball is thrown to the left"], seed=1, steps=2)
    assert video.shape == (1, 3, 17, 32, 32)
    card = (tmp_path / "world" / "README.md").read_text()
    assert "What it cannot do" in card
    assert "30 steps" in card
    with pytest.raises(ValueError, match="smaller network"):
        export(run, tmp_path / "other", most_mb=0.001)


def test_a_stopped_run_exports_its_newest_average(run, tmp_path):
    import shutil

    stopped = tmp_path / "run"
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "weights")
    (stopped / "run.json").unlink()
    export(stopped, tmp_path / "world")
    name = "transformer/diffusion_pytorch_model.safetensors"
    a, b = load_file(run / "weights" / name), load_file(tmp_path / "world" / name)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_evaluation_tells_real_clips_from_controls(run):
    result = evaluate(str(run / "weights"), clips=2, steps=2, mechanisms=("thermal",), quiet=True)
    shares = result.passes["thermal"]
    assert shares["real"] == 1.0
    assert shares["static"] == shares["shuffled"] == shares["reversed"] == 0.0
    assert result.scores["thermal"]["base"] <= result.scores["thermal"]["real"]
    assert json.loads(result.to_json())["passes"]["thermal"]["real"] == 1.0
    assert len(tables(result)) == 2


def test_the_sheet_has_one_sample_per_scenario(run, tmp_path):
    assert sample_sheet(tmp_path / "sheet.png", str(run / "weights"), steps=1).exists()
    scenarios = [(clip.mechanism, clip.scenario) for clip in one_per_scenario()]
    assert len(set(scenarios)) == len(scenarios) >= 8


def test_a_tiny_wan_autoencoder_learns_and_knows_its_latents_scale(dataset, tmp_path):
    clips = read_clips(dataset).take(list(range(4)))
    recipe = VAERecipe(base_dim=4, batch=2)
    trained = autoencoder.train_wan(clips, recipe, out=tmp_path / "run", minutes=0.02)
    latents = autoencoder.encode(trained, clips.videos)
    assert latents.shape == (4, 16, 5, 8, 8)
    assert torch.allclose(latents.mean(dim=(0, 2, 3, 4)), torch.zeros(16), atol=1e-3)
    assert torch.allclose(latents.std(dim=(0, 2, 3, 4)), torch.ones(16), atol=1e-2)
    report = autoencoder.measure(trained, clips, kind="wan", training_clips=4, seconds=1.0)
    autoencoder.save(trained, tmp_path / "vae", report)
    again = autoencoder.load(tmp_path / "vae")
    assert torch.equal(autoencoder.encode(again, clips.videos), latents)


def test_a_network_narrower_than_twice_its_tokens_is_refused():
    with pytest.raises(ValueError, match="width of at least"):
        read_recipe(None, ["network.channels=64"])


def test_the_shipped_recipe_is_the_defaults_compiled_in_bfloat16():
    assert read_recipe(SHIPPED, []) == Recipe(compile=True, autocast="bfloat16")


def test_a_mistyped_recipe_key_is_answered_with_the_right_one():
    with pytest.raises(ValueError, match="warmup_steps"):
        read_recipe(None, ["warmup_step=3"])


def test_bad_input_ends_in_one_line_and_exit_code_two(tmp_path):
    said = CliRunner().invoke(app, ["train", "vae", "--data", str(tmp_path), "--out", str(tmp_path / "vae")])
    assert said.exit_code == 2
    assert "world make" in said.output
