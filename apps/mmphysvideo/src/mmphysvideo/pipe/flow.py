"""Tracks from optical flow alone: seeds in each body, followed by pyramidal Lucas-Kanade on the body cut out of its
surroundings.

A window at a body's rim holds background as well and would be dragged by it, so flow is measured between pictures that
show the body alone, its rim faded by how much of it covers a pixel, over one even colour. A seed first goes from frame
to frame; then it is sought in the frame directly from where it was first seen, starting there, which takes the drift
away where the body has not turned too far. Seeds that flow cannot hold (even surfaces, edges) move with the
similarity that the good ones of their body agree on, or with the outline's centre where there are too few.

References: Lucas and Kanade (1981); pyramids: Bouguet (2000); forward-backward check: Kalal et al. (2010).
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from mmphysvideo.perception import Tracks

__all__ = ["seeds_of", "tracks_of"]

SEEDS = 64
"""Seeds of a body, about; the grid's pitch follows from its area, and is at least `PITCH` pixels."""
PITCH = 3
AGREE_PX = 0.6
"""Forward and backward flow may differ by this much: our choice."""
STRAY_PX = 1.5
"""A good seed may differ from its body's similarity by this much, plus a tenth of its speed."""
RESEED = 0.5
"""Share of a body's pixels out of reach of any visible seed above which new ones are set."""


def tracks_of(frames: UInt8[np.ndarray, "t h w 3"], masks: UInt8[np.ndarray, "t h w"]) -> Tracks:
    """Follow points of every labelled body through all frames; a body that grows or turns gets new ones."""
    parts = [_body(frames, masks == k, k) for k in range(1, int(masks.max(initial=0)) + 1)]
    parts = [part for part in parts if len(part)]
    t = len(frames)
    if not parts:
        return Tracks(np.zeros((0, t, 2), np.float32), np.zeros((0, t), bool), np.zeros(0, np.uint8))
    return Tracks(
        np.concatenate([p.position for p in parts]),
        np.concatenate([p.visible for p in parts]),
        np.concatenate([p.subject for p in parts]),
    )


def _body(frames: UInt8[np.ndarray, "t h w 3"], mask: Bool[np.ndarray, "t h w"], label: int) -> Tracks:
    t = len(frames)
    position, visible = np.zeros((0, t, 2), np.float32), np.zeros((0, t), bool)
    present = np.flatnonzero(mask.any((1, 2)))
    if not len(present):
        return Tracks(position, visible, np.zeros(0, np.uint8))
    pictures, window = _cut_out(frames, mask)
    born = np.zeros(0, int)
    for k in present:
        live = np.isfinite(position[:, k - 1]).all(1) if k else np.zeros(len(born), bool)
        if live.any():  # points of a body that was out of sight have been lost; it gets new ones
            position[live, k], visible[live, k] = _advanced(pictures, mask, position[live], born[live], int(k), window)
        seeds = seeds_of(mask[k], position[visible[:, k], k])
        if len(seeds):
            more = np.full((len(seeds), t, 2), np.nan, np.float32)
            more[:, k] = seeds
            seen = np.zeros((len(seeds), t), bool)
            seen[:, k] = True
            position, visible = np.concatenate([position, more]), np.concatenate([visible, seen])
            born = np.concatenate([born, np.full(len(seeds), k)])
    return Tracks(position, visible, np.full(len(position), label, np.uint8))


def _cut_out(
    frames: UInt8[np.ndarray, "t h w 3"], mask: Bool[np.ndarray, "t h w"]
) -> tuple[list[UInt8[np.ndarray, "h w"]], int]:
    """Grey pictures of the body alone over the grey that differs most from it, and the window's side for its size."""
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    ground = 0.0 if np.median(grey[mask]) > 127 else 255.0
    pictures = []
    for one, inside in zip(grey, mask, strict=True):
        soft = cv2.GaussianBlur(inside.astype(np.float32), (3, 3), 0)
        solid = _grown(one, inside)
        pictures.append(np.rint(soft * solid + (1 - soft) * ground).astype(np.uint8))
    size = np.sqrt(np.median(mask.sum((1, 2))[mask.any((1, 2))]))
    return pictures, int(np.clip(round(size) | 1, 7, 21))


