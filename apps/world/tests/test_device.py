"""Devices, clips of 64 pixels, and weights stored in fewer bytes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import backbones
from world import vae as autoencoder
from world.backbone import pixels_of, train
from world.clips import read_clips
from world.device import generator_on, precision, usable
from world.evaluate import evaluate, sample_sheet
from world.export import export
from world.make import make
from world.objective import corrupt, drop_captions, prefixes, training_sigma
from world.recipe import VAERecipe, read_recipe

TOY = [
    "network.layers=1",
    "network.heads=2",
    "network.head_dim=32",
    "network.ffn=64",
    "network.channels=8",
    "batch=4",
    "validation_clips=4",
    "compile=false",
    "warmup_steps=2",
]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A run on clips of 64 pixels, in bfloat16."""
    root = tmp_path_factory.mktemp("large")
    make(root / "data", clips=8, scale=2, fields=False, sheets=False)
    clips = read_clips(root / "data")
    model = autoencoder.fit_pca(clips, channels=8)
    report = autoencoder.measure(model, clips, kind="pca", training_clips=8, seconds=0.1)
    autoencoder.save(model, root / "vae", report)
    train(root / "data", root / "vae", root / "run", recipe=read_recipe(None, [*TOY, "autocast=bfloat16"]), steps=2)
    return root / "run"


def test_draws_on_the_cpu_are_those_of_the_first_run():
    """The numbers were drawn before training knew any other device: a run of then resumes to the same weights."""
    generator = torch.Generator().manual_seed(7)
    assert generator_on(torch.device("cpu"), generator) is generator
    sigma = training_sigma(6, 1.0, generator)
    prefix = prefixes(6, 0.5, 3, generator)
    noised = corrupt(torch.zeros(6, 2, 5, 4, 4), sigma, prefix, generator)
    ones, empty = torch.ones(6, 3, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    ids, _ = drop_captions(ones, ones, (empty, empty), 0.5, generator)
    assert torch.allclose(sigma, torch.tensor([0.534923, 0.198803, 0.659212, 0.65689, 0.232762, 0.425061]), atol=1e-6)
    assert prefix.tolist() == [3, 3, 2, 3, 0, 2]
    eps = torch.tensor([0.1947, 0.19304, 0.15694, 1.32052, -1.89634, -2.20068])
    assert torch.allclose(noised.target[:, 1, 4, 3, 3], eps, atol=2e-5)
    assert ids[:, 0].tolist() == [0, 1, 1, 1, 1, 0]


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path):
    for name in ("meta", "gpu"):
        with pytest.raises(ValueError, match="expected a device of this machine"):
            usable(name)
    with pytest.raises(ValueError, match="expected a device of this machine"):
        train(
            tmp_path / "none", tmp_path / "none", tmp_path / "run", recipe=read_recipe(None, ["device=meta"]), steps=1
        )
    assert not (tmp_path / "run").exists()


def test_bfloat16_passes_keep_float32_weights_and_a_finite_loss(large):
    weights = load_file(large / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert 0 < json.loads((large / "run.json").read_text())["validation_loss"] < 4


def test_a_bfloat16_autoencoder_trains_and_stays_float32(dataset, tmp_path):
    clips = read_clips(dataset).take([0, 1])
    recipe = VAERecipe(base_dim=4, batch=2, autocast="bfloat16")
    trained = autoencoder.train_wan(clips, recipe, out=tmp_path / "run", minutes=0.005)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert autoencoder.encode(trained, clips.videos).dtype == torch.float32


def test_a_backbone_knows_the_size_of_its_clips(large, tmp_path):
    assert pixels_of(large) == 64
    result = evaluate(str(large / "weights"), clips=1, steps=1, mechanisms=("thermal",), quiet=True)
    assert result.pixels == 64
    assert result.passes["thermal"]["real"] == 1.0
    assert sample_sheet(tmp_path / "sheet.png", str(large / "weights"), steps=1).exists()


def test_weights_stored_in_bfloat16_are_half_the_bytes_and_load_as_float32(large, tmp_path):
    whole = export(large, tmp_path / "whole")
    half = export(large, tmp_path / "half", dtype="bfloat16")
    assert half < 0.75 * whole
    a, b = backbones.load(tmp_path / "whole"), backbones.load(tmp_path / "half")
    for name in ("transformer", "text_encoder"):
        pairs = zip(getattr(a.pipe, name).parameters(), getattr(b.pipe, name).parameters(), strict=True)
        assert all(y.dtype == torch.float32 and torch.allclose(x, y, rtol=2**-8) for x, y in pairs)
    assert torch.equal(a.pipe.vae.basis, b.pipe.vae.basis)
    card = (tmp_path / "half" / "README.md").read_text()
    assert "bfloat16" in card
    assert "64 x 64" in card
    assert "--scale 2" in card
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        export(large, tmp_path / "other", dtype="int8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_training_on_an_accelerator_resumes_to_the_same_noise_and_saves_for_the_cpu(large, tmp_path):
    cpu, device = torch.Generator().manual_seed(1), torch.device("cuda")
    draws = [torch.randn(4, generator=generator_on(device, cpu.manual_seed(1)), device=device) for _ in range(2)]
    assert torch.equal(draws[0], draws[1])
    recipe = read_recipe(None, [*TOY, "device=cuda", "autocast=bfloat16"])
    train(large.parent / "data", large.parent / "vae", tmp_path / "run", recipe=recipe, steps=2)
    assert backbones.load(tmp_path / "run" / "weights").device.type == "cpu"


def test_attention_stays_float32_on_the_cpu_while_matrices_run_in_bfloat16():
    x = torch.randn(1, 2, 4, 8)
    kept = functional.scaled_dot_product_attention(x, x, x)
    with precision(torch.device("cpu"), "bfloat16"):
        assert (x @ x.mT).dtype == torch.bfloat16
        assert torch.equal(functional.scaled_dot_product_attention(x, x, x), kept)
        narrow = functional.scaled_dot_product_attention(query=x.bfloat16(), key=x.bfloat16(), value=x.bfloat16())
        assert narrow.dtype == torch.bfloat16  # given back as it came
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.scaled_dot_product_attention(x, x, x).dtype == torch.bfloat16
