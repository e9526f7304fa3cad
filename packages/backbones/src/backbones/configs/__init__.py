"""The configurations of the real checkpoints, as data: sizes, latent spaces, schedulers and the usual clip.

No weight is needed to read them: `transformer(name)` builds the real network on the meta device, with every parameter
and no memory. Each file names where its numbers come from (`source`) and the repository that they describe (`hub`).
"""

import json
from importlib.resources import files
from typing import Any

import torch
from torch import nn

__all__ = ["NAMES", "read", "transformer", "vae"]

NAMES = tuple(sorted(f.name.removesuffix(".json") for f in files(__name__).iterdir() if f.name.endswith(".json")))


def read(name: str) -> dict[str, Any]:
    """Give the configuration of a real model; ValueError names those that are here.

    >>> read("wan2.1-t2v-1.3b")["transformer"]["num_layers"]
    30
    """
    if name not in NAMES:
        raise ValueError(f"expected a configuration among {', '.join(NAMES)}, got {name!r}")
    return json.loads((files(__name__) / f"{name}.json").read_text())


def transformer(name: str, *, device: str = "meta") -> nn.Module:
    """Build the transformer (one of two for A14B) from its configuration, on the meta device by default."""
    from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel

    config = read(name)
    kind = WanTransformer3DModel if config["pipeline"].startswith("Wan") else CogVideoXTransformer3DModel
    with torch.device(device):
        return kind(**config["transformer"]).eval()


def vae(name: str, *, device: str = "meta") -> nn.Module:
    """Build the video autoencoder from its configuration, on the meta device by default."""
    from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan

    config = read(name)
    kind = AutoencoderKLWan if config["pipeline"].startswith("Wan") else AutoencoderKLCogVideoX
    with torch.device(device):
        return kind(**config["vae"]).eval()
