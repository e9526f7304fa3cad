"""What a camera at rest sees when nothing moves, and where something does: the ground of motion segmentation.

A pixel's colours over a clip form groups; one is the background. The most frequent one need not be it: a body that
rests for most of the clip owns its pixels. So the decision starts at pixels that never change and goes inwards ring by
ring: a pixel takes the colour of its own past or future that is frequent *and* goes on from its neighbours' background.
What differs from it is in front. Pixels that are covered in every frame never show a background: a colour that does not
go on from its surroundings, inside a region that changes, is taken to be in front as well.

Colours are 0..255; differences are the largest over channels.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

__all__ = ["Background", "background_of", "foreground_of", "noise_of"]

LEAST_NOISE = 1.5
"""Floor of the noise in levels: a lossless film of flat colours has none."""
CHANGE = 6.0
"""A pixel changes when its range over the clip is this many times the noise, and `LEAST_CHANGE` levels."""
LEAST_CHANGE = 14.0
SHADOW = 0.6
"""Least share of the background's light that is left in a shadow: our choice."""
EIGHT = np.ones((3, 3), int)
GROUPS = 24
"""At most so many frames, evenly spaced, are asked for a pixel's colours."""
WINDOW = 5
"""Side of the neighbourhood that a background goes on from, pixels."""


@dataclass(frozen=True)
class Background:
    """The empty scene; `known` where some frame shows it; `noise` in levels; `least` the smallest visible change."""

    picture: Float32[np.ndarray, "h w 3"]
    known: Bool[np.ndarray, "h w"]
    noise: float
    least: float


def largest(colours: Float32[np.ndarray, "*s 3"]) -> Float32[np.ndarray, "*s"]:
    """The largest channel; numpy's own maximum over an axis of three is twenty times slower."""
    return np.maximum(np.maximum(colours[..., 0], colours[..., 1]), colours[..., 2])


def noise_of(frames: Float32[np.ndarray, "t h w 3"]) -> float:
    """Standard deviation of a pixel's colour from frame to frame where nothing moves, in levels (robust)."""
    if len(frames) < 2:
        return LEAST_NOISE
    gaps = np.abs(np.diff(frames[:, ::2, ::2], axis=0))
    return max(LEAST_NOISE, float(np.median(gaps)) * 1.4826 / np.sqrt(2))


