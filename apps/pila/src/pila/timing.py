"""What a step of each kind of stage takes on this machine, on random data of the recipe's sizes; one JSON line.

`pila plan --measured FILE` reads these lines: beside the seconds each kind carries the work that it did (counted by a
dry run), so that another batch, size or GPU can be estimated from it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backbones import WanBackbone
from backbones.parked import parked
from pila.config import Recipe
from pila.plan import described, work_of
from pila.train import Trainer, fresh
from trainers import Progress, timing

__all__ = ["RAMPS", "kinds", "measure", "random_batch"]

RAMPS = ("physics", "condition", "mask")
Step = Callable[[Progress], dict[str, Tensor]]


def measure(recipe: Recipe, backbone: WanBackbone, *, steps: int) -> dict[str, Any]:
    """Time a step (loss, backward, AdamW) of stages A, B, C and the plain control, and the frozen model alone."""
    adapter = fresh(recipe, backbone)
    batch = {k: v.to(recipe.device) for k, v in random_batch(recipe, backbone, recipe.batch).items()}
    how: dict[str, Any] = {"calls": steps, "device": recipe.device, "ramps": RAMPS}
    trained = kinds(Trainer(recipe, adapter, backbone), batch)
    with parked(backbone):
        figures = timing.steps(trained, adapter.parameters(), work=work_of(recipe, recipe.batch), **how)
    return {
        **timing.machine(recipe.device),
        "backbone": backbone.id,
        "shape": described(recipe, backbone),
        "batch": recipe.batch,
        "parameters": sum(p.numel() for p in adapter.parameters()),
        "seconds_a_step": figures,
    }


def kinds(trainer: Trainer, batch: dict[str, Tensor]) -> dict[str, Step]:
    """The loss of every kind of stage at full strength: all fields, residuals, masks and the condition."""
    return {
        "observe": lambda p: trainer.observe(batch, p, between=(0.0, 1.0)),
        "recover": lambda p: trainer.recover(batch, p, phase=trainer.recipe.recover.phases[-1]),
        "couple": lambda p: trainer.couple(batch, p),
        "plain": lambda p: trainer.plain(batch, p),
        "frozen": lambda p: {"none": trainer.estimate(batch, (0.0, 1.0), p.generator).velocity.sum()},
    }


def random_batch(recipe: Recipe, backbone: WanBackbone, batch: int) -> dict[str, Tensor]:
    """One batch of noise in the shape of a cache; every clip has two labels."""
    d, g = recipe.data, torch.Generator().manual_seed(0)
    shape = backbone.spec.latent.shape(d.frames, d.height, d.width)
    with torch.no_grad():
        text = backbone.embed(["a ball"] * batch).features.float().cpu()
    eye = torch.eye(8)
    return {
        "latent": torch.randn(batch, *shape, generator=g),
        "flow": 0.3 * torch.randn(batch, 2, *shape[1:], generator=g),
        "text": text,
        "labels": (eye[torch.arange(batch) % 8] + eye[(torch.arange(batch) + 3) % 8]).clamp(max=1),
    }
