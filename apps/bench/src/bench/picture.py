"""A result in one picture: a row a group, a block a source, frames from left to right.

The first clip of each group is shown, not the best. Frames are enlarged or thinned by whole pixels: at 32 pixels an
interpolation's blur would be read as the model's.
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from bench import results
from bench.results import video_path
from trainers import video, write_bytes

FRAMES = 5
SIDE = 96
"""Pixels of a frame, about (our choice)."""
GAP = 2
WHITE = 255


def save_picture(folder: Path, path: Path, sources: tuple[str, ...] | None = None) -> Path:
    """Draw real clips beside every system's clips of the same prompts; the file appears whole or not at all."""
    result = results.read(folder)
    systems = [s.name for s in result.systems if s.role == "system"]
    shown = sources or ("real", *systems)
    rows: dict[str, tuple[str, list[np.ndarray]]] = {}
    for group in dict.fromkeys(group for s in result.systems for group in s.groups):
        items = [next(i for i in result.system(name).items if i.group == group) for name in shown]
        films = [video_path(folder, item) for item in items]
        rows[group] = (items[0].prompt, [strip(video.read(film).frames) for film in films if film is not None])
    height, width = next(iter(rows.values()))[1][0].shape[:2]
    figure = Figure(figsize=(len(shown) * width / 100 + 0.4, len(rows) * (height / 100 + 0.24) + 0.3), dpi=100)
    axes = figure.subplots(len(rows), len(shown), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.955, bottom=0.005, wspace=0.03, hspace=0.3)
    for row, (prompt, strips) in zip(axes, rows.values(), strict=True):
        for panel, drawn in zip(row, strips, strict=True):
            panel.imshow(drawn, interpolation="nearest")
            panel.axis("off")
        row[0].set_title(f"“{prompt}”", fontsize=8, loc="left", pad=3, parse_math=False)
    for column, source in enumerate(shown):
        box = axes[0, column].get_position()
        name = "simulated (real)" if source == "real" else source
        figure.text((box.x0 + box.x1) / 2, 0.985, name, ha="center", va="center", fontsize=10, weight="bold")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return write_bytes(path, content.getvalue())


def strip(film: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Lay evenly spaced frames side by side with white lines between them.

    >>> strip(np.zeros((17, 32, 32, 3), np.uint8)).shape
    (96, 488, 3)
    """
    chosen = film[np.linspace(0, len(film) - 1, FRAMES).round().astype(int)]
    larger, thinner = max(1, SIDE // film.shape[1]), max(1, film.shape[1] // SIDE)
    frames = chosen[:, ::thinner, ::thinner].repeat(larger, axis=1).repeat(larger, axis=2)
    padded = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=WHITE)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]
