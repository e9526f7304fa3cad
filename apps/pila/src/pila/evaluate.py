"""Physics of base and adapter on held-out captions of the simulated world, measured from the pixels against the law.

Both sides get the same prompts and the same noise, so what is compared is paired: the difference of each clip, with a
bootstrap interval. Two numbers a mechanism: the share of clips that pass every gate, and the continuous score (0 for
shuffled frames, 1 for what real clips reach). With few clips the intervals are wide; read them before the means.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

import physworld
from backbones import WanBackbone
from physworld import MECHANISMS, metrics
from pila.adapter import PilaAdapter
from pila.data import world_scale
from pila.generate import sample_pair, to_bytes
from trainers import show

__all__ = ["Difference", "Evaluation", "bootstrap", "evaluate"]

BATCH = 16
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
    """By mechanism (and `all`): shares of passed clips, mean scores, and the paired difference of scores, adapter
    minus base.
    """

    clips: int
    split: str
    seed: int
    passes: dict[str, dict[str, float]]
    scores: dict[str, dict[str, float]]
    difference: dict[str, Difference]

    def save(self, path: Path) -> Path:
        """Write as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".tmp")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n")
        part.replace(path)
        return path


def evaluate(
    backbone: WanBackbone,
    adapter: PilaAdapter,
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    mechanisms: tuple[str, ...] = MECHANISMS,
    thresholds: metrics.Thresholds | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Measure `clips` captions a mechanism with and without the adapter."""
    thresholds = thresholds or metrics.Thresholds.load()
    scale = world_scale(adapter.recipe.data)
    name = adapter.recipe.adapter
    passed: dict[str, dict[str, np.ndarray]] = {}
    scored: dict[str, dict[str, np.ndarray]] = {}
    for mechanism in show.track(list(mechanisms), "evaluate", quiet=quiet):
        captions = [c.caption for c in physworld.simulate_many(mechanism, range(clips), split=split)]
        videos: dict[str, list[np.ndarray]] = {"base": [], name: []}
        for start in range(0, clips, BATCH):
            part = captions[start : start + BATCH]
            first = MOST_CLIPS * (len(MECHANISMS) * seed + MECHANISMS.index(mechanism)) + start
            base, corrected = sample_pair(backbone, adapter, part, range(first, first + len(part)))
            assert base is not None
            videos["base"] += [to_bytes(film) for film in base]
            videos[name] += [to_bytes(film) for film in corrected]
        measured = {
            who: [metrics.measure(c, film, scale) for c, film in zip(captions, films, strict=True)]
            for who, films in videos.items()
        }
        passed[mechanism] = {w: np.array([thresholds.passes(mechanism, m) for m in ms]) for w, ms in measured.items()}
        scored[mechanism] = {w: np.array([thresholds.score(mechanism, m) for m in ms]) for w, ms in measured.items()}
    for table in (passed, scored):
        table["all"] = {who: np.concatenate([table[m][who] for m in mechanisms]) for who in ("base", name)}
    return Evaluation(
        clips=clips,
        split=split,
        seed=seed,
        passes={m: {w: float(v.mean()) for w, v in by.items()} for m, by in passed.items()},
        scores={m: {w: float(v.mean()) for w, v in by.items()} for m, by in scored.items()},
        difference={m: bootstrap(by[name] - by["base"], interval=clips >= LEAST) for m, by in scored.items()},
    )


def bootstrap(differences: Float[np.ndarray, " n"], seed: int = 0, *, interval: bool = True) -> Difference:
    """The mean of paired differences with its 95 % percentile interval, where one is asked for.

    >>> bootstrap(np.ones(8))
    Difference(mean=1.0, low=1.0, high=1.0)
    """
    if not interval:
        return Difference(float(differences.mean()), None, None)
    rng = np.random.default_rng(seed)
    means = differences[rng.integers(0, len(differences), (RESAMPLES, len(differences)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(differences.mean()), float(low), float(high))
