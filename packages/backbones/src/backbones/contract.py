"""What every frozen generator of this project promises, real or tiny.

Axes are (t, y, x), y points down. A video is float in [-1, 1], `(b, 3, t, h, w)`. A latent is *normalised*: (z - mean)
/ std, as the transformer sees it, never the raw output of the VAE. sigma is in [0, 1] and 1 is noise
(`backbones.paths`).

Latent times: latent j of a causal VAE covers several frames, and its time tau_j is the centre of the frames that it
covers, in units of the temporal stride: for Wan's x4 that is 0, 0.625, 1.625, 2.625, ... The first gap is shorter than
the others, so a constant time step is wrong at latent 0.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["Adapter", "Asked", "Backbone", "Condition", "LatentSpec", "Spec", "Text", "TimeSpec", "fingerprint"]


@dataclass(frozen=True)
class Text:
    """Text features as the transformer reads them: rows after the text are exact zeros and `mask` is false there.

    `branch` says which side of the guidance the text belongs to while a pipeline samples; None outside a pipeline.
    """

    features: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]
    branch: Literal["cond", "uncond"] | None = None

    @classmethod
    def of(cls, features: Float[Tensor, "b l d"], branch: Literal["cond", "uncond"] | None = None) -> "Text":
        """Recover the mask from the zero rows."""
        return cls(features, features.abs().sum(-1) > 0, branch)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: slice | list[int] | Tensor) -> "Text":
        return Text(self.features[index], self.mask[index], self.branch)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "Text":
        """Move both tensors; `dtype` concerns the features alone."""
        return Text(self.features.to(device=device, dtype=dtype), self.mask.to(device=device), self.branch)


@dataclass(frozen=True)
class LatentSpec:
    """Shape and normalisation of the latents. `stride` and `patch` are (t, y, x).

    `frame_step` is the step of legal frame counts where it is not the temporal stride (0: it is). `lead` is how many
    still copies of latent 0 stand in front, for a model whose patches take several latents (CogVideoX 1.5).
    """

    channels: int
    stride: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: tuple[int, int, int]
    frame_step: int = 0
    lead: int = 0

    @property
    def frame_rule(self) -> str:
        """Legal frame counts in words: "4n+1" for Wan, "8n+1" for CogVideoX."""
        return f"{self.frame_step or self.stride[0]}n+1"

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Give (channels, t, y, x) of the latent of a video; ValueError names the nearest legal sizes."""
        return (self.channels, self.latents(frames), *self._space(height, width))

    def latents(self, frames: int) -> int:
        """Give how many latents a clip has.

        >>> LatentSpec(1, (4, 8, 8), (0.0,), (1.0,), (1, 2, 2)).latents(17)
        5
        """
        s = self.frame_step or self.stride[0]
        if frames < 1 or (frames - 1) % s:
            below = max((frames - 1) // s * s + 1, 1)
            raise ValueError(
                f"expected {self.frame_rule} frames, got {frames}: the VAE would lose the tail in silence."
                f" Use {below} or {below + s} frames."
            )
        return (frames - 1) // self.stride[0] + 1 + self.lead

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Give how many tokens a clip has, one a patch.

        >>> LatentSpec(1, (4, 8, 8), (0.0,), (1.0,), (1, 2, 2)).tokens(17, 32, 32)
        20
        """
        sizes = zip(self.shape(frames, height, width)[1:], self.patch, strict=True)
        return math.prod(size // patch for size, patch in sizes)

    def _space(self, height: int, width: int) -> tuple[int, int]:
        out = []
        for name, size, s, p in zip(("height", "width"), (height, width), self.stride[1:], self.patch[1:], strict=True):
            if size < s * p or size % (s * p):
                below = max(size // (s * p), 1) * s * p
                raise ValueError(
                    f"expected a {name} that is a multiple of {s * p}, got {size}. Use {below} or {below + s * p}."
                )
            out.append(size // s)
        return out[0], out[1]


@dataclass(frozen=True)
class TimeSpec:
    """When latents happen: frames per second of the training clips and the temporal stride of the VAE.

    `lead` latents in front are still copies of latent 0; each is placed one latent earlier than the next.
    """

    fps: float
    stride: int
    lead: int = 0

    def frames_of(self, latent: int) -> range:
        """Give the frames that a latent covers: 0 alone (for a lead-in, too), then `stride` at a time.

        >>> TimeSpec(16.0, 4).frames_of(2)
        range(5, 9)
        """
        latent = max(latent - self.lead, 0)
        return range(1) if latent == 0 else range((latent - 1) * self.stride + 1, latent * self.stride + 1)

    def latent_times(self, frames: int) -> Float[Tensor, " t"]:
        """Give tau_j, the centre of the frames of each latent, in source frames / stride.

        >>> TimeSpec(16.0, 4).latent_times(13)
        tensor([0.0000, 0.6250, 1.6250, 2.6250])
        """
        covered = [self.frames_of(self.lead + j) for j in range((frames - 1) // self.stride + 1)]
        still = [float(j - self.lead) for j in range(self.lead)]
        return torch.tensor(still + [(r[0] + r[-1]) / 2 / self.stride for r in covered])


@dataclass(frozen=True)
class Spec:
    """All that an adapter may build itself from without looking at the model."""

    latent: LatentSpec
    time: TimeSpec
    prediction: Literal["flow", "v"]
    text_dim: int
    text_length: int
    per_token_time: bool

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values; what a family does not have (a lead-in, a frame step of its own) is left out."""
        content = json.loads(json.dumps(asdict(self)))
        for part, name in (("latent", "frame_step"), ("latent", "lead"), ("time", "lead")):
            if not content[part][name]:
                del content[part][name]
        return content


@dataclass(frozen=True)
class Asked:
    """One forward call of a stock transformer, read in flow space, `(b, c, t, h, w)`, float32, whatever the family.

    `x_s` is the latent on the flow path and `v` the flow velocity that the model answered; both without the channels
    that an image model carries for its condition. `sigma` is the level of the noisy part. `noisy` is 0 where a prefix
    is clean, 1 elsewhere, None when all is noisy. `timestep` is the call's own. `branch_rows` says which rows belong to
    which side of the guidance: {} outside a pipeline, {"cond": all} for a family that asks branch by branch,
    {"uncond": ..., "cond": ...} for one that asks both at once. `dtype` is the model's own output's.
    """

    x_s: Float[Tensor, "b c t h w"]
    v: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, " b"]
    noisy: Float[Tensor, "b 1 t h w"] | None
    text: Text
    timestep: Tensor
    branch_rows: dict[str, slice]
    dtype: torch.dtype

    def part(self, branch: str) -> "Asked":
        """Give the rows of one branch alone; KeyError if the call did not hold it."""
        rows = self.branch_rows[branch]
        side: Literal["cond", "uncond"] = "cond" if branch == "cond" else "uncond"
        return Asked(
            x_s=self.x_s[rows],
            v=self.v[rows],
            sigma=self.sigma[rows],
            noisy=None if self.noisy is None else self.noisy[rows],
            text=Text(self.text.features[rows], self.text.mask[rows], side),
            timestep=self.timestep[rows],
            branch_rows={branch: slice(0, len(self.x_s[rows]))},
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class Condition:
    """What an image-to-video model reads beside the noisy latent: condition channels, and image tokens if any."""

    channels: Float[Tensor, "b k t h w"]
    image: Float[Tensor, "b n d"] | None = None

    def __getitem__(self, index: slice | list[int] | Tensor) -> "Condition":
        return Condition(self.channels[index], None if self.image is None else self.image[index])


@runtime_checkable
class Backbone(Protocol):
    """A frozen video generator inside a stock diffusers pipeline."""

    @property
    def pipe(self) -> Any: ...
    @property
    def transformer(self) -> nn.Module: ...
    @property
    def transformers(self) -> tuple[nn.Module, ...]: ...
    @property
    def id(self) -> str: ...
    @property
    def spec(self) -> Spec: ...
    @property
    def paths(self) -> ModuleType: ...
    @property
    def config_hash(self) -> str: ...
    @property
    def latent_hash(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def sigma_ranges(self) -> tuple[tuple[float, float], ...]: ...
    @property
    def conditioned(self) -> bool: ...
    def encode(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c tl hl wl"]: ...
    def decode(self, latent: Float[Tensor, "b c tl hl wl"]) -> Float[Tensor, "b 3 t h w"]: ...
    def embed(self, prompts: list[str]) -> Text: ...
    def condition(self, image: Float[Tensor, "b 3 h w"], frames: int) -> Condition: ...
    def predict(
        self,
        x_s: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b *map"],
        text: Text,
        condition: Condition | None = None,
    ) -> Float[Tensor, "b c t h w"]: ...
    def frozen(self) -> AbstractContextManager[Iterator[None] | None]: ...

    # How a host reads the stock pipeline's calls and answers them (`backbones.host`).
    def text_of(self, prompts: list[str], features: Tensor, branch: str | None = None) -> Text: ...
    def remember(self, text: Text) -> None: ...
    def start(self, latents: Float[Tensor, "b c t h w"]) -> dict[str, Any]: ...
    def encoded(self, given: Any) -> tuple[Tensor, Tensor | None]: ...
    def asked(
        self, model: nn.Module, arguments: dict[str, Any], output: Tensor, *, sigma: float | None, branch: str | None
    ) -> Asked: ...
    def velocity(self, asked: Asked, output: Tensor) -> Float[Tensor, "b c t h w"]: ...
    def answer(self, asked: Asked, delta: Float[Tensor, "b c t h w"]) -> Tensor: ...


@runtime_checkable
class Adapter(Protocol):
    """What can be attached: an `nn.Module` whose `correction` is added to the flow velocity (`backbones.attach`).

    `kind` is the name under which its class is registered in the entry-point group `physbackbones.adapters`; the class
    also has `from_bundle(cls, bundle, backbone)`. `prepare` is called with all prompts of a batch before it is sampled,
    `groups` names the parts that a bundle keeps. `correction` gets sigma as (b,), float32 tensors, and `text.branch`.
    """

    kind: str

    def prepare(self, prompts: list[str], text: Text) -> None: ...
    def correction(
        self, x_s: Float[Tensor, "b c t h w"], v: Float[Tensor, "b c t h w"], sigma: Float[Tensor, " b"], text: Text
    ) -> Float[Tensor, "b c t h w"]: ...
    def groups(self) -> dict[str, nn.Module]: ...


def fingerprint(value: Any) -> str:
    """Give 16 hex digits that name a JSON value, whatever the order of its keys.

    >>> fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": (1, 2), "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
