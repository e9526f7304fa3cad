"""One tiny Wan for all tests of this member; its weights are random and its VAE is fitted to noise with structure."""

import cv2
import numpy as np
import pytest
import torch

# transformers announces by a warning that torchvision's image processor is not installed; nothing here uses one
WARNINGS = ("ignore:.*CLIPImageProcessor.*",)


def pytest_collection_modifyitems(items):
    for item in items:
        for line in WARNINGS:
            item.add_marker(pytest.mark.filterwarnings(line))


cv2.setNumThreads(1)  # as torch: two thread teams on two cores wait for each other

WORDS = ["a", "large", "small", "blue", "red", "ball", "is", "thrown", "to", "the", "left", "right"]


@pytest.fixture(scope="session")
def videos():
    """Six uint8 clips of 17 frames: a disc that moves over a gradient."""
    y, x = np.mgrid[:32, :32].astype(np.float64)
    clips = []
    for k in range(6):
        frames = []
        for t in range(17):
            inside = np.clip(5.5 - np.hypot(y - 8 - 0.8 * t, x - 6 - 0.2 * k * t), 0, 1)[..., None]
            ground = np.stack([200 + y, 190 + x, 210 - y], -1)
            frames.append(inside * np.array([40, 90 + 20 * k, 220]) + (1 - inside) * ground)
        clips.append(np.round(np.stack(frames)).clip(0, 255).astype(np.uint8))
    return np.stack(clips)


@pytest.fixture(scope="session")
def video(videos):
    """The same clips as the models take them, float (b, 3, t, h, w) in [-1, 1]."""
    return torch.from_numpy(videos).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


@pytest.fixture(scope="session")
def vae(videos):
    from backbones import AutoencoderBlockPCA

    return AutoencoderBlockPCA.fit(videos)


@pytest.fixture
def backbone(vae):
    from backbones import WanBackbone, tiny

    return WanBackbone(tiny.pipeline(WORDS, vae=vae, layers=2, seed=1), id="tiny")
