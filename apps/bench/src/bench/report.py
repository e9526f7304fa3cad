"""The report: one HTML file with its videos, figures and tables inside, readable anywhere and offline.

Videos are H.264 (every browser plays it), enlarged by pixel copies; the panels of one prompt are one video, so that
they stay in step. Figures are SVG in the page's own text colour. Nothing is fetched from anywhere.
"""

import base64
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined

from bench import plots
from bench.demo import Result, environment
from bench.measure import BLIND, MAY_RUN_BACKWARDS, held_out_clips
from physworld.evaluation import Scored
from physworld.metrics import Thresholds
from physworld.paired import LEAST, LEVEL, Difference, expected_by_chance, share_margin
from trainers import video

SHOWN = 2
"""Clips a mechanism that are shown: the first ones, not the best."""
GAP = 1
ENLARGE = 6
PLAY_FPS = 8.0
"""Half speed: 17 frames at 16 a second are over before the eye has found the ball."""


WORDS = {
    "relerr": "relative error",
    "err": "error",
    "resid": "residual",
    "rms": "deviation",
    "px": "(px)",
    "traj": "path",
    "mom": "momentum",
    "rest": "restitution",
    "perm": "permanence",
    "maxprinc": "new extremes",
    "cv": "changes",
    "dir": "direction",
    "ok": "as told",
    "valid": "readable",
    "off": "off",
    "manifold": "colours",
}
"""Short names of measures in words."""


@dataclass(frozen=True)
class Panel:
    """One system's clip in a strip: what it is, its score, and the gates that it fails."""

    name: str
    score: float
    failed: tuple[str, ...]


@dataclass(frozen=True)
class Strip:
    """One prompt's clips side by side."""

    caption: str
    data: str
    panels: tuple[Panel, ...]


def write(result: Result, folder: Path) -> Path:
    """Write `report.html` and `result.json` into a folder; both appear whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("result.json", result.to_json()), ("report.html", render(result))):
        part = folder / f"{name}.tmp"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
    return folder / "report.html"


def render(result: Result) -> str:
    """Write the page."""
    jinja = Environment(
        loader=PackageLoader("bench"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    jinja.filters |= {"label": plots.label, "share": _share, "signed": _signed}
    scores = {m: {s: v.score for s, v in by.items()} for m, by in result.scored.items()}
    intervals = [d for compared in result.comparisons for name, d in compared.items() if name != "all"]
    return jinja.get_template("report.html.j2").render(
        result=result,
        setting=result.setting,
        strips={mechanism: _strips(result, mechanism) for mechanism in result.scored},
        score_plot=plots.score_plot(scores, result.systems),
        difference_plot=plots.difference_plot(result.comparisons) if result.comparisons else "",
        loss_plot=plots.loss_plot(result.live.stages) if result.live else "",
        headline=[headline(compared["all"]) for compared in result.comparisons],
        medians={mechanism: _medians(result, mechanism) for mechanism in result.scored},
        intervals=len(intervals),
        clear=sum(d.clear for d in intervals),
        by_chance=expected_by_chance(len(intervals), LEVEL),
        clips=sum(len(by[result.systems[0]].passes) for by in result.scored.values()),
        environment=environment(),
        blind=blind(result),
        control=control_of(result),
        least=LEAST,
        margins=[share_margin(n) for n in (result.setting.clips, result.setting.clips * len(result.scored))],
    )


def headline(difference: Difference) -> str:
    """Say in one sentence what a comparison over all mechanisms shows.

    >>> headline(Difference("PILA", "base", 0.01, -0.02, 0.04, 128))
    'PILA against base: no difference that 128 paired clips resolve (+0.010, 95 % interval −0.020 to +0.040).'
    """
    if difference.low is None or difference.high is None:
        few = f"{difference.n} paired clips are too few for an interval"
        return f"{difference.a} against {difference.b}: {_signed(difference.mean)}, and {few}."
    interval = f"{_signed(difference.mean)}, 95 % interval {_signed(difference.low)} to {_signed(difference.high)}"
    if not difference.clear:
        unresolved = f"no difference that {difference.n} paired clips resolve"
        return f"{difference.a} against {difference.b}: {unresolved} ({interval})."
    word = "higher" if difference.mean > 0 else "lower"
    return f"{difference.a} scores {word} than {difference.b} on these {difference.n} paired clips ({interval})."


def side_by_side(clips: Sequence[UInt8[np.ndarray, "t h w 3"]]) -> UInt8[np.ndarray, "t h w2 3"]:
    """Join clips into one, with a grey line between them.

    >>> side_by_side([np.zeros((2, 4, 4, 3), np.uint8)] * 3).shape
    (2, 4, 14, 3)
    """
    line = np.full((*clips[0].shape[:2], GAP, 3), 128, np.uint8)
    parts = [part for clip in clips for part in (line, clip)]
    return np.concatenate(parts[1:], axis=2)


def embed(frames: UInt8[np.ndarray, "t h w 3"]) -> str:
    """Encode frames as H.264 and give the base64 of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = video.write(Path(folder) / "strip.mp4", frames, PLAY_FPS, scale=ENLARGE, crf=16)
        return base64.b64encode(path.read_bytes()).decode()


