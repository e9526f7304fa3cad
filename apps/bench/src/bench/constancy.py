"""What a film keeps: the amount of a coloured fluid, the number and size of things, the flow's divergence, the pixels
that a flow carries along.

Films are uint8 (t, h, w, 3) RGB, flows (t - 1, h, w, 2) as (x, y) in pixels from each frame to the next.

What surprises: a frozen film keeps everything, so each figure stands beside `motion_px`. Optical flow is an estimate:
compare figures of one kind of film, with the real one beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

__all__ = ["Things", "amount", "divergence", "drift", "flow", "motion_px", "things", "transfer", "warp_error"]

LEAST_PIECE = 0.1  # of the largest: smaller pieces are specks; our choice
SAME_WAY_PX = 1.0  # flow there and back may miss by this much; our choice

Film = UInt8[np.ndarray, "t h w 3"]
Flow = Float[np.ndarray, "pairs h w 2"]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Things:
    """Pieces of a colour: their usual number, the share of frames that show it, and the spread of their joint area over
    its mean."""

    count: int
    constant: float
    area_spread: float


def amount(
    frames: Film, colour: tuple[int, int, int], *, tolerance: float | int = 80, box: Box | None = None
) -> Float[np.ndarray, " t"]:
    """Sum how much of a colour each frame shows, in pixels: a pixel at distance d counts max(0, 1 - d / tolerance).

    `box`: top, bottom, left, right of the part that counts.

    >>> film = np.zeros((2, 4, 4, 3), np.uint8)
    >>> film[:, :2] = (0, 0, 200)
    >>> amount(film, (0, 0, 200)).tolist(), amount(film, (0, 0, 200), box=(0, 1, 0, 4)).tolist()
    ([8.0, 8.0], [4.0, 4.0])
    """
    top, bottom, left, right = box if box is not None else (0, frames.shape[1], 0, frames.shape[2])
    part = frames[:, top:bottom, left:right]
    if not part.size:
        raise ValueError(f"expected a box inside {frames.shape[1]} x {frames.shape[2]}, got {box}")
    return np.array([_weight(frame, colour, tolerance).sum() for frame in part])


def drift(amounts: Float[np.ndarray, " t"]) -> float:
    """Return max |M / mean M - 1|: how far an amount that is kept strays.

    >>> drift(np.array([1.0, 1.0, 1.0])), drift(np.array([1.0, 3.0]))
    (0.0, 0.5)
    """
    if not amounts.mean() > 0:
        raise ValueError("expected some of the colour, found none")
    return float(np.abs(amounts / amounts.mean() - 1).max())


def transfer(source: Float[np.ndarray, " t"], target: Float[np.ndarray, " t"]) -> float:
    """Return how much of what leaves one place does not arrive in the other: max |(M_a + M_b) - first| over the largest
    amount that was moved.

    ValueError where nothing is poured.

    >>> round(transfer(np.array([9.0, 6.0, 3.0]), np.array([0.0, 3.0, 3.0])), 6)
    0.5
    """
    moved = float(np.abs(source - source[0]).max())
    if moved <= 0:
        raise ValueError("expected something to be poured, but the source stays as it is")
    both = source + target
    return float(np.abs(both - both[0]).max()) / moved


def things(frames: Film, colour: tuple[int, int, int], *, tolerance: float | int = 80) -> Things:
    """Count the connected pieces of a colour in each frame and see whether number and area stay.

    ValueError where no frame shows any.
    """
    counts, areas = [], []
    for frame in frames:
        near = (_weight(frame, colour, tolerance) > 0).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(near, connectivity=8)
        sizes = stats[1:, cv2.CC_STAT_AREA]
        counts.append(int((sizes >= LEAST_PIECE * sizes.max()).sum()) if len(sizes) else 0)
        areas.append(float(sizes.sum()))
    if not any(counts):
        raise ValueError(f"expected something of the colour {colour}, found nothing")
    usual = int(np.bincount(counts).argmax())
    share = float(np.mean([count == usual for count in counts]))
    return Things(usual, share, float(np.std(areas) / np.mean(areas)))


def flow(frames: Film, *, back: bool = False) -> Flow:
    """Estimate the flow between neighbouring frames by Farneback's polynomial expansion; `back`: from the later one to
    the earlier."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    pairs = list(pairwise(grey))
    if not pairs:
        raise ValueError(f"expected two frames or more, got {len(frames)}")
    start = np.zeros((*grey[0].shape, 2), np.float32)
    return np.stack(
        [
            cv2.calcOpticalFlowFarneback(*((b, a) if back else (a, b)), start.copy(), 0.5, 3, 15, 3, 7, 1.5, 0)
            for a, b in pairs
        ]
    ).astype(np.float32)


