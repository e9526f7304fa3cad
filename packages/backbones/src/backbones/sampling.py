"""Sample videos through the stock pipelines, with noise that belongs to a clip and not to its batch.

Each clip draws its noise from a generator of its own, on the CPU: the same seed gives the same noise alone or among
others, on any device, with or without an adapter. That is what a paired comparison needs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from jaxtyping import Float
from torch import Tensor

from backbones.wan import WanBackbone

__all__ = ["noise", "sample"]


def noise(
    backbone: WanBackbone, seeds: Sequence[int], frames: int = 17, height: int = 32, width: int = 32
) -> Float[Tensor, "b c tl hl wl"]:
    """Give standard normal latents, one seed a clip; ValueError names the nearest legal size."""
    shape = backbone.spec.latent.shape(frames, height, width)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds])


def sample(
    backbone: WanBackbone,
    prompts: Sequence[str],
    *,
    seed: int | Sequence[int] | None = None,
    noise: Float[Tensor, "b c tl hl wl"] | None = None,  # the argument shadows the function: the contract names both so
    image: Float[Tensor, "b 3 h w"] | None = None,
    frames: int = 17,
    height: int = 32,
    width: int = 32,
    steps: int = 25,
    guidance: float = 1.5,
    batch_size: int | None = None,
) -> Float[Tensor, "b 3 t h w"]:
    """Give videos in [-1, 1] of the prompts.

    `seed` is one per prompt, or one number from which clip i takes `seed + i`; or give `noise` itself. `image` in [-1,
    1] is the clean first frame of each clip (through `WanImageToVideoPipeline`, clip by clip: that pipeline repeats a
    batch of images by the batch).
    """
    prompts = list(prompts)
    latents = _latents(backbone, prompts, seed, noise, (frames, height, width))
    backbone.check_words(prompts)
    settings: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_frames": frames,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "max_sequence_length": backbone.spec.text_length,
        "output_type": "pt",
    }
    size = len(prompts) if batch_size is None else batch_size
    if image is None:
        cuts = range(0, len(prompts), size)
        parts = [backbone.pipe(prompts[i : i + size], latents=latents[i : i + size], **settings).frames for i in cuts]
    else:
        if len(image) != len(prompts):
            raise ValueError(f"expected one first frame per prompt, got {len(image)} for {len(prompts)} prompts")
        first = (image.clamp(-1, 1) + 1) / 2  # the pipeline wants pictures in [0, 1] and maps them itself
        one = range(len(prompts))
        call: Any = image_pipeline(backbone)
        parts = [call(first[i : i + 1], [prompts[i]], latents=latents[i : i + 1], **settings).frames for i in one]
    return torch.cat(parts).transpose(1, 2) * 2 - 1


def image_pipeline(backbone: WanBackbone) -> WanImageToVideoPipeline:
    """Give the stock image-to-video pipeline over the same components; ValueError if the model has no clean prefix."""
    if not backbone.spec.per_token_time:
        raise ValueError(
            f"expected a TI2V backbone (expand_timesteps) for a first frame, got {backbone.id}."
            " Sample it without `image`."
        )
    pipe = WanImageToVideoPipeline(**backbone.pipe.components, expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    host = getattr(backbone.transformer, "phys_attached", None)
    if host is not None:
        host.watch(pipe)
    return pipe


def _latents(
    backbone: WanBackbone,
    prompts: list[str],
    seed: int | Sequence[int] | None,
    given: Tensor | None,
    size: tuple[int, int, int],
) -> Tensor:
    if (seed is None) == (given is None):
        raise ValueError("expected either `seed` or `noise`, got " + ("none of them" if seed is None else "both"))
    if given is None:
        seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else list(seed or ())
        given = noise(backbone, seeds, *size)
    shape = (len(prompts), *backbone.spec.latent.shape(*size))
    if tuple(given.shape) != shape:
        raise ValueError(f"expected noise of shape {shape} (one seed a prompt), got {tuple(given.shape)}")
    return given.to(backbone.device)
