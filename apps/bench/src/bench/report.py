"""The report: one HTML file with its videos, figures and tables inside, readable anywhere and offline.

It shows any results (`bench.results`), one section each. Videos play side by side in step; the page fetches nothing and
its content policy runs no script but its own, whose hash it names. What came from data (captions, names, notes) is
escaped by the template, reaches the script as JSON, and is only ever set as text.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bench import cards, plots, results
from bench.live import curves, read_log
from bench.published import MARK, Block, published
from bench.results import Comparison, Result
from physworld.paired import expected_by_chance
from trainers import write_text

SHOWN = 2
"""Clips a group that are shown: the first ones, not the best."""
RATERS = {
    "law": "a law fitted to pixels",
    "formula": "a formula against real videos",
    "official": "the benchmark's own network",
    "judge": "a vision-language model, not the official rater",
    "human": "people",
}
LABELS = {"pass": "obeys its law (share)", "score": "score (0 to 1)"}
MOST_PANELS = 6
"""Pairs that have a panel each; more are drawn as one list over everything."""
MOST_NOTES = 4
"""Notes that are read at once; more are folded away."""
OPEN_METRICS = 4
"""Metrics that get a plot and a table by group; the rest stand among all figures."""


@dataclass(frozen=True)
class Column:
    """A metric as it is printed."""

    name: str
    label: str
    digits: int


@dataclass(frozen=True)
class GroupTable:
    """A metric by group: its plot and what is said under it."""

    metric: Column
    plot: str
    about: str


@dataclass(frozen=True)
class DifferenceTable:
    """Paired differences of one metric: its plot, and cells by row and column (pairs are the columns while few)."""

    metric: Column
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, bool, tuple[Comparison | None, ...]], ...]
    plot: str
    about: str


@dataclass(frozen=True)
class RunView:
    """Everything that the page shows of one result."""

    key: str
    file: str
    title: str
    badge: str
    result: Result
    headlines: list[str]
    metrics: list[Column]
    intervals: str
    group_word: str
    groups: list[str]
    by_group: list[GroupTable]
    differences: list[DifferenceTable]
    many: str
    cards: list[cards.Card]
    left_out: int
    has_paths: bool
    has_motion: bool
    curves: list[dict[str, Any]]
    published: list[Block]
    medians: dict[str, list[tuple[str, list[float | None]]]]
    facts: list[tuple[str, str]]

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Places of the section and their names, for the links at the top."""
        there = [
            ("short", "in short", True),
            ("clips", "clips", self.cards),
            ("groups", f"by {self.group_word}", self.by_group),
            ("differences", "differences", self.differences),
            ("training", "training", self.curves),
            ("published", "what others report", self.published),
            ("made", "how it was made", True),
        ]
        return [(place, name) for place, name, shown in there if shown]


def write(paths: Sequence[Path], out: Path, *, each: int = SHOWN) -> Path:
    """Write one page for results in files or folders; it appears whole or not at all."""
    return write_text(out, render(paths, each=each))


def render(paths: Sequence[Path], *, each: int = SHOWN) -> str:
    """Write the page as text.

    Raises:
        ValueError: if a path holds no result, or a video is not one.
    """
    if not paths:
        raise ValueError("expected at least one result file or folder, got none")
    videos: dict[str, Any] = {}
    runs = [_view(path, f"r{index}", videos, each) for index, path in enumerate(paths)]
    systems = list(dict.fromkeys(s.name for run in runs for s in run.result.systems if s.role == "system"))
    every = list(dict.fromkeys(s.name for run in runs for s in run.result.systems))
    code, policy = script("chart.js", "report.js")
    # Floors and controls are there to be looked at when one wants to.
    shown = {
        p.name: p.system is None or p.system.role in ("system", "real") for r in runs for c in r.cards for p in c.panels
    }
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            runs=runs,
            title=runs[0].title if len(runs) == 1 else f"{len(runs)} results",
            css=asset("page.css"),
            script=code,
            script_hash=policy,
            data=_json({"videos": videos, "curves": {run.key: run.curves for run in runs}}),
            colours=plots.colours_by_name(systems, every),
            groups=list(dict.fromkeys(card.group for run in runs for card in run.cards)),
            shown_systems=shown,
            shown=each,
            most_notes=MOST_NOTES,
            rater_words=RATERS,
            mark=MARK,
            sources=published().sources,
        )
    )


