"""Perception as pseudo-RGB: masks, point maps and tracks as a video that a frozen video autoencoder can encode.

Four codings, all (t, h, w, 3) with colours in -1..1 (`PseudoRGB.signal`) or as bytes:

- `seg`: each subject in one colour of `colours`, the background grey.
- `xyz`: the point map, X, Y, Z of each pixel as red, green, blue within the clip's bounds (`Space`).
- `track`: inside subjects, x, y and the time of the place where the surface point was first seen; black elsewhere.
- `unified`: inside subject k, the X, Y, Z at which the surface point was first seen, normalised, within k's cell of the
  colour cube; on the background, X, Y, Z of the present frame within the small grey cell (reduced saturation). One
  picture says who (the cell), where (the place in it) and what corresponds over time (a point keeps its colour).

`decode` goes back. What a coding does not say is None: `seg` holds no points, `unified` no depth of a subject after its
first frame. Every colour also has a distance from the nearest one that the coding can produce (`Decoded.off`): the
error that can be known without the truth; `compare` gives the others. The unified format is our reading of the paper's
figures.

References: MMPhysVideo (Lin et al., 2026); random colours for subjects: UDPDiff (2025); carried colours: Diffusion as
Shader (Gu et al., 2025).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy import ndimage

from mmphysvideo.colours import CELLS, GREY, MOST, NAMES, SIDE, middle
from mmphysvideo.perception import Perception, Space, Tracks, spread

__all__ = ["MODALITIES", "Coding", "Decoded", "Errors", "Modality", "PseudoRGB", "compare", "decode", "encode"]

Modality = Literal["unified", "xyz", "seg", "track"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
TIME_FLOOR = 0.25
"""Blue of the first frame in `track`: keeps a point in the upper left corner apart from the black background."""
WIDTH_PX = (1.5, 8.0)
"""Bounds of the width of the neighbourhood in which a decoded track is fitted, a third of a subject's size: our
choice."""
STEPS, DAMPING, RIM_PX = 3, 0.05, 5.0
"""Newton's steps, their damping (slopes are about 1 where X, Y are pixels), and how deep a codec's mixing of colours
reaches into a subject: our choice."""
PIXELS = 4096
"""At most so many pixels of a subject are looked at in a frame when tracks are decoded."""


@dataclass(frozen=True)
class Coding:
    """What a pseudo-RGB video means: enough to decode it. Plain JSON by `asdict`, back by `Coding.of`."""

    modality: Modality
    space: Space
    subjects: tuple[str, ...]
    cells: tuple[int, ...]
    """The cell of `colours.NAMES` that each subject has."""

    @classmethod
    def of(cls, about: dict[str, Any]) -> "Coding":
        """Read what `PseudoRGB.about` wrote."""
        space = about["space"]
        bounds = tuple(space["low"]), tuple(space["high"]), space["focal_px"]
        return cls(about["modality"], Space(*bounds), tuple(about["subjects"]), tuple(about["cells"]))


@dataclass(frozen=True)
class PseudoRGB:
    """A perception video as bytes, and what its colours mean."""

    frames: UInt8[np.ndarray, "t h w 3"]
    coding: Coding

    @property
    def signal(self) -> Float32[np.ndarray, "t h w 3"]:
        """The video in -1..1, as a video autoencoder takes it."""
        return self.frames.astype(np.float32) / 127.5 - 1

    @property
    def about(self) -> dict[str, Any]:
        """The coding as plain JSON, to be kept beside the video."""
        return asdict(self.coding)


@dataclass(frozen=True)
class Decoded:
    """What a pseudo-RGB video says; None where its coding holds nothing of the kind.

    `points`: X, Y, Z of each pixel in its frame (`xyz`), or, for a subject's pixel in `unified`, at first sight.
    `masks` of `track` know subjects from background, not from one another. `off` is each colour's distance from the
    nearest that the coding has (1: full scale in every channel).
    """

    masks: UInt8[np.ndarray, "t h w"] | None
    points: Float32[np.ndarray, "t h w 3"] | None
    tracks: Tracks | None
    off: Float32[np.ndarray, "t h w"]


@dataclass(frozen=True)
class Errors:
    """How far a decoded video is from the truth: mean IoU over subjects and frames, root mean square distance of the
    points in units of the bounds' width, median and 90th percentile of the tracks' distance in pixels, and the share of
    places where `visible` agrees. None where the coding holds nothing of the kind."""

    mask_iou: float | None
    point_rms: float | None
    track_px: float | None
    track_px_90: float | None
    visible: float | None


def encode(perception: Perception, modality: Modality = "unified", *, seed: int | None = None) -> PseudoRGB:
    """Draw a perception as pseudo-RGB; `seed` deals the subjects random colours (each clip its own, as in UDPDiff).

    ValueError for an unknown modality and for more subjects than there are colours.
    """
    if modality not in MODALITIES:
        raise ValueError(f"expected a modality, one of {', '.join(MODALITIES)}, got {modality!r}")
    count = len(perception.subjects)
    if count > MOST:
        raise ValueError(f"expected at most {MOST} subjects, got {count}: keep the largest or join parts of one body")
    order = range(MOST) if seed is None else np.random.default_rng(seed).permutation(MOST).tolist()
    coding = Coding(modality, perception.space, perception.subjects, tuple(order)[:count])
    masks = perception.masks
    if modality == "xyz":
        colour = perception.space.normalised(perception.points)
    elif modality == "seg":
        colour = np.stack([middle(None), *(middle(cell) for cell in coding.cells)])[masks]
    elif modality == "track":
        inside, first = masks > 0, spread(perception)[masks > 0]
        colour = np.zeros((*masks.shape, 3))
        colour[inside] = _timed(first, masks.shape)
    else:
        inside, first = masks > 0, spread(perception)[masks > 0]
        colour = 0.5 + GREY * (perception.space.normalised(perception.points) - 0.5)
        corner = np.array([CELLS[NAMES[cell]] for cell in coding.cells], float).reshape(-1, 3)
        where = perception.space.normalised(_sampled(perception.points, first))
        colour[inside] = (1 - SIDE) * corner[masks[inside] - 1] + SIDE * where
    return PseudoRGB(np.rint(255 * colour).astype(np.uint8), coding)


def decode(
    frames: UInt8[np.ndarray, "t h w 3"] | Float[np.ndarray, "t h w 3"],
    coding: Coding,
    *,
    queries: Tracks | None = None,
    stride: int = 4,
) -> Decoded:
    """Read masks, points and tracks off a pseudo-RGB video, given as bytes or in -1..1.

    A track starts where `queries` are first visible, or at every `stride`-th pixel of each subject's first frame, and
    goes where its colour goes: the place is fitted over the neighbourhood of that colour in each frame, so it is finer
    than a pixel and than a colour's noise. It is visible where such colours are.
    """
    colour = frames.astype(np.float64) / 255 if frames.dtype == np.uint8 else np.clip(frames, -1, 1) / 2 + 0.5
    colour = np.asarray(colour, np.float32)
    shape, size = colour.shape[:3], float(max(colour.shape[1:3]))
    if coding.modality == "xyz":
        points = coding.space.points(colour).astype(np.float32)
        return Decoded(None, points, None, np.zeros(shape, np.float32))
    if coding.modality == "track":
        masks = (colour[..., 2] > TIME_FLOOR / 2).astype(np.uint8)
        off = np.where(masks > 0, np.maximum(TIME_FLOOR - colour[..., 2], 0), colour.max(-1)).astype(np.float32)
        scale = np.array([shape[2], shape[1], size])
        return Decoded(masks, None, _followed(masks, colour * scale, queries, stride), off)
    masks, off, inner = _cells(colour, coding)
    if coding.modality == "seg":
        return Decoded(masks, None, None, off)
    width = np.array(coding.space.high) - np.array(coding.space.low)
    scale = width if coding.space.focal_px is None else np.full(3, size)
    points = coding.space.points(inner).astype(np.float32)
    return Decoded(masks, points, _followed(masks, inner * scale, queries, stride), off)


def compare(found: Decoded, truth: Perception, modality: Modality) -> Errors:
    """Measure what was decoded against what was encoded; its tracks must have been asked for with `truth.tracks`."""
    iou = point = track = track_90 = agree = None
    if found.masks is not None:
        masks = np.minimum(truth.masks, 1) if modality == "track" else truth.masks
        iou = mean_iou(found.masks, masks)
    if found.points is not None:
        points = truth.points.astype(np.float64)
        if modality == "unified" and (inside := truth.masks > 0).any():
            points = points.copy()
            points[inside] = _sampled(truth.points, spread(truth)[inside])
        gap = truth.space.normalised(found.points.astype(np.float64)) - truth.space.normalised(points)
        point = float(np.sqrt(np.square(gap).sum(-1).mean()))
    if found.tracks is not None:
        both = found.tracks.visible & truth.tracks.visible
        agree = float((found.tracks.visible == truth.tracks.visible).mean()) if both.size else None
        apart = np.linalg.norm(found.tracks.position - truth.tracks.position, axis=-1)[both]
        if apart.size:
            track, track_90 = float(np.median(apart)), float(np.quantile(apart, 0.9))
    return Errors(iou, point, track, track_90, agree)


def mean_iou(found: UInt8[np.ndarray, "t h w"], truth: UInt8[np.ndarray, "t h w"]) -> float | None:
    """Intersection over union of each label, over the frames that have it in either, averaged; None without any."""
    scores = []
    for label in np.unique(np.concatenate([np.unique(found), np.unique(truth)])):
        if label:
            a, b = found == label, truth == label
            union = (a | b).sum((1, 2))
            scores += ((a & b).sum((1, 2))[union > 0] / union[union > 0]).tolist()
    return float(np.mean(scores)) if scores else None


def _timed(first: Float32[np.ndarray, "n 3"], shape: Sequence[int]) -> Float[np.ndarray, "n 3"]:
    """The `track` colour of (frame, y, x): x and y over the picture, the time from `TIME_FLOOR` to 1."""
    t, h, w = shape
    time = TIME_FLOOR + (1 - TIME_FLOOR) * first[:, 0] / max(t - 1, 1)
    return np.clip(np.stack([(first[:, 2] + 0.5) / w, (first[:, 1] + 0.5) / h, time], -1), 0, 1)


def _sampled(points: Float32[np.ndarray, "t h w 3"], at: Float32[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """The point map at (frame, y, x): bilinear within the frame, the edge's outside."""
    t, h, w, _ = points.shape
    frame = np.clip(np.rint(at[:, 0]), 0, t - 1).astype(int)
    y, x = np.clip(at[:, 1], 0, h - 1), np.clip(at[:, 2], 0, w - 1)
    top, left = np.minimum(y.astype(int), max(h - 2, 0)), np.minimum(x.astype(int), max(w - 2, 0))
    down, right = np.minimum(top + 1, h - 1), np.minimum(left + 1, w - 1)
    fy, fx = (y - top)[:, None], (x - left)[:, None]
    upper = (1 - fx) * points[frame, top, left] + fx * points[frame, top, right]
    lower = (1 - fx) * points[frame, down, left] + fx * points[frame, down, right]
    return (1 - fy) * upper + fy * lower


