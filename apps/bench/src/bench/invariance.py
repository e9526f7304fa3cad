"""What should stay the same, stays: scores of conserved quantities on a track, as Morpheus and NewtonGen take them.

Morpheus: q is cut into windows of a quarter of the clip that overlap by half; each has

    s = 1 / (1 + std/|mean|)   where |mean| >= 10 std or |mean| >= 10,   else   s = 1 / (1 + std),

and the *best* window counts. NewtonGen's Physical Invariance Score is 1 / (1 + std / (|mean| + 1e-8)) of six frames.

What surprises: the constants are in pixels over a scale that depends on the experiment and in hundredths of a second a
frame, whatever the film's rate; the best of many windows is lenient; and a body that moves uniformly in the wrong way
scores high. `whole` is the same rule on the whole clip, which is stricter and is our addition. The dynamical score
(a network fitted to the equation of motion) is not here: it depends on its seed.

References: "Morpheus" (Zhang et al., 2025, arXiv 2504.02918); its scorer was read, not run, and of the energy only the
signature and the formula were seen, so that g = 9.8 is our reading. "NewtonGen" (Yuan et al., 2025).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.signal import savgol_filter

from bench.tracks import Tracks

__all__ = ["Experiment", "Invariance", "best_window", "invariance", "pis", "quantities", "score", "velocity"]

Experiment = Literal["ballistic", "pendulum", "collision", "sliding"]
SCALE_PX = {"ballistic": 400.0, "pendulum": 1000.0, "collision": 2000.0, "sliding": 400.0}  # sliding: our choice
DT_S = 0.01  # a frame
GRAVITY = 9.8  # our reading
WINDOW, ORDER = 5, 3  # of line fit and Savitzky-Golay
FITTED = 0.7  # share of the line fit in the velocity; the rest is the central difference
STEADY, LARGE = 10.0, 10.0  # |mean| over std, and |mean|, from which the score is relative
SIX = 6  # frames of NewtonGen's score
LEAST_FRAMES = 12
STILL_PX = 1.0  # a body that strays less is at rest; our choice

Series = Float[np.ndarray, " t"]


@dataclass(frozen=True)
class Invariance:
    """Scores of each quantity by its best window and over the whole clip, and their means; `discarded` says why there
    are none."""

    best: Mapping[str, float]
    whole: Mapping[str, float]
    discarded: str = ""

    @property
    def score(self) -> float | None:
        """Mean over quantities of the best windows: Morpheus' physical invariance."""
        return float(np.mean(list(self.best.values()))) if self.best else None

    @property
    def strict(self) -> float | None:
        """The same without choosing a window."""
        return float(np.mean(list(self.whole.values()))) if self.whole else None


def invariance(q: Float[np.ndarray, " _"]) -> float:
    """Score how constant a quantity is: 1 for a constant.

    >>> invariance(np.full(9, 3.0)), invariance(np.array([-1.0, 1.0]))
    (1.0, 0.5)
    >>> invariance(np.array([99.0, 101.0])) == 1 / (1 + 1 / 100)
    True
    """
    if not len(q):
        raise ValueError("expected at least one value, got none")
    mean, std = abs(float(np.mean(q))), float(np.std(q))
    relative = mean > 0 and (mean >= STEADY * std or mean >= LARGE)
    return 1 / (1 + (std / mean if relative else std))


