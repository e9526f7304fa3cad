"""Textbook laws fitted to tracks: free fall, bounces, a pendulum's swing, a collision. Each fit says how well it holds.

Tracks as in `tracks`: (y, x) in pixels, y down, seconds. A body out of sight is left out of a fit and counted.

What surprises: a constant found is not a right one. Without a scale in metres g can only be constant and point down,
so read the residual first, then compare the constant between films of one scene.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

__all__ = ["Bounces", "Collision", "Fall", "Swing", "bounces", "collision", "free_fall", "swing"]

LEAST_FRAMES = 6
STILL_PX = 1.0  # a body that strays less is at rest, and no law is fitted; our choice
ARC = 3  # frames of an arc between two impacts from which on it is fitted

Series = Float[np.ndarray, " t"]


@dataclass(frozen=True)
class Fall:
    """y = y0 + v0 t + a t^2/2 and x = x0 + u t: a (px/s^2, positive is down), u (px/s), root mean square residuals
    (px), and `relative`, their joint size over the body's own spread: 0 obeys, 1 is no better than standing still."""

    acceleration: float
    sideways: float
    residual_y_px: float
    residual_x_px: float
    relative: float


@dataclass(frozen=True)
class Bounces:
    """Restitution e = v_after / v_before at each impact; their mean, and standard deviation over mean (0: one ball on
    one floor). `gains`: how often e > 1, which needs a source of energy."""

    restitution: tuple[float, ...]
    mean: float
    spread: float
    gains: int


@dataclass(frozen=True)
class Swing:
    """Mean period (s), its standard deviation over its mean, how many half swings it was read from, and the ratio of
    the last half swing's reach to the first one's (above 1: it gains)."""

    period_s: float
    spread: float
    halves: int
    reach: float


@dataclass(frozen=True)
class Collision:
    """Straight lines before and after one impact: |p - p'| over the sum of |p_i| before, energy after over energy
    before (at most 1), restitution along the line between the bodies, and the frame of the impact."""

    momentum_error: float
    energy_ratio: float
    restitution: float
    impact: int


def free_fall(position: Float[np.ndarray, "t 2"], times_s: Series) -> Fall:
    """Fit a throw. ValueError for a body at rest or seen in fewer than six frames.

    >>> t = np.arange(10) / 10
    >>> fall = free_fall(np.stack([3 + 20 * t**2 / 2, 5 - 4 * t], -1), t)
    >>> round(fall.acceleration, 6), round(fall.sideways, 6), fall.relative < 1e-9
    (20.0, -4.0, True)
    """
    at, t = _seen(position, times_s)
    y, x = np.polynomial.Polynomial.fit(t, at[:, 0], 2), np.polynomial.Polynomial.fit(t, at[:, 1], 1)
    residual = np.stack([at[:, 0] - y(t), at[:, 1] - x(t)], -1)
    spread = np.sqrt(((at - at.mean(0)) ** 2).sum(-1).mean())
    return Fall(
        acceleration=float(y.deriv(2)(0.0)),
        sideways=float(x.deriv(1)(0.0)),
        residual_y_px=float(np.sqrt((residual[:, 0] ** 2).mean())),
        residual_x_px=float(np.sqrt((residual[:, 1] ** 2).mean())),
        relative=float(np.sqrt((residual**2).sum(-1).mean()) / spread),
    )


def bounces(y: Series, times_s: Series) -> Bounces:
    """Fit an arc between every two impacts (lowest points) and read the speeds where neighbouring arcs meet.

    ValueError without an impact between two arcs of three frames.
    """
    at, t = _seen(np.stack([y, np.zeros_like(y)], -1), times_s)
    height = at[:, 0]
    low = [
        i
        for i in range(1, len(height) - 1)
        if height[i] >= height[i - 1] and height[i] > height[i + 1] and height[i] > np.median(height)
    ]
    edges = [0, *low, len(height) - 1]
    found = []
    for before, impact, after in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
        # The lowest frame itself may lie before or after the impact: it belongs to neither arc.
        first = slice(before + (before != 0), impact)
        second = slice(impact + 1, after + (after == len(height) - 1))
        if min(first.stop - first.start, second.stop - second.start) < ARC:
            continue
        down, up = (np.polynomial.Polynomial.fit(t[part], height[part], 2) for part in (first, second))
        meeting = _meeting(down, up, t[impact - 1], t[impact + 1])
        falling, rising = float(down.deriv()(meeting)), -float(up.deriv()(meeting))
        if falling > 0:
            found.append(rising / falling)
    if not found:
        raise ValueError(f"expected an impact between two arcs of {ARC} frames, found none: does the body bounce?")
    mean = float(np.mean(found))
    spread = float(np.std(found) / abs(mean)) if mean else float("inf")
    return Bounces(tuple(found), mean, spread, sum(e > 1 for e in found))


