"""How well generators obey the law: each makes the same captions from the same noise, and every clip is measured.

A generator is a callable, `make(captions, seeds) -> films`, so that nothing here knows a model: `captions` are of this
world and of any split, `seeds` fix the noise of each clip, films are uint8 (t, h, w, 3). The same clip has the same
noise for every method, so what is compared is paired (`physworld.paired`). A method that was trained with several seeds
is a sequence of such callables, its *runs*; a base that has none is measured once.

What is kept is clip by clip: passes (every gate of the law), scores (0 as bad as shuffled frames, 1 as real clips), and
the figures that both come from. With a `folder` each part (one run, one mechanism) is written as it grows: an
evaluation that was stopped goes on, a second one reads what the first has measured, and more clips are added to fewer.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from physworld import paired
from physworld.clip import MECHANISMS
from physworld.metrics import Measures, Thresholds, measure
from physworld.simulation import caption, code, simulate_many

__all__ = ["LEGEND", "Evaluation", "Maker", "Run", "Scored", "evaluate", "noise_seeds", "score"]

FORMAT = 1
LEGEND = (
    "pass: share of clips within every gate of their law; score: 0 to 1, real clips near 1; an interval takes 8 clips "
    "and covers the choice of clips and, where a method has several runs, of training seeds"
)
"""What the figures of `Evaluation.rows` are, for people."""
MOST_CLIPS = 1_000_000
"""Seeds of one mechanism's noise; with another `seed` no clip meets the same noise again."""

Maker = Callable[..., Iterable[UInt8[np.ndarray, "t h w 3"]]]
"""`make(captions, seeds)`, and `make(captions, seeds, observed=frames)` where true frames (b, p, h, w, 3) are given."""


@dataclass(frozen=True)
class Scored:
    """The figures of one run's clips of one mechanism: gated passes, continuous scores, all measures."""

    passes: tuple[bool, ...]
    scores: tuple[float, ...]
    measures: tuple[Measures, ...]

    @property
    def pass_share(self) -> float:
        """Share of clips that pass every gate of their law."""
        return float(np.mean(self.passes))

    @property
    def score(self) -> float:
        """Mean score: each figure from 0 (as bad as shuffled frames) to 1 (at its floor)."""
        return float(np.mean(self.scores))

    def median(self, name: str) -> float:
        """Median of one measure; NaN where no clip has it."""
        values = [m[name] for m in self.measures if name in m and not math.isnan(m[name])]
        return float(np.median(values)) if values else float("nan")


@dataclass(frozen=True)
class Run:
    """One run of a method: what it is (plain JSON, such as the bundle's digest and the sampling), and its clips by
    mechanism.
    """

    about: dict[str, Any]
    scored: dict[str, Scored]


