"""A random tiny backbone, a recipe as small as it gets, and random data in the shape of a cache."""

import warnings

import pytest
import torch

with warnings.catch_warnings():  # of DeepSpeed and torchao, which diffusers imports where they are installed
    warnings.simplefilter("ignore")
    from backbones import WanBackbone, tiny
from pila.adapter import PilaAdapter
from pila.config import Recipe, load_recipe
from trainers import InMemory

WORDS = [
    "a",
    "the",
    "large",
    "small",
    "blue",
    "red",
    "ball",
    "balls",
    "is",
    "thrown",
    "to",
    "left",
    "right",
    "two",
    "collide",
    "ink",
    "ice",
    "melts",
    "heat",
    "wave",
]
SMALL = (
    "batch=4",
    "network.width=8",
    "network.blocks=1",
    "network.groups=2",
    "network.frequencies=4",
    "network.head_width=4",
    "network.condition_width=8",
    "network.operator_width=4",
    "observe.steps=2",
    "recover.steps=1",
    "couple.steps=3",
    "couple.physics_warmup=1",
    "couple.condition_warmup=1",
    "couple.mask_warmup=1",
    "couple.encoder_frozen=1",
    "save_every=1",
)


@pytest.fixture(scope="session")
def backbone() -> WanBackbone:
    return WanBackbone(tiny.pipeline(WORDS, layers=1, ffn_dim=64, text_dim=16, text_length=8), id="tiny-test")


def small(*overrides: str) -> Recipe:
    return load_recipe(None, [*SMALL, *overrides])


@pytest.fixture(scope="session")
def make_recipe():
    return small


@pytest.fixture(scope="session")
def small_sets() -> tuple[str, ...]:
    return SMALL


@pytest.fixture(scope="session")
def data(backbone: WanBackbone) -> InMemory:
    g = torch.Generator().manual_seed(0)
    prompts = ["a blue ball is thrown to the left", "two balls collide", "ink", "ice melts"] * 3
    with torch.no_grad():
        text = backbone.embed(prompts).features
    return InMemory(
        {
            "latent": torch.randn(12, 16, 5, 8, 8, generator=g),
            "text": text,
            "flow": 0.3 * torch.randn(12, 2, 5, 8, 8, generator=g),
            "labels": torch.eye(8)[torch.arange(12) % 8] + torch.eye(8)[(torch.arange(12) + 3) % 8],
        }
    )


@pytest.fixture
def trained(backbone: WanBackbone) -> PilaAdapter:
    """An adapter with nothing left at zero."""
    torch.manual_seed(1)
    adapter = PilaAdapter(backbone.spec, small())
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return adapter
