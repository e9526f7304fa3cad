"""The demo in one picture: a row a mechanism, a block a source, frames from left to right.

The first clip of each mechanism is shown, not the best. Frames are enlarged by pixel copies: at 32 pixels an
interpolation's blur would be read as the model's.
"""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from bench.demo import Result
from bench.measure import held_out_clips

FRAMES = 5
ENLARGE = 3
GAP = 2
WHITE = 255


def save_picture(result: Result, path: Path, sources: tuple[str, ...] | None = None) -> Path:
    """Draw real clips beside every system's clips of the same captions; the file appears whole or not at all."""
    shown = sources or ("real", *result.systems)
    strips = {m: [strip(result.videos[m][source][0]) for source in shown] for m in result.scored}
    height, width = next(iter(strips.values()))[0].shape[:2]
    figure = Figure(figsize=(len(shown) * width / 100 + 0.4, len(strips) * (height / 100 + 0.24) + 0.3), dpi=100)
    axes = figure.subplots(len(strips), len(shown), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.955, bottom=0.005, wspace=0.03, hspace=0.3)
    for row, (mechanism, clips) in zip(axes, strips.items(), strict=True):
        for panel, clip in zip(row, clips, strict=True):
            panel.imshow(clip, interpolation="nearest")
            panel.axis("off")
        caption = held_out_clips(mechanism, 1, result.setting.split)[0].caption
        row[0].set_title(f"“{caption}”", fontsize=8, loc="left", pad=3)
    for column, source in enumerate(shown):
        box = axes[0, column].get_position()
        name = "simulated (real)" if source == "real" else source
        figure.text((box.x0 + box.x1) / 2, 0.985, name, ha="center", va="center", fontsize=10, weight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    figure.savefig(part, format="png")
    part.replace(path)
    return path


def strip(video: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Lay evenly spaced frames side by side with white lines between them.

    >>> strip(np.zeros((17, 32, 32, 3), np.uint8)).shape
    (96, 488, 3)
    """
    chosen = video[np.linspace(0, len(video) - 1, FRAMES).round().astype(int)]
    large = chosen.repeat(ENLARGE, axis=1).repeat(ENLARGE, axis=2)
    padded = np.pad(large, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=WHITE)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]