def background_of(frames: Float32[np.ndarray, "t h w 3"], seen: Bool[np.ndarray, "t h w"]) -> Background:
    """Find the background of frames that lie on one another; `seen` is false where a moved camera shows nothing."""
    noise = noise_of(frames)
    least = max(CHANGE * noise, LEAST_CHANGE)
    high = np.where(seen[..., None], frames, -np.inf).max(0)
    low = np.where(seen[..., None], frames, np.inf).min(0)
    span = largest(high - low)
    changing = span > least
    reach = max(1, round(min(changing.shape) / 120))
    closed = cv2.morphologyEx(changing.astype(np.uint8), cv2.MORPH_CLOSE, _disk(reach)).astype(bool)
    unknown: Any = ndimage.binary_fill_holes(closed)
    picture = _median(frames, seen)
    known = ~unknown
    if not known.any():  # everything changes: the median is all there is
        return Background(picture, np.ones_like(known), noise, least)
    doubtful, place = np.zeros_like(known), np.cumsum(unknown).reshape(unknown.shape) - 1
    values, counts = _groups(frames[:, unknown], seen[:, unknown], least)
    while True:
        ring = unknown & ~known & ~doubtful & cv2.dilate(known.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        if not ring.any():
            break
        mean, spread = _around(picture, known, ring)
        spread, at = np.maximum(spread, 2 * noise + 2), place[ring]
        distance = largest(np.abs(values[:, at] - mean))
        best = (distance / spread - np.log(np.maximum(counts[:, at], 1e-9))).argmin(0)
        value, gap = values[best, at], np.take_along_axis(distance, best[None], 0)[0]
        fits = gap <= np.maximum(3 * spread, least)
        pixels = np.argwhere(ring)
        picture[tuple(pixels[fits].T)] = value[fits]
        known[tuple(pixels[fits].T)] = True
        doubtful[tuple(pixels[~fits].T)] = True
    regions, count = ndimage.label(~known, EIGHT)  # pyright: ignore[reportGeneralTypeIssues]
    for region in range(1, count + 1):
        if not _covered(frames, picture, known, regions == region, least):
            known |= regions == region  # an edge of the background itself: the median stands
    return Background(picture, known, noise, least)


def _covered(
    frames: Float32[np.ndarray, "t h w 3"],
    picture: Float32[np.ndarray, "h w 3"],
    known: Bool[np.ndarray, "h w"],
    region: Bool[np.ndarray, "h w"],
    least: float,
) -> bool:
    """Whether a region that nothing uncovers belongs to a body: it stands out from its neighbours while they show the
    background, and goes on from them while they are covered."""
    empty, hidden = [], []
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        beside = np.argwhere(region & np.roll(known, step, axis))
        other = beside.copy()
        other[:, axis] -= step
        inside = (other >= 0).all(1) & (other < known.shape).all(1)
        beside, other = tuple(beside[inside].T), tuple(other[inside].T)
        edge = largest(np.abs(frames[:, *beside] - frames[:, *other]))
        bare = largest(np.abs(frames[:, *other] - picture[other])) < least
        empty.append(edge[bare])
        hidden.append(edge[~bare])
    edges, covered = np.concatenate(empty), np.concatenate(hidden)
    if not len(edges) or not len(covered):
        return False
    return float(edges.mean()) > max(1.5 * float(covered.mean()), least)


def foreground_of(
    frames: Float32[np.ndarray, "t h w 3"], seen: Bool[np.ndarray, "t h w"], background: Background
) -> Bool[np.ndarray, "t h w"]:
    """Where each frame shows something in front of the background.

    A rim pixel is a mixture; it belongs to the body when its difference is at least half of what the body's own pixels
    nearby differ by, so that the outline lies where half a pixel is covered.
    """
    found = np.zeros(frames.shape[:3], bool)
    for t, frame in enumerate(frames):
        difference = largest(np.abs(frame - background.picture))
        difference[~background.known] = 255.0
        difference[_shadow(frame, background)] = 0.0
        contrast = ndimage.maximum_filter(difference, size=5)
        inside = difference > background.least / 2
        rim = np.logical_and(inside, np.logical_not(ndimage.binary_erosion(inside, EIGHT, iterations=2)))
        weak = np.logical_and(rim, difference < 0.5 * contrast)
        front = np.logical_and(difference > background.least, np.logical_not(weak))
        found[t] = ndimage.binary_fill_holes(front) & seen[t]
    return found


def _shadow(frame: Float32[np.ndarray, "h w 3"], background: Background) -> Bool[np.ndarray, "h w"]:
    """Where a frame is the background made evenly darker, by no more than `SHADOW`."""
    size = np.square(background.picture).sum(-1)
    share = (frame * background.picture).sum(-1) / np.maximum(size, 1.0)
    left = largest(np.abs(frame - share[..., None] * background.picture))
    bright = largest(background.picture) > 4 * background.least  # in the dark everything looks like a shadow
    return background.known & bright & (share < 1) & (share > SHADOW) & (left < background.least / 2)


def _median(frames: Float32[np.ndarray, "t h w 3"], seen: Bool[np.ndarray, "t h w"]) -> Float32[np.ndarray, "h w 3"]:
    if seen.all():
        return np.median(frames, axis=0).astype(np.float32)
    hidden = np.ma.masked_array(frames, mask=np.broadcast_to(~seen[..., None], frames.shape))
    return np.ma.median(hidden, axis=0).filled(0).astype(np.float32)


def _around(
    picture: Float32[np.ndarray, "h w 3"], known: Bool[np.ndarray, "h w"], ring: Bool[np.ndarray, "h w"]
) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, " n"]]:
    """Mean and spread of the known background in the window around each pixel of a ring."""
    weight = known.astype(np.float32)
    count = cv2.boxFilter(weight, -1, (WINDOW, WINDOW), normalize=False)[ring][:, None]
    total = cv2.boxFilter(picture * weight[..., None], -1, (WINDOW, WINDOW), normalize=False)[ring]
    square = cv2.boxFilter(np.square(picture) * weight[..., None], -1, (WINDOW, WINDOW), normalize=False)[ring]
    count = np.maximum(count, 1.0)
    mean = total / count
    return mean, np.sqrt(np.maximum(square / count - np.square(mean), 0).max(-1))


def _groups(
    colours: Float32[np.ndarray, "t n 3"], visible: Bool[np.ndarray, "t n"], least: float
) -> tuple[Float32[np.ndarray, "k n 3"], Float32[np.ndarray, "k n"]]:
    """The colours of each pixel that are like its colour in one of k frames: their mean and how many they are."""
    t, n = visible.shape
    chosen = np.unique(np.linspace(0, t - 1, min(t, GROUPS)).round().astype(int))
    values, counts = np.empty((len(chosen), n, 3), np.float32), np.empty((len(chosen), n), np.float32)
    planes = np.ascontiguousarray(np.moveaxis(colours, -1, 0))
    for first in range(0, n, 4096):  # what is compared stays in the processor's cache
        part = slice(first, first + 4096)
        red, green, blue = c = planes[..., part]
        v = visible[:, part]
        for k, frame in enumerate(chosen):
            same = np.abs(red - red[frame]) < least / 2
            same &= np.abs(green - green[frame]) < least / 2
            same &= np.abs(blue - blue[frame]) < least / 2
            same &= v & v[frame]
            counts[k, part] = same.sum(0)
            values[k, part] = (np.where(same, c, 0).sum(1) / np.maximum(counts[k, part], 1)).T
    return values, counts


def _disk(radius: int) -> UInt8[np.ndarray, "k k"]:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)).astype(np.uint8)
