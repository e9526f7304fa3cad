"""The physics latent z: V-JEPA 2 features of a clip on the video's own latent times, few channels, standardised.

A copy of frame 0 stands in front of the 4k+1 frames; tubelets 2j - 1 and 2j belong to latent j and are averaged, so
that z has as many time steps as the video latent. Channels are standardised, projected to their principal ones and
scaled to unit variance (weak ones stay weaker); mean, basis and scale are the data set's and travel in the bundle.

The encoder sees all frames it is given at once, forwards and backwards: the observed part of a clip is therefore
encoded from the observed frames alone, never cut from the encoding of the whole.

References: Phantom (2026); V-JEPA 2 (Assran et al., 2025). Projection, resolution and lining up: our choice.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.vjepa2 import SIZES
from phantom.config import Physics

__all__ = ["Basis", "PhysicsLatent", "cells_of", "encoder_size", "observed_latents", "source_of"]

SOURCE_BYTES = 8
FIELD_CELLS = 4
"""Cells on a side of the world's exact fields, as many as the embedded encoder has: our choice."""
FLOOR = 0.01
"""Channels with less than this share of the first one's variance are not blown up to unit variance: they would teach
the branch their rounding. Our choice."""


def observed_latents(frames: int, stride: int = 4) -> int:
    """Give how many latents the first `frames` = 4m + 1 frames cover; ValueError for another count.

    >>> observed_latents(1), observed_latents(45)
    (1, 12)
    """
    if frames < 1 or (frames - 1) % stride:
        below = max((frames - 1) // stride, 0) * stride + 1
        raise ValueError(f"expected {stride}m+1 observed frames (1, {1 + stride}, ...), got {frames}; cut to {below}")
    return (frames - 1) // stride + 1


def encoder_size(name: str) -> tuple[int, int, int]:
    """Give crop, patch (pixels) and dimensions of a V-JEPA 2 without loading it; ValueError for an unknown one.

    >>> encoder_size("facebook/vjepa2-vitl-fpc64-256")
    (256, 16, 1024)
    """
    folder = Path(str(files("backbones"))) / "weights" / "vjepa2-world" if name == "world" else Path(name)
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config["crop_size"], config["patch_size"], config["hidden_size"]
    for published, size in SIZES.items():
        if published in name:
            return (384 if "384" in name else 256), 16, size["hidden_size"]
    raise ValueError(
        f"expected physics.encoder to be 'world', a folder with a config.json or a published {', '.join(SIZES)}, got"
        f" {name!r}"
    )


def cells_of(physics: Physics) -> tuple[int, int]:
    """Give (height, width) of z, from the recipe alone."""
    if physics.kind == "fields":
        return FIELD_CELLS, FIELD_CELLS
    crop, patch, _ = encoder_size(physics.encoder)
    height, width = physics.size or (crop, crop)
    return height // patch // physics.pool, width // patch // physics.pool


class Basis(nn.Module):
    """Standardisation and principal channels of a data set's features: `forward` gives z, `inverse` features again.

    `explained` is the share of the (standardised) variance that the channels keep, `source` names the encoder whose
    features these are (`source_of`): those of another one would be numbers without a meaning.
    """

    mean: Tensor
    std: Tensor
    components: Tensor
    scale: Tensor
    explained: Tensor
    source: Tensor

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("components", torch.eye(channels, dim))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("explained", torch.zeros(()))
        self.register_buffer("source", torch.zeros(SOURCE_BYTES, dtype=torch.uint8))

    @classmethod
    def fit(
        cls, batches: Iterable[Float[Tensor, "n d"]], channels: int, *, source: UInt8[Tensor, " s"] | None = None
    ) -> "Basis":
        """Fit on rows of features, in float64 sums over batches; ValueError for more channels than features."""
        count, total, outer = 0, torch.zeros(0), torch.zeros(0)
        for rows in batches:
            rows = rows.double()
            if not count:
                total, outer = torch.zeros(rows.shape[1]).double(), torch.zeros(rows.shape[1], rows.shape[1]).double()
            count, total, outer = count + len(rows), total + rows.sum(0), outer + rows.T @ rows
        if not count or channels > len(total):
            raise ValueError(f"expected features of at least {channels} dimensions to project, got {len(total)}")
        mean = total / count
        covariance = outer / count - mean[:, None] * mean
        std = covariance.diagonal().clamp_min(1e-12).sqrt()
        values, vectors = torch.linalg.eigh(covariance / std[:, None] / std)
        order = values.argsort(descending=True)[:channels]
        basis = cls(len(total), channels)
        basis.mean.copy_(mean)
        basis.std.copy_(std)
        basis.components.copy_(vectors[:, order].T)
        basis.scale.copy_(values[order].clamp_min(FLOOR * float(values.max())).sqrt())
        basis.explained.copy_(values[order].sum() / values.sum())
        if source is not None:
            basis.source.copy_(source)
        return basis

    def forward(self, features: Float[Tensor, "... d"]) -> Float[Tensor, "... c"]:
        """Standardise, project, scale to unit variance."""
        return ((features - self.mean) / self.std) @ self.components.T / self.scale

    def check(self, source: UInt8[Tensor, " s"], name: str) -> None:
        """Raise ValueError for features of another encoder than those that it was fitted on."""
        if bool(self.source.any()) and not torch.equal(self.source.cpu(), source.cpu()):
            raise ValueError(
                f"expected the physics latent that this adapter was trained on, got features of another encoder"
                f" ({name}): set physics.encoder to the one of its training, or train anew"
            )

    def inverse(self, z: Float[Tensor, "... c"]) -> Float[Tensor, "... d"]:
        """Give the features that z stands for (what the channels leave out is lost)."""
        return (z * self.scale) @ self.components * self.std + self.mean


@torch.no_grad()
def source_of(encoder: Any) -> UInt8[Tensor, " s"]:
    """Name an encoder by its weights: 8 bytes of their hash."""
    hasher = hashlib.blake2b(digest_size=SOURCE_BYTES)
    for name, value in sorted(encoder.encoder.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return torch.tensor(list(hasher.digest()), dtype=torch.uint8)


@dataclass(frozen=True)
class PhysicsLatent:
    """From frames to z. `size` is (height, width) the encoder sees, the whole frame; `pool` averages cells p x p."""

    encoder: Any
    basis: Basis
    size: tuple[int, int] | None = None
    pool: int = 1

    @property
    def channels(self) -> int:
        return len(self.basis.scale)

    def grid(self) -> tuple[int, int]:
        """(height, width) of z; ValueError where the pooling does not divide the encoder's grid."""
        height, width = self.size or (self.encoder.crop, self.encoder.crop)
        cells = (height // self.encoder.patch, width // self.encoder.patch)
        if any(n % self.pool for n in cells):
            raise ValueError(f"expected a pool that divides the encoder's grid {cells}, got {self.pool}")
        return cells[0] // self.pool, cells[1] // self.pool

    def features(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b t2 y x d"]:
        """Features on latent times, pooled in space; ValueError for frames that are not 4n+1."""
        observed_latents(video.shape[2])
        if video.shape[2] == 1:  # frame 0 and its copy: one tubelet, one latent
            per_latent = self.encoder.encode(video, size=self.size, pad="first").last
        else:
            per_latent = self.encoder.encode(video, size=self.size, pad="first").per_latent()
        if self.pool == 1:
            return per_latent
        b = len(per_latent)
        pooled = F.avg_pool2d(per_latent.flatten(0, 1).permute(0, 3, 1, 2), self.pool)
        return pooled.permute(0, 2, 3, 1).unflatten(0, (b, -1))

    def project(self, features: Float[Tensor, "b t y x d"]) -> Float[Tensor, "b c t y x"]:
        """Give z of features."""
        return self.basis.to(features.device)(features).permute(0, 4, 1, 2, 3)

    @torch.no_grad()
    def __call__(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c t2 y x"]:
        """Give z of the frames, and of nothing but these frames: for the observed part pass the observed ones alone."""
        return self.project(self.features(video))
