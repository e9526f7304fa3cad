"""Tiny backbones with random weights, a recipe as small as it gets, and random data in the shape of a cache."""

import pytest
import torch

from backbones import WanBackbone, tiny, tiny_families, wrap
from physworld.captions import VOCABULARY
from prophy.config import Recipe, load_recipe
from prophy.timing import random_batch
from trainers import Progress

SMALL = (
    "batch=4",
    "steps=3",
    "save_every=1",
    "data.clips=8",
    "semantic.experts=3",
    "semantic.first_steps=2",
    "semantic.first_batch=4",
    "refine.experts=3",
    "refine.hidden=4",
    "branch.lora_rank=2",
    "wisa.head_dim=2",
    "wisa.bottleneck=4",
    "wisa.frequencies=2",
)


def small(*overrides: str) -> Recipe:
    return load_recipe(None, [*SMALL, *overrides])


@pytest.fixture(scope="session")
def make_recipe():
    return small


@pytest.fixture(scope="session")
def small_sets() -> tuple[str, ...]:
    return SMALL


@pytest.fixture(scope="session")
def backbone() -> WanBackbone:
    return WanBackbone(tiny.pipeline(VOCABULARY, layers=3, ffn_dim=64, text_dim=16, text_length=8), id="tiny-test")


@pytest.fixture(scope="session")
def families(backbone):
    """One backbone of each kind of prediction and block, with the sets that fit its clips."""
    nine = ("data.frames=9", "data.height=32", "data.width=32")
    found = {"wan-ti2v": (backbone, ())}
    for name in ("wan21_t2v", "cogvideox_2b", "cogvideox_5b"):
        found[name] = (wrap(tiny_families.family(name, layers=3)), nine)
    return found


@pytest.fixture
def batch_of():
    def make(recipe, backbone):
        return random_batch(recipe, backbone, recipe.batch)

    return make


@pytest.fixture
def progress():
    def make(step=0):
        return Progress("test", step, step, 1, 0.0, torch.Generator().manual_seed(step))

    return make


def moved(adapter):
    """The adapter with nothing left at zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return adapter


@pytest.fixture(scope="session")
def move():
    return moved
