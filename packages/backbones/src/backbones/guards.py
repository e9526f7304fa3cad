"""Checks that cost seconds and save a training: each refuses one silent mistake with one sentence and its remedy.

Every guard raises ValueError. The bounds are our choice, wide enough for every real family and for the embedded one.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from backbones.contract import LatentSpec, Text

if TYPE_CHECKING:
    from backbones.contract import Backbone

__all__ = [
    "RoundTrip",
    "checkpoint_layout",
    "flow_shift",
    "frame_count",
    "padded_text",
    "round_trip",
    "value_range",
]

CONVERT = {
    "Wan": "scripts/convert_wan_to_diffusers.py of the diffusers repository, or use the hub's copy"
    " (Wan-AI/...-Diffusers)",
    "CogVideoX": "scripts/convert_cogvideox_to_diffusers.py of the diffusers repository, or use the hub's copy"
    " (zai-org/CogVideoX-...)",
}


@dataclass(frozen=True)
class RoundTrip:
    """What a round trip through the VAE kept: PSNR in dB (peak 2: the range is [-1, 1]), and the latents' statistics
    over all channels, which the config's normalisation should bring near 0 and 1.
    """

    psnr: float
    mean: float
    std: float


def value_range(video: Tensor) -> None:
    """Refuse a video that is not float in [-1, 1]."""
    if not video.is_floating_point():
        raise ValueError(f"expected a float video in [-1, 1], got {video.dtype}. From uint8: video / 127.5 - 1.")
    if not video.numel():
        raise ValueError(f"expected a video in [-1, 1], got an empty tensor of shape {tuple(video.shape)}")
    low, high = float(video.detach().min()), float(video.detach().max())
    if not (low >= -1.01 and high <= 1.01):  # also for nan
        raise ValueError(f"expected a video in [-1, 1], got [{low:.3g}, {high:.3g}]. From uint8: video / 127.5 - 1.")


def frame_count(frames: int, latent: LatentSpec) -> None:
    """Refuse a frame count of which the VAE would lose the tail in silence; the message names the nearest two."""
    latent.latents(frames)


@torch.no_grad()
def round_trip(
    backbone: "Backbone",
    video: Float[Tensor, "b 3 t h w"],
    *,
    latents: Float[Tensor, "b c tl hl wl"] | None = None,
    least_psnr: float = 20.0,
) -> RoundTrip:
    """Decode the latents of given clips and compare; call it once before a training, with the latents of its cache.

    ValueError when no clip goes below 0 (a video in [0, 1] passes every other check), when decoding loses the picture,
    when cached latents decode worse than fresh ones by more than 1 dB (raw latents, another VAE, another crop), or when
    their statistics are far from the normalised 0 and 1. Real VAEs keep 28 dB and more; latents have mean within 1 and
    std within 0.1 .. 2 (the embedded default has 0.24).
    """
    value_range(video)
    if float(video.min()) >= 0.0:
        raise ValueError(
            f"expected a video in [-1, 1], got nothing below 0 (up to {float(video.max()):.3g}): this looks like"
            " [0, 1]. Use video * 2 - 1; if all clips are that bright, add one that is not."
        )
    fresh = backbone.encode(video)
    kept = _psnr(backbone.decode(fresh), video)
    if kept < least_psnr:
        raise ValueError(
            f"expected the VAE of {backbone.id} to keep {least_psnr:g} dB of these clips, got {kept:.1f} dB: check that"
            " its weights are those of this model and in float32, and that the clips are in [-1, 1]."
        )
    given = fresh if latents is None else latents.to(fresh)
    if given.shape != fresh.shape:
        raise ValueError(
            f"expected latents of shape {tuple(fresh.shape)} for these clips, got {tuple(given.shape)}: make the cache"
            " again with this backbone."
        )
    found = RoundTrip(kept if latents is None else _psnr(backbone.decode(given), video), _mean(given), _std(given))
    if found.psnr < kept - 1.0:
        raise ValueError(
            f"expected cached latents to decode as well as fresh ones ({kept:.1f} dB), got {found.psnr:.1f} dB: they"
            " are not normalised ((z - mean) / std of the VAE's config), or come from another VAE. Make them with"
            " backbone.encode."
        )
    if abs(found.mean) > 1.0 or not 0.1 <= found.std <= 2.0:
        raise ValueError(
            f"expected latents near mean 0 and std 1, got {found.mean:.2f} and {found.std:.2f}: latents_mean and"
            " latents_std (or scaling_factor) of the VAE's config are not those of its weights."
        )
    return found


def flow_shift(scheduler: Any, *, expected: float | None = None) -> float:
    """Give the shift that a flow scheduler applies; ValueError when `from_config` lost it on the way.

    UniPC calls it `flow_shift`, FlowMatchEuler `shift`, and each reads only its own name from the other's config.
    """
    config = dict(scheduler.config)
    own, other = ("shift", "flow_shift") if "FlowMatch" in type(scheduler).__name__ else ("flow_shift", "shift")
    if own not in config:
        raise ValueError(f"expected a flow scheduler with `shift` or `flow_shift`, got {type(scheduler).__name__}")
    if own == "flow_shift" and not config.get("use_flow_sigmas", False):
        raise ValueError(
            f"expected {type(scheduler).__name__} with use_flow_sigmas=True and prediction_type='flow_prediction', got"
            " one that walks another path: build it with both."
        )
    shift = float(config[own])
    lost = config.get(other)
    wanted = expected if expected is not None else lost
    if wanted is not None and not math.isclose(shift, float(wanted)):
        raise ValueError(
            f"expected shift {float(wanted):g}, got {shift:g} in {type(scheduler).__name__}: from_config drops the"
            f" shift between these classes. Build it with from_config(config, {own}={float(wanted):g})."
        )
    return shift


def padded_text(text: Text, backbone: "Backbone") -> None:
    """Refuse text that the model would read otherwise than its own pipeline's: pads and lengths are part of it."""
    rows, length = text.features.shape[1], backbone.spec.text_length
    if rows != length:
        raise ValueError(
            f"expected {length} rows of text for {backbone.id}, got {rows}: the pads are part of what it was"
            " trained on. Use backbone.embed, or pass max_sequence_length to the pipeline."
        )
    ends = text.mask.sum(1)
    if not bool((text.mask == (torch.arange(rows, device=ends.device) < ends[:, None])).all()):
        raise ValueError("expected a mask that is true for the first tokens and false after, got one with gaps")
    if backbone.spec.prediction == "flow" and bool(text.features[~text.mask].any()):
        raise ValueError(
            f"expected zero rows after the end of the text for {backbone.id}, got others: set"
            " features[~mask] = 0, as the pipeline does after its text encoder."
        )


