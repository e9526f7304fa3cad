"""A run in numbers, from its recipe alone: the description that `trainers.plan` plans with.

The backbone is built without weights and one micro-batch of a stage is counted by a dry run at the real size. An
encoder of `videorepa` is asked while the cache is filled and lies on no GPU in training.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backbones import blocks_of
from backbones.sizes import bytes_of, weightless
from mmphysvideo.config import Recipe
from mmphysvideo.student import Learner
from mmphysvideo.teacher import Teacher
from trainers import read_records
from trainers.dryrun import DryRun, Work
from trainers.footprint import Trained
from trainers.job import Artefact, Job, Kind

__all__ = ["artefacts", "describe", "described", "feature_width", "token_grid", "work_of"]

SIZES = (1, 2)
"""Micro-batches that are counted; others lie on the line through them."""
REPORTED = "the paper's hardware and hours are not known; VideoREPA's code names 8 GPUs with 4 clips each"


def describe(recipe: Recipe, stage: str, *, clips: int | None = None) -> Job:
    """Describe a stage; `clips` is for data that are not here (none: counted where they are, else one)."""
    from mmphysvideo.timing import made
    from mmphysvideo.train import kind_of

    recipe = _on_cpu(recipe)
    backbone = weightless(recipe.backbone, dtype=getattr(torch, recipe.dtype))
    model = made(recipe, backbone, stage)
    groups = {name: sum(p.numel() for p in group.parameters()) for name, group in model.groups().items()}
    modules = {name: m for name, m in backbone.pipe.components.items() if isinstance(m, torch.nn.Module)}
    frozen = {name: bytes_of(module) for name, module in modules.items()}
    kept = {"transformer": frozen["transformer"]}
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
        artefacts=artefacts(recipe, backbone, stage, _clips(recipe) if clips is None else clips),
        making={name: frozen[name] for name in ("vae", "text_encoder")},
        reported=REPORTED,
    )


def work_of(recipe: Recipe, batch: int, stage: str) -> dict[str, Work]:
    """Count one micro-batch of a training step."""
    from mmphysvideo.timing import at, made, random_batch
    from mmphysvideo.train import Trainer

    recipe = _on_cpu(recipe)
    backbone = weightless(recipe.backbone, dtype=getattr(torch, recipe.dtype))
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
    d = recipe.data
    latent = " x ".join(map(str, backbone.spec.latent.shape(d.frames, d.height, d.width)))
    return f"{d.frames} x {d.height} x {d.width} -> latent {latent}, {recipe.dtype}"


def artefacts(recipe: Recipe, backbone: Any, stage: str, clips: int) -> tuple[Artefact, ...]:
    """What the cache holds of `clips` clips."""
    d, spec, a = recipe.data, backbone.spec, recipe.student.align
    latent = 4 * math.prod(spec.latent.shape(d.frames, d.height, d.width))
    found = [
        Artefact("latents", latent, clips),
        Artefact("text", 4 * spec.text_length * spec.text_dim, clips, note="at most"),
    ]
    if stage == "teacher" or a.source == "teacher":
        found.append(Artefact("perception", latent, clips))
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


def _clips(recipe: Recipe) -> int:
    d = recipe.data
    if d.source == "world":
        return d.clips
    return len(read_records(d.source, root=d.root)[0]) if Path(d.source).exists() else 1


def _on_cpu(recipe: Recipe) -> Recipe:
    """A dry run's tensors call themselves CPU tensors, whatever device they stand for."""
    return recipe.model_copy(update={"device": "cpu"})
