"""Physics of the base and of any number of trained bundles on held-out captions of the simulated world, in pairs.

All get the same prompts, the same noise and, where frames are observed, the same beginnings, so what is compared is
paired (`physworld.evaluation`); several bundles of one kind are training seeds of one method. Diversity is the mean
distance between samples of one caption, since the paper's method lost some.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import physworld
from backbones import WanBackbone
from phantom.config import Recipe
from phantom.force import tensor
from phantom.pushed import MECHANISM, Followed, followed, force_of
from phantom.sample import sample
from physworld import MECHANISMS, evaluation
from trainers import show, video, write_text

__all__ = ["Pushes", "evaluate", "others", "push"]

BATCH = 16
WHOLE = 0.8
"""Permanence of the base's ball from which on pushes are judged, not only reported: our choice."""
DIVERSE = 4
"""Samples of one caption, and captions a mechanism, that diversity is measured on."""


@dataclass(frozen=True)
class Pushes:
    """How the balls of `clips` clips followed their pushes: `base` (which is told none), each bundle, and each bundle
    under the pushes of other clips (`NAME, others' pushes`), measured against the clips' own.
    """

    clips: int
    split: str
    seed: int
    followed: dict[str, Followed]

    @property
    def judged(self) -> bool:
        """Whether the base keeps its ball well enough for a verdict."""
        return self.followed["base"].permanence >= WHOLE

    def passes(self, name: str) -> bool | None:
        """Whether a bundle's direction and speed are nearer to the push than the base's and than under others' pushes;
        None where that is not judged.
        """
        if not self.judged:
            return None
        own, rest = self.followed[name], (self.followed["base"], self.followed[others(name)])
        return all(own.angle_error < r.angle_error and own.speed_rank > r.speed_rank for r in rest)

    def save(self, path: Path) -> Path:
        """Write as JSON, by rename."""
        return write_text(path, json.dumps(asdict(self)) + "\n")


def others(name: str) -> str:
    """The row of a bundle's control."""
    return f"{name}, others' pushes"


def push(
    backbone: WanBackbone,
    adapters: Mapping[str, Any],
    recipe: Recipe,
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    quiet: bool = False,
) -> Pushes:
    """Push thrown balls from their true first frame: the base, and each adapter under its own pushes and others'.

    ValueError for an adapter that was not trained with point forces, or fewer than two clips.
    """
    if clips < 2:
        raise ValueError(f"expected at least 2 clips (each is pushed as another one is, too), got {clips}")
    d = recipe.data
    scale = physworld.scale_of(d.frames, d.height, d.width)
    truth = physworld.simulate_many(MECHANISM, range(clips), split=split, scale=scale)
    own = [force_of(c.seed, split=split) for c in truth]
    drawn = torch.stack([tensor(f, *c.video.shape[:3]) for f, c in zip(own, truth, strict=True)])
    noise = evaluation.noise_seeds(MECHANISM, clips, seed)
    rows: dict[str, tuple[Any, Tensor | None]] = {"base": (None, None)}
    for name, adapter in adapters.items():
        adapter.check_force(own[0])
        rows |= {name: (adapter, drawn), others(name): (adapter, drawn.roll(1, 0))}
    found: dict[str, Followed] = {}
    for name in show.track(list(rows), "evaluate", quiet=quiet):
        adapter, forces = rows[name]
        films: list[np.ndarray] = []
        for start in range(0, clips, BATCH):
            part = truth[start : start + BATCH]
            begun = video.from_bytes(np.stack([c.video[:1] for c in part]))
            given = None if forces is None else {"force": forces[start : start + BATCH]}
            captions, seeds = [c.caption for c in part], noise[start : start + BATCH]
            made = sample(backbone, adapter, captions, seeds, recipe, observed=begun, physics=given)
            films += list(video.to_bytes(made))
        found[name] = followed(films, own, [c.params["colour"] for c in truth])
    return Pushes(clips, split, seed, found)


def evaluate(
    backbone: WanBackbone,
    adapters: Mapping[str, Sequence[Any]],
    recipe: Recipe,
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    observed: int = 0,
    mechanisms: Sequence[str] = MECHANISMS,
    keep: Path | None = None,
    quiet: bool = False,
) -> evaluation.Evaluation:
    """Measure `clips` captions a mechanism of the base and of methods, each an adapter a training seed; `observed`
    frames of the true clip are given. With `keep` a stopped evaluation goes on. Diversity, of the base and of each
    method's first adapter, lies in `more`.

    ValueError for a recipe whose videos are none of the simulated world.
    """
    d, who = recipe.data, {"base": [None], **{name: list(runs) for name, runs in adapters.items()}}
    about = {"backbone": backbone.digest, "steps": recipe.sampling.steps, "guidance": recipe.sampling.guidance}

    def maker(adapter: Any) -> evaluation.Maker:
        def make(captions: list[str], seeds: range, observed: np.ndarray | None = None) -> list[np.ndarray]:
            begun = None if observed is None else video.from_bytes(observed)
            return list(video.to_bytes(sample(backbone, adapter, captions, seeds, recipe, observed=begun)))

        return make

    def said(adapter: Any) -> dict[str, Any]:
        if adapter is None:
            return about
        own = {"bundle": adapter.origin.get("sha256"), "recipe": adapter.recipe.model_dump(mode="json")}
        return about | own if adapter.origin else {}

    with show.watch("evaluate", quiet=quiet) as progress:
        found = evaluation.evaluate(
            {name: [maker(one) for one in runs] for name, runs in who.items()},
            clips=clips,
            split=split,
            seed=seed,
            scale=physworld.scale_of(d.frames, d.height, d.width),
            observed=observed,
            mechanisms=mechanisms,
            batch=BATCH,
            about={name: [said(one) for one in runs] for name, runs in who.items()},
            folder=keep,
            watch=progress,
        )
    spread: dict[str, float] = {}
    for name in show.track(list(who), "diversity", quiet=quiet):
        each = [_diversity(backbone, who[name][0], recipe, m, clips=clips, split=split, seed=seed) for m in mechanisms]
        spread[name] = float(np.mean(each))
    return replace(found, more={"diversity": spread})


def _diversity(
    backbone: WanBackbone, adapter: Any, recipe: Recipe, mechanism: str, *, clips: int, split: str, seed: int
) -> float:
    """Mean root mean square distance between samples of one caption, in [0, 2]; on noise that no clip had."""
    captions = [physworld.caption(mechanism, i, split=split) for i in range(min(clips, DIVERSE))]
    prompts = [c for c in captions for _ in range(DIVERSE)]
    noise = evaluation.noise_seeds(mechanism, clips + len(prompts), seed)[clips:]
    films = sample(backbone, adapter, prompts, noise, recipe)
    each: Tensor = films.flatten(1).unflatten(0, (len(captions), DIVERSE))
    distance = torch.cdist(each, each) / each.shape[-1] ** 0.5
    pairs = DIVERSE * (DIVERSE - 1)
    return float((distance.sum((1, 2)) / pairs).mean())
