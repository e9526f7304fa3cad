"""What is measured of what: sources of clips for the same captions, and the law's figures of each.

`real` are held-out simulations, `VAE` the same through the backbone's autoencoder (the best that any generator behind
it can reach), `static`, `reversed` and `shuffled` the negative controls, and after them the systems that are compared.
A metric that passes the controls measures nothing, except `reversed` where the law runs backwards just as well.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

import physworld
from physworld import Clip, controls

Videos = UInt8[np.ndarray, "n t h w 3"]
REFERENCES = ("real", "VAE", "static", "reversed", "shuffled")


MAY_RUN_BACKWARDS = ("rigid_body", "elastic", "collision", "optical")
"""Mechanisms whose law holds with time turned round as well (collisions that bounce)."""
BLIND = 0.10
"""Share of a control's clips that may pass before its gate counts as blind."""


def held_out_clips(mechanism: str, count: int, split: str = "test") -> list[Clip]:
    """Simulate the held-out clips whose captions every system gets."""
    return physworld.simulate_many(mechanism, list(range(count)), split=split)


def references(backbone: Any) -> dict[str, Callable[[list[Clip]], Videos]]:
    """Give what makes each reference from real clips."""

    def stack(transform: Callable[[Clip], np.ndarray]) -> Callable[[list[Clip]], Videos]:
        return lambda clips: np.stack([transform(clip) for clip in clips])

    def floor(clips: list[Clip]) -> Videos:
        with torch.no_grad():
            video = to_signed(np.stack([clip.video for clip in clips]))
            return to_bytes(backbone.decode(backbone.encode(video)))

    return {
        "real": stack(lambda clip: clip.video),
        "VAE": floor,
        "static": stack(lambda clip: controls.static(clip.video)),
        "reversed": stack(lambda clip: controls.reversed_(clip.video)),
        "shuffled": stack(lambda clip: controls.shuffled(clip.video, clip.seed)),
    }


def to_signed(videos: Videos) -> Float[Tensor, "n 3 t h w"]:
    """Turn bytes into the models' range [-1, 1], colour first."""
    return torch.from_numpy(videos).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_bytes(videos: Float[Tensor, "n 3 t h w"]) -> Videos:
    """Turn the models' range [-1, 1] into bytes, colour last."""
    return ((videos.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).contiguous().numpy()
