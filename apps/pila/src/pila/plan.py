"""A PILA run in numbers, from its recipe alone: the description that `trainers.plan` plans with.

The backbone is built without weights, the adapter too, and one micro-batch of each kind of stage is counted by a dry
run at the real size. Stage B is counted at its last phase, which holds all that the phases before it do. The cache
stores latents and flow in float32 and text without its padding; a text is counted at its full length, the most it can
be. Optical flow is made on the CPU and is not in the hours.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from backbones.parked import idle
from backbones.sizes import parts_of, stand_in
from pila.config import Recipe
from trainers import InMemory, Stage
from trainers.dryrun import DryRun, Work
from trainers.footprint import Trained
from trainers.job import SIZES, Artefact, Job, Kind, clips_of, encoded
from trainers.job import described as size_of
from trainers.timing import at_end

__all__ = ["REPORTED", "describe", "described", "stages_of", "work_of"]

REPORTED = "the paper used 8 x A100 80 GB with DeepSpeed ZeRO-2 and CPU offload for about 40 hours (as reported)"


def describe(recipe: Recipe, *, clips: int | None = None) -> Job:
    """Describe a recipe's run; `clips` is for data that are not here (none: counted where they are, else one)."""
    from pila.train import fresh

    recipe, backbone = stand_in(recipe)
    adapter, d = fresh(recipe, backbone), recipe.data
    steps: dict[str, int] = {}
    groups: dict[str, torch.nn.Module] = {}
    for stage in stages_of(recipe):
        kind = stage.name.partition("-")[0]
        steps[kind] = steps.get(kind, 0) + (stage.length.steps or 0)
        groups |= {name: adapter.groups()[name] for name in stage.groups}
    counted = {batch: work_of(recipe, batch, only=tuple(steps)) for batch in SIZES}
    parts, waits = parts_of(backbone), idle(backbone)
    return Job(
        name=f"{'PILA' if recipe.adapter == 'pila' else 'the plain control'} on {backbone.id}",
        shape=described(recipe, backbone),
        tokens=backbone.spec.latent.tokens(d.frames, d.height, d.width),
        batch=recipe.batch,
        accumulate=recipe.accumulate,
        frozen={name: n for name, n in parts.items() if name not in waits},
        trained=Trained.of(groups, recipe.optim),
        kinds=tuple(Kind(name, n, {b: works[name] for b, works in counted.items()}) for name, n in steps.items()),
        artefacts=_artefacts(recipe, backbone, clips_of(recipe.data) if clips is None else clips),
        making={name: parts[name] for name in waits},
        reported=REPORTED,
    )


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, without weights or data."""
    from pila.train import fresh, stages

    recipe, backbone = stand_in(recipe)
    return stages(recipe, fresh(recipe, backbone), backbone, InMemory({"latent": [0]}))


def work_of(recipe: Recipe, batch: int, *, only: tuple[str, ...] = ()) -> dict[str, Work]:
    """Count one micro-batch of each kind of stage (`only`: of these)."""
    from pila.timing import RAMPS, kinds, random_batch
    from pila.train import Trainer, fresh

    recipe, backbone = stand_in(recipe)
    backbone.transformer.requires_grad_(False)
    adapter = fresh(recipe, backbone)
    work: dict[str, Work] = {}
    with DryRun() as dry:
        dry.weights(backbone.transformer, adapter)
        steps = kinds(Trainer(recipe, adapter, backbone), random_batch(recipe, backbone, batch))
        for name, loss in steps.items():
            if not only or name in only:
                work[name] = dry.step(partial(loss, at_end(name, 0, RAMPS)), adapter.parameters())
    return work


def described(recipe: Recipe, backbone: Any) -> str:
    """The size that work is counted at, in words."""
    return size_of(recipe.data, backbone.spec, recipe.dtype)


def _artefacts(recipe: Recipe, backbone: Any, clips: int) -> tuple[Artefact, ...]:
    d, spec = recipe.data, backbone.spec
    pipe = backbone.pipe
    with DryRun() as dry, torch.no_grad():
        dry.weights(pipe.vae, pipe.text_encoder)
        video = dry.tensor(d.encode_batch, 3, d.frames, d.height, d.width, dtype=pipe.vae.dtype)
        latent = dry.step(lambda: pipe.vae.encode(video).latent_dist.mode().sum())
        ids = torch.zeros(1, spec.text_length, dtype=torch.long)
        text = dry.step(lambda: pipe.text_encoder(ids, torch.ones_like(ids)).last_hidden_state.sum())
    flops = {kind: n // d.encode_batch for kind, n in latent.flops.items()}
    one = Work(latent.kept, latent.peak, flops, latent.traffic // d.encode_batch)
    latents, words = encoded(d, spec, clips)
    cells = math.prod(spec.latent.shape(d.frames, d.height, d.width)[1:])
    return (
        replace(latents, work=one),
        Artefact("flow", 4 * 2 * cells, clips, note="on the CPU"),
        replace(words, work=text),
    )
