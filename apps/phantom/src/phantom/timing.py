"""What a training step takes on this machine, on random data of the recipe's sizes; one JSON line.

`phantom plan --measured FILE` reads these lines: beside the seconds they carry the work that was done (counted by a dry
run), so that another batch, size or GPU can be estimated from it. `frozen` is the video stream by itself.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from backbones import Text, WanBackbone
from phantom.config import Recipe
from phantom.latent import Basis, cells_of
from phantom.plan import described, work_of
from phantom.train import Trainer, fresh
from trainers import Progress, Ramp, timing

__all__ = ["kinds", "measure", "random_batch"]

Step = Callable[[Progress], dict[str, Tensor]]


def measure(recipe: Recipe, backbone: WanBackbone, *, steps: int) -> dict[str, Any]:
    """Time a step (loss, backward, AdamW) of both streams, and the frozen model's forward alone."""
    adapter = fresh(recipe, backbone, Basis(recipe.physics.channels, recipe.physics.channels), None)
    batch = {k: v.to(recipe.device) for k, v in random_batch(recipe, backbone, recipe.batch).items()}
    optimizer = torch.optim.AdamW(adapter.branch.parameters(), lr=1e-4, fused=True)
    work = work_of(recipe, recipe.batch)
    figures: dict[str, Any] = {}
    with backbone.frozen():
        for name, loss in kinds(Trainer(recipe, adapter, backbone), batch).items():

            def step(i: int, name: str = name, loss: Step = loss) -> None:
                terms = [t for key, t in loss(at(i)).items() if not key.startswith("log/")]
                if name != "frozen":
                    sum(terms[1:], start=terms[0]).backward()
                    optimizer.step()
                    optimizer.zero_grad()

            figures[name] = asdict(timing.measure(step, calls=steps, device=recipe.device))
            if name in work:
                figures[name]["work"] = asdict(work[name])
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


def at(step: int) -> Progress:
    """The progress of a step whose weight is at its end."""
    return Progress(
        "joint", step, step, None, 0.0, torch.Generator().manual_seed(step), ramps={"physics": Ramp(1.0, 1.0)}
    )


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
