"""Pictures for people: videos side by side under their names, and fields over time under the frames they belong to."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from .atomic import write_bytes

__all__ = ["beside", "rows", "save"]

HEADER = 28
"""Height of the strip of names in pixels."""
GAP = 16
"""Pixels between two videos."""


def beside(
    films: Sequence[UInt8[np.ndarray, "t h w 3"]], names: Sequence[str], *, scale: int = 1
) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Put videos side by side, enlarged by pixel copies, each under its name."""
    columns = []
    for film, name in zip(films, names, strict=True):
        panel = film.repeat(scale, 1).repeat(scale, 2)
        header = np.broadcast_to(_written(name, panel.shape[2]), (len(panel), HEADER, panel.shape[2], 3))
        gap = np.full((len(panel), HEADER + panel.shape[1], GAP, 3), 255, np.uint8)
        columns += [gap, np.concatenate([header, panel], 1)]
    return np.concatenate(columns[1:], 2)


def rows(
    fields: Mapping[str, Float[np.ndarray, "n y x"]],
    frames: Sequence[UInt8[np.ndarray, "h w 3"]],
    columns: Sequence[str],
    path: Path,
    title: str,
    *,
    signed: Sequence[str] = (),
) -> Path:
    """Draw fields over time, one row each by name, below the video's frames; write a PNG by rename.

    Each row has its own colour scale, printed at its right; those of `signed` are shown around white, a size from 0.
    A picture of a field stands exactly below its frame.
    """
    plt = _pyplot()
    tall = 1.2 * frames[0].shape[0] / frames[0].shape[1]
    figure, axes = plt.subplots(
        len(fields) + 1,
        len(columns)
        + 1,  # the last holds the colour bars: one that takes its place from a row shifts that row's pictures
        figsize=(1.2 * len(columns) + 3.2, (tall + 0.12) * (len(fields) + 1) + 0.9),
        squeeze=False,
        layout="constrained",
        width_ratios=[*[1.0] * len(columns), 0.08],
    )
    figure.suptitle(title, wrap=True, fontsize=9)
    axes[0][-1].set_axis_off()
    for axis, picture, name in zip(axes[0][:-1], frames, columns, strict=True):
        axis.imshow(picture)
        axis.set_title(name, fontsize=8)
    axes[0][0].set_ylabel("video", rotation=0, ha="right", va="center", fontsize=8)
    for line, (name, field) in zip(axes[1:], fields.items(), strict=True):
        low, high = float(field.min()), float(field.max())
        if name in signed:
            low, high = -max(-low, high), max(-low, high)
        elif low < 0.5 * high:
            low = 0.0  # a size: black is none
        limits = {"vmin": low, "vmax": high if high > low else low + 1}
        colours = "RdBu_r" if name in signed else "viridis"
        drawn = [axis.imshow(picture, cmap=colours, **limits) for axis, picture in zip(line[:-1], field, strict=True)]
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        figure.colorbar(drawn[0], cax=line[-1]).ax.tick_params(labelsize=7)
        line[-1].yaxis.get_offset_text().set_fontsize(7)
    for axis in axes[:, :-1].flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return save(figure, path)


def save(figure: Any, path: Path, *, dpi: int = 110) -> Path:
    """Write a figure of pyplot as PNG by rename, and close it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, bbox_inches="tight")
    _pyplot().close(figure)
    return write_bytes(path, content.getvalue())


def _written(text: str, width: int) -> UInt8[np.ndarray, "h w 3"]:
    _pyplot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, HEADER / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:HEADER, :width, :3].copy()


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ValueError("expected matplotlib for pictures: `uv pip install 'phystrainers[plots]'`") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
