"""Seconds a step of every kind of stage on random data of the recipe's sizes; one JSON line.

`prophy plan --measured FILE` reads these lines: beside the seconds each kind carries the work that it did (counted by a
dry run), so that another batch, size or GPU can be estimated from it. `frozen` is the backbone's forward by itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from backbones import Backbone, attach
from backbones.parked import parked
from prophy.adapter import count
from prophy.config import Recipe
from prophy.data import token_grid
from prophy.labels import names
from prophy.plan import described, work_of
from prophy.quantities import COUNT
from prophy.train import Trainer, fresh, kind_of
from trainers import Progress, timing

__all__ = ["kinds", "measure", "random_batch"]

Step = Callable[[Progress], Mapping[str, Tensor]]


def measure(recipe: Recipe, backbone: Backbone, *, steps: int) -> dict[str, Any]:
    """Time a step (loss, backward, AdamW) of the semantic router's own stage and of all together, and the frozen
    model's forward alone.
    """
    adapter = fresh(recipe, backbone)
    work = work_of(recipe, recipe.batch)
    batch = {name: value.to(recipe.device) for name, value in random_batch(recipe, backbone, recipe.batch).items()}
    with backbone.frozen(), attach(backbone, adapter, in_predict=True) as attached:
        adapter.train()
        trainer = Trainer(recipe, adapter, backbone)

        def frozen(_: Progress) -> dict[str, Tensor]:
            n = len(batch["latent"])
            text = trainer.text(batch, torch.zeros(n, dtype=torch.bool, device=recipe.device))
            with attached.off(), torch.no_grad():
                v = backbone.predict(batch["latent"], torch.full((n,), 0.5, device=recipe.device), text)
            return {"none": v.sum()}

        trained = kinds(trainer, batch) | {"frozen": frozen}
        with parked(backbone):
            figures = timing.steps(trained, adapter.parameters(), calls=steps, device=recipe.device, work=work)
    return {
        **timing.machine(recipe.device),
        "backbone": backbone.id,
        "shape": described(recipe, backbone),
        "batch": recipe.batch,
        "parameters": {name: count(group) for name, group in adapter.groups().items()},
        "seconds_a_step": figures,
    }


def kinds(trainer: Trainer, batch: dict[str, Tensor]) -> dict[str, Step]:
    """The loss of every kind of stage of a recipe."""
    recipe, adapter = trainer.recipe, trainer.adapter
    found: dict[str, Step] = {kind_of(recipe): lambda progress: trainer.loss(batch, progress)}
    if not recipe.alone_first:
        return found
    said = {
        k: v.to(recipe.device) for k, v in random_text(recipe, trainer.backbone, recipe.semantic.first_batch).items()
    }
    return {"semantic": lambda _: adapter.first(said)} | found


def random_batch(recipe: Recipe, backbone: Any, batch: int) -> dict[str, Tensor]:
    """A batch of noise in the shape of a cache; every clip has two labels."""
    d, g = recipe.data, torch.Generator().manual_seed(0)
    latent = backbone.spec.latent.shape(d.frames, d.height, d.width)
    (t, y, x), _ = token_grid(recipe, backbone)
    found = {"latent": torch.randn(batch, *latent, generator=g), "quantities": torch.randn(batch, COUNT, generator=g)}
    if recipe.aligned:
        target = 2 * torch.rand(batch, t * y * x, len(names(d.vocabulary)), generator=g) - 1
        found |= {"target": target, "active": target > 0}
    return random_text(recipe, backbone, batch) | found


def random_text(recipe: Recipe, backbone: Any, batch: int) -> dict[str, Tensor]:
    """A batch of one prompt with two labels each."""
    known = len(names(recipe.data.vocabulary))
    with torch.no_grad():
        text = backbone.embed(["a ball"] * batch)
    eye, rows = torch.eye(known), torch.arange(batch)
    labels = (eye[rows % known] + eye[(rows + 3) % known]).clamp(max=1)
    return {"text": text.features.float().cpu(), "mask": text.mask.cpu(), "labels": labels}