def _cells(
    colour: Float32[np.ndarray, "t h w 3"], coding: Coding
) -> tuple[UInt8[np.ndarray, "t h w"], Float32[np.ndarray, "t h w"], Float32[np.ndarray, "t h w 3"]]:
    """The label whose cell each colour lies in or nearest to, its distance from it, and its place in it as 0..1."""
    sides = np.array([GREY] + [SIDE] * len(coding.cells), np.float32)
    lows = np.array(
        [[0.5 - GREY / 2] * 3] + [[(1 - SIDE) * c for c in CELLS[NAMES[cell]]] for cell in coding.cells], np.float32
    )
    if coding.modality == "seg":  # a cell is one colour there
        lows, sides = np.stack([middle(None), *(middle(c) for c in coding.cells)]).astype(np.float32), 0 * sides
    distances = []
    for low, side in zip(lows, sides, strict=True):
        beyond = np.maximum(np.maximum(low - colour, colour - low - side), 0)
        distances.append(np.sqrt(np.square(beyond).sum(-1)))
    distance = np.stack(distances)
    masks = distance.argmin(0).astype(np.uint8)
    off = distance.min(0) / np.float32(np.sqrt(3))
    inner = np.zeros_like(colour)
    if coding.modality != "seg":
        inner = np.clip((colour - lows[masks]) / sides[masks][..., None], 0, 1)
    return masks, off, inner


