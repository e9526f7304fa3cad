"""A contact sheet: one row a clip, its frames side by side, its caption above, enlarged without smoothing.

Pixels stay squares, because at 32 pixels the eye would otherwise read an interpolation's blur as the model's.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

GAP = 2
"""White pixels between frames."""


def save_sheet(
    path: Path,
    rows: Sequence[tuple[str, UInt8[np.ndarray, "t h w 3"]]],
    *,
    title: str = "",
    frames: int = 9,
) -> Path:
    """Draw clips with their captions as a PNG, `frames` evenly spaced frames of each.

    Raises:
        ValueError: if there is no clip.
    """
    if not rows:
        raise ValueError(f"{path.name}: expected at least one clip to draw, got none")
    from matplotlib.figure import Figure

    strips = [strip(video, frames) for _, video in rows]
    height, width = strips[0].shape[:2]
    inches = width / 26  # about four screen pixels a clip's pixel at 110 dpi
    figure = Figure(figsize=(inches, len(rows) * (inches * height / width + 0.3) + 0.4), layout="constrained", dpi=110)
    if title:
        figure.suptitle(title, fontsize=11)
    for axes, (caption, _), picture in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strips, strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(caption, fontsize=9, loc="left", pad=3)
        axes.axis("off")
    from trainers import write_bytes

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return write_bytes(path, drawn.getvalue())


def strip(video: UInt8[np.ndarray, "t h w 3"], frames: int) -> UInt8[np.ndarray, "h w2 3"]:
    """Lay evenly spaced frames side by side.

    >>> strip(np.zeros((17, 32, 32, 3), np.uint8), 3).shape
    (32, 100, 3)
    """
    chosen = video[np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)]
    padded = np.pad(chosen, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]