def motion_px(flows: Flow) -> float:
    """Return the mean over pairs of the 95 % quantile of speed: how fast the moving part goes, px a frame."""
    return float(np.quantile(np.linalg.norm(flows, axis=-1).reshape(len(flows), -1), 0.95, axis=1).mean())


def divergence(flows: Flow, region: Bool[np.ndarray, "h w"] | None = None) -> float:
    """Return rms(u_x + v_y) / rms(all four derivatives) by central differences: 0 where nothing is compressed, sqrt(2)
    where nothing else happens.

    `region` limits it to where the fluid is incompressible. ValueError for a flow without any gradient.

    >>> y, x = np.mgrid[-8:9, -8:9].astype(float)
    >>> turn, burst = np.stack([-y, x], -1)[None], np.stack([x, y], -1)[None]
    >>> round(divergence(turn), 6), round(divergence(burst), 6)
    (0.0, 1.414214)
    """
    v_y, v_x = np.gradient(flows[..., 1], axis=1), np.gradient(flows[..., 1], axis=2)
    u_y, u_x = np.gradient(flows[..., 0], axis=1), np.gradient(flows[..., 0], axis=2)
    inside = slice(None) if region is None else (slice(None), *np.nonzero(region))
    squares = [float((part[inside] ** 2).mean()) for part in (u_x + v_y, u_x, u_y, v_x, v_y)]
    if not sum(squares[1:]) > 0:
        raise ValueError("expected a flow that differs from place to place, got none")
    return float(np.sqrt(squares[0] / sum(squares[1:])))


def warp_error(frames: Film, flows: Flow | None = None) -> float:
    """Return the mean |x_{i+1} carried back along the flow - x_i| / 255 over pixels that flow there and back agree on.

    A pixel counts where the flow there and the flow back end within one pixel of where they began and inside the
    picture. Without `flows` both are Farneback's; with it only pixels that leave the picture are left out. NaN where
    nothing counts.
    """
    forth = flow(frames) if flows is None else flows
    if forth.shape[:3] != (len(frames) - 1, *frames.shape[1:3]):
        raise ValueError(f"expected flows (t - 1, h, w, 2) of the film's size, got {forth.shape}")
    back = flow(frames, back=True) if flows is None else None
    height, width = frames.shape[1:3]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    errors, counted = 0.0, 0
    for i, along in enumerate(forth):
        to_x, to_y = x + along[..., 0].astype(np.float32), y + along[..., 1].astype(np.float32)
        valid = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
        if back is not None:
            again = cv2.remap(back[i], to_x, to_y, cv2.INTER_LINEAR)
            valid &= np.linalg.norm(again + along, axis=-1) < SAME_WAY_PX
        carried = cv2.remap(frames[i + 1], to_x, to_y, cv2.INTER_LINEAR).astype(np.float32)
        errors += float(np.abs(carried - frames[i])[valid].sum())
        counted += 3 * int(valid.sum())
    return errors / counted / 255 if counted else float("nan")


def moving_region(flows: Flow, *, least_px: float = 0.3) -> Bool[np.ndarray, "h w"]:
    """Return where anything moves at any time, without its edge of two pixels."""
    fast = np.linalg.norm(flows, axis=-1).max(0) > least_px
    return ndimage.binary_erosion(fast, iterations=2)


def _weight(frame: np.ndarray, colour: Sequence[int], tolerance: float | int) -> np.ndarray:
    distance = np.linalg.norm(frame.astype(np.float32) - np.asarray(colour, np.float32), axis=-1)
    return np.clip(1 - distance / tolerance, 0, None)
