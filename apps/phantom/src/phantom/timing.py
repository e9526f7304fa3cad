"""What a training step takes on this machine, on random data of the recipe's sizes; one JSON line.

`phantom plan --measured FILE` reads these lines: beside the seconds they carry the work that was done (counted by a dry
run), so that another batch, size or GPU can be estimated from it. `frozen` is the video stream by itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backbones import Text, WanBackbone
from backbones.parked import parked
from phantom.config import Recipe
from phantom.latent import Basis, cells_of
from phantom.plan import described, work_of
from phantom.train import Trainer, fresh
from trainers import Progress, timing

__all__ = ["RAMPS", "kinds", "measure", "random_batch"]

RAMPS = ("physics",)
Step = Callable[[Progress], dict[str, Tensor]]


def measure(recipe: Recipe, backbone: WanBackbone, *, steps: int) -> dict[str, Any]:
    """Time a step (loss, backward, AdamW) of both streams, and the frozen model's forward alone."""
    adapter = fresh(recipe, backbone, Basis(recipe.physics.channels, recipe.physics.channels), None)
    batch = {k: v.to(recipe.device) for k, v in random_batch(recipe, backbone, recipe.batch).items()}
    how: dict[str, Any] = {"calls": steps, "device": recipe.device, "ramps": RAMPS}
    with backbone.frozen():
        trained = kinds(Trainer(recipe, adapter, backbone), batch)
        with parked(backbone):
            figures = timing.steps(trained, adapter.branch.parameters(), work=work_of(recipe, recipe.batch), **how)
    return {
        **timing.machine(recipe.device),
        "backbone": backbone.id,
        "shape": described(recipe, backbone),
        "batch": recipe.batch,
        "parameters": sum(p.numel() for p in adapter.branch.parameters()),
        "seconds_a_step": figures,
    }


def kinds(trainer: Trainer, batch: dict[str, Tensor]) -> dict[str, Step]:
    """A step of training, and the frozen model alone."""

    def frozen(progress: Progress) -> dict[str, Tensor]:
        x = batch["latent"]
        sigma = torch.full((len(x), x.shape[2]), 0.5, device=x.device)
        patch = trainer.backbone.spec.latent.patch
        cells = (x.shape[3] // patch[1]) * (x.shape[4] // patch[2])
        with torch.no_grad():
            v = trainer.backbone.predict(x, sigma.repeat_interleave(cells, 1), Text.of(batch["text"]))
        return {"none": v.sum()}

    return {"joint": lambda p: trainer.loss(batch, p), "frozen": frozen}


def random_batch(recipe: Recipe, backbone: WanBackbone, batch: int) -> dict[str, Tensor]:
    """One batch of noise in the shape of a cache."""
    d, g, most = recipe.data, torch.Generator().manual_seed(0), recipe.condition.most_latents
    shape = backbone.spec.latent.shape(d.frames, d.height, d.width)
    with torch.no_grad():
        text = backbone.embed(["a ball"] * batch).features.float().cpu()
    z = (batch, recipe.physics.channels)
    y, x = cells_of(recipe.physics)
    return {
        "latent": torch.randn(batch, *shape, generator=g),
        "text": text,
        "z": torch.randn(*z, shape[1], y, x, generator=g),
        "observed": torch.randn(*z, most * (most + 1) // 2, y, x, generator=g),
    }
