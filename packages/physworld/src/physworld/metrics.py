"""Physical plausibility from pixels alone: read the fields back, fit the law, gate the result. No learned judge.

`measure` gives a mechanism's figures for one video. `Thresholds` turns them into the gated pass and into a continuous
score: every "low" figure under 1.5 x the 95 % quantile of its scenario's floor, with no slack beyond half way to
shuffled frames; the motion gate at 30 % of the floor's median motion; flags and shares as the mechanism's RULE says.
Conservation laws hold trivially for a still picture: without
the motion gate they mean nothing. A law that cannot be fitted gives a large finite figure and `valid` 0, never an
exception.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from physworld.captions import Expectation, parse
from physworld.clip import MECHANISMS, SIZE, Clip
from physworld.controls import shuffled
from physworld.mechanism import module
from physworld.ramp import UNFIT
from physworld.simulation import simulate_many

Measures = dict[str, float]
QUANTILE = 0.95
SLACK = 1.5
MOTION_SHARE = 0.3
INFORMATIVE = 1.2
"""A figure whose shuffled median is not above this multiple of its floor says nothing about time: it stays out of the
score."""
TOLERANCE = 0.005
"""Least limit of any figure that a RULE gives no "tolerance" of its own: nothing below half a per cent is a fault (our
choice)."""
LEAST_FRAMES = 9


def measure(what: str | Clip | Expectation, video: Any, scale: int | None = None) -> Measures:
    """The law's figures for a video that should show `what`: a caption, a clip (its caption counts) or an expectation.

    The figure `scenario` is the index into the mechanism's SCENARIOS: what is told of beads is not told of a ball.
    `video`: uint8 (t, h, w, 3), or float in [-1, 1] as (t, h, w, 3), (3, t, h, w) or (1, 3, t, h, w); numpy or anything
    that `np.asarray` takes. 32, 64, ... px square; `scale` is checked against the size where it is given.
    """
    expectation = what if isinstance(what, Expectation) else parse(what.caption if isinstance(what, Clip) else what)
    if expectation is None:
        raise ValueError(f"expected a caption of this world (physworld.captions.VOCABULARY), got {what!r}")
    frames = as_frames(video)
    if frames.shape[1] != frames.shape[2] or frames.shape[1] % SIZE or len(frames) < LEAST_FRAMES:
        raise ValueError(
            f"expected at least {LEAST_FRAMES} square frames of 32, 64, ... px, got {frames.shape[:3]}; "
            "resize or crop the video"
        )
    drawn = frames.shape[1] // SIZE
    if scale is not None and scale != drawn:
        raise ValueError(f"expected {SIZE * scale} px at scale {scale}, got {frames.shape[1]} px (scale {drawn})")
    world = module(expectation.mechanism)
    scenario = {"scenario": float(world.SCENARIOS.index(expectation.scenario))}
    return world.measure(frames, expectation.parameters, drawn) | scenario


def as_frames(video: Any) -> np.ndarray:
    """Any accepted video as uint8 (t, h, w, 3); what is not a number becomes middle grey, what is out of range is
    clipped."""
    array = np.asarray(video)
    if array.ndim == 5 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[0] == 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(f"expected one video (t, h, w, 3) or (3, t, h, w), got shape {np.asarray(video).shape}")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"expected uint8 or float in [-1, 1], got {array.dtype}")
    array = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
    return np.rint(np.clip(array * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(np.uint8)


@dataclass(frozen=True)
class Limit:
    """The limit of one "low" figure, and the medians of its floor and of shuffled videos."""

    limit: float
    floor: float
    shuffled: float


@dataclass(frozen=True)
class Thresholds:
    """Limits by "mechanism/scenario" and figure, the least motion likewise, and which clips the floor was read from."""

    limits: Mapping[str, Mapping[str, Limit]]
    motion: Mapping[str, float]
    fitted_on: str = ""

    @classmethod
    def fit(
        cls,
        floor: Mapping[str, Iterable[Measures]],
        mixed: Mapping[str, Iterable[Measures]] | None = None,
        *,
        fitted_on: str = "",
    ) -> "Thresholds":
        """Limits from the figures of real clips (or of what a generator's autoencoder makes of them), by mechanism.

        `mixed`: figures of the same clips with shuffled frames. The slack above the floor's own 95 % quantile then ends
        half way to them, so that a blurred floor cannot let them pass; without them `score` counts the gate's motion
        and flags only.
        """
        limits: dict[str, dict[str, Limit]] = {}
        motion: dict[str, float] = {}
        for mechanism, measures in floor.items():
            by_scenario, rule = _by_scenario(mechanism, measures), module(mechanism).RULE
            others = _by_scenario(mechanism, (mixed or {}).get(mechanism, ()))
            if not by_scenario:
                raise ValueError(f"expected figures of at least one clip of {mechanism}, got none")
            for key, real in by_scenario.items():
                motion[key] = MOTION_SHARE * float(np.median([m[rule["motion"]] for m in real]))
                limits[key] = {}
                for name in rule["low"]:
                    least = rule.get("tolerance", {}).get(name, TOLERANCE)
                    limits[key][name] = _limit([m[name] for m in real], _fitted(others.get(key, ()), name), least)
        return cls(limits, motion, fitted_on)

    def why_not(self, mechanism: str, measures: Measures) -> list[str]:
        """The gates that a video fails; empty for one that passes."""
        key, rule = self._key(mechanism, measures), module(mechanism).RULE
        failed = [name for name, limit in self.limits[key].items() if not measures[name] <= limit.limit]
        failed += [name for name in rule["flags"] if measures[name] < 1.0]
        failed += [name for name, least in rule["at_least"].items() if measures[name] < least]
        if not measures[rule["motion"]] >= self.motion[key]:
            failed.append(rule["motion"])
        return failed

    def passes(self, mechanism: str, measures: Measures) -> bool:
        """The gated pass of one video."""
        return not self.why_not(mechanism, measures)

    def score(self, mechanism: str, measures: Measures) -> float:
        """Continuous score in [0, 1]: mean of clip((shuffled - x) / (shuffled - floor), 0, 1), x the figures that
        shuffling raises, times the share of the motion gate that is reached; 0 where the law could not be read.
        """
        key, rule = self._key(mechanism, measures), module(mechanism).RULE
        if measures["valid"] < 1.0:
            return 0.0
        gate = self.motion[key]
        moving = min(measures[rule["motion"]] / gate, 1.0) if gate > 0 else 1.0
        parts = [
            float(np.clip((limit.shuffled - measures[name]) / (limit.shuffled - limit.floor), 0.0, 1.0))
            for name, limit in self.limits[key].items()
            if limit.shuffled > INFORMATIVE * limit.floor + 1e-9
        ]
        parts += [float(measures[name] >= 1.0) for name in rule["flags"] if name != "valid"]
        return float(max(moving, 0.0) * np.mean(parts)) if parts else float(max(moving, 0.0))

    def _key(self, mechanism: str, measures: Measures) -> str:
        key = _key(mechanism, measures)
        if key not in self.limits:
            raise ValueError(f"expected thresholds for {key}, got {', '.join(self.limits)}; fit them with such clips")
        return key

    @classmethod
    def of_world(
        cls, seeds: Sequence[int], *, mechanisms: Sequence[str] = MECHANISMS, split: str = "val", scale: int = 1
    ) -> "Thresholds":
        """Limits of real clips: what 8-bit colours and edges cost, without any generator."""
        floor: dict[str, list[Measures]] = {}
        mixed: dict[str, list[Measures]] = {}
        for mechanism in mechanisms:
            clips = simulate_many(mechanism, seeds, split=split, scale=scale)
            floor[mechanism] = [measure(clip, clip.video) for clip in clips]
            mixed[mechanism] = [measure(clip, shuffled(clip.video, clip.seed)) for clip in clips]
        return cls.fit(floor, mixed, fitted_on=f"real clips of the {split} split, {len(seeds)} a mechanism")

    def save(self, path: str | Path) -> None:
        """Write as JSON (the file appears whole or not at all)."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        content = {
            "fitted_on": self.fitted_on,
            "limits": {m: {name: asdict(limit) for name, limit in by.items()} for m, by in self.limits.items()},
            "motion": dict(self.motion),
        }
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Thresholds":
        """Read thresholds; without a path the shipped ones (their `fitted_on` says from which floor)."""
        text = Path(path).read_text() if path is not None else (files("physworld") / "thresholds.json").read_text()
        content = json.loads(text)
        return cls(
            {m: {name: Limit(**limit) for name, limit in by.items()} for m, by in content["limits"].items()},
            content["motion"],
            content["fitted_on"],
        )


def _key(mechanism: str, measures: Measures) -> str:
    return f"{mechanism}/{module(mechanism).SCENARIOS[int(measures['scenario'])]}"


def _by_scenario(mechanism: str, measures: Iterable[Measures]) -> dict[str, list[Measures]]:
    found: dict[str, list[Measures]] = {}
    for m in measures:
        found.setdefault(_key(mechanism, m), []).append(m)
    return found


def _limit(values: list[float], of_mixed: list[float], least: float) -> Limit:
    floor, high = float(np.median(values)), float(np.quantile(values, QUANTILE))
    mixed = float(np.median(of_mixed)) if of_mixed else floor
    limit = SLACK * high
    if mixed > INFORMATIVE * floor:
        limit = min(limit, max(high, 0.5 * (floor + mixed)))
    return Limit(limit=max(limit, least), floor=floor, shuffled=mixed)


def _fitted(measures: Iterable[Measures], name: str) -> list[float]:
    """The values of a figure where its law could be fitted at all."""
    return [m[name] for m in measures if m[name] < UNFIT]
