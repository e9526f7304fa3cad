"""The embedded backbone, a small random encoder, and an adapter whose coupling says something."""

import pytest
import torch

import backbones
from backbones import VJEPA2Encoder
from phantom.adapter import PhantomAdapter
from phantom.config import Recipe, load_recipe
from phantom.latent import Basis, PhysicsLatent

SMALL = ["physics.channels=8", "branch.heads=1", "branch.ffn_dim=32", "couple.heads=1"]


@pytest.fixture(scope="session")
def backbone():
    return backbones.load("world")


@pytest.fixture(scope="session")
def encoder():
    return VJEPA2Encoder.tiny()


@pytest.fixture(scope="session")
def clips():
    """Two clips in [-1, 1] that move."""
    g = torch.Generator().manual_seed(0)
    picture = torch.rand(2, 3, 1, 32, 32, generator=g) * 2 - 1
    return torch.cat([picture.roll(k, -1) for k in range(17)], 2)


@pytest.fixture(scope="session")
def basis(encoder, clips):
    raw = PhysicsLatent(encoder, Basis(encoder.dim, 8)).features(clips)
    return Basis.fit([raw.flatten(0, 3)], 8)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(None, SMALL)


@pytest.fixture
def make(backbone, encoder, basis):
    """Build an adapter; `stirred` gives it weights that are not at their start."""

    def build(recipe, *, stirred=False):
        torch.manual_seed(1)
        adapter = PhantomAdapter(recipe, backbone, basis, encoder)
        if stirred:
            with torch.no_grad():
                for p in adapter.parameters():
                    p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        return adapter

    return build
