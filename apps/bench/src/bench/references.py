"""What bounds a generator: sources of films for the same captions that say what a figure is worth.

`real` are held-out simulations, `VAE` the same through the backbone's autoencoder (the best that any generator behind
it can reach), and `static`, `reversed` and `shuffled` the negative controls. A metric that passes the controls measures
nothing, except `reversed` where the law runs backwards just as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bench.results import Role
from physworld import Clip, controls
from physworld.evaluation import Maker
from physworld.simulation import simulate_many

Film = UInt8[np.ndarray, "t h w 3"]
ROLES: dict[str, Role] = {
    "real": "real",
    "VAE": "floor",
    "static": "control",
    "reversed": "control",
    "shuffled": "control",
}
REFERENCES = tuple(ROLES)

MAY_RUN_BACKWARDS = ("rigid_body", "elastic", "collision", "optical")
"""Mechanisms whose law holds with time turned round as well (collisions that bounce)."""
BLIND = 0.10
"""Share of a control's clips that may pass before its gate counts as blind."""


def reference(name: str, backbone: Any, mechanism: str, split: str, scale: int, first: int) -> Maker:
    """Give what makes a reference's films from real clips; `first` is the noise seed of clip 0."""
    changes: dict[str, Callable[[Clip], Film]] = {
        "real": lambda clip: clip.video,
        "VAE": lambda clip: rebuilt(backbone, clip.video),
        "static": lambda clip: controls.static(clip.video),
        "reversed": lambda clip: controls.reversed_(clip.video),
        "shuffled": lambda clip: controls.shuffled(clip.video, clip.seed),
    }

    def make(captions: Sequence[str], seeds: range) -> list[Film]:
        clips = simulate_many(mechanism, [seed - first for seed in seeds], split=split, scale=scale)
        assert [clip.caption for clip in clips] == list(captions)
        return [changes[name](clip) for clip in clips]

    return make


def rebuilt(backbone: Any, film: Film) -> Film:
    """Send a film through the backbone's autoencoder."""
    with torch.no_grad():
        return to_bytes(backbone.decode(backbone.encode(to_signed(film[None]))))[0]


def to_signed(films: UInt8[np.ndarray, "n t h w 3"]) -> Float[Tensor, "n 3 t h w"]:
    """Turn bytes into the models' range [-1, 1], colour first."""
    return torch.from_numpy(films).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_bytes(films: Float[Tensor, "n 3 t h w"]) -> UInt8[np.ndarray, "n t h w 3"]:
    """Turn the models' range [-1, 1] into bytes, colour last."""
    return ((films.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()