def checkpoint_layout(folder: str | Path) -> None:
    """Refuse what is no diffusers pipeline folder, and say what it is instead and how to convert it."""
    path = Path(folder)
    if path.is_file():
        raise ValueError(
            f"expected a diffusers pipeline folder, got the single file {path}: load it with the transformer class's"
            " from_single_file and put it into the pipeline of its family, or convert the original checkpoint with"
            f" {CONVERT['Wan']}."
        )
    if not path.is_dir() or (path / "model_index.json").is_file():
        return
    names = {p.name for p in path.iterdir()}
    config = path / "config.json"
    component = json.loads(config.read_text()).get("_class_name", "") if config.is_file() else ""
    wan = component == "WanModel" or {"high_noise_model", "low_noise_model"} & names
    if wan or any(n.startswith(("Wan2", "models_t5_umt5")) for n in names):
        what, remedy = "an original Wan checkpoint", f"convert it with {CONVERT['Wan']}"
    elif "latest" in names or any(p.name.startswith("mp_rank_") for p in path.glob("*/*.pt")):
        what, remedy = "an original CogVideoX (SAT) checkpoint", f"convert it with {CONVERT['CogVideoX']}"
    elif component:
        what, remedy = f"one component ({component})", f"give the folder above it, {path.parent}"
    elif "bundle.json" in names:
        what, remedy = "a bundle (an adapter)", "attach it to a backbone: backbones.attach(backbone, folder)"
    elif any(n.startswith("pytorch_lora_weights") for n in names):
        what, remedy = "LoRA weights", "load their base, then backbone.pipe.load_lora_weights(folder)"
    else:
        what, remedy = "no model_index.json", "give a folder that pipe.save_pretrained or a hub download has written"
    raise ValueError(f"expected a diffusers pipeline folder with a model_index.json, got {path} with {what}: {remedy}.")


def _psnr(decoded: Tensor, video: Tensor) -> float:
    return float(10 * torch.log10(4 / (decoded.float() - video.to(decoded.device).float()).square().mean()))


def _mean(latents: Tensor) -> float:
    return float(latents.float().mean())


def _std(latents: Tensor) -> float:
    return float(latents.float().std())
