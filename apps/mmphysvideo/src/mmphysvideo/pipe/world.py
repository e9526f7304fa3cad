"""The pipeline against the simulated world: what its experts see in pixels, judged by the exact masks and tracks.

`textured` redraws balls with a pattern of their own before a still pattern, at random: segmentation that lives on flat
colours would fail there.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from mmphysvideo.perception import Perception, interpolated
from mmphysvideo.pseudo_world import perception_of
from physworld import Clip, disk

__all__ = ["Judged", "judge", "textured"]


@dataclass(frozen=True)
class Judged:
    """`iou`: of each true subject with the one found for it, over all frames together, averaged; `track_px`: median
    distance of the found tracks from where their start is truly carried, `track_px_90` the 90th percentile (NaN where
    no track starts on a subject); `found`: subjects."""

    iou: float
    track_px: float
    track_px_90: float
    found: int


def judge(clip: Clip, seen: Perception) -> Judged:
    """Compare what was seen with what is true, in pixels of the picture."""
    truth = perception_of(clip)
    n, m = len(truth.subjects), len(seen.subjects)
    iou = np.zeros((n, max(m, 1)))
    for i in range(n):
        for k in range(m):
            a, b = truth.masks == i + 1, seen.masks == k + 1
            iou[i, k] = (a & b).sum() / max((a | b).sum(), 1)
    best = iou[linear_sum_assignment(-iou)]
    errors: list[float] = []
    first = seen.tracks.first
    for t0 in np.unique(first):
        own = np.flatnonzero(first == t0)
        start = seen.tracks.position[own, t0]
        y, x = (np.rint(start).astype(int).T).clip(0, np.array(truth.masks.shape[1:])[:, None] - 1)
        label = truth.masks[t0, y, x]
        for subject in range(1, n + 1):
            here, there = own[label == subject], truth.tracks.subject == subject
            path = truth.tracks.position[there]
            for t in range(int(t0) + 1, len(truth.masks)):
                moved = interpolated(path[:, t0], path[:, t] - path[:, t0], start[label == subject])
                gap = np.linalg.norm(seen.tracks.position[here, t] - start[label == subject] - moved, axis=-1)
                errors += gap[seen.tracks.visible[here, t]].tolist()
    median, high = np.quantile(errors, (0.5, 0.9)).tolist() if errors else (float("nan"), float("nan"))
    return Judged(float(best.sum() / n), median, high, m)


def textured(clip: Clip, seed: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Redraw a clip of balls: a random pattern on each, of its colour and moving with it, over a random still one."""
    rng = np.random.default_rng(seed)
    scale, (t, h, w) = clip.scale, clip.video.shape[:3]
    p = clip.params
    centres = np.asarray(p["track"], np.float32).reshape(t, -1, 2)
    radii = np.ravel(p["radii"] if "radii" in p else p["radius"])
    colours = p["colours"] if "colours" in p else [p["colour"]]
    base = rng.uniform(20, 120, 3)
    ground = _pattern(rng, (h, w), base, 20.0, rng.uniform(1, 4) * scale)
    film = np.repeat(ground[None], t, 0)
    cover = disk.disks(centres, radii, scale)
    side = 2 * max(h, w)
    y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    for k, colour in enumerate(colours):
        tile = _pattern(rng, (side, side), np.array(disk.COLOURS[colour], float), 35.0, 1.0 * scale)
        for i in range(t):
            cy, cx = centres[i, k] * scale - 0.5
            places = [y - cy + side / 2, x - cx + side / 2]
            skin = np.stack([ndimage.map_coordinates(tile[..., c], places, order=1) for c in range(3)], -1)
            film[i] += cover[i, k][..., None] * (skin - film[i])
    return np.rint(film).astype(np.uint8)


def _pattern(
    rng: np.random.Generator, size: tuple[int, int], mean: Float[np.ndarray, "3"], spread: float, smooth: float
) -> Float[np.ndarray, "h w 3"]:
    noise = ndimage.gaussian_filter(rng.standard_normal((*size, 3)), (smooth, smooth, 0))
    return np.clip(mean + noise / noise.std() * spread / 2, 0, 255)
