"""CogVideoX (2B, 5B, 1.5; text or image to video) behind the contract, on the stock pipelines.

The model predicts v_t on the variance-preserving path; here everything is in flow space (`backbones.paths`), so that an
adapter of the flow velocity does not see the difference.

Traps that this file takes care of: the pipeline's latents are (b, t, c, h, w); both guidance branches are rows of one
call, [uncond, cond]; T5 is called without a mask, so the pads are not zero and only the tokenizer knows where the text
ends; the VAE gives 8n+1 frames back and nothing else; 1.5 takes patches of two latents, and a still copy of latent 0
leads in; 1.5 I2V divides its condition by the scale where it should have multiplied.
"""

import hashlib
from contextlib import nullcontext
from typing import Any
from weakref import ref

import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline
from jaxtyping import Bool, Float
from torch import Tensor, nn

from backbones import paths
from backbones.contract import Asked, Condition, LatentSpec, Spec, Text, TimeSpec
from backbones.stock import StockBackbone, pictures

__all__ = ["CogVideoXBackbone"]

FRAME_STEP = 8  # the decoder takes latents in twos after an odd first chunk: 5 frames would come back as 8
ON_TABLE = 1e-3  # of a timestep: float32 noise levels that were meant to be an integer timestep's


class CogVideoXBackbone(StockBackbone):
    """A frozen CogVideoX. `pipe` stays the stock pipeline and can be called as such at any time.

    `fps` is the frame rate of the clips that the model was trained on (8, for 1.5 16); it only matters for display.
    """

    pipelines = (CogVideoXPipeline, CogVideoXImageToVideoPipeline)
    float32_vae = False  # its pipelines never cast to it

    def __init__(self, pipe: Any, *, id: str = "", fps: float | None = None) -> None:
        super().__init__(pipe, id=id)
        predicts = pipe.scheduler.config.prediction_type
        if predicts != "v_prediction":
            raise ValueError(
                f"expected a scheduler with prediction_type 'v_prediction', got {predicts!r}: build it with"
                " from_config(pipe.scheduler.config)."
            )
        vae, dit = pipe.vae.config, pipe.transformer.config
        space = 2 ** (len(vae.block_out_channels) - 1)
        patch = dit.patch_size_t or 1
        usual = 8.0 if dit.patch_size_t is None else 16.0
        self.spec = Spec(
            latent=LatentSpec(
                channels=vae.latent_channels,
                stride=(int(vae.temporal_compression_ratio), space, space),
                mean=(0.0,) * vae.latent_channels,
                std=(1.0 / vae.scaling_factor,) * vae.latent_channels,
                patch=(patch, dit.patch_size, dit.patch_size),
                frame_step=FRAME_STEP,
                lead=patch - 1,
            ),
            time=TimeSpec(
                fps=float(usual if fps is None else fps), stride=int(vae.temporal_compression_ratio), lead=patch - 1
            ),
            prediction="v",
            text_dim=dit.text_embed_dim,
            text_length=dit.max_text_seq_length,
            per_token_time=False,
        )
        self._masks: dict[bytes, Bool[Tensor, " l"]] = {}
        self._last: tuple[Any, Bool[Tensor, "b l"]] | None = None

    @property
    def sigma_ranges(self) -> tuple[tuple[float, float], ...]:
        """The noise levels that the model was trained on: from its first timestep's (not 0) to 1."""
        return ((float(self._levels()[0]), 1.0),)

    def embed(self, prompts: list[str]) -> Text:
        """Give text features as the pipeline makes them, with the mask of the tokenizer."""
        features = self._features(prompts)
        return Text(features, self.text_of(prompts, features).mask)

    def text_of(self, prompts: list[str], features: Tensor, branch: str | None = None) -> Text:
        """Give the features that a pipeline made from the prompts as a `Text`, and remember its mask for `asked`."""
        text = super().text_of(prompts, features, branch)
        self.remember(text)
        return text

    def remember(self, text: Text) -> None:
        """Keep the masks of these features: a transformer's call brings the features alone."""
        self._masks |= {_name(row): mask.cpu() for row, mask in zip(text.features, text.mask, strict=True)}

    def condition(self, image: Float[Tensor, "b 3 h w"], frames: int) -> Condition:
        """Give what an image model reads beside the noisy latent, as the stock pipeline makes it from first frames in
        [-1, 1] (its draw from the VAE's posterior comes from a generator with seed 0). ValueError for a text model.
        """
        if not self.conditioned:
            raise ValueError(f"{self.id} reads no image channels: `condition` is for image-to-video models")
        pipe, (h, w) = self.pipe, image.shape[2:]
        latents = self.spec.latent.shape(frames, h, w)[1]
        padded = frames + self.spec.latent.lead * self.spec.latent.stride[0]  # as the pipeline counts with a lead-in
        out = []
        for picture in pictures(image, as_pil=False):
            first = pipe.video_processor.preprocess(picture, height=h, width=w).to(self.device, pipe.vae.dtype)
            given = (self.spec.latent.channels, padded, h, w, pipe.vae.dtype, self.device)
            _, channels = pipe.prepare_latents(first, 1, *given, torch.Generator().manual_seed(0))
            assert channels.shape[1] == latents, (channels.shape, latents)
            out.append(channels.transpose(1, 2))
        return Condition(torch.cat(out))

    def predict(
        self,
        x_s: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b *map"],
        text: Text,
        condition: Condition | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """Give the flow velocity v = eps - x0 of the frozen model, attached adapters left out.

        A sigma between two timesteps of the training schedule is asked at the timestep between them. An image model
        wants its `condition`. ValueError for a sigma below `sigma_ranges`, where the model was never trained, and for a
        map of levels: its gates are one a clip.
        """
        self.check_condition(condition)
        self.check_asked(x_s, sigma, text)
        if sigma.ndim != 1:
            raise ValueError(
                f"expected one noise level a clip, (b,), for {self.id}, got {tuple(sigma.shape)}: CogVideoX has no"
                " timestep per token. A clean prefix needs a TI2V model."
            )
        model: Any = self.transformer
        x_t = paths.spread(paths.v_scale(sigma), x_s) * x_s
        seen = x_t if condition is None else torch.cat([x_t, condition.channels.to(x_t)], 1)
        rotary = None
        if model.config.use_rotary_positional_embeddings:
            height, width = (n * s for n, s in zip(x_s.shape[3:], self.spec.latent.stride[1:], strict=True))
            rotary = self.pipe._prepare_rotary_positional_embeddings(height, width, x_s.shape[2], x_s.device)
        bare = getattr(model, "without_adapters", nullcontext)
        features = text.features.to(model.dtype)
        self._last = (ref(features), text.mask.to(features.device))  # for what is attached to this very call
        with bare():
            v_t = model(
                hidden_states=seen.transpose(1, 2).to(model.dtype),
                encoder_hidden_states=features,
                timestep=self.timestep(sigma),
                ofs=None if model.config.ofs_embed_dim is None else x_s.new_full((1,), 2.0),  # as the pipeline does
                image_rotary_emb=rotary,
                return_dict=False,
            )[0]
        return paths.to_flow(x_t, v_t.transpose(1, 2).to(x_t.dtype), sigma)[1]

    def timestep(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Give the timesteps in 0..999 of noise levels, between two integers where a level is between theirs."""
        levels = self._levels()
        wanted = sigma.detach().double().cpu()
        above = torch.searchsorted(levels, wanted).clamp(1, len(levels) - 1)
        below = above - 1
        t = below + (wanted - levels[below]) / (levels[above] - levels[below])
        t = torch.where((t - t.round()).abs() < ON_TABLE, t.round(), t)
        if bool((t < 0).any()) or bool((t > len(levels) - 1).any()):
            raise ValueError(
                f"expected sigma in {self.sigma_ranges[0]} for {self.id}, got {wanted.tolist()}: draw training noise"
                " levels from backbone.sigma_ranges."
            )
        return t.to(sigma.device, torch.float32)

    def start(self, latents: Float[Tensor, "b c t h w"]) -> dict[str, Any]:
        """Say the first noise as (b, t, c, h, w), with a generator a clip: the scheduler of 5B draws at every step."""
        generators = []
        for clip in latents:
            content = clip.cpu().contiguous().numpy().tobytes()
            number = int.from_bytes(hashlib.blake2b(content, digest_size=7).digest())
            generators.append(torch.Generator().manual_seed(number))
        dtype = self.pipe.text_encoder.dtype  # the pipeline would have drawn it so, and never casts it again
        return {"latents": latents.transpose(1, 2).to(dtype), "generator": generators}

    def asked(
        self, model: nn.Module, arguments: dict[str, Any], output: Tensor, *, sigma: float | None, branch: str | None
    ) -> Asked:
        """Read one call of the transformer: its arguments by name, its output, and what `cache_context` announced.

        "cond_uncond" is the pipeline's name for whatever it asks: both branches as rows [uncond, cond], or the prompt
        alone when there is no guidance. The noise level is the timestep's in the scheduler's table of alpha_bar.
        """
        native, timestep = arguments["hidden_states"][:, :, : output.shape[2]], arguments["timestep"]
        timestep = timestep.reshape(-1).expand(len(output))
        level = torch.full_like(timestep, sigma, dtype=torch.float32) if sigma is not None else self._level_at(timestep)
        x_s, v = paths.to_flow(native.transpose(1, 2).float(), output.transpose(1, 2).float(), level)
        features = arguments["encoder_hidden_states"]
        mask = self._mask_of(features)
        side = branch if branch in ("cond", "uncond") else None
        return Asked(
            x_s=x_s,
            v=v,
            sigma=level,
            noisy=None,
            text=Text(features.float(), mask, side),
            timestep=timestep,
            branch_rows=self.rows_of(arguments["hidden_states"], branch),
            dtype=output.dtype,
        )

    def velocity(self, asked: Asked, output: Tensor) -> Float[Tensor, "b c t h w"]:
        """Read another output of the same call, a guided one for example, as a flow velocity."""
        x_t = paths.spread(paths.v_scale(asked.sigma), asked.x_s) * asked.x_s
        return paths.to_flow(x_t, output.transpose(1, 2).float(), asked.sigma)[1]

    def answer(self, asked: Asked, delta: Float[Tensor, "b c t h w"]) -> Tensor:
        """Give what must be added to the model's v-prediction so that its flow velocity moves by `delta`."""
        return (delta / paths.spread(paths.v_scale(asked.sigma), delta)).transpose(1, 2).to(asked.dtype)

    def _levels(self) -> Float[Tensor, " n"]:
        """The flow sigma of every training timestep, rising; float64."""
        return paths.level(self.pipe.scheduler.alphas_cumprod.double().cpu())

    def _level_at(self, timestep: Tensor) -> Float[Tensor, " b"]:
        if timestep.dtype in (torch.bfloat16, torch.float16):
            raise RuntimeError(
                f"expected integer or float32 timesteps, got {timestep.dtype}: above 256 it cannot tell them apart, so"
                " the noise level is not known."
            )
        levels, t = self._levels(), timestep.detach().double().cpu()
        below = t.floor().long().clamp(0, len(levels) - 2)
        level = levels[below] + (t - below) * (levels[below + 1] - levels[below])
        return level.float().to(timestep.device)

    def _mask_of(self, features: Tensor) -> Bool[Tensor, "b l"]:
        if self._last is not None and self._last[0]() is features:  # the same tensor at every step of a pipeline
            return self._last[1]
        masks = [self._masks.get(_name(row)) for row in features]
        if any(mask is None for mask in masks):
            raise ValueError(
                f"{self.id} pads its text with rows that are not zero, and these features were never told: call"
                " backbone.embed(prompts), or backbone.text_of(prompts, features), with the prompts (and negative"
                " prompts) that they were made from."
            )
        mask = torch.stack([m for m in masks if m is not None]).to(features.device)
        self._last = (ref(features), mask)
        return mask


def _name(row: Float[Tensor, "l d"]) -> bytes:
    """Name a row of features; through bfloat16, so that casting a model does not make it a stranger."""
    content = row.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()
