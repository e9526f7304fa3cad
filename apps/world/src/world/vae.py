"""The world's autoencoder: block PCA (fitted in seconds, linear) or a tiny Wan VAE (trained within a time budget).

Both are diffusers folders behind one interface: 16 channels, stride (4, 4, 4), frame 0 alone and then groups of four,
with `latents_mean` and `latents_std` in their config. What is reported is the PSNR on clips that neither saw, by
mechanism, because the mean hides that thin or fast things (a rod, a shock) cost most.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from world.clips import Clips, psnr, signed, to_bytes, to_signed
from world.device import generator_on, precision, usable
from world.recipe import VAERecipe

CPU_BATCH, DEVICE_BATCH = 32, 256
"""Clips encoded or decoded at once: few fit a cache, many fill an accelerator (our choice)."""


@dataclass(frozen=True)
class VAEReport:
    """Held-out quality of an autoencoder in dB, and what it cost."""

    kind: str
    parameters: int
    training_clips: int
    held_out_clips: int
    psnr_db: float
    psnr_db_by_mechanism: dict[str, float]
    seconds: float

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def encode(vae: Any, videos: UInt8[np.ndarray, "n t h w 3"]) -> Float[Tensor, "n c t2 h2 w2"]:
    """Encode clips to normalised latents (zero mean, the scale that the transformer sees), in batches on the
    autoencoder's device; the latents come back to the CPU.
    """
    mean, std = _statistics(vae)
    batch = _batch(vae)
    parts = [
        ((vae.encode(to_signed(videos[start : start + batch]).to(vae.device)).latent_dist.mode() - mean) / std).cpu()
        for start in range(0, len(videos), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def decode(vae: Any, latents: Float[Tensor, "n c t2 h2 w2"]) -> UInt8[np.ndarray, "n t h w 3"]:
    """Decode normalised latents to clips, in batches on the autoencoder's device."""
    mean, std = _statistics(vae)
    batch = _batch(vae)
    parts = [
        to_bytes(vae.decode(latents[start : start + batch].to(vae.device) * std + mean, return_dict=False)[0])
        for start in range(0, len(latents), batch)
    ]
    return np.concatenate(parts)


def measure(vae: Any, held_out: Clips, *, kind: str, training_clips: int, seconds: float) -> VAEReport:
    """Measure an autoencoder on clips that it has not seen."""
    values = psnr(decode(vae, encode(vae, held_out.videos)), held_out.videos)
    mechanisms = np.array(held_out.mechanisms)
    return VAEReport(
        kind=kind,
        parameters=sum(p.numel() for p in vae.parameters()),
        training_clips=training_clips,
        held_out_clips=len(held_out),
        psnr_db=float(values.mean()),
        psnr_db_by_mechanism={m: float(values[mechanisms == m].mean()) for m in dict.fromkeys(held_out.mechanisms)},
        seconds=seconds,
    )


def fit_pca(clips: Clips, *, channels: int = 16) -> Any:
    """Fit the shared-basis causal block PCA to the clips' blocks."""
    from backbones import AutoencoderBlockPCA

    return AutoencoderBlockPCA.fit(clips.videos, z_dim=channels).eval()


def train_wan(
    clips: Clips, recipe: VAERecipe, *, out: Path, minutes: float, resume: bool = False, log: Any = None
) -> Any:
    """Train a tiny Wan VAE with MSE + L1 + a faint KL for some minutes, then set its latent statistics."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    from backbones import tiny
    from trainers import InMemory, Length, Optim, Stage, fit

    device = usable(recipe.device)
    torch.manual_seed(recipe.seed)
    vae: Any = tiny.kl_vae(base_dim=recipe.base_dim).requires_grad_(True)
    vae.to(device)

    def loss(batch: dict[str, Tensor], progress: Any) -> dict[str, Tensor]:
        video, generator = signed(batch["video"]), generator_on(device, progress.generator)
        with precision(device, recipe.autocast):
            encoded: Any = vae.encode(video, return_dict=False)[0]
            posterior = DiagonalGaussianDistribution(encoded.parameters.float())
            noise = torch.randn(posterior.mean.shape, generator=generator, device=device)
            decoded = vae.decode(posterior.mean + posterior.std * noise, return_dict=False)[0]
        error = decoded.float() - video
        return {
            "mse": error.square().mean(),
            "l1": recipe.l1 * error.abs().mean(),
            "kl": recipe.kl * posterior.kl().mean(),
        }

    stage = Stage(
        name="vae",
        groups={"vae": 1.0},
        loss=loss,
        data=InMemory({"video": torch.from_numpy(clips.videos).to(device)}),
        batch_size=recipe.batch,
        length=Length(minutes=minutes),
        optim=Optim(lr=recipe.lr, clip=recipe.clip, schedule="hold_cosine", warmup_steps=recipe.warmup_steps),
    )
    fit([stage], {"vae": vae}, out=out, seed=recipe.seed, resume=resume, save_every=200, log=log)
    return with_statistics(vae, clips)


def with_statistics(vae: Any, clips: Clips, most: int = 512) -> Any:
    """Write the mean and scale of each latent channel into the config, from some of the training clips."""
    vae.eval().requires_grad_(False)
    latents = encode(vae, clips.videos[:: max(1, len(clips) // most)])
    axes = (0, 2, 3, 4)
    vae.register_to_config(
        latents_mean=latents.mean(dim=axes).tolist(),
        latents_std=latents.std(dim=axes).clamp_min(1e-6).tolist(),
    )
    return vae


def save(vae: nn.Module, folder: Path, report: VAEReport) -> None:
    """Write the autoencoder as a diffusers folder with its report beside it."""
    vae.cpu().save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    report.save(folder / "vae.json")


def load(folder: Path) -> Any:
    """Load either kind of autoencoder from a diffusers folder."""
    config = folder / "config.json"
    if not config.exists():
        raise ValueError(f"{folder}: expected an autoencoder folder with config.json; make one with `world train vae`")
    name = json.loads(config.read_text(encoding="utf-8"))["_class_name"]
    if name == "AutoencoderKLWan":
        from diffusers import AutoencoderKLWan

        vae: Any = AutoencoderKLWan.from_pretrained(folder)
    elif name == "AutoencoderBlockPCA":
        from backbones import AutoencoderBlockPCA

        vae = AutoencoderBlockPCA.from_pretrained(folder)
    else:
        raise ValueError(f"{config}: expected AutoencoderKLWan or AutoencoderBlockPCA, got {name!r}")
    return vae.eval().requires_grad_(False)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(s, device=vae.device) for s in (vae.config.latents_mean, vae.config.latents_std))
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def _batch(vae: Any) -> int:
    return CPU_BATCH if vae.device.type == "cpu" else DEVICE_BATCH