def _grown(grey: UInt8[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """The body's own colours carried a pixel over its rim, whose pixels are mixtures."""
    core = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32)
    weight = cv2.blur(core, (3, 3))
    mean = cv2.blur(grey * core, (3, 3)) / np.maximum(weight, 1e-6)
    return np.where((core == 0) & (weight > 0), mean, grey).astype(np.float32)


def seeds_of(mask: Bool[np.ndarray, "h w"], taken: Float32[np.ndarray, "n 2"]) -> Float32[np.ndarray, "m 2"]:
    """A grid of new seeds where no visible one is near; none while enough of the body is in reach of one."""
    area = int(mask.sum())
    pitch = max(PITCH, round(np.sqrt(area / SEEDS)))
    free = mask
    if len(taken):
        near = np.zeros(mask.shape, np.uint8)
        y, x = np.rint(taken).astype(int).T
        near[y.clip(0, mask.shape[0] - 1), x.clip(0, mask.shape[1] - 1)] = 1
        reach = 2 * pitch + 1
        free = mask & (cv2.dilate(near, np.ones((reach, reach), np.uint8)) == 0)
        if free.sum() < RESEED * area:
            return np.zeros((0, 2), np.float32)
    pixels = np.argwhere(free)
    on = pixels[(pixels % pitch == pitch // 2).all(1)]
    if not len(on) and not len(taken):
        on = np.rint(pixels.mean(0, keepdims=True)).astype(int)
    return on.astype(np.float32)


def _advanced(
    pictures: list[UInt8[np.ndarray, "h w"]],
    mask: Bool[np.ndarray, "t h w"],
    position: Float32[np.ndarray, "n t 2"],
    born: np.ndarray,
    k: int,
    window: int,
) -> tuple[Float32[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Where seeds that have a place in the frame before are in frame k, and whether they are on the body there."""
    before = position[:, k - 1]
    centre = np.zeros(2, np.float32)
    if mask[k].any() and mask[k - 1].any():
        centre = (np.argwhere(mask[k]).mean(0) - np.argwhere(mask[k - 1]).mean(0)).astype(np.float32)
    chain, good = _flow(pictures[k - 1], pictures[k], before, before + centre, window)
    there = np.where(good[:, None], chain, before + centre)
    there, held = _agreed(before, there, good)
    for first in np.unique(born):  # from where it was first seen: no drift
        own = born == first
        start = position[own, first]
        direct, sure = _flow(pictures[first], pictures[k], start, there[own], window)
        near = np.linalg.norm(direct - there[own], axis=-1) < STRAY_PX
        there[own] = np.where((sure & near)[:, None], direct, there[own])
    held |= good
    y, x = np.rint(there).astype(int).T
    h, w = mask.shape[1:]
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    grown = cv2.dilate(mask[k].astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    on = inside & grown[y.clip(0, h - 1), x.clip(0, w - 1)]
    return there.astype(np.float32), on & held


def _flow(
    a: UInt8[np.ndarray, "h w"],
    b: UInt8[np.ndarray, "h w"],
    start: Float32[np.ndarray, "n 2"],
    guess: Float32[np.ndarray, "n 2"],
    window: int,
) -> tuple[Float32[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Lucas-Kanade from `start` in a to b, begun at `guess`; good where the way back ends where it began."""
    options = {
        "winSize": (window, window),
        "maxLevel": 2,
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.003),
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
        "minEigThreshold": 1e-3,
    }
    points = np.ascontiguousarray(start[:, None, ::-1], np.float32)
    begun = np.ascontiguousarray(guess[:, None, ::-1], np.float32)
    there, found, _ = cv2.calcOpticalFlowPyrLK(a, b, points, begun, **options)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(b, a, there, points.copy(), **options)
    good = (found.ravel() == 1) & (returned.ravel() == 1)
    good &= np.linalg.norm(back - points, axis=-1).ravel() < AGREE_PX
    return there[:, 0, ::-1].astype(np.float32), good


def _agreed(
    before: Float32[np.ndarray, "n 2"], there: Float32[np.ndarray, "n 2"], good: Bool[np.ndarray, " n"]
) -> tuple[Float32[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Seeds that flow lost, moved with the similarity of the others; and which of them that holds."""
    if good.sum() < 4:
        if good.any():
            there = np.where(good[:, None], there, before + np.median((there - before)[good], axis=0))
        return there, np.ones(len(good), bool)
    cv2.setRNGSeed(0)
    motion, inliers = cv2.estimateAffinePartial2D(
        before[good].astype(np.float64), there[good].astype(np.float64), ransacReprojThreshold=1.0
    )
    if motion is None or inliers.mean() < 0.5:
        return there, good  # no rigid body: only flow itself is to be trusted
    moved = before @ motion[:, :2].T + motion[:, 2]
    speed = np.linalg.norm(moved - before, axis=-1)
    off = np.linalg.norm(there - moved, axis=-1) > STRAY_PX + 0.1 * speed
    return np.where((~good | off)[:, None], moved, there).astype(np.float32), np.ones(len(good), bool)
