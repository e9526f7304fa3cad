"""`report`: the curves of one run, or of several laid over one another, as one picture.

A panel each for the sum of the loss and its terms, what the loss logs, held-out losses (over the steps, and over the
level of noise at the end), gradient norm, learning rate, ramps with their resets, and seconds a step. Dotted verticals
are borders of stages. Needs matplotlib: `pip install 'phystrainers[plots]'`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from . import log

__all__ = ["report"]

COLUMNS = 4
MOST_TERMS = 12
"""Panels of terms, the largest first; what is left out is said in the title of the last one."""

Line = dict[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class _Curve:
    points: Points
    label: str
    colour: Any
    style: str = "-"


@dataclass(frozen=True)
class _Panel:
    """`exact`: what was set rather than measured, drawn as it is."""

    title: str
    curves: list[_Curve]
    across: str = "step"
    exact: bool = False


def report(runs: str | Path | Sequence[str | Path], out: str | Path) -> Path:
    """Draw the logs of run folders (or of `log.jsonl` files) into the PNG `out`, and return its path.

    Raises:
        ValueError: where a run has no log yet, or matplotlib is not installed.
    """
    given = [Path(run) for run in ([runs] if isinstance(runs, (str, Path)) else runs)]
    logs = {_name(path, given): _read(path) for path in given}
    if not logs:
        raise ValueError("expected at least one run folder, got none")
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a report needs matplotlib: pip install 'phystrainers[plots]'") from None
    colours = {name: colormaps["tab10"](i % 10) for i, name in enumerate(logs)}
    panels = _panels(logs, colours, colormaps["viridis"])
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.9 * rows + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    borders = _borders(next(iter(logs.values()))) if len(logs) == 1 else []
    last = max(line["global_step"] for lines in logs.values() for line in lines)
    for axes, panel in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, panels, strict=False):
        _draw(axes, panel)
        if panel.across == "step":
            axes.set_xlim(-0.02 * last, 1.02 * last)
            for border in borders:
                axes.axvline(border, color="grey", lw=0.7, ls=":")
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    if len(logs) > 1:
        lines = [figure.axes[0].plot([], [], color=colours[name], label=name)[0] for name in logs]
        figure.legend(lines, list(logs), loc="outside upper center", ncols=min(4, len(logs)), fontsize=9)
    else:
        figure.suptitle(next(iter(logs)), fontsize=11)
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    figure.savefig(part, format="png")
    part.replace(target)
    return target


def _panels(logs: Mapping[str, list[Line]], colours: Mapping[str, Any], shades: Any) -> list[_Panel]:
    def over_steps(title: str, value: Callable[[Line], Any], *, exact: bool = False) -> _Panel:
        found = {name: _points(lines, value) for name, lines in logs.items()}
        return _Panel(
            title, [_Curve(points, "", colours[name]) for name, points in found.items() if points], exact=exact
        )

    every = [line for lines in logs.values() for line in lines]
    terms = _largest({name for line in every for name in line["terms"]}, every)
    panels = [over_steps("sum of the loss", lambda line: _sum(line["terms"]))]
    panels += [over_steps(term, lambda line, term=term: line["terms"].get(term)) for term in terms[:MOST_TERMS]]
    if left := len(terms) - MOST_TERMS:
        last = panels[-1]
        panels[-1] = replace(last, title=last.title + f" ({left} smaller ones left out)" * (left > 0))
    for term in dict.fromkeys(term for line in every for term in line.get("held_out", ())):
        panels += _held_out(term, logs, colours, shades)
    panels.append(over_steps("gradient norm", lambda line: line["gradient_norm"]))
    panels.append(over_steps("learning rate", lambda line: line["lr"], exact=True))
    for ramp in dict.fromkeys(ramp for line in every for ramp in line["ramps"]):
        panels.append(over_steps(f"ramp {ramp}", lambda line, ramp=ramp: line["ramps"].get(ramp), exact=True))
        if any(ramp in line.get("recursive", ()) for line in every):
            panels.append(_recursion(ramp, logs, colours))
    panels.append(over_steps("seconds a step", lambda line: line["seconds"]))
    return panels


def _held_out(term: str, logs: Mapping[str, list[Line]], colours: Mapping[str, Any], shades: Any) -> list[_Panel]:
    """The term over the steps (every level of one run, three levels of several), and over the level at the end."""
    over_steps, over_levels = [], []
    for name, lines in logs.items():
        seen = [line for line in lines if term in line.get("held_out", ())]
        if not seen:
            continue
        levels = list(seen[-1]["held_out"][term])
        shown = levels if len(logs) == 1 else [levels[0], levels[len(levels) // 2], levels[-1]]
        for i, level in enumerate(shown):
            points = _points(seen, lambda line, level=level: line["held_out"][term].get(level))
            alone = len(logs) == 1
            colour = shades(0.9 * i / max(1, len(shown) - 1)) if alone else colours[name]
            label = level if alone or name == next(iter(logs)) else ""
            over_steps.append(_Curve(points, label, colour, "-" if alone else ("-", "--", ":")[i]))
        last = [(float(level), value) for level, value in seen[-1]["held_out"][term].items()]
        over_levels.append(_Curve(last, name if len(logs) > 1 else f"step {seen[-1]['global_step']}", colours[name]))
    return [
        _Panel(f"held out: {term}, by level", over_steps),
        _Panel(f"held out at the end: {term}", over_levels, across="level"),
    ]


def _recursion(ramp: str, logs: Mapping[str, list[Line]], colours: Mapping[str, Any]) -> _Panel:
    """The average of the norm that a recursive ramp measures, with the threshold; its title counts the resets."""
    curves, resets = [], []
    for name, lines in logs.items():
        seen = [line for line in lines if ramp in line.get("recursive", ())]
        if not seen:
            continue
        average = _points(seen, lambda line: line["recursive"][ramp]["average"])
        eta = _points(seen, lambda line: line["recursive"][ramp]["eta"])
        curves.append(_Curve(average, "average norm" if not curves else "", colours[name]))
        curves.append(_Curve(eta, "eta" if len(curves) == 1 else "", colours[name], "--"))
        resets.append(str(seen[-1]["recursive"][ramp]["resets"]))
    return _Panel(f"ramp {ramp}: {' / '.join(resets)} resets", curves, exact=True)


def _draw(axes: Any, panel: _Panel) -> None:
    values = [y for curve in panel.curves for _, y in curve.points]
    for curve in panel.curves:
        x, y = zip(*curve.points, strict=True) if curve.points else ((), ())
        shown = {"color": curve.colour, "ls": curve.style}
        if len(x) > 200 and not panel.exact:
            axes.plot(x, y, lw=0.6, alpha=0.35, **shown)
            axes.plot(x, _smooth(y), lw=1.5, label=curve.label or None, **shown)
        else:
            axes.plot(x, y, lw=1.3, label=curve.label or None, marker="." if len(x) < 3 else None, **shown)
    if values and not panel.exact and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("")
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel({"step": "step", "level": "level of noise (quantile)"}[panel.across], fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, lw=0.5)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=6.5, ncols=3 if len(panel.curves) > 4 else 1, handlelength=1.4, columnspacing=0.8)


def _smooth(values: Sequence[float]) -> list[float]:
    """An average over about 2 % of the curve, begun at its first value."""
    share, smooth = 2 / (1 + max(10, len(values) / 50)), [values[0]]
    for value in values[1:]:
        smooth.append(smooth[-1] + share * (value - smooth[-1]))
    return smooth


def _points(lines: Iterable[Line], value: Callable[[Line], Any]) -> Points:
    pairs = [(line["global_step"], value(line)) for line in lines]
    return [(float(step), float(y)) for step, y in pairs if isinstance(y, (int, float)) and math.isfinite(y)]


def _sum(terms: Mapping[str, float | None]) -> float | None:
    summed = [value for name, value in terms.items() if not name.startswith("log/") and value is not None]
    return sum(summed) if summed else None


def _largest(terms: Iterable[str], lines: Sequence[Line]) -> list[str]:
    """Summed terms before logged ones, each by size."""
    sizes = {term: max((abs(line["terms"].get(term) or 0.0) for line in lines), default=0.0) for term in terms}
    return sorted(sizes, key=lambda term: (term.startswith("log/"), -sizes[term], term))


def _borders(lines: Sequence[Line]) -> list[float]:
    return [float(a["global_step"]) for a, b in pairwise(lines) if a["stage"] != b["stage"]]


def _read(path: Path) -> list[Line]:
    file = path / "log.jsonl" if path.is_dir() else path
    if not (lines := log.read(file)):
        raise ValueError(f"expected a run with a log, got {path}, where {file} has no line yet")
    return lines


def _name(path: Path, among: Sequence[Path]) -> str:
    """The folder's name, with as many parents as tell the runs apart."""
    folders = [p.resolve() if p.is_dir() else p.resolve().parent for p in among]
    own = path.resolve() if path.is_dir() else path.resolve().parent
    for depth in range(1, len(own.parts)):
        name = "/".join(own.parts[-depth:])
        if sum("/".join(folder.parts[-depth:]) == name for folder in folders) == 1:
            return name
    return str(path)
