"""What is perceived of a clip: who is where (masks), how far everything is (points), which point went where (tracks).

Pixel coordinates are (y, x), y DOWN, and the centre of pixel i lies at i. A point of the point map is (X, Y, Z): X
right, Y down, Z into the picture, the order of the colours red, green, blue. Without a depth model the scene is a
plane: X = x, Y = y, Z = 0 in pixels (`Space.planar`); with depth it is what a pinhole camera sees, X = (x - cx) Z / f.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from scipy.spatial import KDTree

__all__ = ["Perception", "Space", "Tracks", "interpolated", "planar_points", "spread"]

NEIGHBOURS = 8
"""Tracks that a pixel's motion is interpolated from: our choice."""
REACH = 0.1
"""A track that begins within this share of the picture's longer side of an older one of its subject goes on with that
one's colour: a tracker's new seed on a known surface, not a new surface. Our choice."""


@dataclass(frozen=True)
class Space:
    """Bounds that normalise X, Y, Z to 0..1, and how the camera sees a point: `focal_px` None is a plane in pixels."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    focal_px: float | None = None

    @classmethod
    def planar(cls, height: int, width: int) -> "Space":
        """The plane Z = 0 of a picture, whose pixels fill the bounds.

        >>> Space.planar(4, 8).normalised(np.array([3.5, 1.5, 0.0])).tolist()
        [0.5, 0.5, 0.5]
        """
        return cls((-0.5, -0.5, -1.0), (width - 0.5, height - 0.5, 1.0))

    @classmethod
    def robust(cls, points: Float32[np.ndarray, "t h w 3"], focal_px: float) -> "Space":
        """Bounds of a clip from the 2nd to the 98th percentile of each coordinate; what lies outside is clipped."""
        flat = points.reshape(-1, 3)
        low, high = np.percentile(flat[np.isfinite(flat).all(1)], (2, 98), axis=0)
        high = np.maximum(high, low + 1e-3 * np.maximum(np.abs(low), 1e-3))  # a flat scene has bounds, too
        (x0, y0, z0), (x1, y1, z1) = low.tolist(), high.tolist()
        return cls((x0, y0, z0), (x1, y1, z1), float(focal_px))

    def normalised(self, points: Float[np.ndarray, "*s 3"]) -> Float[np.ndarray, "*s 3"]:
        """X, Y, Z within the bounds as 0..1, clipped."""
        return np.clip((points - np.array(self.low)) / (np.array(self.high) - np.array(self.low)), 0, 1)

    def points(self, normalised: Float[np.ndarray, "*s 3"]) -> Float[np.ndarray, "*s 3"]:
        """Undo `normalised`."""
        return np.array(self.low) + normalised * (np.array(self.high) - np.array(self.low))


@dataclass(frozen=True)
class Tracks:
    """n points followed over t frames: `position` (y, x) in pixels, `visible`, and the subject (1, 2, ...) of each.

    Where a point is not visible its position is a guess, or NaN.
    """

    position: Float32[np.ndarray, "n t 2"]
    visible: Bool[np.ndarray, "n t"]
    subject: UInt8[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.subject)

    @property
    def first(self) -> Int[np.ndarray, " n"]:
        """First visible frame of each; the count of frames for one that is never seen."""
        return np.where(self.visible.any(1), self.visible.argmax(1), self.visible.shape[1])

    def __getitem__(self, chosen: Bool[np.ndarray, " n"] | Int[np.ndarray, " m"]) -> "Tracks":
        return Tracks(self.position[chosen], self.visible[chosen], self.subject[chosen])


@dataclass(frozen=True)
class Perception:
    """Masks as one map of labels (0 background, 1 the first subject, ...), a point map, tracks, the subjects' names."""

    masks: UInt8[np.ndarray, "t h w"]
    points: Float32[np.ndarray, "t h w 3"]
    tracks: Tracks
    space: Space
    subjects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = max(int(self.masks.max(initial=0)), int(self.tracks.subject.max(initial=0)))
        if count > len(self.subjects):
            raise ValueError(f"expected a name for each of {count} subjects, got {self.subjects}")


def planar_points(frames: int, height: int, width: int) -> Float32[np.ndarray, "t h w 3"]:
    """The point map of a plane: X = x, Y = y, Z = 0."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.broadcast_to(np.stack([x, y, 0 * x], -1).astype(np.float32), (frames, height, width, 3))


def spread(perception: Perception) -> Float32[np.ndarray, "t h w 3"]:
    """Say of each pixel of a subject where its surface point was first seen: (frame, y, x); NaN on the background.

    What a track has moved since its first visible frame is interpolated between the tracks of the same subject that
    are visible (inverse squared distance over the nearest 8), so a translation is carried exactly. Where none is
    visible, the hidden ones' guesses serve; a subject without any track is taken to be new in every frame.
    """
    masks, tracks = perception.masks, perception.tracks
    origin = _origins(tracks, REACH * max(masks.shape[1:]))
    found = np.full((*masks.shape, 3), np.nan, np.float32)
    for subject in range(1, len(perception.subjects) + 1):
        own = tracks.subject == subject
        for t in np.flatnonzero((masks == subject).any((1, 2))):
            pixels = np.argwhere(masks[t] == subject)
            here = np.concatenate([np.full((len(pixels), 1), t), pixels], 1).astype(np.float32)
            placed = own & (tracks.first <= t) & np.isfinite(tracks.position[:, t]).all(1)
            seen = placed & tracks.visible[:, t]
            placed = seen if seen.any() else placed
            if placed.any():
                at = tracks.position[placed, t]
                moved = origin[placed] - np.concatenate([np.full((len(at), 1), t), at], 1)
                here += interpolated(at, moved, pixels)
            found[t][tuple(pixels.T)] = here
    return found


def _origins(tracks: Tracks, reach: float) -> Float32[np.ndarray, "n 3"]:
    """(frame, y, x) that each track's colour stands for: its first visible place, or what an older one near it says."""
    n, first = len(tracks), tracks.first
    origin = np.full((n, 3), np.nan, np.float32)
    for t in np.unique(first[first < tracks.visible.shape[1]]):
        born = np.flatnonzero(first == t)
        origin[born] = np.concatenate([np.full((len(born), 1), t), tracks.position[born, t]], 1)
        for subject in np.unique(tracks.subject[born]):
            new = born[tracks.subject[born] == subject]
            old = np.flatnonzero((first < t) & (tracks.subject == subject) & tracks.visible[:, t])
            if not len(old):
                continue
            at = tracks.position[old, t]
            near = KDTree(at).query(tracks.position[new, t])[0] <= reach
            moved = origin[old] - np.concatenate([np.full((len(old), 1), t), at], 1)
            origin[new[near]] += interpolated(at, moved, tracks.position[new[near], t])
    return origin


def interpolated(
    at: Float[np.ndarray, "n 2"], values: Float[np.ndarray, "n c"], places: np.ndarray
) -> Float32[np.ndarray, "m c"]:
    """Interpolate values at scattered points (Shepard: inverse squared distance over the nearest 8)."""
    if not len(places):
        return np.zeros((0, values.shape[1]), np.float32)
    k = min(NEIGHBOURS, len(at))
    distance, index = KDTree(at).query(places, k=list(range(1, k + 1)))  # pyright: ignore[reportArgumentType]
    weight = 1 / (np.square(distance) + 1e-3)
    weight /= weight.sum(1, keepdims=True)
    return np.einsum("mk,mkc->mc", weight, values[index]).astype(np.float32)
