"""Features of a frozen video encoder for the recipe `videorepa`: V-JEPA 2, or VideoMAE through transformers.

Both see the frames behind the first one (4n of them, of a clip of 4n + 1), two a tubelet, so that tubelets 2j - 1 and
2j lie in the frames of latent j; latent 0 has no features. The whole frame is resized and normalised as ImageNet is.

VideoMAE has learned positions for one size and one length: frames go in at its own size, in windows of its own length,
the last of which reaches back where they do not divide the clip.

References: VideoREPA (Zhang et al., 2025), its code: the first frame is dropped, features of the last layer.
"""

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from backbones import VJEPA2Encoder
from backbones.vjepa2 import MEAN, STD
from mmphysvideo.config import Align

__all__ = ["VJEPA2Features", "VideoMAEEncoder", "digest", "encoder_of"]


class VJEPA2Features:
    """The last layer of a V-JEPA 2, behind its norm."""

    def __init__(self, encoder: VJEPA2Encoder, size: tuple[int, int] | None) -> None:
        self.encoder, self.size = encoder, size
        self.id, self.dim, self.module = encoder.id, encoder.dim, encoder.encoder

    def __call__(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b t y x d"]:
        return self.encoder.encode(video[:, :, 1:], size=self.size).last


class VideoMAEEncoder:
    """The last layer of a frozen VideoMAE of transformers' `VideoMAEModel`."""

    def __init__(self, model: Any, *, id: str = "videomae") -> None:
        self.module: Any = model.eval().requires_grad_(False)
        self.id, c = id, model.config
        self.dim, self.length, self.side = int(c.hidden_size), int(c.num_frames), int(c.image_size)
        self.grid = (self.length // c.tubelet_size, self.side // c.patch_size, self.side // c.patch_size)

    @classmethod
    def load(cls, source: str, *, device: str) -> "VideoMAEEncoder":
        """Load a transformers folder or hub id, safetensors only; ValueError when it is no VideoMAE."""
        from transformers import AutoConfig, VideoMAEModel

        from backbones.quiet import no_weight_bars

        try:
            config = AutoConfig.from_pretrained(source)
            if config.model_type != "videomae":
                raise ValueError(f"it is a {config.model_type!r}, not a 'videomae'")
            with no_weight_bars():
                model: Any = VideoMAEModel.from_pretrained(source, config=config, use_safetensors=True)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise ValueError(
                f"expected a folder or hub id of a VideoMAE with safetensors, got {source!r}: {why}"
            ) from error
        return cls(model.to(device), id=source)

    def __call__(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b t y x d"]:
        frames = video[:, :, 1:].transpose(1, 2).float()
        b, count = frames.shape[:2]
        if count < self.length:
            raise ValueError(
                f"expected clips of {self.length} frames or more behind the first for {self.id}, got {count}"
            )
        device = next(self.module.parameters()).device
        small = F.interpolate(
            frames.flatten(0, 1).to(device), size=(self.side, self.side), mode="bilinear", antialias=True
        )
        mean, std = (small.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        pixels = (((small + 1) / 2 - mean) / std).unflatten(0, (b, count))
        tubelet = self.length // self.grid[0]
        out = pixels.new_zeros(b, count // tubelet, *self.grid[1:], self.dim)
        for first in [*range(0, count - self.length, self.length), count - self.length]:
            seen = self.module(pixels[:, first : first + self.length]).last_hidden_state
            out[:, first // tubelet : first // tubelet + self.grid[0]] = seen.unflatten(1, self.grid)
        return out


def encoder_of(align: Align, device: str) -> Any:
    """The encoder of a recipe, None where the student learns from a teacher or from the videos alone."""
    if align.source == "vjepa2":
        return VJEPA2Features(VJEPA2Encoder.load(align.encoder or "world", device=device), align.size)
    if align.source == "videomae":
        if align.encoder is None:
            raise ValueError("expected a model for student.align.source=videomae: --set student.align.encoder=FOLDER")
        return VideoMAEEncoder.load(align.encoder, device=device)
    return None


@torch.no_grad()
def digest(encoder: Any) -> str:
    """Name the weights of an encoder."""
    sha = hashlib.sha256()
    for name, value in sorted(encoder.module.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()
