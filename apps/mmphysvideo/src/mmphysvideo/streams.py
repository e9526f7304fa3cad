"""A transformer asked in flow space, block by block, whatever its family: what teacher and student share.

`begin` takes x_s on the flow path with its sigma and gives the tokens before block 0; `flow` reads the model's output
as the flow velocity v = eps - x0. In between `backbones.blocks` runs the blocks. With the backbone's own weights this
is `backbone.predict`, bit for bit.

A level can be one a clip, (b,), or, for a backbone that takes a clean beginning (TI2V), one a latent, (b, t).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from backbones import BlockStack, Tokens, blocks_of, paths
from mmphysvideo.config import Recipe

__all__ = ["Stream", "diffusion", "levels"]


@dataclass(frozen=True)
class Stream:
    """A transformer of a backbone's architecture with weights of its own."""

    backbone: Any
    model: Any

    @property
    def stack(self) -> BlockStack:
        """Its blocks."""
        return blocks_of(self.model)

    def begin(
        self,
        x_s: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b *t"],
        text: Float[Tensor, "b l e"],
        *,
        timestep: Tensor | None = None,
    ) -> Tokens:
        """Embed a noisy latent; `timestep` is the call's own where a pipeline asks, else that of sigma.

        ValueError for a family other than Wan and CogVideoX, which is asked with other arguments.
        """
        if self.stack.spec.latent_layout == "bnc":
            raise ValueError(f"expected a Wan or a CogVideoX, got {type(self.model).__name__}: its calls are not known")
        dtype = self.model.dtype
        x, text = x_s.to(dtype), text.to(dtype)
        if self.backbone.spec.prediction == "flow":
            timestep = self._timestep(x_s, sigma) if timestep is None else timestep
            return self.stack.begin(hidden_states=x, timestep=timestep, encoder_hidden_states=text)
        x = (paths.spread(paths.v_scale(sigma), x_s) * x_s).to(dtype)
        rotary = None
        if self.model.config.use_rotary_positional_embeddings:
            height, width = (n * s for n, s in zip(x_s.shape[3:], self.backbone.spec.latent.stride[1:], strict=True))
            place = self.backbone.pipe._prepare_rotary_positional_embeddings
            rotary = place(height, width, x_s.shape[2], x_s.device)
        return self.stack.begin(
            hidden_states=x.transpose(1, 2),
            encoder_hidden_states=text,
            timestep=self.backbone.timestep(sigma) if timestep is None else timestep,
            image_rotary_emb=rotary,
        )

    def flow(
        self, output: Tensor, x_s: Float[Tensor, "b c t h w"], sigma: Float[Tensor, "b *t"]
    ) -> Float[Tensor, "b c t h w"]:
        """The flow velocity of what `stack.end` gives, which is in the model's own layout and prediction."""
        if self.backbone.spec.prediction == "flow":
            return output.to(x_s.dtype)
        x_t = paths.spread(paths.v_scale(sigma), x_s) * x_s
        return paths.to_flow(x_t, output.transpose(1, 2).to(x_t.dtype), sigma)[1]

    def _timestep(self, x_s: Tensor, sigma: Tensor) -> Tensor:
        if not self.backbone.spec.per_token_time:
            return 1000.0 * sigma
        pt, ph, pw = self.backbone.spec.latent.patch
        t, cells = x_s.shape[2] // pt, (x_s.shape[3] // ph) * (x_s.shape[4] // pw)
        if sigma.ndim == 1:
            return 1000.0 * sigma[:, None].expand(-1, t * cells)
        return 1000.0 * sigma[:, ::pt].repeat_interleave(cells, 1)


def levels(recipe: Recipe, backbone: Any, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Draw noise levels as the backbone was trained: uniform timesteps (v-prediction), or uniform with its shift."""
    u = torch.rand(count, generator=generator)
    scheduler = backbone.pipe.scheduler
    if backbone.spec.prediction == "v":
        table = paths.level(scheduler.alphas_cumprod.double().cpu()).float()
        return table[(u * len(table)).long()]
    own = (scheduler.config.get(name) for name in ("flow_shift", "shift"))
    shift = recipe.noise.shift or float(next((s for s in own if s is not None), 1.0))
    return shift * u / (1 + (shift - 1) * u)


def diffusion(
    velocity: Float[Tensor, "b c t h w"],
    target: Float[Tensor, "b c t h w"],
    sigma: Float[Tensor, "b t"],
    prediction: str,
) -> Float[Tensor, ""]:
    """The backbone's own loss over what is not observed (sigma > 0).

    Flow: mean |v - (eps - x0)|^2. v-prediction: the mean of the squared error of v_t, which is that of the flow
    velocity divided by (a + r)^2, and 1 / (1 - alpha_bar) times the squared error of x0.
    """
    each = (velocity - target).square().mean((1, 3, 4))
    if prediction == "v":
        each = each / paths.v_scale(sigma).square()
    open_ = sigma > 0
    return (each * open_).sum() / open_.sum().clamp_min(1)
