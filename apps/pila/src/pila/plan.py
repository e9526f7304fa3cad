"""A PILA run in numbers, from its recipe alone: the description that `trainers.plan` plans with.

The backbone is built without weights, the adapter too, and one micro-batch of each kind of stage is counted by a dry
run at the real size. Stage B is counted at its last phase, which holds all that the phases before it do. The cache
stores latents and flow in float32 and text without its padding; a text is counted at its full length, the most it can
be. Optical flow is made on the CPU and is not in the hours.
"""

import math
from functools import partial
from typing import Any

import torch

from backbones.sizes import bytes_of, weightless
from pila.config import Recipe
from trainers import InMemory, Stage
from trainers.data import count_records
from trainers.dryrun import DryRun, Work
from trainers.footprint import Trained
from trainers.job import Artefact, Job, Kind
from trainers.timing import at_end

__all__ = ["REPORTED", "clips_of", "describe", "described", "stages_of", "work_of"]

REPORTED = "the paper used 8 x A100 80 GB with DeepSpeed ZeRO-2 and CPU offload for about 40 hours (as reported)"
SIZES = (1, 4)
"""Micro-batches that are counted; others lie on the line through them."""


def describe(recipe: Recipe, *, clips: int | None = None) -> Job:
    """Describe a recipe's run; `clips` is for data that are not here (none: counted where they are, else one)."""
    from pila.train import fresh

    recipe, backbone = _weightless(recipe)
    adapter, d = fresh(recipe, backbone), recipe.data
    steps: dict[str, int] = {}
    groups: dict[str, torch.nn.Module] = {}
    for stage in stages_of(recipe):
        kind = stage.name.partition("-")[0]
        steps[kind] = steps.get(kind, 0) + (stage.length.steps or 0)
        groups |= {name: adapter.groups()[name] for name in stage.groups}
    counted = {batch: work_of(recipe, batch, only=tuple(steps)) for batch in SIZES}
    modules = {name: m for name, m in backbone.pipe.components.items() if isinstance(m, torch.nn.Module)}
    frozen = {name: bytes_of(module) for name, module in modules.items()}
    return Job(
        name=f"{'PILA' if recipe.adapter == 'pila' else 'the plain control'} on {backbone.id}",
        shape=described(recipe, backbone),
        tokens=backbone.spec.latent.tokens(d.frames, d.height, d.width),
        batch=recipe.batch,
        accumulate=recipe.accumulate,
        frozen=frozen,
        trained=Trained.of(groups, recipe.optim),
        kinds=tuple(Kind(name, n, {b: works[name] for b, works in counted.items()}) for name, n in steps.items()),
        artefacts=_artefacts(recipe, backbone, clips_of(recipe) if clips is None else clips),
        making={name: frozen[name] for name in ("vae", "text_encoder")},
        reported=REPORTED,
    )


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, without weights or data."""
    from pila.train import fresh, stages

    recipe, backbone = _weightless(recipe)
    return stages(recipe, fresh(recipe, backbone), backbone, InMemory({"latent": [0]}))


def work_of(recipe: Recipe, batch: int, *, only: tuple[str, ...] = ()) -> dict[str, Work]:
    """Count one micro-batch of each kind of stage (`only`: of these)."""
    from pila.timing import RAMPS, kinds, random_batch
    from pila.train import Trainer, fresh

    recipe, backbone = _weightless(recipe)
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
    d = recipe.data
    latent = " x ".join(map(str, backbone.spec.latent.shape(d.frames, d.height, d.width)))
    return f"{d.frames} x {d.height} x {d.width} -> latent {latent}, {recipe.dtype}"


def clips_of(recipe: Recipe) -> int:
    """How many clips the recipe's data hold; one where they are not here."""
    d = recipe.data
    return d.clips if d.source == "world" else count_records(d.source, root=d.root)


def _artefacts(recipe: Recipe, backbone: Any, clips: int) -> tuple[Artefact, ...]:
    d, spec = recipe.data, backbone.spec
    shape = spec.latent.shape(d.frames, d.height, d.width)
    pipe = backbone.pipe
    with DryRun() as dry, torch.no_grad():
        dry.weights(pipe.vae, pipe.text_encoder)
        video = dry.tensor(d.encode_batch, 3, d.frames, d.height, d.width, dtype=pipe.vae.dtype)
        latent = dry.step(lambda: pipe.vae.encode(video).latent_dist.mode().sum())
        ids = torch.zeros(1, spec.text_length, dtype=torch.long)
        text = dry.step(lambda: pipe.text_encoder(ids, torch.ones_like(ids)).last_hidden_state.sum())
    flops = {kind: n // d.encode_batch for kind, n in latent.flops.items()}
    one = Work(latent.kept, latent.peak, flops, latent.traffic // d.encode_batch)
    values = math.prod(shape)
    return (
        Artefact("latents", 4 * values, clips, one),
        Artefact("flow", 4 * 2 * values // shape[0], clips, note="on the CPU"),
        Artefact("text", 4 * spec.text_length * spec.text_dim, clips, text, note="at most"),
    )


def _weightless(recipe: Recipe) -> tuple[Recipe, Any]:
    """The recipe on a CPU (a dry run's tensors call themselves so, whatever device they stand for), and its backbone
    without weights.
    """
    backbone = weightless(recipe.backbone, dtype=getattr(torch, recipe.dtype))
    return recipe.model_copy(update={"device": "cpu"}), backbone
