"""Figures of the report as inline SVG that follows the page's light or dark theme.

Everything that is ink (text, axes, grid) is drawn in one marker colour and becomes `currentColor`; the systems have the
colours of Okabe and Ito, which colour-blind readers tell apart, and a shape of their own, which a grey print keeps.
"""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from physworld.paired import Difference

INK = "#010203"
FAINT = "#8c8c8c"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "D", "^", "v", "P")

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
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
    """Write a mechanism's name for people.

    >>> label("compressible_flow")
    'compressible flow'
    """
    return name.replace("_", " ")


def look(index: int) -> tuple[str, str]:
    """Give colour and marker of the n-th line; the first 36 all differ.

    >>> look(0) == look(6), look(0)[0] == look(6)[0]
    (False, True)
    """
    return COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def score_plot(scores: Mapping[str, Mapping[str, float]], systems: Sequence[str]) -> str:
    """Draw the systems' scores by mechanism, between the shuffled control and the autoencoder's floor."""
    with _figure("scores", (7.6, 0.42 * len(scores) + 1.1)) as (figure, axes):
        rows = np.arange(len(scores))[::-1]
        for row, values in zip(rows, scores.values(), strict=True):
            axes.plot([values["shuffled"], values["VAE"]], [row, row], color=FAINT, lw=5, alpha=0.35, zorder=1)
        axes.plot([], [], color=FAINT, lw=5, alpha=0.35, label="shuffled frames to VAE floor")
        offsets = np.linspace(0.18, -0.18, len(systems)) if len(systems) > 1 else np.zeros(1)
        for index, (system, offset) in enumerate(zip(systems, offsets, strict=True)):
            x = [values[system] for values in scores.values()]
            axes.plot(x, rows + offset, MARKERS[index], color=COLOURS[index], ms=6, label=system, zorder=3)
        axes.set_yticks(rows, [label(m) for m in scores])
        axes.set_xlim(-0.02, 1.03)
        axes.set_xlabel("continuous score")
        axes.grid(axis="x")
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, 1.16), ncols=4, columnspacing=1.2, handletextpad=0.4)
    return figure["svg"]


def difference_plot(comparisons: Sequence[Mapping[str, Difference]]) -> str:
    """Draw paired differences with their intervals, one panel a comparison, mechanisms as rows."""
    names = list(comparisons[0])
    size = (2.5 * len(comparisons) + 1.6, 0.34 * len(names) + 0.9)
    with _figure("differences", size, columns=len(comparisons)) as (figure, panels):
        rows = np.arange(len(names))[::-1]
        for index, (axes, compared) in enumerate(zip(np.atleast_1d(panels), comparisons, strict=True)):
            axes.axvline(0, color=INK, lw=0.8)
            for row, difference in zip(rows, compared.values(), strict=True):
                style = {"color": COLOURS[index], "alpha": 1.0 if difference.clear else 0.55}
                if difference.low is not None:
                    axes.plot([difference.low, difference.high], [row, row], lw=2, **style)
                filled = style["color"] if difference.clear else "none"
                axes.plot([difference.mean], [row], MARKERS[index], ms=6, mfc=filled, mec=style["color"])
            axes.axhline(0.5, color=FAINT, lw=0.6, alpha=0.6)
            axes.set_title(f"{next(iter(compared.values())).a} − {next(iter(compared.values())).b}", fontsize=10)
            axes.grid(axis="x")
            axes.set_xlabel("difference in score")
        np.atleast_1d(panels)[0].set_yticks(rows, [label(name) for name in names])
    return figure["svg"]


def loss_plot(stages: Sequence[tuple[str, Sequence[int], Sequence[float]]]) -> str:
    """Draw the loss of a training run, each stage with its own line, since each minimises something else."""
    with _figure("loss", (7.6, 2.4)) as (figure, axes):
        for index, (name, steps, losses) in enumerate(stages):
            colour, marker = look(index)
            axes.plot(steps, losses, f"{marker}-", color=colour, ms=3.5, lw=1.4, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("loss of the stage")
        axes.set_yscale("log")
        axes.grid(axis="y")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure["svg"]


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
    """Cut an SVG file down to an element for HTML: no prolog, no namespaces, no fixed size, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?)\s+width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\s+height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1 inherit", svg)
    return svg.replace(INK, "currentColor").replace("<svg", '<svg role="img" class="figure"', 1)
