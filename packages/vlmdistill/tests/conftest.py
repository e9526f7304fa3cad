"""Tiny random models, built once, and clips of noise."""

import pytest
import torch

from vlmdistill import Clip, tiny


@pytest.fixture(scope="session")
def models():
    return {family: tiny(family) for family in ("qwen2_5_vl", "qwen3_vl")}


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def vlm(request, models):
    return models[request.param]


@pytest.fixture
def clips():
    """Two clips whose grids, lengths and rates differ."""
    g = torch.Generator().manual_seed(0)
    wide = torch.randint(0, 256, (17, 40, 64, 3), generator=g, dtype=torch.uint8)
    small = torch.randint(0, 256, (9, 24, 32, 3), generator=g, dtype=torch.uint8)
    return [Clip.at(wide, 8.0), Clip.at(small, 2.0)]
