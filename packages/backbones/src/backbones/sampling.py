"""Sample videos through the stock pipelines, with noise that belongs to a clip and not to its batch.

Each clip draws its noise from a generator of its own, on the CPU: the same seed gives the same noise alone or among
others, on any device, with or without an adapter. That is what a paired comparison needs. Schedulers that draw noise at
every step (CogVideoX-5B's) get one generator a clip, seeded by the clip's first noise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from jaxtyping import Float
from torch import Tensor

from backbones import guards
from backbones.stock import StockBackbone, pictures

__all__ = ["noise", "sample"]


def noise(
    backbone: StockBackbone, seeds: Sequence[int], frames: int = 17, height: int = 32, width: int = 32
) -> Float[Tensor, "b c tl hl wl"]:
    """Give standard normal latents, one seed a clip; ValueError names the nearest legal size."""
    shape = backbone.spec.latent.shape(frames, height, width)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds])


def sample(
    backbone: StockBackbone,
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
    watch: Callable[[int, int], Any] | None = None,
) -> Float[Tensor, "b 3 t h w"]:
    """Give videos in [-1, 1] of the prompts; `watch` is called with the steps that are done and the steps in all.

    `seed` is one per prompt, or one number from which clip i takes `seed + i`; or give `noise` itself. `image` in [-1,
    1] is the first frame of each clip: an image-to-video model wants it, a TI2V model takes it as a clean prefix
    (through `WanImageToVideoPipeline`). Clips with an image are sampled one by one: those pipelines repeat a batch of
    images by the batch.
    """
    if isinstance(prompts, str):
        raise ValueError(f"expected a list of one or more prompts, such as ['a red ball'], got {prompts!r}")
    prompts = list(prompts)
    backbone.check_words(prompts)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"expected a batch_size of 1 or more, got {batch_size}")
    if image is None and (backbone.conditioned or isinstance(backbone.pipe, WanImageToVideoPipeline)):
        raise ValueError(
            f"{backbone.id} is an image-to-video pipeline: pass `image`, the first frame of each clip (a TI2V model"
            " samples without one through WanPipeline)"
        )
    if image is not None and tuple(image.shape[2:]) != (height, width):
        raise ValueError(f"expected first frames of {height} x {width}, got {tuple(image.shape[2:])}")
    if image is not None:
        guards.value_range(image)
    latents = _latents(backbone, prompts, seed, noise, (frames, height, width))
    settings: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_frames": frames,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "max_sequence_length": backbone.spec.text_length,
        "output_type": "pt",
    }
    if image is None:
        call: Any = backbone.pipe
        size = len(prompts) if batch_size is None else batch_size
        firsts: list[Any] = []
    else:
        if len(image) != len(prompts):
            raise ValueError(f"expected one first frame per prompt, got {len(image)} for {len(prompts)} prompts")
        call, size = image_pipeline(backbone), 1
        firsts = pictures(image, as_pil=getattr(call, "image_encoder", None) is not None)
    parts, total = [], steps * len(range(0, len(prompts), size))
    if watch is not None:

        def ended(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            watch(steps * len(parts) + step + 1, total)
            return tensors

        settings["callback_on_step_end"] = ended
    for i in range(0, len(prompts), size):
        given = settings | backbone.start(latents[i : i + size]) | ({"image": firsts[i]} if firsts else {})
        parts.append(call(prompt=prompts[i : i + size], **given).frames)
    return torch.cat(parts).float().transpose(1, 2) * 2 - 1


def image_pipeline(backbone: StockBackbone) -> Any:
    """Give the stock image-to-video pipeline of a model; ValueError if the model takes no first frame."""
    if backbone.conditioned:
        return backbone.pipe
    if not backbone.spec.per_token_time:
        raise ValueError(
            f"expected an image-to-video model, or a TI2V backbone (expand_timesteps), for a first frame, got"
            f" {backbone.id}. Sample it without `image`."
        )
    if isinstance(backbone.pipe, WanImageToVideoPipeline):
        return backbone.pipe
    pipe = WanImageToVideoPipeline(**backbone.pipe.components, expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    host = getattr(backbone.transformer, "phys_attached", None)
    if host is not None:
        host.watch(pipe)
    return pipe


def _latents(
    backbone: StockBackbone,
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
