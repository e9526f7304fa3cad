"""Physics of the base and of any number of trained bundles on held-out captions of the simulated world, in pairs.

All get the same prompts, the same noise and, where frames are observed, the same beginnings, so what is compared is
paired: the difference of each clip, with a bootstrap interval over clips and, where a method was trained with several
seeds, over these, too. Diversity is the mean distance between samples of one caption, since the paper's method lost
some.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import physworld
from backbones import WanBackbone
from phantom.config import Recipe
from phantom.data import frames_of, world_scale
from phantom.force import tensor
from phantom.generate import to_bytes
from phantom.pushed import MECHANISM, Followed, followed, force_of
from phantom.sample import sample
from physworld import MECHANISMS, metrics
from trainers import show

__all__ = ["Difference", "Evaluation", "Pushes", "bootstrap", "compare", "evaluate", "push"]

BATCH = 16
RESAMPLES = 2000
LEAST = 8
"""Clips below which no difference has an interval: two that agree have one of no width (our choice)."""
WHOLE = 0.8
"""Permanence of the base's ball from which on pushes are judged, not only reported: our choice."""
MOST_CLIPS = 1_000_000
"""Seeds of one mechanism's noise; with another `seed` no clip meets the same noise again."""
DIVERSE = 4
"""Samples of one caption, and captions a mechanism, that diversity is measured on."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its 95 % bootstrap interval (none where there are too few clips for one)."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evaluation:
    """What was measured of each bundle (and of `base`): by mechanism the passed clips and the scores, clip by clip, and
    the mean distance between samples of one caption.
    """

    clips: int
    split: str
    seed: int
    observed_frames: int
    passed: dict[str, dict[str, list[bool]]]
    scores: dict[str, dict[str, list[float]]]
    diversity: dict[str, float]

    def save(self, path: Path) -> Path:
        """Write as JSON, by rename."""
        return _save(self, path)


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
        return _save(self, path)


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
    truth = physworld.simulate_many(MECHANISM, range(clips), split=split, scale=world_scale(recipe))
    own = [force_of(c.seed, split=split) for c in truth]
    drawn = torch.stack([tensor(f, *c.video.shape[:3]) for f, c in zip(own, truth, strict=True)])
    first = MOST_CLIPS * (len(MECHANISMS) * seed + MECHANISMS.index(MECHANISM))
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
            begun = frames_of(np.stack([c.video[:1] for c in part]))
            given = None if forces is None else {"force": forces[start : start + BATCH]}
            seeds = range(first + start, first + start + len(part))
            made = sample(backbone, adapter, [c.caption for c in part], seeds, recipe, observed=begun, physics=given)
            films += [to_bytes(film) for film in made]
        found[name] = followed(films, own, [c.params["colour"] for c in truth])
    return Pushes(clips, split, seed, found)


def evaluate(
    backbone: WanBackbone,
    adapters: Mapping[str, Any],
    recipe: Recipe,
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    observed: int = 0,
    mechanisms: Sequence[str] = MECHANISMS,
    quiet: bool = False,
) -> Evaluation:
    """Measure `clips` captions a mechanism of the base and of each adapter; `observed` frames of the true clip are
    given. ValueError for a recipe whose videos are none of the simulated world.
    """
    thresholds, scale = metrics.Thresholds.load(), world_scale(recipe)
    who: dict[str, Any] = {"base": None, **adapters}
    passed: dict[str, dict[str, list[bool]]] = {name: {} for name in who}
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in who}
    spread: dict[str, list[float]] = {name: [] for name in who}
    for mechanism in show.track(list(mechanisms), "evaluate", quiet=quiet):
        truth = physworld.simulate_many(mechanism, range(clips), split=split, scale=scale)
        captions = [c.caption for c in truth]
        begun = None
        if observed:
            begun = frames_of(np.stack([c.video[:observed] for c in truth]))
        first = MOST_CLIPS * (len(MECHANISMS) * seed + MECHANISMS.index(mechanism))
        for name, adapter in who.items():
            films: list[np.ndarray] = []
            for start in range(0, clips, BATCH):
                part = captions[start : start + BATCH]
                seeds = range(first + start, first + start + len(part))
                given = None if begun is None else begun[start : start + BATCH]
                made = sample(backbone, adapter, part, seeds, recipe, observed=given)
                films += [to_bytes(film) for film in made]
            measured = [metrics.measure(c, film, scale) for c, film in zip(captions, films, strict=True)]
            passed[name][mechanism] = [bool(thresholds.passes(mechanism, m)) for m in measured]
            scores[name][mechanism] = [float(thresholds.score(mechanism, m)) for m in measured]
            spread[name].append(_diversity(backbone, adapter, recipe, captions[:DIVERSE], first + clips))
    diversity = {name: float(np.mean(values)) for name, values in spread.items()}
    return Evaluation(clips, split, seed, observed, passed, scores, diversity)


def compare(results: Sequence[Evaluation], names: Sequence[str], other: str = "base") -> dict[str, Difference]:
    """The paired difference of scores, `names` (one method, one bundle a training seed) minus `other`, by mechanism and
    over all; the interval draws clips and, where there are several, training seeds.

    ValueError for a name that was not measured.
    """
    for result in results:
        if missing := [n for n in (*names, other) if n not in result.scores]:
            raise ValueError(f"expected measured bundles among {', '.join(result.scores)}, got {', '.join(missing)}")
    mechanisms = list(results[0].scores["base"])
    table = {
        m: np.stack(
            [np.concatenate([np.array(r.scores[n][m]) - np.array(r.scores[other][m]) for r in results]) for n in names]
        )
        for m in mechanisms
    }
    table["all"] = np.concatenate([table[m] for m in mechanisms], 1)
    return {m: bootstrap(d) for m, d in table.items()}


def bootstrap(differences: Float[np.ndarray, "seeds n"], seed: int = 0) -> Difference:
    """The mean of paired differences with its 95 % percentile interval over clips and training seeds.

    >>> bootstrap(np.ones((3, 8)))
    Difference(mean=1.0, low=1.0, high=1.0)
    """
    rng = np.random.default_rng(seed)
    runs, clips = differences.shape
    if clips < LEAST:
        return Difference(float(differences.mean()), None, None)
    rows = rng.integers(0, runs, (RESAMPLES, runs))
    columns = rng.integers(0, clips, (RESAMPLES, clips))
    means = np.array([differences[r][:, c].mean() for r, c in zip(rows, columns, strict=True)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(differences.mean()), float(low), float(high))


def _save(result: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text(json.dumps(asdict(result)) + "\n")
    part.replace(path)
    return path


def _diversity(backbone: WanBackbone, adapter: Any, recipe: Recipe, captions: Sequence[str], first: int) -> float:
    """Mean root mean square distance between samples of one caption, in [0, 2]."""
    prompts = [c for c in captions for _ in range(DIVERSE)]
    films = sample(backbone, adapter, prompts, range(first, first + len(prompts)), recipe)
    each: Tensor = films.flatten(1).unflatten(0, (len(captions), DIVERSE))
    distance = torch.cdist(each, each) / each.shape[-1] ** 0.5
    pairs = DIVERSE * (DIVERSE - 1)
    return float((distance.sum((1, 2)) / pairs).mean())