def environment() -> Environment:
    """Give the templates' environment: everything is escaped, and an unknown name is a mistake."""
    jinja = Environment(
        loader=PackageLoader("bench"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    jinja.filters |= {
        "label": plots.label,
        "number": lambda value, digits: "–" if value is None else f"{value:.{digits}f}",
        "figure": cards.number,
        "signed": signed,
        "holds": plots.holds,
        "when": lambda seconds: datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M"),
        "p_value": lambda p: "< 0.001" if p < 0.001 else f"= {p:.3f}",
    }
    return jinja


def _headlines(overall: Sequence[Comparison]) -> list[str]:
    """Say what each comparison shows; of many, those that the clips resolve, and how many others there are."""
    if len(overall) <= MOST_PANELS:
        return [headline(one) for one in overall]
    told = [headline(one) for one in overall if plots.holds(one)]
    few = sum(one.low is None for one in overall if not plots.holds(one))
    rest = len(overall) - len(told) - few
    if rest:
        told.append(f"{rest} of {len(overall)} pairs: no difference that stands after the correction for comparisons.")
    return told + [f"{few} of {len(overall)} pairs: too few paired clips for an interval."] * bool(few)


def headline(one: Comparison) -> str:
    """Say in one sentence what a comparison over everything shows.

    >>> headline(Comparison(a="PILA", b="base", metric="score", mean=0.01, n=128, low=-0.02, high=0.04))
    'PILA against base: no difference in score that 128 paired clips resolve (+0.010, 95 % interval −0.020 to +0.040).'
    """
    if one.mean is None or one.low is None or one.high is None:
        few = f"{one.n} paired clip{'s are' if one.n != 1 else ' is'} too few for an interval"
        return f"{one.a} against {one.b}: {signed(one.mean)} in {plots.label(one.metric)}, and {few}."
    interval = f"{signed(one.mean)}, {100 * one.level:.0f} % interval {signed(one.low)} to {signed(one.high)}"
    if not one.clear or not plots.holds(one):
        what = (
            f"that {one.n} paired clips resolve"
            if not one.clear
            else "that stands after the correction for comparisons"
        )
        return f"{one.a} against {one.b}: no difference in {plots.label(one.metric)} {what} ({interval})."
    word = "higher" if one.mean > 0 else "lower"
    return f"{one.a} is {word} in {plots.label(one.metric)} than {one.b} on these {one.n} paired clips ({interval})."


def signed(value: float | None) -> str:
    """Write a difference.

    >>> signed(-0.0004), signed(-0.25), signed(None)
    ('+0.000', '−0.250', '–')
    """
    return "–" if value is None else f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")


def _view(path: Path, key: str, videos: dict[str, Any], each: int) -> RunView:
    result = results.read(path)
    folder = path if path.is_dir() else path.parent
    names = list(dict.fromkeys(m for s in result.systems for m in s.metrics))
    metrics = [_column(name, result) for name in names]
    groups = list(dict.fromkeys(g for s in result.systems for g in s.groups))
    shown, left = cards.cards(folder, result, each=each, key=key, videos=videos)
    mine = [videos[panel.key] for card in shown for panel in card.panels]
    differences = _differences(result, key, {m.name: m for m in metrics})
    log = folder / "log.jsonl"
    return RunView(
        key=key,
        file=f"{path.name}/{results.FILE}" if path.is_dir() else path.name,
        title=result.title or f"{result.benchmark}: {result.prompt_set.name}",
        badge=str(result.settings.get("badge", "")),
        result=result,
        headlines=_headlines([c for c in result.comparisons if not c.group and c.metric == _main(result)]),
        metrics=metrics,
        intervals=_intervals(m for s in result.systems for m in s.metrics.values()),
        group_word=str(result.settings.get("group", "group")),
        groups=groups,
        by_group=[_by_group(result, metric, groups, f"{key}-{index}") for index, metric in enumerate(metrics)][
            : OPEN_METRICS if groups else 0
        ],
        differences=differences,
        many=_many(result.comparisons),
        cards=shown,
        left_out=left,
        has_paths=any("tracks" in one for one in mine),
        has_motion=bool(mine),
        curves=curves(read_log(log)) if log.is_file() else [],
        published=published().beside(result.benchmark),
        medians=_medians(result, groups),
        facts=[(name, _fact(value)) for name, value in {**result.settings, **result.versions}.items()],
    )


def _main(result: Result) -> str:
    """Name the metric that the headlines speak of: the last one compared (a continuous score sees more than a pass)."""
    compared = [c.metric for c in result.comparisons if not c.group]
    return "score" if "score" in compared else compared[0] if compared else ""


def _column(name: str, result: Result) -> Column:
    found = [s.metrics[name] for s in result.systems if name in s.metrics]
    largest = max((abs(m.value) for m in found if m.value is not None), default=0.0)
    unit = next((m.unit for m in found if m.unit), "")
    digits = 1 if largest > 2 else 2 if largest > 0.1 else 4
    return Column(name, f"{plots.label(name)} ({unit})" if unit else LABELS.get(name, plots.label(name)), digits)


def _by_group(result: Result, metric: Column, groups: Sequence[str], key: str) -> GroupTable:
    plot = plots.score_plot(key, metric.name, metric.label, result.systems, groups)
    counts = {s.groups[g][metric.name].n for s in result.systems for g in s.groups if metric.name in s.groups[g]}
    said = f"n = {min(counts)}" if len(counts) == 1 else f"n from {min(counts)} to {max(counts)}" if counts else ""
    kinds = _intervals(m[metric.name] for s in result.systems for m in s.groups.values() if metric.name in m)
    band = (
        "; the grey band runs from shuffled frames to the floor"
        if any(s.role == "floor" for s in result.systems)
        else ""
    )
    return GroupTable(metric, plot, f"{said} a point{', ' + kinds if kinds else ''}{band}.")


def _intervals(metrics: Any) -> str:
    kinds = dict.fromkeys(f"{100 * m.level:.0f} % {m.interval}".strip() for m in metrics if m.low is not None)
    return f"intervals: {'; '.join(kinds)}" if kinds else ""


def _differences(result: Result, key: str, columns: Mapping[str, Column]) -> list[DifferenceTable]:
    tables = []
    for index, metric in enumerate(dict.fromkeys(c.metric for c in result.comparisons)):
        mine = [c for c in result.comparisons if c.metric == metric]
        pairs: dict[str, dict[str, Comparison]] = {}
        for one in mine:
            pairs.setdefault(f"{one.a} − {one.b}", {})[one.group] = one
        groups = sorted(dict.fromkeys(c.group for c in mine), key=lambda g: g == "")
        many = len(pairs) > MOST_PANELS
        if many:
            groups = groups[-1:] + groups[:-1]
            rows = tuple((pair, False, tuple(by.get(g) for g in groups)) for pair, by in pairs.items())
            plot = plots.forest_plot(f"{key}-d{index}", {pair: by[""] for pair, by in pairs.items() if "" in by})
        else:
            rows = tuple((_all(g), g == "", tuple(by.get(g) for by in pairs.values())) for g in groups)
            plot = plots.difference_plot(f"{key}-d{index}", pairs)
        least, most = min(c.n for c in mine), max(c.n for c in mine)
        interval = next((c.method for c in mine if c.low is not None), "")
        corrected = any(c.p_corrected is not None for c in mine)
        star = "p below .05 after the correction" if corrected else "the interval excludes zero"
        about = f"Mean difference, n from {least} to {most}" + (
            f", {interval}. Filled, and * in the table: {star}." if interval else ": too few clips for an interval."
        )
        column = columns.get(metric, Column(metric, plots.label(metric), 3))
        corner, heads = ("pair", tuple(map(_all, groups))) if many else ("", tuple(pairs))
        tables.append(DifferenceTable(column, corner, heads, rows, plot, about))
    return sorted(tables, key=lambda table: table.metric.name != _main(result))


def _all(group: str) -> str:
    return plots.label(group or "all")


def _many(comparisons: Sequence[Comparison]) -> str:
    inside = [c for c in comparisons if c.low is not None and c.group]
    if not inside:
        return ""
    corrected = [c for c in inside if c.p_corrected is not None]
    chance = expected_by_chance(len(inside), inside[0].level)
    text = (
        f"Many comparisons: {len(inside)} intervals by group. If no system differed from any other, about {chance:.1f} "
        f"of them would still exclude zero by chance; here {sum(c.clear for c in inside)} do"
    )
    if corrected:
        held = sum(plots.holds(c) for c in corrected)
        text += f", and {held} of {len(corrected)} hold after Holm's correction over {corrected[0].family}"
    return text + ". The row “all” counts most; read a single group only as a hint for a larger run."


def _medians(result: Result, groups: Sequence[str]) -> dict[str, list[tuple[str, list[float | None]]]]:
    found: dict[str, list[tuple[str, list[float | None]]]] = {}
    for group in groups or ("",):
        chosen = [[i for i in s.items if i.group == group or not groups] for s in result.systems]
        names = dict.fromkeys(name for items in chosen for item in items for name in item.values)
        rows = [
            (cards.readable(name), [_median([i.values.get(name) for i in items]) for items in chosen]) for name in names
        ]
        if rows:
            found[group] = rows
    return found


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return median(known) if known else None


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def script(*names: str) -> tuple[str, str]:
    """Give scripts of the templates as one, and the source expression that lets a page run this one and no other."""
    text = "\n".join(asset(name) for name in names)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return text, f"'sha256-{digest}'"


def asset(name: str) -> str:
    """Read a file of the templates."""
    return (files("bench") / "templates" / name).read_text(encoding="utf-8")


def _json(content: Any) -> str:
    """Write JSON that can stand inside a script element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
