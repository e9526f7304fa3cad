"""Pictures for people: videos side by side under their names, and fields over time under the frames they belong to."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from . import show, video
from .atomic import write_bytes, write_text

__all__ = ["beside", "rows", "sampled", "save", "tell", "write"]

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


def sampled(
    name: str, make: Callable[[bool, show.Bar], Tensor], *, compare: bool, quiet: bool = False
) -> dict[str, UInt8[np.ndarray, "t h w 3"]]:
    """Sample one video, and to `compare` that of the base before it, each under a bar of its steps.

    `make(trained, watch)` gives (1, 3, t, h, w) in [-1, 1], of what was trained or of the base.
    """
    films: dict[str, Any] = {}
    for who, trained in (("base", False), (name, True)) if compare else ((name, True),):
        with show.bar(f"sample {who} (steps)", quiet=quiet) as bar:
            films[who] = video.to_bytes(make(trained, bar)[0])
    return films


def write(path: Path, films: Mapping[str, UInt8[np.ndarray, "t h w 3"]], fps: float | int) -> Path:
    """Write a video; several stand side by side under their names. A tiny one is enlarged by pixel copies so that a
    player shows it.
    """
    first, *others = films.values()
    scale = video.enlarged(first.shape[1])
    if not others:
        return video.write(path, first, fps, scale=scale)
    return video.write(path, beside(list(films.values()), list(films), scale=scale), fps)


def tell(
    path: Path,
    *,
    prompt: str,
    seed: int,
    shows: Sequence[str],
    backbone: Any,
    trained: Any,
    packages: Sequence[str],
    **own: Any,
) -> Path:
    """Write the json beside a video: all that made it. `shows` are the names from left to right; `trained` has an
    `origin` (its bundle) and a `recipe`; of `packages` the versions are noted.
    """
    about = {
        "prompt": prompt,
        "seed": seed,
        "shows": list(shows),
        **own,
        "backbone": {"id": backbone.id, "digest": backbone.digest},
        "bundle": trained.origin,
        "config": trained.recipe.model_dump(mode="json"),
        "versions": {name: version(name) for name in packages},
    }
    return write_text(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")


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