def swing(position: Float[np.ndarray, "t 2"], times_s: Series) -> Swing:
    """Read the period from the zeros of the larger coordinate's swing. ValueError below three zeros (one period).

    >>> t = np.arange(200) / 50
    >>> found = swing(np.stack([0 * t, 9 * np.sin(2 * np.pi * t / 1.5)], -1), t)
    >>> round(found.period_s, 3), found.halves
    (1.5, 4)
    """
    at, t = _seen(position, times_s)
    x = at[:, int(np.ptp(at[:, 1]) >= np.ptp(at[:, 0]))]
    x = x - (x.max() + x.min()) / 2
    crossing = np.flatnonzero(np.signbit(x[:-1]) != np.signbit(x[1:]))
    zeros = t[crossing] - x[crossing] * (t[crossing + 1] - t[crossing]) / (x[crossing + 1] - x[crossing])
    halves = np.diff(zeros)
    if len(halves) < 2:
        raise ValueError(f"expected a whole period, got {len(halves)} half swings: take a longer film")
    reach = [np.abs(x[a + 1 : b + 1]).max() for a, b in pairwise(crossing)]
    return Swing(
        period_s=float(2 * halves.mean()),
        spread=float(halves.std() / halves.mean()),
        halves=len(halves),
        reach=float(reach[-1] / reach[0]),
    )


def collision(
    position: Float[np.ndarray, "t 2 2"], times_s: Series, masses: tuple[float, float] = (1.0, 1.0)
) -> Collision:
    """Fit two lines to each body, before and after the frame that leaves the smallest residual.

    ValueError for a body at rest, or too few frames on either side.
    """
    seen = np.isfinite(position).all((1, 2))
    at, t = position[seen], times_s[seen]
    if len(t) < LEAST_FRAMES or np.ptp(at, axis=0).max() < STILL_PX:
        raise ValueError(f"expected two bodies that move in {LEAST_FRAMES} frames or more, got {len(t)} frames")

    def lines(k: int) -> tuple[float, np.ndarray, np.ndarray]:
        error, slopes = 0.0, []
        for part in (slice(0, k), slice(k, None)):
            flat = at[part].reshape(len(at[part]), 4)
            fitted = np.polyfit(t[part], flat, 1)
            residual = ((flat - np.outer(t[part], fitted[0]) - fitted[1]) ** 2).sum()
            error += float(residual)
            slopes.append(fitted[0].reshape(2, 2))
        return error, slopes[0], slopes[1]

    impact = min(range(2, len(t) - 1), key=lambda k: lines(k)[0])
    _, u, v = lines(impact)
    m = np.asarray(masses)[:, None]
    momentum = np.linalg.norm((m * v).sum(0) - (m * u).sum(0)) / np.linalg.norm(m * u, axis=1).sum()
    line = at[impact, 1] - at[impact, 0]
    line = line / max(float(np.linalg.norm(line)), 1e-9)
    closing = float((u[0] - u[1]) @ line)
    return Collision(
        momentum_error=float(momentum),
        energy_ratio=float((m * v**2).sum() / (m * u**2).sum()),
        restitution=float((v[1] - v[0]) @ line) / closing if closing else float("nan"),
        impact=int(np.flatnonzero(seen)[impact]),
    )


def _seen(position: np.ndarray, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frames in which the body is in sight."""
    seen = np.isfinite(position).all(-1)
    at = position[seen]
    if len(at) < LEAST_FRAMES:
        raise ValueError(f"expected a body in {LEAST_FRAMES} frames or more, got it in {len(at)}")
    if np.sqrt(((at - at.mean(0)) ** 2).sum(-1).mean()) < STILL_PX:
        raise ValueError("expected a body that moves, got one at rest")
    return at, times_s[seen]


def _meeting(down: np.polynomial.Polynomial, up: np.polynomial.Polynomial, start: float, end: float) -> float:
    """When two arcs are at one height near the lowest frame; the middle of its neighbours where they never are."""

    def apart(t: float) -> float:
        return float(down(t) - up(t))

    early, late = start - (end - start), end + (end - start)
    if apart(early) * apart(late) >= 0:
        return (start + end) / 2
    return float(brentq(apart, early, late))  # pyright: ignore[reportArgumentType]
