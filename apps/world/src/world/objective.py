"""The flow-matching objective of an image- and text-conditioned world: x_s = (1 - s) x_0 + s eps, target v = eps - x_0.

TI2V in one network: each latent frame has its own noise level. The first `p` frames of a sample may be given clean
(sigma 0): then they are the condition, and their velocity is left out of the loss. p = 0 is text-to-video, p = 1
image-to-video, more is video continuation.

References: Wan 2.2's per-token timesteps (`expand_timesteps` in diffusers' WanPipeline).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

TIMESTEPS = 1000.0
"""Wan's transformer reads 1000 sigma."""


@dataclass(frozen=True)
class Corruption:
    """One batch of noised latents: per-frame noise levels and the frames whose velocity counts."""

    x_s: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, "b t"]
    target: Float[Tensor, "b c t h w"]
    counted: Bool[Tensor, "b t"]


def training_sigma(batch: int, shift: float, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Draw noise levels, uniform for shift 1 and leaning to noise above it."""
    u = torch.rand(batch, generator=generator, device=generator.device)
    return shift * u / (1 + (shift - 1) * u)


def prefixes(batch: int, share: float, most: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Draw how many latent frames are given clean: none, or 1..most for a `share` of the samples."""
    length = torch.randint(1, most + 1, (batch,), generator=generator, device=generator.device)
    return length * (torch.rand(batch, generator=generator, device=generator.device) < share)


def corrupt(
    x0: Float[Tensor, "b c t h w"],
    sigma: Float[Tensor, " b"],
    prefix: Int[Tensor, " b"],
    generator: torch.Generator,
) -> Corruption:
    """Noise latents along the straight path, leaving each sample's prefix clean.

    The noise is drawn on the generator's device and used on the latents': drawn on the CPU, it is the same everywhere.
    """
    sigma, prefix = sigma.to(x0.device), prefix.to(x0.device)
    counted = torch.arange(x0.shape[2], device=x0.device) >= prefix[:, None]
    levels = sigma[:, None] * counted
    eps = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0.device)
    x_s = torch.lerp(x0, eps, levels[:, None, :, None, None])
    return Corruption(x_s=x_s, sigma=levels, target=eps - x0, counted=counted)


def token_timesteps(sigma: Float[Tensor, "b t"], tokens: int) -> Float[Tensor, "b n"]:
    """Repeat each frame's timestep over its `tokens` tokens, in the order in which Wan flattens them.

    >>> token_timesteps(torch.tensor([[0.0, 0.5]]), 2)
    tensor([[  0.,   0., 500., 500.]])
    """
    return TIMESTEPS * sigma.repeat_interleave(tokens, dim=1)


def velocity(
    transformer: nn.Module,
    x_s: Float[Tensor, "b c t h w"],
    sigma: Float[Tensor, "b t"],
    text: Float[Tensor, "b l d"],
    patch: tuple[int, int, int],
) -> Float[Tensor, "b c t h w"]:
    """Predict the flow velocity of a batch with per-frame noise levels."""
    tokens = (x_s.shape[3] // patch[1]) * (x_s.shape[4] // patch[2])
    return transformer(x_s, token_timesteps(sigma, tokens), text, return_dict=False)[0]


def flow_loss(predicted: Float[Tensor, "b c t h w"], corruption: Corruption) -> Float[Tensor, ""]:
    """Mean squared velocity error over the frames that count."""
    per_frame = (predicted.float() - corruption.target).square().mean(dim=(1, 3, 4))
    return (per_frame * corruption.counted).sum() / corruption.counted.sum()


def padded_text(
    text_encoder: nn.Module,
    ids: Int[Tensor, "b l"],
    mask: Int[Tensor, "b l"],
) -> Float[Tensor, "b l d"]:
    """Embed prompts and set the padding to zero, as WanPipeline feeds them (it gives the transformer no mask)."""
    features = text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return features * mask[..., None]


def drop_captions(
    ids: Int[Tensor, "b l"],
    mask: Int[Tensor, "b l"],
    empty: tuple[Int[Tensor, " l"], Int[Tensor, " l"]],
    share: float,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b l"]]:
    """Replace a share of the prompts by the empty one, for classifier-free guidance."""
    dropped = (torch.rand(len(ids), generator=generator, device=generator.device) < share)[:, None].to(ids.device)
    return torch.where(dropped, empty[0], ids), torch.where(dropped, empty[1], mask)
