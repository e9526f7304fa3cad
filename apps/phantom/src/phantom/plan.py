"""A Phantom run in numbers, from its recipe alone: the description that `trainers.plan` plans with.

Backbone and branch are built without weights and one micro-batch is counted by a dry run at the real size. V-JEPA 2 is
asked while the cache is filled and lies on no GPU in training; its work in filling the cache is not counted.
"""

import math
from functools import partial
from typing import Any

import torch

from backbones.sizes import bytes_of, weightless
from phantom.config import Recipe
from phantom.fields import FIELD_FEATURES
from phantom.latent import Basis, cells_of, encoder_size
from trainers.data import count_records
from trainers.dryrun import DryRun, Work
from trainers.footprint import Trained
from trainers.job import Artefact, Job, Kind
from trainers.timing import at_end

__all__ = ["artefacts", "describe", "described", "work_of"]

SIZES = (1, 4)
"""Micro-batches that are counted; others lie on the line through them."""
REPORTED = "the paper trained on 0.43 M clips of 121 x 480 x 832; it prints neither hardware nor hours"


def describe(recipe: Recipe, *, clips: int | None = None) -> Job:
    """Describe a recipe's run; `clips` is for data that are not here (none: counted where they are, else one)."""
    from phantom.train import fresh

    recipe, backbone = _weightless(recipe)
    adapter = fresh(recipe, backbone, Basis(recipe.physics.channels, recipe.physics.channels), None)
    groups = {"branch": sum(p.numel() for p in adapter.branch.parameters())}
    modules = {name: m for name, m in backbone.pipe.components.items() if isinstance(m, torch.nn.Module)}
    frozen = {name: bytes_of(module) for name, module in modules.items()}
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
        frozen={"transformer": frozen["transformer"]},
        trained=Trained(groups, optimizer="adamw"),
        kinds=(kind,),
        artefacts=artefacts(recipe, backbone, clips_of(recipe) if clips is None else clips),
        making={name: frozen[name] for name in ("vae", "text_encoder")},
        reported=REPORTED,
    )


def work_of(recipe: Recipe, batch: int) -> dict[str, Work]:
    """Count one micro-batch of a training step."""
    from phantom.timing import RAMPS, kinds, random_batch
    from phantom.train import Trainer, fresh

    recipe, backbone = _weightless(recipe)
    backbone.transformer.requires_grad_(False)
    adapter = fresh(recipe, backbone, Basis(recipe.physics.channels, recipe.physics.channels), None)
    models: tuple[Any, ...] = (backbone.transformer, adapter.branch.stream)
    for model in models if recipe.checkpointing else ():
        model.enable_gradient_checkpointing()
    with DryRun() as dry:
        dry.weights(backbone.transformer, adapter)
        steps = kinds(Trainer(recipe, adapter, backbone), random_batch(recipe, backbone, batch))
        return {"joint": dry.step(partial(steps["joint"], at_end("joint", 0, RAMPS)), adapter.branch.parameters())}


def described(recipe: Recipe, backbone: Any) -> str:
    """The size that work is counted at, in words."""
    d = recipe.data
    latent = backbone.spec.latent.shape(d.frames, d.height, d.width)
    z = (recipe.physics.channels, latent[1], *cells_of(recipe.physics))
    video, physics = (" x ".join(map(str, shape)) for shape in (latent, z))
    return f"{d.frames} x {d.height} x {d.width} -> latent {video}, physics {physics}, {recipe.dtype}"


def artefacts(recipe: Recipe, backbone: Any, clips: int) -> tuple[Artefact, ...]:
    """What the cache holds of `clips` clips."""
    d, spec, most = recipe.data, backbone.spec, recipe.condition.most_latents
    shape = spec.latent.shape(d.frames, d.height, d.width)
    seen = (
        Artefact("latents", 4 * math.prod(shape), clips),
        Artefact("text", 4 * spec.text_length * spec.text_dim, clips, note="at most"),
    )
    if recipe.physics.kind == "noise":
        return seen
    wide = FIELD_FEATURES if recipe.physics.kind == "fields" else encoder_size(recipe.physics.encoder)[2]
    each = 2 * wide * math.prod(cells_of(recipe.physics))
    return (
        *seen,
        Artefact("physics features", each * shape[1], clips),
        Artefact("of beginnings", each * most * (most + 1) // 2, clips),
    )


def clips_of(recipe: Recipe) -> int:
    """How many clips the recipe's data hold; one where they are not here."""
    d = recipe.data
    return d.clips if d.source == "world" else count_records(d.source, root=d.root)


def _weightless(recipe: Recipe) -> tuple[Recipe, Any]:
    """The recipe on a CPU (a dry run's tensors call themselves so, whatever device they stand for), and its backbone
    without weights.
    """
    backbone = weightless(recipe.backbone, dtype=getattr(torch, recipe.dtype))
    return recipe.model_copy(update={"device": "cpu"}), backbone