def best_window(q: Series) -> float:
    """Score the best of the windows of a quarter of the clip, half overlapping.

    >>> round(best_window(np.concatenate([np.arange(30.0), np.full(10, 2.0)])), 6)
    1.0
    """
    size = max(2, len(q) // 4)
    starts = range(0, max(1, len(q) - size + 1), max(1, size // 2))
    return max(invariance(q[start : start + size]) for start in starts)


def pis(q: Series) -> float:
    """Score six even frames of a quantity: 1 / (1 + std / (|mean| + 1e-8)), NewtonGen's Physical Invariance Score.

    >>> pis(np.full(20, 4.0))
    1.0
    """
    if len(q) < SIX:
        raise ValueError(f"expected {SIX} values or more, got {len(q)}")
    six = q[np.linspace(0, len(q) - 1, SIX).round().astype(int)]
    return float(1 / (1 + six.std() / (abs(six.mean()) + 1e-8)))


def velocity(x: Series, dt: float | int = DT_S) -> Series:
    """Differentiate: .7 x the slope of a line through five frames + .3 x the central difference, then Savitzky-Golay
    (5, 3).

    >>> np.allclose(velocity(np.arange(9.0), 0.5), 2.0)
    True
    """
    half = WINDOW // 2
    slopes = np.empty(len(x))
    for t in range(len(x)):
        part = slice(max(0, t - half), min(len(x), t + half + 1))
        slopes[t] = np.polyfit(np.arange(part.start, part.stop), x[part], 1)[0] / dt
    return np.asarray(savgol_filter(FITTED * slopes + (1 - FITTED) * np.gradient(x, dt), WINDOW, ORDER))


def quantities(tracks: Tracks, experiment: Experiment, pivot: tuple[float, float] | None = None) -> dict[str, Any]:
    """What an experiment conserves, from a track without gaps.

    ballistic: energy v^2/2 - g (y - min y) of y down, vertical acceleration, horizontal momentum. pendulum: energy,
    period (a value a swing), string length from `pivot` (y, x) in pixels, that of the best circle where it is not
    given. collision: energy and horizontal momentum of all bodies, of equal mass. sliding: acceleration along the way.
    """
    if experiment not in get_args(Experiment):
        raise ValueError(f"expected one of {', '.join(get_args(Experiment))}, got {experiment!r}")
    at = tracks.position / SCALE_PX[experiment]
    v = np.stack([np.stack([velocity(at[:, n, i]) for i in (0, 1)], -1) for n in range(at.shape[1])], 1)
    kinetic = (v**2).sum((1, 2)) / 2
    height = at[:, 0, 0] - at[:, 0, 0].min()
    if experiment == "collision":
        return {"energy": kinetic, "momentum": v[:, :, 1].sum(1)}
    if experiment == "sliding":
        along = np.linalg.norm(v[:, 0], axis=-1)
        return {"acceleration": velocity(along)}
    energy = kinetic - GRAVITY * height
    if experiment == "ballistic":
        return {"energy": energy, "acceleration": velocity(v[:, 0, 0]), "momentum": v[:, 0, 1]}
    centre = np.asarray(pivot) / SCALE_PX[experiment] if pivot is not None else _circle(at[:, 0])
    length = np.linalg.norm(at[:, 0] - centre, axis=-1)
    angle = np.arctan2(at[:, 0, 1] - centre[1], at[:, 0, 0] - centre[0])
    return {"energy": energy, "period": _periods(angle), "length": length}


def score(tracks: Tracks, experiment: Experiment, pivot: tuple[float, float] | None = None) -> Invariance:
    """Score a track, or say why it is discarded: a body that vanishes, is there twice, or stands still."""
    if len(tracks.times_s) < LEAST_FRAMES:
        return Invariance({}, {}, f"{len(tracks.times_s)} frames, fewer than {LEAST_FRAMES}")
    for share, what in ((tracks.vanished, "vanishes"), (tracks.doubled, "is there twice")):
        if share:
            return Invariance({}, {}, f"a body {what} in {share:.0%} of the frames")
    if tracks.spread_px < STILL_PX:
        return Invariance({}, {}, "nothing moves")
    found = {name: q for name, q in quantities(tracks, experiment, pivot).items() if len(q)}
    windowless = {"period"}  # already a value a swing
    best = {name: invariance(q) if name in windowless else best_window(q) for name, q in found.items()}
    return Invariance(best, {name: invariance(q) for name, q in found.items()})


def _periods(angle: Series) -> Float[np.ndarray, " _"]:
    """Lengths of whole swings, in hundredths of a second a frame: from one rising zero to the next, by line."""
    swing = angle - (angle.max() + angle.min()) / 2
    rising = np.flatnonzero((swing[:-1] < 0) & (swing[1:] >= 0))
    zeros = rising - swing[rising] / (swing[rising + 1] - swing[rising])
    return np.diff(zeros) * DT_S


def _circle(at: Float[np.ndarray, "t 2"]) -> Float[np.ndarray, " 2"]:
    """Centre of the circle nearest to the points: |p|^2 = 2 c.p + const by least squares."""
    system = np.column_stack([2 * at, np.ones(len(at))])
    return np.linalg.lstsq(system, (at**2).sum(-1), rcond=None)[0][:2]
