"""The world's exact fields in the place of learned features: an oracle for the physics latent, simulated clips only.

What is true at a frame says nothing of later ones, so the fields of a beginning are the beginning of the fields.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import physworld
from phantom.latent import FIELD_CELLS, observed_latents

__all__ = ["FIELD_FEATURES", "field_features"]

STRIDE = 4
FIELD_FEATURES = sum(components + 1 for components in physworld.SLOTS.values())
"""Every component of every slot, and where the slot means something."""


def field_features(clip: physworld.Clip | None, frames: int) -> Float[Tensor, "t y x d"]:
    """Average every slot of the exact fields (and where it means something) over the frames of each latent and cells.

    ValueError for a clip that was not simulated.
    """
    if clip is None or not clip.fields:
        raise ValueError("expected a simulated clip with its exact fields, got one without: use physics.kind=vjepa2")
    latents = observed_latents(frames, STRIDE)
    shape = clip.video.shape[:3]
    layers = []
    for slot, components in physworld.SLOTS.items():
        valid = np.asarray(clip.valid.get(slot, np.zeros(shape, bool)), np.float32)[..., None]
        values = np.asarray(clip.fields.get(slot, np.zeros((*shape, components))), np.float32)
        layers += [values * valid, valid]
    stacked = np.concatenate(layers, -1)[:frames]
    t, h, w, d = stacked.shape
    n = FIELD_CELLS
    cells = stacked.reshape(t, n, h // n, n, w // n, d).mean((2, 4))
    of = [cells[:1].mean(0)] + [cells[1 + STRIDE * j : 1 + STRIDE * (j + 1)].mean(0) for j in range(latents - 1)]
    return torch.from_numpy(np.stack(of))