def _followed(
    masks: UInt8[np.ndarray, "t h w"], place: Float[np.ndarray, "t h w 3"], queries: Tracks | None, stride: int
) -> Tracks:
    """Follow colours, given as places in pixels, from their first frame through all."""
    queries = queries if queries is not None else _grid(masks, stride)
    n, frames = len(queries), len(masks)
    position = np.full((n, frames, 2), np.nan, np.float32)
    visible = np.zeros((n, frames), bool)
    labels = np.minimum(queries.subject, masks.max(initial=0)) if masks.max(initial=0) <= 1 else queries.subject
    first = queries.first
    for label in np.unique(labels):
        for t0 in np.unique(first[(labels == label) & (first < frames)]):
            chosen = np.flatnonzero((labels == label) & (first == t0))
            start = queries.position[chosen, t0]
            if not (masks[t0] == label).any():
                continue
            wanted, width = _colour_at(masks[t0] == label, place[t0], start)
            for t in range(t0, frames):
                at, seen = _fitted(masks[t] == label, place[t], wanted, width)
                position[chosen, t], visible[chosen, t] = at, seen
    return Tracks(position, visible, queries.subject)


def _grid(masks: UInt8[np.ndarray, "t h w"], stride: int) -> Tracks:
    """A track for every `stride`-th pixel of each label's first frame, known in that frame only."""
    places, frames, subjects = [], [], []
    for label in range(1, int(masks.max(initial=0)) + 1):
        t0 = int((masks == label).any((1, 2)).argmax())
        pixels = np.argwhere(masks[t0] == label)
        pixels = pixels[(pixels % stride == stride // 2).all(1)]
        places.append(pixels)
        frames += [t0] * len(pixels)
        subjects += [label] * len(pixels)
    n = len(frames)
    position = np.full((n, len(masks), 2), np.nan, np.float32)
    visible = np.zeros((n, len(masks)), bool)
    if n:
        position[np.arange(n), frames], visible[np.arange(n), frames] = np.concatenate(places), True
    return Tracks(position, visible, np.array(subjects, np.uint8))


def _colour_at(
    mask: Bool[np.ndarray, "h w"], place: Float[np.ndarray, "h w 3"], start: Float32[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n 3"], float]:
    """The colour (a place) at each start, fitted over its neighbourhood, and that neighbourhood's width."""
    pixels, inner = _pixels(mask)
    width = float(np.clip(np.sqrt(mask.sum()) / 3, *WIDTH_PX))
    weight = inner * np.exp(-np.square(start[:, None] - pixels[None]).sum(-1) / (2 * width**2))
    return _plane(pixels, place[tuple(pixels.T)].astype(float), weight, start.astype(float))[0], width


def _fitted(
    mask: Bool[np.ndarray, "h w"], place: Float[np.ndarray, "h w 3"], wanted: Float[np.ndarray, "n 3"], width: float
) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Where each wanted colour is in a frame, and whether anything like it is there.

    From the mean place of the pixels with such colours, Newton's steps on the colour's local plane: it is fitted over
    *places* near the guess, because to choose by the colour again would prefer noise that happens to agree.
    """
    pixels, inner = _pixels(mask)
    if not len(pixels):
        return np.full((len(wanted), 2), np.nan), np.zeros(len(wanted), bool)
    colours = place[tuple(pixels.T)].astype(float)
    square = np.square(wanted[:, None] - colours[None]).sum(-1)
    nearest = square.min(1, keepdims=True)
    weight = np.exp(-(square - nearest) / (2 * width**2)) * inner
    at = weight @ pixels / weight.sum(1, keepdims=True)
    same = np.exp(-(square - nearest) / (2 * (4 * width) ** 2)) * inner  # another body's colours are far away
    for _ in range(STEPS):
        apart = np.square(at[:, None] - pixels[None]).sum(-1)
        near = np.exp(-(apart - apart.min(1, keepdims=True)) / (2 * width**2)) * same
        level, slope = _plane(pixels, colours, near, at)
        damped = np.einsum("nac,nbc->nab", slope, slope) + DAMPING * np.eye(2)
        step = np.linalg.solve(damped, np.einsum("nac,nc->na", slope, wanted - level)[..., None])[..., 0]
        length = np.linalg.norm(step, axis=-1, keepdims=True)
        at = np.clip(at + step * np.minimum(1, width / np.maximum(length, 1e-9)), -0.5, np.array(mask.shape) - 0.5)
    return at, nearest[:, 0] < np.square(2 * width)


def _pixels(mask: Bool[np.ndarray, "h w"]) -> tuple[np.ndarray, Float[np.ndarray, " m"]]:
    """Places of a mask's pixels and how much each counts: little near the rim, where a codec mixes colours."""
    inner: Any = ndimage.distance_transform_edt(np.pad(mask, 1))
    inner = inner[1:-1, 1:-1]
    pixels = np.argwhere(mask)
    pixels = pixels[:: max(1, -(-len(pixels) // PIXELS))]
    depth = np.minimum(inner[tuple(pixels.T)] / min(inner.max(initial=1.0), RIM_PX), 1.0)
    return pixels, depth**4


def _plane(
    pixels: np.ndarray, values: Float[np.ndarray, "m c"], weight: Float[np.ndarray, "n m"], at: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n 2 c"]]:
    """Value and slope at each place of the plane fitted to weighted values."""
    weight = weight / np.maximum(weight.sum(1, keepdims=True), 1e-30)
    centre, mean = weight @ pixels, weight @ values
    gap = pixels[None] - centre[:, None]
    moment = np.einsum("nm,nma,nmb->nab", weight, gap, gap) + 1e-3 * np.eye(2)
    slope = np.linalg.solve(moment, np.einsum("nm,nma,nmc->nac", weight, gap, values[None] - mean[:, None]))
    return mean + np.einsum("na,nac->nc", at - centre, slope), slope
