"""Where bodies are, frame by frame: read from a file, or found in a film by colour.

Positions are (t, bodies, 2) as (y, x) in pixels, y down, with NaN where a body is out of sight; times are in seconds.

Files: npz with `position` (t, 2) or (t, bodies, 2) and `fps` or `times_s`; csv with a row a body and frame, columns
`frame` (or `time_s`), `y`, `x` and, of several bodies, `body`. An empty cell is a body out of sight.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

__all__ = ["Tracks", "by_colour", "read"]

Film = UInt8[np.ndarray, "t h w 3"]


@dataclass(frozen=True)
class Tracks:
    """Positions of bodies over time. `pieces` counts what was found of each colour (1: one body), `area` its pixels;
    both are None where the positions come from a file."""

    position: Float[np.ndarray, "t n 2"]
    times_s: Float[np.ndarray, " t"]
    pieces: Int[np.ndarray, "t n"] | None = None
    area: Float[np.ndarray, "t n"] | None = None

    @property
    def vanished(self) -> float:
        """Share of frames in which at least one body is out of sight."""
        return float(np.isnan(self.position).any((1, 2)).mean())

    @property
    def doubled(self) -> float:
        """Share of frames in which at least one body is there more than once; 0 where that is not known."""
        return float((self.pieces > 1).any(1).mean()) if self.pieces is not None else 0.0

    @property
    def spread_px(self) -> float:
        """Root mean square distance from its mean position of the body that moves most."""
        apart = self.position - np.nanmean(self.position, 0) if np.isfinite(self.position).any() else self.position
        squares = (apart**2).sum(-1)
        return float(np.sqrt(max((s[np.isfinite(s)].mean() for s in squares.T if np.isfinite(s).any()), default=0.0)))


def by_colour(
    frames: Film, colours: Sequence[tuple[int, int, int]], *, fps: float | int, tolerance: float | int = 80
) -> Tracks:
    """Follow one body of each colour (R, G, B): the largest connected piece of pixels that are near it.

    A pixel at distance d from the colour weighs max(0, 1 - d / tolerance), which keeps the centre's fraction of a
    pixel. Pieces below a tenth of the largest are not counted.

    >>> film = np.zeros((2, 8, 8, 3), np.uint8)
    >>> film[0, 2:4, 2:4] = film[1, 2:4, 3:5] = (200, 0, 0)
    >>> by_colour(film, [(200, 0, 0)], fps=10).position[:, 0].tolist()
    [[2.5, 2.5], [2.5, 3.5]]
    """
    shape = (len(frames), len(colours))
    position, pieces, area = np.full((*shape, 2), np.nan), np.zeros(shape, int), np.zeros(shape)
    for t, frame in enumerate(frames):
        for n, colour in enumerate(colours):
            distance = np.linalg.norm(frame.astype(np.float32) - np.asarray(colour, np.float32), axis=-1)
            weight = np.clip(1 - distance / tolerance, 0, None)
            _, labels, stats, _ = cv2.connectedComponentsWithStats((weight > 0).astype(np.uint8), connectivity=8)
            sizes = stats[1:, cv2.CC_STAT_AREA]
            if not len(sizes):
                continue
            largest = int(sizes.argmax())
            pieces[t, n] = int((sizes >= sizes[largest] / 10).sum())
            rows, columns = np.nonzero(labels == largest + 1)
            w = weight[rows, columns]
            position[t, n] = (w @ rows, w @ columns) / w.sum()
            area[t, n] = w.sum()
    return Tracks(position, np.arange(len(frames)) / fps, pieces, area)


def read(path: Path, *, fps: float | int | None = None) -> Tracks:
    """Read a track file; `fps` where the file has frame numbers and no rate. ValueError for what is none."""
    try:
        found = _npz(path, fps) if path.suffix == ".npz" else _csv(path, fps)
    except (OSError, KeyError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"expected a track file (npz or csv) at {path}, got {error!r}") from None
    if found.position.ndim != 3 or found.position.shape[-1] != 2 or len(found.position) != len(found.times_s):
        raise ValueError(f"expected position (t, bodies, 2) and as many times in {path}, got {found.position.shape}")
    if len(found.times_s) < 2 or (np.diff(found.times_s) <= 0).any():
        raise ValueError(f"expected two rising times or more in {path}")
    return found


def _npz(path: Path, fps: float | int | None) -> Tracks:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
        position = np.asarray(held["position"], float)
        position = position[:, None] if position.ndim == 2 else position
        if "times_s" in held:
            return Tracks(position, np.asarray(held["times_s"], float))
        rate = float(held["fps"]) if "fps" in held else fps
    return Tracks(position, _even(len(position), rate, path))


def _csv(path: Path, fps: float | int | None) -> Tracks:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    when = "time_s" if rows and "time_s" in rows[0] else "frame"
    if not rows or any(key not in rows[0] for key in (when, "y", "x")):
        raise ValueError(
            f"expected the columns frame (or time_s), y and x in {path}, got {list(rows[0]) if rows else []}"
        )
    moments = sorted({float(row[when]) for row in rows})
    bodies = sorted({row.get("body") or "" for row in rows})
    position = np.full((len(moments), len(bodies), 2), np.nan)
    for row in rows:
        if (row["y"] or "").strip() and (row["x"] or "").strip():
            at = moments.index(float(row[when])), bodies.index(row.get("body") or "")
            position[at] = float(row["y"]), float(row["x"])
    if when == "time_s":
        return Tracks(position, np.array(moments))
    return Tracks(position, np.array(moments) / _rate(fps, path))


def _even(count: int, fps: float | int | None, path: Path) -> np.ndarray:
    return np.arange(count) / _rate(fps, path)


def _rate(fps: float | int | None, path: Path) -> float:
    if fps is None or not fps > 0:
        raise ValueError(f"expected times_s or fps in {path}, or --fps")
    return float(fps)
