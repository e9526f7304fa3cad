"""Shots of a file, and the clips that are cut from them with true, even times.

A cut is where the colours of two neighbouring frames differ *and* their pictures do: a flash changes the picture for a
frame only, a fast body leaves the colours. Frames are looked at small, one decoding pass over the file.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mmphysvideo.pipe.settings import Cut
from trainers import video

__all__ = ["Clip", "Shot", "clips_of", "load", "shots_of"]

SIDE = 48
PICTURE_CHANGE = 0.08
"""Mean difference of the small pictures (1: black to white) that a cut makes at least."""


@dataclass(frozen=True)
class Shot:
    """From `start_s` to `end_s` of a file whose frames come at `fps`."""

    start_s: float
    end_s: float
    fps: float


@dataclass(frozen=True)
class Clip:
    """Where a clip lies in its file: `frames` frames, every `stride`-th, from `start_s` on."""

    start_s: float
    frames: int
    stride: int
    fps: float
    height: int
    width: int


def shots_of(path: Path, cut: Cut) -> list[Shot]:
    """Split a file at its cuts."""
    small = video.choose(path, lambda times: np.arange(len(times)), each=_small)
    ends = [0, *_cuts(small.frames, cut.shot_change), len(small.frames)]
    fps = small.fps or 1.0
    return [
        Shot(float(small.times_s[a]), float(small.times_s[b - 1] + 1 / fps), fps) for a, b in pairwise(ends) if b > a
    ]


def clips_of(shot: Shot, size: tuple[int, int], cut: Cut) -> list[Clip]:
    """Windows of a shot, each 4n+1 frames long; none where it is too short."""
    stride = max(1, round(shot.fps / cut.fps))
    room = int((shot.end_s - shot.start_s) * shot.fps + 1e-6)
    height, width = _size(size, cut)
    found = []
    for window in range(cut.clips_per_shot):
        first = window * cut.frames * stride
        have = (room - first - 1) // stride + 1
        frames = min(cut.frames, have)
        frames -= (frames - 1) % 4
        if have < 1 or frames < cut.least_frames:
            break
        found.append(Clip(shot.start_s + first / shot.fps, frames, stride, shot.fps / stride, height, width))
    return found


def load(path: Path, clip: Clip) -> video.Decoded:
    """Decode a clip."""
    spec = video.ClipSpec(clip.frames, clip.fps, clip.height, clip.width, time_stride=1)
    return video.load(path, spec, start_s=clip.start_s)


def _size(size: tuple[int, int], cut: Cut) -> tuple[int, int]:
    height, width = size
    scale = min(1.0, cut.long_side / max(height, width))
    return tuple(max(cut.multiple, int(side * scale) // cut.multiple * cut.multiple) for side in (height, width))  # pyright: ignore[reportReturnType]


def _small(frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t _ _ 3"]:
    return np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in frames])


def _cuts(small: UInt8[np.ndarray, "t h w 3"], change: float) -> list[int]:
    """First frames of the shots after the first."""
    colours = np.stack([_histogram(frame) for frame in small])
    apart = 0.5 * np.abs(np.diff(colours, axis=0)).sum(1)
    moved = np.abs(np.diff(small.astype(np.float32), axis=0)).mean((1, 2, 3)) / 255
    found = []
    for t in np.flatnonzero((apart > change) & (moved > PICTURE_CHANGE)) + 1:
        begins = 0.5 * np.abs(colours[min(t + 1, len(colours) - 1)] - colours[t - 1]).sum()
        ends = 0.5 * np.abs(colours[t] - colours[max(t - 2, 0)]).sum()
        if min(begins, ends) > change / 2:  # else a flash: the frame after it is like the one before
            found.append(int(t))
    return found


def _histogram(frame: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " n"]:
    counts = cv2.calcHist([frame], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3).ravel()
    smooth = cv2.GaussianBlur(counts.reshape(8, 8, 8).reshape(8, 64), (3, 3), 0).ravel()
    return smooth / max(float(smooth.sum()), 1.0)
