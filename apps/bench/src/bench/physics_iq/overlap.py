"""Two clips beside each other: where they move, when, how much, and how different they look.

A clip is a stream of pictures (h, w, 3) uint8 with their motion masks (h, w) bool. Nothing but one frame and two
pictures of sums are held. All counts are whole numbers until the last division.

What surprises: two empty masks overlap perfectly (1), so that a still clip is right in every frame in which nothing
moves.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

__all__ = ["Comparison", "Overlap", "compare"]

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


@dataclass(frozen=True)
class Comparison:
    """What two clips share: IoU of all that ever moves, IoU frame by frame, IoU weighted by how long it moves, and mean
    square error of colours in [0, 1] frame by frame."""

    spatial: float
    weighted: float
    spatiotemporal: tuple[float, ...]
    mse: tuple[float, ...]


class Overlap:
    """Collects a comparison frame by frame.

    >>> still = np.zeros((4, 4), bool)
    >>> picture = np.zeros((4, 4, 3), np.uint8)
    >>> both = Overlap()
    >>> both.add(picture, still, picture, still)
    >>> both.result()
    Comparison(spatial=1.0, weighted=1.0, spatiotemporal=(1.0,), mse=(0.0,))
    """

    def __init__(self) -> None:
        self._sums: tuple[np.ndarray, np.ndarray] | None = None
        self._iou: list[float] = []
        self._mse: list[float] = []

    def add(self, a: Picture, moves_a: Mask, b: Picture, moves_b: Mask) -> None:
        """Take in one frame of both clips."""
        if self._sums is None:
            self._sums = (np.zeros(moves_a.shape, np.uint32), np.zeros(moves_b.shape, np.uint32))
        self._sums[0][...] += moves_a
        self._sums[1][...] += moves_b
        self._iou.append(_ratio(np.count_nonzero(moves_a & moves_b), np.count_nonzero(moves_a | moves_b)))
        self._mse.append(cv2.norm(a, b, cv2.NORM_L2SQR) / (255.0**2 * a.size))

    def result(self) -> Comparison:
        """Sum up."""
        if self._sums is None:
            raise ValueError("expected at least one frame to compare, got none")
        long_a, long_b = self._sums
        ever_a, ever_b = long_a > 0, long_b > 0
        return Comparison(
            spatial=_ratio(np.count_nonzero(ever_a & ever_b), np.count_nonzero(ever_a | ever_b)),
            weighted=_ratio(int(np.minimum(long_a, long_b).sum()), int(np.maximum(long_a, long_b).sum())),
            spatiotemporal=tuple(self._iou),
            mse=tuple(self._mse),
        )


def compare(a: Iterable[Picture], moves_a: Iterable[Mask], b: Iterable[Picture], moves_b: Iterable[Mask]) -> Comparison:
    """Compare two clips of equal length and size.

    Spatial IoU: of the masks OR-ed over time. Spatiotemporal: IoU of each frame's masks. Weighted: sum min(W_a, W_b) /
    sum max(W_a, W_b) of W, the mean of the masks over time. MSE: mean over pixels and channels of the difference of
    colours / 255. An empty union counts 1.

    References: Physics-IQ (Motamed et al., 2025), section 3.2.
    """
    both = Overlap()
    for frame in zip(a, moves_a, b, moves_b, strict=True):
        both.add(*frame)
    return both.result()


def _ratio(part: int | np.integer, whole: int | np.integer) -> float:
    return float(part / whole) if whole else 1.0
