"""Physics of the base and of trained adapters on held-out captions of the simulated world, measured from the pixels
against the law.

All sides get the same prompts and the same noise, so that what is compared is paired: the difference of each clip, with
a bootstrap interval. Several bundles of one kind are training seeds of one thing: a resample draws seeds and clips.
Two numbers a mechanism: the share of clips that pass every gate, and the continuous score (0 for shuffled frames, 1 for
what real clips reach). With few clips the intervals are wide; read them before the means.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

import physworld
from backbones import Backbone
from physworld import MECHANISMS, metrics
from prophy.config import Recipe
from prophy.generate import sample, to_bytes
from prophy.sources import world_scale
from prophy.train import kind_of
from trainers import show

__all__ = ["Difference", "Evaluation", "bootstrap", "evaluate"]

BATCH = 32
RESAMPLES = 2000
LEAST = 8
"""Clips a mechanism below which no difference has an interval: two that agree have one of no width (our choice)."""
MOST_CLIPS = 1_000_000
"""Seeds of one mechanism's noise; with another `seed` no clip meets the same noise again."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its 95 % bootstrap interval (none where there are too few clips for one)."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evaluation:
    """By mechanism (and `all`): shares of passed clips and mean scores by kind, and the paired differences of scores,
    by "kind - other kind".
    """

    clips: int
    split: str
    seed: int
    runs: dict[str, int]
    passes: dict[str, dict[str, float]]
    scores: dict[str, dict[str, float]]
    differences: dict[str, dict[str, Difference]]
    routers: dict[str, Any]

    def save(self, path: Path) -> Path:
        """Write as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".tmp")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n")
        part.replace(path)
        return path


def evaluate(
    backbone: Backbone,
    adapters: Sequence[Any],
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    mechanisms: tuple[str, ...] = MECHANISMS,
    thresholds: metrics.Thresholds | None = None,
    routers: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Measure `clips` captions a mechanism with the base alone and with each adapter.

    ValueError for adapters of different clip sizes or sampling settings, which would not be paired.
    """
    thresholds = thresholds or metrics.Thresholds.load()
    recipe: Recipe = adapters[0].recipe
    scale = world_scale(recipe.data)
    same = ("frames", "height", "width")
    for other in adapters[1:]:
        sizes = [getattr(r.data, n) for n in same for r in (recipe, other.recipe)]
        if sizes[::2] != sizes[1::2] or other.recipe.sampling != recipe.sampling:
            raise ValueError("expected bundles of one clip size and one sampling: others are not paired")
    sides: list[tuple[str, Any]] = [("base", None), *((kind_of(a.recipe), a) for a in adapters)]
    passed: dict[str, dict[str, np.ndarray]] = {}
    scored: dict[str, dict[str, np.ndarray]] = {}
    for mechanism in show.track(list(mechanisms), "evaluate", quiet=quiet):
        captions = [c.caption for c in physworld.simulate_many(mechanism, range(clips), split=split)]
        first = MOST_CLIPS * (len(MECHANISMS) * seed + MECHANISMS.index(mechanism))
        rows: dict[str, list[list[metrics.Measures]]] = {}
        for kind, adapter in sides:
            films: list[np.ndarray] = []
            for start in range(0, clips, BATCH):
                part = captions[start : start + BATCH]
                noise = range(first + start, first + start + len(part))
                films += [to_bytes(film) for film in sample(backbone, adapter, part, noise, recipe)]
            measured = [metrics.measure(c, film, scale) for c, film in zip(captions, films, strict=True)]
            rows.setdefault(kind, []).append(measured)
        passed[mechanism] = {
            kind: np.array([[thresholds.passes(mechanism, m) for m in run] for run in runs], float)
            for kind, runs in rows.items()
        }
        scored[mechanism] = {
            kind: np.array([[thresholds.score(mechanism, m) for m in run] for run in runs])
            for kind, runs in rows.items()
        }
    kinds = list(dict.fromkeys(kind for kind, _ in sides))
    for table in (passed, scored):
        table["all"] = {kind: np.concatenate([table[m][kind] for m in mechanisms], 1) for kind in kinds}
    pairs = [(kind, "base") for kind in kinds[1:]]
    pairs += [("prophy", other) for other in kinds[1:] if "prophy" in kinds and other != "prophy"]
    return Evaluation(
        clips=clips,
        split=split,
        seed=seed,
        runs={kind: sum(k == kind for k, _ in sides) for kind in kinds},
        passes={m: {k: round(float(v.mean()), 4) for k, v in by.items()} for m, by in passed.items()},
        scores={m: {k: round(float(v.mean()), 4) for k, v in by.items()} for m, by in scored.items()},
        differences={
            f"{a} - {b}": {m: bootstrap(by[a], by[b], interval=clips >= LEAST) for m, by in scored.items()}
            for a, b in pairs
        },
        routers=dict(routers or {}),
    )


def bootstrap(
    one: Float[np.ndarray, "r n"], other: Float[np.ndarray, "s n"], seed: int = 0, *, interval: bool = True
) -> Difference:
    """The mean difference of runs over the same clips, with its 95 % percentile interval over runs and clips.

    >>> bootstrap(np.ones((2, 8)), np.zeros((1, 8)))
    Difference(mean=1.0, low=1.0, high=1.0)
    """
    mean = float(one.mean() - other.mean())
    if not interval:
        return Difference(round(mean, 4), None, None)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES):
        columns = rng.integers(0, one.shape[1], one.shape[1])
        drawn = [side[rng.integers(0, len(side), len(side))].mean(0)[columns].mean() for side in (one, other)]
        means.append(drawn[0] - drawn[1])
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(round(mean, 4), round(float(low), 4), round(float(high), 4))
