"""A run in numbers, from its recipe alone: the description that `trainers.plan` plans with.

The backbone is built without weights and one micro-batch of a stage is counted by a dry run at the real size. An
encoder of `videorepa` is asked while the cache is filled and lies on no GPU in training.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from backbones import blocks_of
from backbones.parked import idle
from backbones.sizes import bytes_of, parts_of, stand_in
from mmphysvideo.config import Recipe
from mmphysvideo.student import Learner
from mmphysvideo.teacher import Teacher
from trainers.dryrun import DryRun, Work
from trainers.footprint import Trained
from trainers.job import SIZES, Artefact, Job, Kind, clips_of, encoded
from trainers.job import described as size_of

__all__ = ["artefacts", "describe", "described", "feature_width", "token_grid", "work_of"]

REPORTED = "the paper's hardware and hours are not known; VideoREPA's code names 8 GPUs with 4 clips each"


def describe(recipe: Recipe, stage: str, *, clips: int | None = None) -> Job:
    """Describe a stage; `clips` is for data that are not here (none: counted where they are, else one)."""
    from mmphysvideo.timing import made
    from mmphysvideo.train import kind_of

    recipe, backbone = stand_in(recipe)
    model = made(recipe, backbone, stage)
    groups = {name: sum(p.numel() for p in group.parameters()) for name, group in model.groups().items()}
    parts, waits = parts_of(backbone), idle(backbone)
    kept = {name: n for name, n in parts.items() if name not in waits}
    teacher = model.teacher if isinstance(model, Learner) else None
    if teacher is not None:
        kept["teacher"] = sum(bytes_of(group) for group in teacher.groups().values())
    plain, again = (
        {batch: work_of(recipe.model_copy(update={"checkpointing": on}), batch, stage)[stage] for batch in SIZES}
        for on in (False, True)
    )
    kind = Kind(stage, getattr(recipe, stage).steps, again if recipe.checkpointing else plain, checkpointed=again)
    return Job(
        name=f"MMPhysVideo, {kind_of(recipe, stage)}, on {backbone.id}",
        shape=described(recipe, backbone),
        tokens=math.prod(token_grid(recipe, backbone)) * (2 if stage == "teacher" else 1),
        batch=recipe.batch,
        accumulate=recipe.accumulate,
        frozen=kept,
        trained=Trained(groups, optimizer="adamw"),
        kinds=(kind,),
        artefacts=artefacts(recipe, backbone, stage, clips_of(recipe.data) if clips is None else clips),
        making={name: parts[name] for name in waits},
        reported=REPORTED,
    )


def work_of(recipe: Recipe, batch: int, stage: str) -> dict[str, Work]:
    """Count one micro-batch of a training step."""
    from mmphysvideo.timing import at, made, random_batch
    from mmphysvideo.train import Trainer

    recipe, backbone = stand_in(recipe)
    backbone.transformer.requires_grad_(False)
    model = made(recipe, backbone, stage)
    streams = model.streams if isinstance(model, Teacher) else (model.stream,)
    for stream in streams if recipe.checkpointing else ():
        stream.model.enable_gradient_checkpointing()
    others = [s.model for s in model.teacher.streams] if isinstance(model, Learner) and model.teacher else []
    with DryRun() as dry:
        dry.weights(backbone.transformer, model, *(s.model for s in streams), *others)
        trained = [p for group in model.groups().values() for p in group.parameters()]
        trainer = Trainer(recipe, model, backbone)
        noise = random_batch(recipe, backbone, batch)
        return {stage: dry.step(partial(trainer.loss, noise, at(stage, 0)), trained)}


def described(recipe: Recipe, backbone: Any) -> str:
    """The size that work is counted at, in words."""
    return size_of(recipe.data, backbone.spec, recipe.dtype)


def artefacts(recipe: Recipe, backbone: Any, stage: str, clips: int) -> tuple[Artefact, ...]:
    """What the cache holds of `clips` clips."""
    a, found = recipe.student.align, list(encoded(recipe.data, backbone.spec, clips))
    if stage == "teacher" or a.source == "teacher":
        found.append(replace(found[0], name="perception"))
    elif a.source != "none":
        t, y, x = token_grid(recipe, backbone)
        cells = a.cells or (y, x)
        found.append(Artefact("features", 2 * 2 * (t - 1) * math.prod(cells) * feature_width(recipe), clips))
    return tuple(found)


def token_grid(recipe: Recipe, backbone: Any) -> tuple[int, int, int]:
    """The (t, y, x) grid of a clip's tokens."""
    d = recipe.data
    _, t, h, w = backbone.spec.latent.shape(d.frames, d.height, d.width)
    p_t, p_y, p_x = blocks_of(backbone.transformer).spec.patch
    return t // p_t, h // p_y, w // p_x


def feature_width(recipe: Recipe) -> int:
    """Width of the features of the recipe's encoder, from its configuration alone."""
    from transformers import AutoConfig

    a = recipe.student.align
    if a.source == "vjepa2" and (a.encoder or "world") == "world":
        from backbones import VJEPA2Encoder

        return VJEPA2Encoder.load("world").dim
    known = {
        "vjepa2-vitl": 1024,
        "vjepa2-vith": 1280,
        "vjepa2-vitg": 1408,
        "videomae-base": 768,
        "videomae-large": 1024,
    }
    source = a.encoder or ""
    for name, width in known.items():  # their configurations are on the hub, which a plan does not ask
        if name in source and not Path(source).exists():
            return width
    return int(AutoConfig.from_pretrained(source).hidden_size)
