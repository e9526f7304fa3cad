"""Wan (2.1, 2.2 TI2V, and the embedded default) behind the contract, on a stock `WanPipeline`.

Traps that this file takes care of: latents are normalised with the config's mean and std; text is zero after its end
and no mask is used in attention, so the length that it is padded to is part of the model; a pipeline with
`expand_timesteps` (TI2V) is asked with one timestep a token; timesteps are 1000 sigma; a wrong frame count would lose
the tail in silence.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn

from backbones import paths
from backbones.contract import Asked, LatentSpec, Spec, Text, TimeSpec, fingerprint

__all__ = ["WanBackbone"]

MAX_TEXT = 512  # Wan's own text length; longer limits in a tokenizer's config mean "none"


class WanBackbone:
    """A frozen Wan. `pipe` stays the stock pipeline and can be called as such at any time.

    `fps` is the frame rate of the clips that the model was trained on; it only matters for display.
    """

    paths = paths

    def __init__(self, pipe: Any, *, id: str = "", fps: float = 16.0) -> None:
        if not isinstance(pipe, WanPipeline | WanImageToVideoPipeline):
            raise ValueError(f"expected a WanPipeline or a WanImageToVideoPipeline, got {type(pipe).__name__}")
        if pipe.transformer is None:
            raise ValueError("expected a pipeline with a transformer, got one whose `transformer` is None")
        self.pipe: Any = pipe
        self.id = id or str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)
        vae, dit = pipe.vae.config, pipe.transformer.config
        length = min(int(pipe.tokenizer.model_max_length), MAX_TEXT)
        self.spec = Spec(
            latent=LatentSpec(
                channels=vae.z_dim,
                stride=(vae.scale_factor_temporal, vae.scale_factor_spatial, vae.scale_factor_spatial),
                mean=tuple(map(float, vae.latents_mean)),
                std=tuple(map(float, vae.latents_std)),
                patch=tuple(dit.patch_size),
            ),
            time=TimeSpec(fps=float(fps), stride=vae.scale_factor_temporal),
            prediction="flow",
            text_dim=dit.text_dim,
            text_length=length,
            per_token_time=bool(pipe.config["expand_timesteps"]),
        )

    @property
    def transformer(self) -> nn.Module:
        return self.pipe.transformer

    @property
    def transformers(self) -> tuple[nn.Module, ...]:
        """The denoisers: one, or two for a model that splits the noise levels (A14B: high noise first)."""
        return tuple(m for m in (self.pipe.transformer, self.pipe.transformer_2) if m is not None)

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

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
        """Name the weights: SHA-256 over the parameters of the transformers (adapters left out) and of the VAE."""
        return _digest(*self.transformers, self.pipe.vae)

    @property
    def text_digest(self) -> str:
        """Name what makes the text features: vocabulary and weights of the text encoder ("" when it was unloaded)."""
        if self.pipe.text_encoder is None:
            return ""
        return fingerprint([self.pipe.tokenizer.get_vocab(), _digest(self.pipe.text_encoder)])

    def encode(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b c tl hl wl"]:
        """Give normalised latents of a video in [-1, 1]; ValueError for another range or a wrong frame count."""
        self.spec.latent.shape(*video.shape[2:])
        low, high = float(video.detach().min()), float(video.detach().max())
        if low < -1.01 or high > 1.01:
            raise ValueError(
                f"expected a video in [-1, 1], got [{low:.3g}, {high:.3g}]. From uint8: video / 127.5 - 1."
            )
        vae = self.pipe.vae
        z = vae.encode(video.to(device=vae.device, dtype=vae.dtype)).latent_dist.mode()
        mean, std = self._normalisation(z)
        return (z - mean) / std

    def decode(self, latent: Float[Tensor, "b c tl hl wl"]) -> Float[Tensor, "b 3 t h w"]:
        """Give the video in [-1, 1] of normalised latents (clamped, as the VAE does)."""
        vae = self.pipe.vae
        z = latent.to(device=vae.device, dtype=vae.dtype)
        mean, std = self._normalisation(z)
        return vae.decode(z * std + mean).sample

    def embed(self, prompts: list[str]) -> Text:
        """Give text features as the pipeline makes them; UserWarning names words that a closed vocabulary lacks."""
        self.check_words(prompts)
        encode = getattr(self.pipe, "_phys_encode_prompt", self.pipe.encode_prompt)  # not the one that a host watches
        features, _ = encode(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.spec.text_length, device=self.device
        )
        return Text.of(features)

    def predict(
        self, x_s: Float[Tensor, "b c t h w"], sigma: Float[Tensor, "b *map"], text: Text
    ) -> Float[Tensor, "b c t h w"]:
        """Give the flow velocity v = eps - x0 of the frozen model, attached adapters left out.

        `sigma` is (b,) or per token: (b, tokens) or (b, t, y, x) on the patch grid, 0 where a prefix is clean.
        """
        pt, ph, pw = self.spec.latent.patch
        b, _, t, h, w = x_s.shape
        tokens = (t // pt) * (h // ph) * (w // pw)
        timestep = 1000.0 * (sigma if sigma.ndim == 1 else sigma.reshape(b, tokens))
        if self.spec.per_token_time and timestep.ndim == 1:
            timestep = timestep[:, None].expand(-1, tokens)
        model = self._expert(sigma)
        bare = getattr(model, "without_adapters", nullcontext)
        with bare():
            v = model(
                hidden_states=x_s.to(model.dtype),
                timestep=timestep,
                encoder_hidden_states=text.features.to(model.dtype),
                return_dict=False,
            )[0]
        return v.to(x_s.dtype)

    def text_of(self, prompts: list[str], features: Tensor, branch: str | None = None) -> Text:
        """Give the features that a pipeline made from the prompts as a `Text`: Wan's own zero rows tell the mask."""
        return Text.of(features.float(), branch if branch in ("cond", "uncond") else None)

    def remember(self, text: Text) -> None:
        """Do nothing: Wan's features carry their mask (a family whose features do not learns it here)."""

    def asked(
        self, model: nn.Module, arguments: dict[str, Any], output: Tensor, *, sigma: float | None, branch: str | None
    ) -> Asked:
        """Read one call of a transformer: its arguments by name, its output, and what `cache_context` announced.

        `sigma` is the exact level where the pipeline gives it. The image pipeline names the branch alone: then the
        level is looked up in the scheduler's table, as UniPC truncates its timesteps to integers. Outside a pipeline
        (`branch` None) it is timestep / 1000; RuntimeError for a half-precision timestep that the table does not
        explain (modular Wan casts it: off by up to 2 of 1000).
        """
        timestep: Tensor = arguments["timestep"]
        top = timestep.reshape(len(timestep), -1).amax(1)
        if sigma is not None:
            level = torch.full_like(top, sigma, dtype=torch.float32)
        elif branch is None and top.dtype not in (torch.bfloat16, torch.float16):
            level = top.float() / 1000.0
        else:
            level = level_of(self.pipe.scheduler, top)
        noisy = None
        if timestep.ndim == 2:
            pt, ph, pw = self.spec.latent.patch
            t, h, w = output.shape[2:]
            grid = (timestep > 0).view(-1, 1, t // pt, h // ph, w // pw)
            if not bool(grid.all()):
                noisy = grid.repeat_interleave(pt, 2).repeat_interleave(ph, 3).repeat_interleave(pw, 4).float()
        known = branch in ("cond", "uncond")
        return Asked(
            x_s=arguments["hidden_states"][:, : output.shape[1]].float(),  # I2V appends its condition
            v=output.float(),
            sigma=level,
            noisy=noisy,
            text=self.text_of([], arguments["encoder_hidden_states"], branch),
            timestep=timestep,
            branch_rows={str(branch): slice(0, len(output))} if known else {},
            dtype=output.dtype,
        )

    def velocity(self, asked: Asked, output: Tensor) -> Float[Tensor, "b c t h w"]:
        """Read another output of the same call, a guided one for example, as a flow velocity."""
        return output.float()

    def answer(self, asked: Asked, delta: Float[Tensor, "b c t h w"]) -> Tensor:
        """Give what must be added to the model's output so that its flow velocity moves by `delta` (not in a clean
        prefix).
        """
        return (delta if asked.noisy is None else delta * asked.noisy).to(asked.dtype)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold every weight still: no gradients inside, RuntimeError at the end if a weight changed all the same."""
        modules = (*self.transformers, self.pipe.vae, self.pipe.text_encoder)
        own = [
            (p, p.requires_grad) for m in modules for n, p in m.named_parameters() if not n.startswith("phys_adapters.")
        ]
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

    def check_words(self, prompts: list[str]) -> None:
        """Warn, naming them, of words that a word-level vocabulary lacks; a subword tokenizer lacks none."""
        tokenizer = self.pipe.tokenizer
        core = getattr(tokenizer, "backend_tokenizer", None)
        if core is None or json.loads(core.to_str())["model"]["type"] != "WordLevel":
            return
        known = tokenizer.get_vocab()
        words = [w for p in prompts for w in re.split(r"\s+", core.normalizer.normalize_str(p).strip()) if w]
        unknown = sorted({w for w in words if w not in known})
        if unknown:
            warnings.warn(
                f"words outside the vocabulary of {self.id} are read as <unk>: {', '.join(unknown)}."
                f" It knows {len(known) - 3} words; see `backbone.words`.",
                stacklevel=3,
            )

    @property
    def words(self) -> tuple[str, ...]:
        """The words of a closed vocabulary, without the special tokens."""
        special = set(self.pipe.tokenizer.all_special_tokens)
        ids = self.pipe.tokenizer.get_vocab()
        return tuple(w for w in sorted(ids, key=ids.get) if w not in special)

    def _expert(self, sigma: Tensor) -> Any:
        """Choose between two transformers by the noise level, as the pipeline does; one batch must stay on one side."""
        if len(self.transformers) == 1:
            return self.transformer
        level = sigma.detach().reshape(len(sigma), -1).amax(1)
        high = level >= self.pipe.config.boundary_ratio
        if high.any() and not high.all():
            raise ValueError(
                f"expected all noise levels of a batch on one side of the boundary {self.pipe.config.boundary_ratio},"
                f" got {level.tolist()}. Split the batch: each side has a transformer of its own."
            )
        return self.pipe.transformer if bool(high.all()) else self.pipe.transformer_2

    def _normalisation(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.spec.latent.mean, self.spec.latent.std
        return like.new_tensor(mean).view(1, -1, 1, 1, 1), like.new_tensor(std).view(1, -1, 1, 1, 1)


def _digest(*modules: nn.Module) -> str:
    sha = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            if not name.startswith("phys_adapters."):
                sha.update(name.encode())
                sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def level_of(scheduler: Any, timestep: Float[Tensor, " b"] | Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Look up the exact sigma of rounded timesteps (all of one step) in a flow scheduler's own table.

    Two steps can round to one timestep; then the step that the scheduler is about to do tells them apart. RuntimeError
    when the table does not hold the timestep.
    """
    table = scheduler.timesteps.to(timestep.device).to(timestep.dtype)
    found = (table == timestep[0]).nonzero().flatten().tolist()
    if len(found) > 1:
        step = scheduler.step_index if scheduler.step_index is not None else scheduler.begin_index
        step = scheduler.index_for_timestep(scheduler.timesteps[found[0]]) if step is None else step
        found = [step] if step in found else []
    if not found or not bool((timestep == timestep[0]).all()):
        raise RuntimeError(
            f"expected timesteps that the scheduler's table holds, got {timestep.tolist()} ({timestep.dtype}): their"
            " noise level is not known exactly. Pass float32 timesteps (1000 sigma), or sample through WanPipeline."
        )
    return scheduler.sigmas[found[0]].float().to(timestep.device).expand(len(timestep))


def describe(folder: Path) -> dict[str, Any]:
    """Read the optional `backbone.json` beside `model_index.json`: id and fps of the training clips."""
    path = folder / "backbone.json"
    return json.loads(path.read_text()) if path.is_file() else {}
