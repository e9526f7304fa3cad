"""V-JEPA 2: what a frozen video encoder sees, on a known (t, h, w) grid.

Videos are float in [-1, 1], `(b, 3, t, h, w)`. The whole frame is resized (the stock processor crops: of a 480 x 832
frame it keeps half the width), then normalised as ImageNet. A feature cell covers `patch` pixels of the resized frame
and a tubelet of two frames, order (t, h, w).

Traps that this file takes care of: the stock encoder takes its rotary positions from `config.crop_size`, so that on any
other grid tokens get the places of others without an error (and its rotation is not purely relative: absolute places
matter, too); it drops an odd last frame in silence; weights that a checkpoint lacks stay random with a log line.
Float32 by default: the rotary angles are computed in the dtype of the activations, and bfloat16 holds the far ones to a
tenth of a radian.

Tubelets and latents. Put a copy of frame 0 in front of 1 + 4k frames (`pad="first"`): the 2 + 4k frames make 1 + 2k
tubelets that line up with the 1 + k latents of a causal x4 VAE. Tubelet 0 belongs to latent 0, tubelets 2j - 1 and 2j
to latent j, which covers the same four frames.

References: V-JEPA 2 (Assran et al., 2025), arXiv 2506.09985.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2RopeAttention

from backbones import guards
from backbones.quiet import no_weight_bars

__all__ = ["SIZES", "Features", "VJEPA2Encoder", "latent_of", "prefix", "tubelets_of"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, what V-JEPA 2 was trained with
PER_LATENT = 2  # tubelets of two frames in a latent of four

# Arguments of VJEPA2Config for the published encoders (facebook/vjepa2-vit*); the 384 px giant differs in crop_size.
SIZES: dict[str, dict[str, Any]] = {
    "vjepa2-vitl": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_ratio": 4.0},
    "vjepa2-vith": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_ratio": 4.0},
    "vjepa2-vitg": {"hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 22, "mlp_ratio": 48 / 11},
}


def tubelets_of(latent: int) -> range:
    """Give the tubelets that cover the frames of a latent (after `pad="first"`).

    >>> tubelets_of(0), tubelets_of(3)
    (range(0, 1), range(5, 7))
    """
    if latent < 0:
        raise ValueError(f"expected a latent >= 0, got {latent}")
    return range(1) if latent == 0 else range(PER_LATENT * (latent - 1) + 1, PER_LATENT * latent + 1)


def latent_of(tubelet: int) -> int:
    """Give the latent whose frames a tubelet covers (after `pad="first"`).

    >>> [latent_of(k) for k in range(6)]
    [0, 1, 1, 2, 2, 3]
    """
    if tubelet < 0:
        raise ValueError(f"expected a tubelet >= 0, got {tubelet}")
    return -(-tubelet // PER_LATENT)


def prefix(latents: int) -> int:
    """Give how many tubelets the first `latents` latents cover: 1 + 2 (p - 1).

    >>> [prefix(p) for p in range(4)]
    [0, 1, 3, 5]
    """
    return len(tubelets_of(0)) + PER_LATENT * (latents - 1) if latents > 0 else 0


@dataclass(frozen=True)
class Features:
    """Features on a grid. `times` are the centres of the tubelets in source frames (0, 1.5, 3.5, ... after
    `pad="first"`); `last` is behind the final LayerNorm, `layers[k]` is what block k gave, before any norm.
    """

    last: Float[Tensor, "b t h w d"]
    times: Float[Tensor, " t"]
    layers: dict[int, Float[Tensor, "b t h w d"]] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(t, h, w)."""
        t, h, w = self.last.shape[1:4]
        return t, h, w

    def per_latent(self) -> Float[Tensor, "b tl h w d"]:
        """Average the tubelets of each latent; ValueError when they do not line up (no `pad="first"`, odd k)."""
        t = self.grid[0]
        if float(self.times[0]) != 0.0 or (t - 1) % PER_LATENT:
            raise ValueError(
                f"expected 1 + {PER_LATENT}k tubelets that begin with a copy of frame 0, got {t} at times"
                f" {self.times[:3].tolist()}...: encode 4n+1 frames with pad='first'."
            )
        covered = [tubelets_of(j) for j in range((t - 1) // PER_LATENT + 1)]
        return torch.stack([self.last[:, list(r)].mean(1) for r in covered], 1)


class VJEPA2Encoder:
    """A frozen V-JEPA 2 encoder, without its predictor. Gradients pass through it to the video, never into it."""

    def __init__(self, encoder: nn.Module, *, id: str = "") -> None:
        config: Any = encoder.config
        self.id = id or "vjepa2"
        self.encoder: Any = encoder.eval().requires_grad_(False)
        self.patch, self.tubelet, self.crop = int(config.patch_size), int(config.tubelet_size), int(config.crop_size)
        self.dim, self.depth = int(config.hidden_size), int(config.num_hidden_layers)

    @classmethod
    def load(
        cls, folder_or_id: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "VJEPA2Encoder":
        """Load a transformers folder or hub id, safetensors only; ValueError when it is no complete V-JEPA 2.

        `"world"` is the tiny one inside this package, trained on the simulated world (its card: weights/vjepa2-world).
        """
        shipped = Path(str(files("backbones"))) / "weights" / "vjepa2-world"
        source = str(shipped if folder_or_id == "world" else folder_or_id)
        try:
            config = AutoConfig.from_pretrained(source)
            if config.model_type != "vjepa2":
                raise ValueError(f"it is a {config.model_type!r}, not a 'vjepa2'")
            with no_weight_bars():
                loaded: Any = VJEPA2Model.from_pretrained(
                    source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
                )
            model, info = loaded
        except (OSError, ValueError) as error:
            raise ValueError(
                f"expected a folder or hub id of a V-JEPA 2 with safetensors (such as facebook/vjepa2-vitl-fpc64-256),"
                f" got {source!r}: {str(error).splitlines()[0]}"
            ) from error
        if lacking := sorted(k for k in info["missing_keys"] if k.startswith("encoder.")):
            raise ValueError(
                f"{source} lacks {len(lacking)} encoder weights ({lacking[0]}, ...), which would stay random:"
                " download the checkpoint again"
            )
        return cls(model.encoder.to(device), id="vjepa2-world" if folder_or_id == "world" else source)

    @classmethod
    def tiny(cls, *, seed: int = 0) -> "VJEPA2Encoder":
        """Build a small encoder of the stock class with random weights: crop 32, patch 8, 24 dimensions, 2 blocks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = VJEPA2Model(tiny_config())
        return cls(model.encoder, id="vjepa2-tiny")

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Give (t, h, w) of the features of a clip, counted with its padding; ValueError names the nearest sizes."""
        if frames < 1 or frames % self.tubelet:
            raise ValueError(
                f"expected a multiple of {self.tubelet} frames, got {frames}: the encoder would drop the tail in"
                " silence. Pass pad='first' for 4n+1 frames, or cut one frame."
            )
        for name, size in (("height", height), ("width", width)):
            if size < self.patch or size % self.patch:
                below = max(size // self.patch, 1) * self.patch
                raise ValueError(
                    f"expected a {name} that is a multiple of {self.patch} to encode at, got {size}."
                    f" Use {below} or {below + self.patch}."
                )
        return frames // self.tubelet, height // self.patch, width // self.patch

    def encode(
        self,
        video: Float[Tensor, "b 3 t h w"],
        *,
        size: tuple[int, int] | None = None,
        pad: str | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        """Encode the whole frames, resized to `size` (height, width; None: the square the encoder was trained at).

        `pad="first"` puts a copy of frame 0 in front. `layers` are blocks whose output is kept too, from 0 (negative:
        from the end). ValueError for a video outside [-1, 1], an odd count of frames, a size off the patch grid.
        """
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"expected a video (b, 3, t, h, w), got {tuple(video.shape)}: permute its axes")
        guards.value_range(video)
        if pad not in (None, "first"):
            raise ValueError(f"expected pad None or 'first', got {pad!r}")
        wanted = {k % self.depth if -self.depth <= k < self.depth else self._no_layer(k) for k in layers}
        height, width = size or (self.crop, self.crop)
        source = list(range(video.shape[2]))
        source = [0, *source] if pad == "first" else source
        grid = self.grid(len(source), height, width)
        pixels = self._prepare(video, (height, width))[:, source]
        kept: dict[int, Tensor] = {}
        with positions(self.encoder, grid):
            h = self.encoder.embeddings(pixels)
            for k, layer in enumerate(self.encoder.layer):
                h = layer(h, None)[0]
                if k in wanted:
                    kept[k] = h
        return Features(
            last=self.encoder.layernorm(h).unflatten(1, grid),
            times=torch.tensor(source, dtype=torch.float32).view(-1, self.tubelet).mean(1),
            layers={k: x.unflatten(1, grid) for k, x in sorted(kept.items())},
        )

    def _prepare(self, video: Float[Tensor, "b 3 t h w"], size: tuple[int, int]) -> Float[Tensor, "b t 3 y x"]:
        """Resize each whole frame (bilinear, antialiased) and normalise it, as the stock encoder wants it."""
        frames = video.to(self.device, torch.float32).transpose(1, 2).flatten(0, 1)
        if tuple(frames.shape[2:]) != size:
            frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (frames.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        return (((frames + 1) / 2 - mean) / std).unflatten(0, (len(video), -1))

    def _no_layer(self, k: int) -> int:
        raise ValueError(f"expected layers among 0..{self.depth - 1} (or -{self.depth}..-1), got {k}")


@contextmanager
def positions(encoder: nn.Module, grid: tuple[int, int, int]) -> Iterator[None]:
    """Give every attention of the encoder the (t, y, x) indices of this grid, and the stock method back afterwards."""
    ids = torch.meshgrid(*(torch.arange(n, device=next(encoder.parameters()).device) for n in grid), indexing="ij")
    ids = tuple(i.flatten() for i in ids)
    patched = [m for m in encoder.modules() if isinstance(m, VJEPA2RopeAttention)]
    for module in patched:
        module.get_position_ids = lambda x, masks=None: ids  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for module in patched:
            del module.get_position_ids


def tiny_config() -> VJEPA2Config:
    """Give the config of `VJEPA2Encoder.tiny`; its grid at crop size is 4 x 4."""
    return VJEPA2Config(
        crop_size=32,
        patch_size=8,
        frames_per_clip=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pred_hidden_size=24,
        pred_num_hidden_layers=1,
        pred_num_attention_heads=2,
        initializer_range=0.2,  # features that differ from cell to cell without training
    )