@dataclass(frozen=True)
class Evaluation:
    """What was asked of all methods, and the runs of each. `world` is the digest of the code that made and measured,
    `more` whatever an app adds.
    """

    clips: int
    split: str
    seed: int
    scale: int
    observed: int
    mechanisms: tuple[str, ...]
    methods: dict[str, tuple[Run, ...]]
    world: str = ""
    thresholds: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    def table(self, method: str, what: str = "scores") -> dict[str, Float[np.ndarray, "runs clips"]]:
        """The `scores` or `passes` of a method by mechanism; ValueError for one that was not measured."""
        if method not in self.methods:
            raise ValueError(f"expected a measured method, one of {', '.join(self.methods)}, got {method!r}")
        runs = self.methods[method]
        return {m: np.array([getattr(run.scored[m], what) for run in runs], float) for m in self.mechanisms}

    def mean(self, method: str, what: str = "scores", mechanism: str = "all") -> float:
        """Mean over runs and clips of a mechanism; over `all` every mechanism weighs the same."""
        means = {m: float(values.mean()) for m, values in self.table(method, what).items()}
        return float(np.mean(list(means.values()))) if mechanism == "all" else means[mechanism]

    def difference(self, a: str, b: str = "base", what: str = "scores") -> dict[str, paired.Difference]:
        """The paired difference of two methods by mechanism, and over `all`."""
        return paired.by_mechanism(a, b, self.table(a, what), self.table(b, what), seed=self.seed)

    def pairs(self) -> list[tuple[str, str]]:
        """What is worth comparing: every method with the first one, the base, and the second one with those behind it,
        its controls.
        """
        base, *later = self.methods
        return [(name, base) for name in later] + [(later[0], name) for name in later[1:]]

    def rows(self, pairs: Sequence[tuple[str, str]] = ()) -> list[tuple[str, ...]]:
        """Write the figures as rows of text: a header, each mechanism, and `all`; of pairs the difference in score."""
        names, parts = list(self.methods), ("passes", "scores")
        compared = [self.difference(a, b) for a, b in pairs]
        header = [f"{word} {name}" for word in ("pass", "score") for name in names]
        rows = [("mechanism", *header, *(f"{a} - {b} [95 %]" for a, b in pairs))]
        for mechanism in (*self.mechanisms, "all"):
            figures = [f"{self.mean(name, what, mechanism):.3f}" for what in parts for name in names]
            rows.append((mechanism, *figures, *(str(by[mechanism]) for by in compared)))
        return rows

    def joined(self, other: "Evaluation") -> "Evaluation":
        """This and another evaluation of the same clips as one: methods side by side, runs of one method behind one
        another, and once those that both have measured. ValueError where they were not asked the same.
        """
        for name in ("clips", "split", "seed", "scale", "observed", "mechanisms", "world", "thresholds"):
            if getattr(self, name) != getattr(other, name):
                one, two = getattr(self, name), getattr(other, name)
                raise ValueError(f"expected evaluations of the same clips, got {name} {one!r} and {two!r}")
        methods = dict(self.methods)
        for name, runs in other.methods.items():
            known = methods.get(name, ())
            methods[name] = (*known, *(run for run in runs if run not in known))
        return Evaluation(**{**vars(self), "methods": methods, "more": self.more | other.more})

    def save(self, path: str | Path) -> Path:
        """Write as JSON (the file appears whole or not at all)."""
        return _write(Path(path), {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote; ValueError for any other file."""
        try:
            content = _read(Path(path))
            if content.pop("format") != FORMAT:
                raise ValueError(f"another format than {FORMAT}")
            methods = {
                name: tuple(
                    Run(run["about"], {m: _scored(**columns) for m, columns in run["scored"].items()}) for run in runs
                )
                for name, runs in content.pop("methods").items()
            }
            return cls(**content | {"mechanisms": tuple(content["mechanisms"]), "methods": methods})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected an evaluation written by this package, got {path}: {error}") from None


def evaluate(
    makers: Mapping[str, Maker | Sequence[Maker]],
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    scale: int = 1,
    observed: int = 0,
    mechanisms: Sequence[str] = MECHANISMS,
    thresholds: Thresholds | None = None,
    batch: int = 16,
    about: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    folder: Path | None = None,
    watch: Callable[[int, int], Any] | None = None,
    kept: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Measure `clips` captions a mechanism of every method and run.

    Args:
        makers: by method's name what makes its films, one callable or one a training run.
        split: train, val, test, or ood (combinations and ranges that the other splits never show).
        seed: draws the noise; clips depend on `split` alone.
        observed: first frames of the true clip that the makers are given.
        batch: captions that a maker gets at once.
        about: by method one dict a run that says what it is, in plain JSON. Needed with a `folder`, whose parts belong
            to what they were measured of: another bundle or sampling is another part.
        folder: where parts are kept while they grow.
        watch: called with the clips that are measured and the clips in all.
        kept: called with a number of clips that the folder holds, before `watch` counts them.

    Raises:
        ValueError: for what no clip can be made of, makers that do not give one film a caption, or a folder without
            `about`.
    """
    runs = {name: list(maker) if isinstance(maker, Sequence) else [maker] for name, maker in makers.items()}
    if clips < 1 or seed < 0 or not all(runs.values()):
        raise ValueError(f"expected clips >= 1, seed >= 0 and a maker for every method, got {clips}, {seed}, {runs}")
    said = {name: [dict(one) for one in (about or {}).get(name, [{}] * len(of))] for name, of in runs.items()}
    lacking = [name for name, of in runs.items() if len(said[name]) != len(of) or (folder and not all(said[name]))]
    if lacking:
        raise ValueError(f"expected one line in `about` for each run of {', '.join(lacking)}: it names the kept parts")
    thresholds, world = thresholds or Thresholds.load(), code("metrics.py")
    setting = {"world": world, "split": split, "seed": seed, "scale": scale, "observed": observed, "clips": clips}
    done, total = 0, clips * len(mechanisms) * sum(map(len, runs.values()))
    found = {name: [Run(one, {}) for one in said[name]] for name in runs}
    for mechanism in mechanisms:
        for name, of in runs.items():
            for maker, run in zip(of, found[name], strict=True):
                measures: list[Measures] = []
                parts = _grow(maker, mechanism, run.about, setting, batch=batch, folder=folder)
                for number, measures in enumerate(parts):
                    if kept is not None and number == 0:
                        kept(len(measures))
                    if watch is not None:
                        watch(done + len(measures), total)
                done += clips
                run.scored[mechanism] = _judged(mechanism, measures, thresholds)
    return Evaluation(
        clips=clips,
        split=split,
        seed=seed,
        scale=scale,
        observed=observed,
        mechanisms=tuple(mechanisms),
        methods={name: tuple(of) for name, of in found.items()},
        world=world,
        thresholds=thresholds.fitted_on,
    )


def score(
    mechanism: str, captions: Sequence[str], films: Iterable[Any], thresholds: Thresholds, scale: int | None = None
) -> Scored:
    """Fit the law that each caption promises to what a film shows."""
    measures = [_plain(said, film, scale) for said, film in zip(captions, films, strict=True)]
    return _judged(mechanism, measures, thresholds)


def noise_seeds(mechanism: str, clips: int, seed: int = 0) -> range:
    """Give each clip its noise: the same for every method, another one for each clip.

    >>> noise_seeds("elastic", 2, seed=1)
    range(9000000, 9000002)
    """
    first = MOST_CLIPS * (len(MECHANISMS) * seed + MECHANISMS.index(mechanism))
    return range(first, first + clips)


def _grow(
    maker: Maker, mechanism: str, about: Mapping[str, Any], setting: dict[str, Any], *, batch: int, folder: Path | None
) -> Iterator[list[Measures]]:
    """Measure a run's clips of a mechanism batch by batch, from where its part in the folder ends."""
    clips, split, scale = setting["clips"], setting["split"], setting["scale"]
    key = {name: value for name, value in setting.items() if name != "clips"} | {"mechanism": mechanism, "of": about}
    part, measures = None, []
    if folder is not None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        part = Path(folder) / f"{mechanism}-{digest[:16]}.json"
        measures = _read(part)["measures"] if part.is_file() else []
    captions = [caption(mechanism, i, split=split) for i in range(clips)]
    seeds = noise_seeds(mechanism, clips, setting["seed"])
    yield measures[:clips]
    for start in range(len(measures), clips, batch):
        chosen = range(start, min(start + batch, clips))
        given = {}
        if setting["observed"]:
            truth = simulate_many(mechanism, chosen, split=split, scale=scale)
            given["observed"] = np.stack([clip.video[: setting["observed"]] for clip in truth])
        said = [captions[i] for i in chosen]
        films = list(maker(said, seeds[start : chosen.stop], **given))
        if len(films) != len(said):
            raise ValueError(f"expected one film for each of {len(said)} captions, got {len(films)}")
        measures = [*measures, *(_plain(text, film, scale) for text, film in zip(said, films, strict=True))]
        if part is not None:
            _write(part, {**key, "measures": measures})
        yield measures


def _plain(said: str, film: Any, scale: int | None) -> Measures:
    return {name: float(value) for name, value in measure(said, film, scale).items()}


def _judged(mechanism: str, measures: Sequence[Measures], thresholds: Thresholds) -> Scored:
    return Scored(
        passes=tuple(bool(thresholds.passes(mechanism, m)) for m in measures),
        scores=tuple(thresholds.score(mechanism, m) for m in measures),
        measures=tuple(measures),
    )


def _scored(passes: list[bool], scores: list[float], measures: list[Measures]) -> Scored:
    return Scored(tuple(passes), tuple(scores), tuple(measures))


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text(json.dumps(content, allow_nan=False) + "\n")
    part.replace(path)
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"expected JSON in {path}, which does not parse ({error}); delete it to measure anew"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(content).__name__}")
    return content
