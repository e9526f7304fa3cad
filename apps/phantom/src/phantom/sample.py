"""Videos in lockstep with their physics, through the stock pipelines: from text, from an image, from observed frames.

Wan's image pipeline takes one clean frame. For more of them the same pipeline is given a clean prefix of latents in
place of that frame: it masks, times and puts it back as it does with one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import backbones
from backbones import WanBackbone, attach
from backbones.sampling import image_pipeline
from backbones.stock import pictures
from phantom.config import Recipe
from phantom.latent import observed_latents

__all__ = ["cut", "sample"]


def cut(frames: int, stride: int = 4) -> int:
    """The longest observed beginning within `frames`: 4m + 1 of them.

    >>> [cut(n) for n in (1, 4, 5, 8, 45)]
    [1, 1, 5, 5, 45]
    """
    if frames < 1:
        raise ValueError("expected at least one observed frame, got none")
    return (frames - 1) // stride * stride + 1


@torch.no_grad()
def sample(
    backbone: WanBackbone,
    adapter: Any | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    observed: Float[Tensor, "b 3 p h w"] | None = None,
    physics: dict[str, Any] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Float[Tensor, "b 3 t h w"]:
    """The videos of prompts in [-1, 1], with an adapter or of the base alone; a seed fixes the noise of its clip.

    `observed` are the first 4m + 1 frames; their latents come back exactly. `physics` goes to the adapter, tensors with
    one row for each prompt (or one for all). `progress` is called with the steps that are done and the steps in all.
    ValueError for a count of observed frames that is not 4m + 1 or leaves nothing to make.
    """
    d, s = recipe.data, recipe.sampling
    noise = backbones.noise(backbone, list(seeds), d.frames, d.height, d.width)
    given: dict[str, Any] = {
        "height": d.height,
        "width": d.width,
        "num_frames": d.frames,
        "num_inference_steps": s.steps,
        "guidance_scale": s.guidance,
        "max_sequence_length": backbone.spec.text_length,
        "output_type": "pt",
    }
    if progress is not None:

        def ended(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress(step + 1, s.steps)
            return tensors

        given["callback_on_step_end"] = ended
    if physics:
        given["attention_kwargs"] = {"physics": physics}
    backbone.check_words(list(prompts))
    with attach(backbone, adapter) if adapter is not None else nullcontext():
        if observed is None:
            film = backbone.pipe(list(prompts), latents=noise.to(backbone.device), **given).frames
        else:
            film = _continue(backbone, list(prompts), observed, noise.to(backbone.device), given)
    return film.float().transpose(1, 2) * 2 - 1


def _continue(
    backbone: WanBackbone,
    prompts: list[str],
    observed: Float[Tensor, "b 3 p h w"],
    noise: Float[Tensor, "b c t y x"],
    given: dict[str, Any],
) -> Float[Tensor, "b frames 3 h w"]:
    p, frames = observed_latents(observed.shape[2]), given["num_frames"]
    if observed.shape[2] >= frames:
        raise ValueError(f"expected fewer observed frames than the {frames} of the clip, got {observed.shape[2]}")
    pipe, prefix = image_pipeline(backbone), backbone.encode(observed.to(backbone.device))
    unused = pictures(observed[:1, :, 0], as_pil=False)[0]  # the pipeline wants one; the prefix takes its place
    with _prefixed(pipe, prefix, noise, p):
        return pipe(image=unused, prompt=prompts, latents=noise, **given).frames


@contextmanager
def _prefixed(pipe: Any, prefix: Tensor, noise: Tensor, p: int) -> Iterator[None]:
    """Let a TI2V pipeline begin with p clean latents."""
    mask = torch.ones(1, 1, *noise.shape[2:], device=noise.device)
    mask[:, :, :p] = 0
    condition = torch.zeros_like(noise)
    condition[:, :, :p] = prefix.to(noise)

    def prepare_latents(*_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        return noise, condition, mask

    pipe.prepare_latents = prepare_latents
    try:
        yield
    finally:
        del pipe.prepare_latents
