"""A Phantom run in numbers, from its recipe alone: the description that `trainers.plan` plans with.

Backbone and branch are built without weights and one micro-batch is counted by a dry run at the real size. V-JEPA 2 is
asked while the cache is filled and lies on no GPU in training; its work in filling the cache is not counted.
"""

import math
from functools import partial
from typing import Any

import torch

from backbones.parked import idle
from backbones.sizes import parts_of, stand_in
from phantom.config import Recipe
from phantom.fields import FIELD_FEATURES
from phantom.latent import Basis, cells_of, encoder_size
from trainers.dryrun import DryRun, Work
from trainers.footprint import Trained
from trainers.job import SIZES, Artefact, Job, Kind, clips_of, encoded
from trainers.job import described as size_of
from trainers.timing import at_end

__all__ = ["artefacts", "describe", "described", "work_of"]

REPORTED = "the paper trained on 0.43 M clips of 121 x 480 x 832; it prints neither hardware nor hours"


def describe(recipe: Recipe, *, clips: int | None = None) -> Job:
    """Describe a recipe's run; `clips` is for data that are not here (none: counted where they are, else one)."""
    recipe, backbone = stand_in(recipe)
    adapter = _adapter(recipe, backbone)
    groups = {"branch": sum(p.numel() for p in adapter.branch.parameters())}
    parts, waits = parts_of(backbone), idle(backbone)
    plain, again = (
        {batch: work_of(recipe.model_copy(update={"checkpointing": on}), batch)["joint"] for batch in SIZES}
        for on in (False, True)
    )
    d, latents = recipe.data, backbone.spec.latent.latents(recipe.data.frames)
    kind = Kind("joint", recipe.steps, again if recipe.checkpointing else plain, checkpointed=again)
    return Job(
        name=f"Phantom on {backbone.id}",
        shape=described(recipe, backbone),
        tokens=backbone.spec.latent.tokens(d.frames, d.height, d.width) + latents * math.prod(cells_of(recipe.physics)),
        batch=recipe.batch,
        accumulate=recipe.accumulate,
        frozen={name: n for name, n in parts.items() if name not in waits},
        trained=Trained(groups, optimizer="adamw"),
        kinds=(kind,),
        artefacts=artefacts(recipe, backbone, clips_of(recipe.data) if clips is None else clips),
        making={name: parts[name] for name in waits},
        reported=REPORTED,
    )


def work_of(recipe: Recipe, batch: int) -> dict[str, Work]:
    """Count one micro-batch of a training step."""
    from phantom.timing import RAMPS, kinds, random_batch
    from phantom.train import Trainer

    recipe, backbone = stand_in(recipe)
    backbone.transformer.requires_grad_(False)
    adapter = _adapter(recipe, backbone)
    models: tuple[Any, ...] = (backbone.transformer, adapter.branch.stream)
    for model in models if recipe.checkpointing else ():
        model.enable_gradient_checkpointing()
    with DryRun() as dry:
        dry.weights(backbone.transformer, adapter)
        steps = kinds(Trainer(recipe, adapter, backbone), random_batch(recipe, backbone, batch))
        return {"joint": dry.step(partial(steps["joint"], at_end("joint", 0, RAMPS)), adapter.branch.parameters())}


def described(recipe: Recipe, backbone: Any) -> str:
    """The size that work is counted at, in words."""
    latents = backbone.spec.latent.latents(recipe.data.frames)
    z = " x ".join(map(str, (recipe.physics.channels, latents, *cells_of(recipe.physics))))
    return size_of(recipe.data, backbone.spec, recipe.dtype, f"physics {z}")


def artefacts(recipe: Recipe, backbone: Any, clips: int) -> tuple[Artefact, ...]:
    """What the cache holds of `clips` clips."""
    most = recipe.condition.most_latents
    seen = encoded(recipe.data, backbone.spec, clips)
    if recipe.physics.kind == "noise":
        return seen
    wide = FIELD_FEATURES if recipe.physics.kind == "fields" else encoder_size(recipe.physics.encoder)[2]
    each = 2 * wide * math.prod(cells_of(recipe.physics))
    return (
        *seen,
        Artefact("physics features", each * backbone.spec.latent.latents(recipe.data.frames), clips),
        Artefact("of beginnings", each * most * (most + 1) // 2, clips),
    )


def _adapter(recipe: Recipe, backbone: Any) -> Any:
    """The adapter without weights: a branch of the real size has a billion."""
    from phantom.train import fresh

    basis = Basis(recipe.physics.channels, recipe.physics.channels)
    with torch.device("meta"):
        return fresh(recipe.model_copy(update={"device": "meta"}), backbone, basis, None)
