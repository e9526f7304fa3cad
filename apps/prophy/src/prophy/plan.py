"""A ProPhy run in numbers, from its recipe alone: the description that `trainers.plan` plans with.

The backbone is built without weights, the branch beside it too, and one micro-batch of each kind of stage is counted by
a dry run at the real size. The semantic router's own stage has a batch of its own and the same work whatever the other
one's is. Who answers questions about clips (`prophy annotate`) is asked before, and its work is not counted.
"""

from functools import partial
from typing import Any

from backbones import attach
from backbones.parked import idle
from backbones.sizes import parts_of, stand_in
from prophy import where
from prophy.config import Recipe
from prophy.labels import names
from trainers import InMemory, Stage
from trainers.dryrun import DryRun, Work
from trainers.footprint import Trained
from trainers.job import SIZES, Artefact, Job, Kind, clips_of, encoded
from trainers.job import described as size_of
from trainers.timing import at_end

__all__ = ["artefacts", "describe", "described", "stages_of", "work_of"]


def describe(recipe: Recipe, *, clips: int | None = None) -> Job:
    """Describe a recipe's run; `clips` is for data that are not here (none: counted where they are, else one)."""
    from prophy.train import kind_of

    recipe, backbone = stand_in(recipe)
    adapter, d = _adapter(recipe, backbone), recipe.data
    plain, again = (
        {batch: work_of(recipe.model_copy(update={"checkpointing": on}), batch) for batch in SIZES}
        for on in (False, True)
    )
    works = again if recipe.checkpointing else plain
    steps = {stage.name: stage.length.steps or 0 for stage in stages_of(recipe)}
    parts, waits = parts_of(backbone), idle(backbone)
    spared = {kind_of(recipe): {batch: found[kind_of(recipe)] for batch, found in again.items()}}
    return Job(
        name=f"{kind_of(recipe)} on {backbone.id}",
        shape=described(recipe, backbone),
        tokens=backbone.spec.latent.tokens(d.frames, d.height, d.width),
        batch=recipe.batch,
        accumulate=recipe.accumulate,
        frozen={name: n for name, n in parts.items() if name not in waits},
        trained=Trained.of(adapter.groups(), recipe.optim),
        kinds=tuple(
            Kind(name, n, {b: found[name] for b, found in works.items()}, checkpointed=spared.get(name, {}))
            for name, n in steps.items()
        ),
        artefacts=artefacts(recipe, backbone, clips_of(recipe.data) if clips is None else clips),
        making={name: parts[name] for name in waits},
    )


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, without weights or data."""
    from prophy.train import stages

    recipe, backbone = stand_in(recipe)
    return stages(recipe, _adapter(recipe, backbone), backbone, InMemory({"latent": [0]}))


def work_of(recipe: Recipe, batch: int) -> dict[str, Work]:
    """Count one micro-batch of each kind of stage."""
    from prophy.timing import kinds, random_batch
    from prophy.train import Trainer

    recipe, backbone = stand_in(recipe)
    for model in backbone.transformers:
        model.requires_grad_(False)
        if recipe.checkpointing:
            model.enable_gradient_checkpointing()
    adapter = _adapter(recipe, backbone)
    with DryRun() as dry:
        dry.weights(*backbone.transformers, adapter)
        with attach(backbone, adapter, in_predict=True):
            adapter.train()
            steps = kinds(Trainer(recipe, adapter, backbone), random_batch(recipe, backbone, batch))
            return {
                name: dry.step(partial(loss, at_end(name, 0)), adapter.parameters()) for name, loss in steps.items()
            }


def described(recipe: Recipe, backbone: Any) -> str:
    """The size that work is counted at, in words."""
    return size_of(recipe.data, backbone.spec, recipe.dtype)


def artefacts(recipe: Recipe, backbone: Any, clips: int) -> tuple[Artefact, ...]:
    """What the cache holds of `clips` clips; a language model's maps depend on its grid and are not counted."""
    d, t = recipe.data, recipe.targets
    found = encoded(d, backbone.spec, clips)
    if d.source != "world" or not recipe.aligned or t.vlm or t.source not in ("auto", "fields"):
        return found
    cells = d.frames * (where.SIZE // where.CELL) ** 2
    return (*found, Artefact("maps", 2 * len(names(d.vocabulary)) * cells, clips))


def _adapter(recipe: Recipe, backbone: Any) -> Any:
    """The adapter without weights: it copies blocks of a backbone that has none."""
    from prophy.train import fresh

    return fresh(recipe.model_copy(update={"device": "meta"}), backbone)
