"""Figures of the report as inline SVG that follows the page's light or dark theme.

Everything that is ink (text, axes, grid) is drawn in one marker colour and becomes `currentColor`; the systems have the
colours of Okabe and Ito, which colour-blind readers tell apart, and a shape of their own, which a grey print keeps.
Names come from data: no mathematics is read from them, and SVG escapes them.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from bench.results import Comparison, Metric, System

INK = "#010203"
FAINT = "#8c8c8c"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "D", "^", "v", "P")
LONGEST = 28
"""Characters of a name in a figure; the table has the whole name."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def label(name: str) -> str:
    """Write a group's name for people.

    >>> label("compressible_flow")
    'compressible flow'
    """
    return name.replace("_", " ")


def look(index: int) -> tuple[str, str]:
    """Give colour and marker of the n-th system; the first 36 all differ.

    >>> look(0) == look(6), look(0)[0] == look(6)[0]
    (False, True)
    """
    return COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def colours(systems: Sequence[System]) -> dict[str, str]:
    """Give every system its colour; what bounds the systems (floor, control, real) is grey."""
    return colours_by_name([s.name for s in systems if s.role == "system"], [s.name for s in systems])


def colours_by_name(coloured: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Colour the first names in order and leave the others grey."""
    return dict.fromkeys(names, FAINT) | {name: look(index)[0] for index, name in enumerate(coloured)}


def score_plot(name: str, metric: str, title: str, systems: Sequence[System], groups: Sequence[str]) -> str:
    """Draw a metric of the competing systems by group, with intervals, between the shuffled control and the floor."""
    shown = [s for s in systems if s.role == "system"]
    rows = np.arange(len(groups))[::-1]
    with _figure(name, (7.6, max(0.34, 0.13 * len(shown) + 0.16) * len(groups) + 1.2)) as (figure, axes):
        floor, shuffled = (
            next((s.groups for s in systems if s.role == "floor"), {}),
            next((s.groups for s in systems if s.role == "control" and s.name == "shuffled"), {}),
        )
        bands = [
            (row, [side[group][metric].value for side in (shuffled, floor)])
            for row, group in zip(rows, groups, strict=True)
            if all(metric in side.get(group, {}) for side in (shuffled, floor))
        ]
        for row, ends in bands:
            if None not in ends:
                axes.plot(ends, [row, row], color=FAINT, lw=5, alpha=0.35, zorder=1, solid_capstyle="butt")
        if bands:
            axes.plot([], [], color=FAINT, lw=5, alpha=0.35, label="shuffled frames to floor")
        spread = min(0.32, 0.09 * len(shown))
        offsets = np.linspace(spread, -spread, len(shown)) if len(shown) > 1 else np.zeros(1)
        for index, (system, offset) in enumerate(zip(shown, offsets, strict=True)):
            colour, marker = look(index)
            found = [system.groups.get(group, {}).get(metric) for group in groups]
            for row, one in zip(rows, found, strict=True):
                if one is not None and one.low is not None:
                    axes.plot([one.low, one.high], [row + offset] * 2, color=colour, lw=1.6, alpha=0.75, zorder=2)
            axes.plot(
                [np.nan if one is None or one.value is None else one.value for one in found],
                rows + offset,
                marker,
                color=colour,
                ms=5.5,
                label=_short(system.name),
                zorder=3,
            )
        axes.set_yticks(rows, [_short(label(g)) for g in groups])
        axes.set_ylim(-0.6, len(groups) - 0.4)
        axes.set_xlabel(_short(title, 2 * LONGEST))
        axes.grid(axis="x")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, columnspacing=1.2, handletextpad=0.4)
    return _labelled(figure["svg"], f"{title} by group: " + "; ".join(_said(s, metric) for s in shown))


def difference_plot(name: str, pairs: Mapping[str, Mapping[str, Comparison]]) -> str:
    """Draw paired differences with their intervals: a panel a pair, a row a group (`""`: all, at the bottom)."""
    groups = sorted({g for compared in pairs.values() for g in compared}, key=lambda g: g == "")
    groups = list(dict.fromkeys([g for compared in pairs.values() for g in compared if g] + groups))
    size = (2.5 * len(pairs) + 1.6, 0.34 * len(groups) + 0.9)
    with _figure(name, size, columns=len(pairs)) as (figure, panels):
        rows = np.arange(len(groups))[::-1]
        for index, (axes, (title, compared)) in enumerate(zip(np.atleast_1d(panels), pairs.items(), strict=True)):
            axes.axvline(0, color=INK, lw=0.8)
            colour, marker = look(index)
            for row, group in zip(rows, groups, strict=True):
                one = compared.get(group)
                if one is None or one.mean is None:
                    continue
                style = {"color": colour, "alpha": 1.0 if holds(one) else 0.55}
                if one.low is not None:
                    axes.plot([one.low, one.high], [row, row], lw=2, **style)
                axes.plot([one.mean], [row], marker, ms=6, mfc=colour if holds(one) else "none", mec=colour)
            if "" in groups and len(groups) > 1:
                axes.axhline(0.5, color=FAINT, lw=0.6, alpha=0.6)
            axes.set_title(_short(title), fontsize=10)
            axes.grid(axis="x")
        np.atleast_1d(panels)[0].set_yticks(rows, [_short(label(g or "all")) for g in groups])
    said = (f"{t}: {_number(c[''].mean)}" for t, c in pairs.items() if "" in c)
    return _labelled(figure["svg"], "Paired differences over all: " + "; ".join(said))


def forest_plot(name: str, pairs: Mapping[str, Comparison]) -> str:
    """Draw the differences of many pairs over everything: a row a pair."""
    with _figure(name, (7.6, 0.3 * len(pairs) + 0.9)) as (figure, axes):
        rows = np.arange(len(pairs))[::-1]
        axes.axvline(0, color=INK, lw=0.8)
        for row, one in zip(rows, pairs.values(), strict=True):
            if one.mean is None:
                continue
            colour, marker = look(0)
            if one.low is not None:
                axes.plot([one.low, one.high], [row, row], lw=2, color=colour, alpha=1.0 if holds(one) else 0.55)
            axes.plot([one.mean], [row], marker, ms=6, mfc=colour if holds(one) else "none", mec=colour)
        axes.set_yticks(rows, [_short(title, 2 * LONGEST) for title in pairs])
        axes.grid(axis="x")
    return _labelled(figure["svg"], "; ".join(f"{title}: {_number(one.mean)}" for title, one in pairs.items()))


def holds(one: Comparison, level: float = 0.05) -> bool:
    """Say whether a difference stands after the correction for many comparisons (without one: its interval)."""
    return one.p_corrected < level if one.p_corrected is not None else one.clear


def _said(system: System, metric: str) -> str:
    found: Metric | None = system.metrics.get(metric)
    return f"{system.name} {_number(found.value) if found else 'not measured'} over all"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _short(name: str, most: int = LONGEST) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _labelled(svg: str, text: str) -> str:
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(text)}"', 1)


@contextmanager
def _figure(name: str, size: tuple[float, float], columns: int = 1) -> Any:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    result: dict[str, str] = {}
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        yield result, figure.subplots(1, columns, sharex=True, sharey=True)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    result["svg"] = _inline(text.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Cut an SVG file down to an element for HTML: no prolog, no comments, no fixed size, ids of its own.

    Only what stands inside a tag is changed: text between tags came from data.
    """
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    edges = [0, *(at for match in re.finditer(r"<[^>]*>", svg) for at in match.span()), len(svg)]
    parts = [svg[a:b] for a, b in pairwise(edges)]
    parts = [_tag(part, name) if part.startswith("<") else part for part in parts]
    return "".join(parts)


def _tag(tag: str, name: str) -> str:
    tag = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", tag)
    if tag.startswith("<svg"):
        tag = re.sub(r'\s+(width|height)="[^"]*"', "", tag)
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", tag).replace("xlink:href", "href")
    tag = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1 inherit", tag)
    return tag.replace(INK, "currentColor")
