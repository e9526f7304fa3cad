"""What ships works as it is: the embedded backbone in the stock pipelines, its V-JEPA 2, and the bundles on it."""

import warnings
from pathlib import Path

import pytest
import torch

import backbones
from backbones import bundle

PROMPTS = ["a large blue ball is thrown to the left", "one slow ripple spreads on a pond"]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers and transformers talk while they load
        return backbones.load("world")


@pytest.fixture(scope="module")
def bare(world):
    return backbones.sample(world, PROMPTS, seed=1, steps=2)


def weigh(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def test_the_backbone_keeps_its_size_and_brings_its_card():
    folder = Path(backbones.__file__).parent / "weights" / "world"
    assert weigh(folder) <= 15
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("uv run world train backbone", "| training |", "What it cannot do"))
    assert not [p for p in folder.rglob("*") if p.suffix in {".bin", ".pt", ".pkl"}]


def test_the_physics_encoder_keeps_its_size_and_brings_its_card():
    folder = Path(backbones.__file__).parent / "weights" / "vjepa2-world"
    assert weigh(folder) <= 8
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("uv run world train encoder", "uv run world probe", "| gravity, px/frame^2 |"))
    clip = torch.zeros(1, 3, 17, 32, 32)
    assert backbones.VJEPA2Encoder.load("world").encode(clip, pad="first").per_latent().shape == (1, 5, 4, 4, 128)


def test_text_and_first_frame_both_condition_it(world, bare):
    assert bare.shape == (2, 3, 17, 32, 32)
    assert bare.abs().max() <= 1
    first = bare[:, :, 0]
    continued = backbones.sample(world, PROMPTS, seed=1, steps=2, image=first)
    drawn_twice = world.decode(world.encode(first[:, :, None]))[:, :, 0]
    assert torch.allclose(continued[:, :, 0], drawn_twice, atol=0.02)  # 8-bit pictures on the way
    assert (continued[:, :, 8] - bare[:, :, 8]).abs().max() > 0.05


def test_it_draws_the_colour_that_the_caption_asks_for(world):
    video = backbones.sample(world, ["a large red ball is thrown to the right"] * 4, seed=0, steps=8)
    red, _, blue = video.amax((2, 3, 4)).mean(0)
    assert red > blue + 0.3


SHIPPED = ["pila", "plain", "prophy", "prophy-plain", "phantom", "mmphysvideo", "mmphysvideo-control"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_bundle_fits_moves_the_clip_and_leaves_no_trace(world, bare, name):
    folder = bundle.shipped(name)
    assert weigh(folder) <= 3
    before = world.digest
    with backbones.attach(world, folder):
        corrected = backbones.sample(world, PROMPTS, seed=1, steps=2)
    assert (corrected - bare).abs().max() > 0.01
    assert world.digest == before
    assert torch.equal(backbones.sample(world, PROMPTS, seed=1, steps=2), bare)


def test_pila_and_its_control_have_the_same_size_and_steps():
    stored = {name: bundle.load(bundle.shipped(name)) for name in ("pila", "plain")}
    sizes = {n: sum(t.numel() for group in b.tensors.values() for t in group.values()) for n, b in stored.items()}
    steps = {n: sum(stage["steps"] for stage in b.meta["stages"]) for n, b in stored.items()}
    assert sizes["pila"] == sizes["plain"]
    assert steps["pila"] == steps["plain"]
    assert {n: b.config["adapter"] for n, b in stored.items()} == {"pila": "pila", "plain": "plain"}