def _strips(result: Result, mechanism: str) -> list[Strip]:
    names = (*result.systems, "real")
    thresholds = Thresholds.load()
    clips = held_out_clips(mechanism, min(SHOWN, result.setting.clips), result.setting.split)
    strips = []
    for index, clip in enumerate(clips):
        frames = side_by_side([result.videos[mechanism][name][index] for name in names])
        panels = tuple(_panel(name, result.scored[mechanism][name], index, mechanism, thresholds) for name in names)
        strips.append(Strip(clip.caption, embed(frames), panels))
    return strips


def _panel(name: str, scored: Scored, index: int, mechanism: str, thresholds: Thresholds) -> Panel:
    failed = thresholds.why_not(mechanism, scored.measures[index])
    return Panel(name, scored.scores[index], tuple(_readable(gate) for gate in failed))


def blind(result: Result) -> list[str]:
    """Name the controls that pass where their gate should stop them."""
    found = []
    for mechanism, by_source in result.scored.items():
        for control in ("static", "reversed", "shuffled"):
            scored = by_source[control]
            excused = control == "reversed" and mechanism in MAY_RUN_BACKWARDS
            if scored.pass_share > BLIND and not excused:
                passed, n = int(sum(scored.passes)), len(scored.passes)
                found.append(f"{plots.label(mechanism)}, {control}: {passed} of {n}")
    return found


def control_of(result: Result) -> str:
    """Say how the compared adapters differ, from what their bundles hold."""
    trained = {name: about for name, about in result.bundles.items() if "stages" in about}
    sizes = {about["parameters"] for about in trained.values()}
    steps = {sum(stage["steps"] for stage in about["stages"]) for about in trained.values()}
    if "plain" not in trained or len(trained) < 2:
        return ""
    if len(sizes) > 1 or len(steps) > 1:
        return (
            "The adapters do not have equal size and steps (see “Systems”): a difference between them may come from "
            "that alone."
        )
    other = [name for name in trained if name != "plain"][-1]
    return (
        f"plain has the same size as {other} and as many training steps, but only the generator’s own loss: no optical "
        f"flow, no equations. What {other} gains beyond plain is what that supervision may have brought; what plain "
        "gains over base is training alone."
    )


def _readable(gate: str) -> str:
    return " ".join(WORDS.get(part, part) for part in gate.split("_"))


def _medians(result: Result, mechanism: str) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for scored in result.scored[mechanism].values() for m in scored.measures for name in m)
    return [
        (_readable(name), [_number(result.scored[mechanism][s].median(name)) for s in result.sources]) for name in names
    ]


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _share(value: float) -> str:
    return f"{value:.2f}"


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")
