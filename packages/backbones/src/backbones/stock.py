"""What all frozen generators inside stock diffusers pipelines have in common.

The latent space and its normalisation, the names of weights and configurations, the vocabulary, and holding weights
still. A family (`backbones.wan`, `backbones.cogvideox`) adds its spec, its text, its prediction and how its pipeline's
calls are read. Families of other packages are found by entry point (`families`).
"""

import hashlib
import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from backbones import guards, paths
from backbones.blocks import BlockStack
from backbones.contract import Asked, Condition, Spec, Text, fingerprint

__all__ = ["StockBackbone", "families", "pictures"]

FAMILIES = "physbackbones.families"


class StockBackbone(ABC):
    """A frozen generator. `pipe` stays the stock pipeline and can be called as such at any time.

    `pipelines` are the stock pipelines that the family takes, `stacks` how their transformers are walked block by block
    (families of this package leave it to `blocks_of`). A VAE stays in float32 unless `float32_vae` says otherwise.
    """

    paths = paths
    pipelines: ClassVar[tuple[type, ...]] = ()
    stacks: ClassVar[tuple[type[BlockStack], ...]] = ()
    float32_vae: ClassVar[bool] = True
    spec: Spec

    def __init__(self, pipe: Any, *, id: str = "", fps: float | None = None) -> None:
        if not isinstance(pipe, self.pipelines):
            names = " or a ".join(p.__name__ for p in self.pipelines)
            raise ValueError(f"expected a {names}, got {type(pipe).__name__}")
        if pipe.transformer is None:
            raise ValueError("expected a pipeline with a transformer, got one whose `transformer` is None")
        self.pipe: Any = pipe
        self.id = id or str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)

    @property
    def transformer(self) -> nn.Module:
        return self.pipe.transformer

    @property
    def transformers(self) -> tuple[nn.Module, ...]:
        """The denoisers: one, or two for a model that splits the noise levels (A14B: high noise first)."""
        both = (self.pipe.transformer, getattr(self.pipe, "transformer_2", None))
        return tuple(m for m in both if m is not None)

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def conditioned(self) -> bool:
        """Whether the transformer reads an image beside the noisy latent: `predict` and `sample` then want one."""
        return self.pipe.transformer.config.in_channels > self.spec.latent.channels

    @property
    def latent_hash(self) -> str:
        """Name the space that a velocity-level adapter works in: latents, their normalisation, text width."""
        spec = self.spec.to_dict()
        return fingerprint({k: spec[k] for k in ("latent", "prediction", "text_dim")})

    @property
    def config_hash(self) -> str:
        """Name the architecture and the latent space, not the weights."""
        config = {k: v for k, v in self.transformer.config.items() if not k.startswith("_")}  # pyright: ignore
        return fingerprint({"transformer": config, "latent": self.latent_hash})

    @property
    def digest(self) -> str:
        """Name the weights: SHA-256 over the parameters of the transformers and of the VAE."""
        return _digest(*self.transformers, self.pipe.vae)

    @property
    def text_digest(self) -> str:
        """Name what makes the text features: vocabulary and weights of the text encoder ("" when it was unloaded)."""
        if self.pipe.text_encoder is None:
            return ""
        return fingerprint([self.pipe.tokenizer.get_vocab(), _digest(self.pipe.text_encoder)])

    def encode(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c tl hl wl"]:
        """Give normalised latents of a video in [-1, 1]; ValueError for another range or a wrong frame count."""
        if video.ndim != 5 or video.shape[1] != 3 or not len(video):
            raise ValueError(f"expected a video (b, 3, t, h, w), got {tuple(video.shape)}: permute its axes")
        self.spec.latent.shape(*video.shape[2:])
        guards.value_range(video)
        vae = self.pipe.vae
        z = vae.encode(video.to(device=vae.device, dtype=vae.dtype)).latent_dist.mode()
        mean, std = self._normalisation(z)
        z = (z - mean) / std
        return torch.cat([z[:, :, :1]] * self.spec.latent.lead + [z], 2)

    def decode(self, latent: Float[Tensor, "b c tl hl wl"]) -> Float[Tensor, "b 3 t h w"]:
        """Give the video in [-1, 1] of normalised latents (clamped: there is no gradient outside)."""
        if latent.ndim != 5 or latent.shape[1] != self.spec.latent.channels:
            raise ValueError(
                f"expected latents (b, {self.spec.latent.channels}, t, h, w) of {self.id}, got {tuple(latent.shape)}"
            )
        vae = self.pipe.vae
        z = latent[:, :, self.spec.latent.lead :].to(device=vae.device, dtype=vae.dtype)
        mean, std = self._normalisation(z)
        return vae.decode(z * std + mean).sample.clamp(-1, 1)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold every weight still: no gradients inside, RuntimeError at the end if a weight changed all the same."""
        modules = [m for m in self.pipe.components.values() if isinstance(m, nn.Module)]
        own = [(p, p.requires_grad) for m in modules for p in m.parameters()]
        before = self.digest
        for p, _ in own:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p, flag in own:
                p.requires_grad_(flag)
        if self.digest != before:
            raise RuntimeError(f"the frozen weights of {self.id} changed: digest {before} became {self.digest}")

    @property
    def sigma_ranges(self) -> tuple[tuple[float, float], ...]:
        """The noise levels [low, high) of each of `transformers`; 1 belongs to the first."""
        return ((0.0, 1.0),)

    @abstractmethod
    def embed(self, prompts: list[str]) -> Text:
        """Give text features as the pipeline makes them; UserWarning names words that a closed vocabulary lacks."""

    def condition(self, image: Float[Tensor, "b 3 h w"], frames: int) -> Condition:
        """Give what an image model reads beside the noisy latent; ValueError for a text model."""
        raise ValueError(f"{self.id} reads no image channels: `condition` is for image-to-video models")

    @abstractmethod
    def predict(
        self,
        x_s: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b *map"],
        text: Text,
        condition: Condition | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """Give the flow velocity v = eps - x0 of the frozen model, attached adapters left out."""

    def text_of(self, prompts: list[str], features: Tensor, branch: str | None = None) -> Text:
        """Give the features that a pipeline made from the prompts as a `Text`, masked as the tokenizer says."""
        side = branch if branch in ("cond", "uncond") else None
        return Text(features.float(), self._token_mask(prompts, features), side)

    def remember(self, text: Text) -> None:  # noqa: B027 - most families' calls bring their masks
        """Learn the masks of features, of a family whose transformer's call does not bring them."""

    def start(self, latents: Float[Tensor, "b c t h w"]) -> dict[str, Any]:
        """Say the first noise as arguments of the pipeline, in its own layout, with what the family's pipeline must be
        told besides.
        """
        return {"latents": latents}

    def encoded(self, given: Any) -> tuple[Tensor, Tensor | None]:
        """Take the features of the prompts and of the negative ones out of what the pipeline's `encode_prompt` gave."""
        return given[0], given[1]

    @abstractmethod
    def asked(
        self, model: nn.Module, arguments: dict[str, Any], output: Tensor, *, sigma: float | None, branch: str | None
    ) -> Asked:
        """Read one call of a transformer: its arguments by name, its output, and what `cache_context` announced."""

    @abstractmethod
    def velocity(self, asked: Asked, output: Tensor) -> Float[Tensor, "b c t h w"]:
        """Read another output of the same call, a guided one for example, as a flow velocity."""

    @abstractmethod
    def answer(self, asked: Asked, delta: Float[Tensor, "b c t h w"]) -> Tensor:
        """Give what must be added to the model's output so that its flow velocity moves by `delta`."""

    def rows_of(self, hidden: Tensor, branch: str | None) -> dict[str, slice]:
        """Tell the guidance branches of a call apart, where a pipeline asks both at once as rows [uncond, cond]."""
        n = len(hidden)
        if branch in ("cond", "uncond"):
            return {branch: slice(0, n)}
        if branch is None:
            return {}
        guided = float(self.pipe.guidance_scale or 1.0) > 1.0
        if guided and n % 2 == 0 and torch.equal(hidden[: n // 2], hidden[n // 2 :]):
            return {"uncond": slice(0, n // 2), "cond": slice(n // 2, n)}
        return {"cond": slice(0, n)}

    def check_words(self, prompts: list[str]) -> None:
        """Warn, naming them, of words that a word-level vocabulary lacks; a subword tokenizer lacks none. ValueError
        for what is no list of prompts (a string would be read letter by letter).
        """
        if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"expected a list of one or more prompts, such as ['a red ball'], got {prompts!r}")
        if not self._closed:
            return
        tokenizer = self.pipe.tokenizer
        known = tokenizer.get_vocab()
        normal = tokenizer.backend_tokenizer.normalizer.normalize_str
        words = [w for p in prompts for w in re.split(r"\s+", normal(p).strip()) if w]
        unknown = sorted({w for w in words if w not in known})
        if unknown:
            warnings.warn(
                f"words outside the vocabulary of {self.id} are read as <unk>: {', '.join(unknown)}."
                f" It knows {len(known) - 3} words; see `backbone.words`.",
                stacklevel=3,
            )

    @property
    def words(self) -> tuple[str, ...]:
        """The words of a closed vocabulary, without the special tokens; () for a subword tokenizer."""
        if not self._closed:
            return ()
        special = set(self.pipe.tokenizer.all_special_tokens)
        ids = self.pipe.tokenizer.get_vocab()
        return tuple(w for w in sorted(ids, key=ids.get) if w not in special)

    @cached_property
    def _closed(self) -> bool:
        core = getattr(self.pipe.tokenizer, "backend_tokenizer", None)  # a large vocabulary takes seconds to look at
        return core is not None and json.loads(core.to_str())["model"]["type"] == "WordLevel"

    def check_condition(self, condition: Condition | None) -> None:
        """Refuse a missing condition of an image model, and one for a model that reads none."""
        if self.conditioned and condition is None:
            raise ValueError(
                f"{self.id} is an image-to-video model: pass condition=backbone.condition(first_frames, frames)"
            )
        if not self.conditioned and condition is not None:
            raise ValueError(f"{self.id} reads no image channels, got a condition: leave it out")

    def check_asked(self, x_s: Tensor, sigma: Tensor, text: Text) -> None:
        """Refuse what `predict` would broadcast, crop or read as another noise level in silence."""
        latent, (_, ph, pw) = self.spec.latent, self.spec.latent.patch
        if x_s.ndim != 5 or x_s.shape[1] != latent.channels or x_s.shape[3] % ph or x_s.shape[4] % pw:
            raise ValueError(
                f"expected latents (b, {latent.channels}, t, h, w) with h and w multiples of {ph} and {pw} for"
                f" {self.id}, got {tuple(x_s.shape)}: make them with backbone.encode or backbones.noise."
            )
        if not isinstance(sigma, Tensor) or sigma.ndim == 0 or len(sigma) != len(x_s):
            came = tuple(sigma.shape) if isinstance(sigma, Tensor) else repr(sigma)
            raise ValueError(f"expected a tensor of one noise level a clip, ({len(x_s)},), as `sigma`, got {came}")
        if not isinstance(text, Text) or len(text) != len(x_s):  # pyright: ignore[reportUnnecessaryIsInstance]
            came = len(text) if isinstance(text, Text) else type(text).__name__  # pyright: ignore
            raise ValueError(f"expected text of {len(x_s)} prompts, one a clip, as backbone.embed gives, got {came}")
        # looking at values elsewhere would wait for the device
        if sigma.device.type == "cpu" and not bool(((sigma >= 0) & (sigma <= 1)).all()):
            raise ValueError(f"expected sigma in [0, 1], 1 is noise, got {sigma.tolist()}: a timestep is sigma * 1000")

    def _features(self, prompts: list[str]) -> Float[Tensor, "b l d"]:
        """Ask the pipeline's own text encoder, not the one that a host watches; bit for bit as in the pipelines."""
        self.check_words(prompts)
        encode = getattr(self.pipe, "_phys_encode_prompt", self.pipe.encode_prompt)
        with torch.no_grad():
            given = encode(
                prompts,
                do_classifier_free_guidance=False,
                max_sequence_length=self.spec.text_length,
                device=self.device,
            )
        return self.encoded(given)[0]

    def _token_mask(self, prompts: list[str], features: Tensor) -> Bool[Tensor, "b l"]:
        if len(prompts) != len(features):
            raise ValueError(f"expected one prompt per row of features, got {len(prompts)} for {len(features)}")
        tokens = self.pipe.tokenizer(
            prompts, padding="max_length", max_length=features.shape[1], truncation=True, return_tensors="pt"
        )
        return tokens.attention_mask.bool().to(features.device)

    def _normalisation(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.spec.latent.mean, self.spec.latent.std
        return like.new_tensor(mean).view(1, -1, 1, 1, 1), like.new_tensor(std).view(1, -1, 1, 1, 1)


def families() -> tuple[type[StockBackbone], ...]:
    """Give the families that installed packages register in the entry-point group `physbackbones.families`."""
    return tuple(entry.load() for entry in entry_points(group=FAMILIES))


def pictures(image: Float[Tensor, "b 3 h w"], *, as_pil: bool) -> list[Any]:
    """Give first frames in [-1, 1] one by one as pipelines take them: a tensor (1, 3, h, w) in [0, 1], or an 8-bit
    picture where CLIP looks at it, too (its processor would scale a tensor in [0, 1] once more, to black).
    """
    unit = (image.detach().float().cpu().clamp(-1, 1) + 1) / 2
    if not as_pil:
        return list(unit.split(1))
    return [Image.fromarray(p) for p in (255 * unit).round().byte().permute(0, 2, 3, 1).numpy()]


def _digest(*modules: nn.Module) -> str:
    sha = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            sha.update(name.encode())
            if value.is_meta:  # of a backbone without weights: its shapes name it
                sha.update(f"{value.dtype} {tuple(value.shape)}".encode())
                continue
            sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
