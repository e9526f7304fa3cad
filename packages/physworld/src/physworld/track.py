"""Following a coloured body through a video: where it is, how large it is, and whether it stays exactly one body.

Works on any picture, also on one that a model made up: a colour that is not there gives an empty track, never an error.
Positions (y, x) and areas in world px whatever the scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from physworld import disk
from physworld.ramp import UNFIT

FOREIGN = 0.12
"""A pixel farther than this from the mixtures of the wanted colours (1: full scale) shows something else; our
choice."""
LEAST_FRAMES = 9
"""A law needs this many frames with the body in sight; our choice."""
AREA_BAND = 0.4
"""A body is the same while its area stays within this share of its median (PhyWorld-like permanence, world.md 5)."""


@dataclass(frozen=True)
class Track:
    """The largest body of one colour, frame by frame.

    `seen` says where there is any; `position` and `area` hold zeros elsewhere. `perm` is the share of frames with
    exactly one component whose area is within 40 % of the median, `area_cv` the areas' relative spread over the seen
    frames.
    """

    position: Float[np.ndarray, "t 2"]
    area: Float[np.ndarray, " t"]
    seen: Bool[np.ndarray, " t"]
    perm: float
    area_cv: float

    @property
    def radius(self) -> float:
        """Radius of the disk of the median area, px."""
        return float(np.sqrt(np.median(self.area[self.seen]) / np.pi)) if self.seen.any() else 0.0

    @property
    def fits(self) -> bool:
        """Whether enough frames show the body for a law to be fitted."""
        return int(self.seen.sum()) >= min(LEAST_FRAMES, len(self.seen))

    @property
    def gone(self) -> float:
        """Share of frames in which there is no such body at all."""
        return 1.0 - float(self.seen.mean())

    @property
    def spread(self) -> float:
        """Root mean square distance from the mean position over the seen frames, px: 0 for a body at rest."""
        if not self.seen.any():
            return 0.0
        at = self.position[self.seen]
        return float(np.sqrt(((at - at.mean(0)) ** 2).sum(-1).mean()))


def follow(
    video: UInt8[np.ndarray, "t h w 3"], colours: Sequence[str], scale: int, *, rod: bool = False
) -> tuple[list[Track], float]:
    """One track for each of one or two colours, and `off_manifold`: the mean distance of a pixel to their mixtures.

    With `rod` the grey rod counts as background of its own.
    """
    basis = disk.rgb(*colours)
    if rod:
        basis = np.concatenate([basis, np.array([disk.ROD], np.float32)])
    cover, residual = disk.unmix(video, basis)
    off = float(residual.mean())
    cover = cover * (residual < FOREIGN)[:, None]
    return [_follow(cover[:, k], scale) for k in range(len(colours))], off


def _follow(cover: Float[np.ndarray, "t h w"], scale: int) -> Track:
    frames = len(cover)
    position, area, single = np.zeros((frames, 2)), np.zeros(frames), np.zeros(frames, bool)
    for t in range(frames):
        found = disk.blobs(cover[t], scale)
        if found:
            position[t], area[t] = (found[0].y, found[0].x), found[0].area
            single[t] = len(found) == 1
    seen = area > 0
    if not seen.any():
        return Track(position, area, seen, 0.0, UNFIT)
    median = np.median(area[seen])
    same = single & (np.abs(area - median) <= AREA_BAND * median)
    return Track(position, area, seen, float(same.mean()), float(area[seen].std() / area[seen].mean()))


def dominant(video: UInt8[np.ndarray, "t h w 3"]) -> str:
    """The palette colour that most pixels have (the first one where none has any)."""
    names = disk.nearest_colour(video)
    return disk.NAMES[int(np.bincount(names[names >= 0], minlength=len(disk.NAMES)).argmax())]


def outside(value: float, bounds: tuple[float, float]) -> float:
    """Distance of a value from a range, relative to the range's middle.

    >>> outside(1.5, (1.0, 2.0)), outside(3.0, (1.0, 3.0)), outside(4.0, (1.0, 3.0))
    (0.0, 0.0, 0.5)
    """
    low, high = bounds
    return max(low - value, value - high, 0.0) / (0.5 * (low + high))
