"""The embedded backbone, a small recipe, and a cache of a few clips."""

import pytest
import torch

import backbones
from mmphysvideo.config import load_recipe
from mmphysvideo.data import prepare

SMALL = ["data.clips=8", "batch=4", "save_every=2", "teacher.steps=2", "student.steps=2", "sampling.steps=2"]
SMALL += ["teacher.weights.rank=2", "student.weights.rank=2", "student.align.hidden=8"]


@pytest.fixture(scope="session")
def backbone():
    return backbones.load("world")


@pytest.fixture(scope="session")
def recipe():
    return load_recipe(None, SMALL)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def prepared(backbone, recipe, root):
    return prepare(recipe, backbone, root, perceived=True, quiet=True).data


@pytest.fixture(scope="session")
def stirred():
    """Move what is trained away from its start, always in the same way."""

    def stir(*groups, by=0.05):
        with torch.no_grad():
            for group in groups:
                for p in group.parameters():
                    p.add_(by * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))

    return stir
