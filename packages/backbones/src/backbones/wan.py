"""Wan (2.1, 2.2 TI2V, 2.2 A14B, and the embedded default) behind the contract, on the stock pipelines.

Traps that this file takes care of: latents are normalised with the config's mean and std; text is zero after its end
and no mask is used in attention, so the length that it is padded to is part of the model (exactly 512 rows for models
with image tokens); a pipeline with `expand_timesteps` (TI2V) is asked with one timestep a token; timesteps are 1000
sigma, and UniPC truncates them to integers; an image model reads 20 channels beside the noisy ones; a wrong frame count
would lose the tail in silence.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn

from backbones.contract import Asked, Condition, LatentSpec, Spec, Text, TimeSpec
from backbones.stock import StockBackbone, pictures

__all__ = ["WanBackbone"]

MAX_TEXT = 512  # Wan's own text length; longer limits in a tokenizer's config mean "none"
CHANNELS_24_FPS = 48  # latent channels of Wan2.2 TI2V-5B, the only 24 fps model of the family


class WanBackbone(StockBackbone):
    """A frozen Wan. `pipe` stays the stock pipeline and can be called as such at any time.

    `fps` is the frame rate of the clips that the model was trained on (16, for Wan2.2 TI2V 24); it only matters for
    display.
    """

    pipelines = (WanPipeline, WanImageToVideoPipeline)

    def __init__(self, pipe: Any, *, id: str = "", fps: float | None = None) -> None:
        super().__init__(pipe, id=id)
        vae, dit = pipe.vae.config, pipe.transformer.config
        usual = 24.0 if vae.z_dim == CHANNELS_24_FPS else 16.0
        length = min(int(pipe.tokenizer.model_max_length), MAX_TEXT)
        self.spec = Spec(
            latent=LatentSpec(
                channels=vae.z_dim,
                stride=(vae.scale_factor_temporal, vae.scale_factor_spatial, vae.scale_factor_spatial),
                mean=tuple(map(float, vae.latents_mean)),
                std=tuple(map(float, vae.latents_std)),
                patch=tuple(dit.patch_size),
            ),
            time=TimeSpec(fps=float(usual if fps is None else fps), stride=vae.scale_factor_temporal),
            prediction="flow",
            text_dim=dit.text_dim,
            text_length=MAX_TEXT if dit.image_dim is not None else length,
            per_token_time=bool(pipe.config["expand_timesteps"]),
        )

    @property
    def sigma_ranges(self) -> tuple[tuple[float, float], ...]:
        """The noise levels [low, high) of each of `transformers`; 1 belongs to the first.

        A training of one expert draws sigma from its own range: with shift 12 and 40 steps 26 steps are the
        high-noise expert's, with shift 3 and 50 steps 16 are, so a share of the steps says nothing.
        """
        if len(self.transformers) == 1:
            return ((0.0, 1.0),)
        border = float(self.pipe.config.boundary_ratio)
        return ((border, 1.0), (0.0, border))

    def embed(self, prompts: list[str]) -> Text:
        """Give text features as the pipeline makes them; UserWarning names words that a closed vocabulary lacks."""
        return Text.of(self._features(prompts))

    def condition(self, image: Float[Tensor, "b 3 h w"], frames: int) -> Condition:
        """Give what an image model reads beside the noisy latent, as the stock pipeline makes it from first frames in
        [-1, 1]: a mask of 4 channels with the encoded clip, and CLIP tokens (Wan2.1). ValueError for a text model.
        """
        if not self.conditioned:
            raise ValueError(
                f"{self.id} reads no image channels: `condition` is for image-to-video models. A TI2V model takes a"
                " clean prefix with sigma 0 instead."
            )
        pipe, (h, w) = self.pipe, image.shape[2:]
        empty = torch.zeros(1, *self.spec.latent.shape(frames, h, w))
        channels, tokens = [], []
        for picture in pictures(image, as_pil=pipe.image_encoder is not None):
            first = pipe.video_processor.preprocess(picture, height=h, width=w).to(self.device, torch.float32)
            given = (self.spec.latent.channels, h, w, frames, torch.float32, self.device, None, empty)
            channels.append(pipe.prepare_latents(first, 1, *given)[1])
            if pipe.transformer.config.image_dim is not None:
                tokens.append(pipe.encode_image(picture, self.device))
        return Condition(torch.cat(channels), torch.cat(tokens) if tokens else None)

    def predict(
        self,
        x_s: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b *map"],
        text: Text,
        condition: Condition | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """Give the flow velocity v = eps - x0 of the frozen model, attached adapters left out.

        `sigma` is (b,) or, for a TI2V model, per token: (b, tokens) or (b, t, y, x) on the patch grid, 0 where a prefix
        is clean. An image model wants its `condition`. ValueError for text of a wrong length (image tokens in front
        make Wan count on 512 rows) and for noise levels on both sides of a boundary between two transformers.
        """
        self.check_condition(condition)
        self.check_asked(x_s, sigma, text)
        pt, ph, pw = self.spec.latent.patch
        b, _, t, h, w = x_s.shape
        tokens = (t // pt) * (h // ph) * (w // pw)
        timestep = 1000.0 * (sigma if sigma.ndim == 1 else sigma.reshape(b, tokens))
        if self.spec.per_token_time and timestep.ndim == 1:
            timestep = timestep[:, None].expand(-1, tokens)
        model = self._expert(sigma)
        given: dict[str, Any] = {}
        if condition is not None:
            x_s = torch.cat([x_s, condition.channels.to(x_s)], 1)
            if condition.image is not None:
                if text.features.shape[1] != MAX_TEXT:
                    raise ValueError(
                        f"expected {MAX_TEXT} rows of text for a model with image tokens, got"
                        f" {text.features.shape[1]}: pad with zero rows, as `embed` does."
                    )
                given["encoder_hidden_states_image"] = condition.image.to(model.dtype)
        bare = getattr(model, "without_adapters", nullcontext)
        with bare():
            v = model(
                hidden_states=x_s.to(model.dtype),
                timestep=timestep,
                encoder_hidden_states=text.features.to(model.dtype),
                return_dict=False,
                **given,
            )[0]
        return v.to(x_s.dtype)

    def text_of(self, prompts: list[str], features: Tensor, branch: str | None = None) -> Text:
        """Give the features that a pipeline made from the prompts as a `Text`: Wan's own zero rows tell the mask."""
        return Text.of(features.float(), branch if branch in ("cond", "uncond") else None)

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


def level_of(scheduler: Any, timestep: Float[Tensor, " b"] | Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Look up the exact sigma of rounded timesteps (all of one step) in a flow scheduler's own table.

    Two steps can round to one timestep; then the step that the scheduler is about to do tells them apart. RuntimeError
    when the table does not hold the timestep.
    """
    table = scheduler.timesteps.to(timestep.device).to(timestep.dtype)
    found = (table == timestep[0]).nonzero().flatten().tolist()
    if len(found) > 1:
        step = scheduler.step_index if scheduler.step_index is not None else scheduler.begin_index
        step = scheduler.index_for_timestep(scheduler.timesteps[0]) if step is None else step  # the very first step
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
