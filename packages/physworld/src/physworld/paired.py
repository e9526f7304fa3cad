"""Paired comparison: the same caption and the same noise through two methods, the difference taken clip by clip.

A clip's difficulty (its caption, its noise) is shared by both sides and cancels, which is why a few clips per mechanism
say something at all. A method that was trained with several seeds has several runs over the same clips. The interval is
the percentile bootstrap over both: a resample draws clips, the same for both sides, and training runs, of each side on
its own. Over several mechanisms it is stratified: the runs are drawn once, the clips of each mechanism on their own, so
that the mix of mechanisms stays fixed.

Of n clips or runs n - 1 are drawn, with replacement. Drawing n would see (n - 1)/n of the variance of a mean, which is
half of it for two runs; drawing one fewer sees all of it. One run alone shows no variance between runs: its interval
covers the choice of clips, and no training seed. Runs and clips drawn independently count their interaction more than
once, so where seeds differ from clip to clip the interval is a little too wide rather than too narrow.

What surprises: with n = 16 the percentile interval is a little too narrow (nominal 95 % covers about 93 %), with fewer
than `LEAST` clips in a stratum it says nothing (two clips that agree have an interval of no width) and there is none;
with two or three runs their part of it is a guess from two or three numbers. And of many intervals some exclude zero by
chance: `expected_by_chance` says how many, `holm` and `benjamini_hochberg` correct the p values for it.

References: An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapters 8 and 13; Resampling inference with
complex survey data (Rao and Wu, 1988), section 2.2 for n - 1 draws; The pigeonhole bootstrap (Owen, 2007) for rows and
columns; Holm (1979); Benjamini and Hochberg (1995).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

__all__ = [
    "LEAST",
    "LEVEL",
    "Difference",
    "benjamini_hochberg",
    "by_mechanism",
    "expected_by_chance",
    "holm",
    "paired",
    "resampled_means",
    "share_margin",
]

RESAMPLES = 4000
LEVEL = 0.95
LEAST = 8
"""Clips a stratum below which no interval is given (our choice)."""

Values = Sequence[float] | Sequence[Sequence[float]] | Float[np.ndarray, "..."]
"""What was measured of one side in one stratum: of each clip, or (runs, clips)."""


@dataclass(frozen=True)
class Difference:
    """Mean of `a - b` over `n` clips with its bootstrap interval and two-sided p value, which are None where there are
    too few clips for one. `runs` says how many training runs of `a` and of `b` were drawn from.
    """

    a: str
    b: str
    mean: float
    low: float | None
    high: float | None
    n: int
    p: float | None = None
    runs: tuple[int, int] = (1, 1)

    @property
    def clear(self) -> bool:
        """Whether there is an interval and it excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        """Write mean and interval.

        >>> str(Difference("x", "y", 0.1, -0.02, 0.22, 16)), str(Difference("x", "y", 0.1, None, None, 2))
        ('+0.100 [-0.020, +0.220]', '+0.100')
        """
        interval = "" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f}{interval}"


def paired(
    a: str,
    b: str,
    values_a: Sequence[Values],
    values_b: Sequence[Values],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Difference:
    """Compare two methods on the same clips, given by stratum: `values_a[stratum]` holds one figure a clip, or (runs,
    clips) where a method was trained with several seeds.

    Raises:
        ValueError: if the two sides do not have the same clips, a side has more runs in one stratum than in another, or
            there is nothing to compare.

    >>> paired("x", "y", [[1.0, 2.0]], [[0.0, 1.0]]).mean
    1.0
    """
    one, other = ([np.atleast_2d(np.asarray(v, float)) for v in side] for side in (values_a, values_b))
    sizes, runs = ([[v.shape[axis] for v in side] for side in (one, other)] for axis in (1, 0))
    if sizes[0] != sizes[1] or not sizes[0] or min(sizes[0]) < 1:
        raise ValueError(f"expected the same clips on both sides, got {sizes[0]} and {sizes[1]}; pair them by caption")
    for name, counts in zip((a, b), runs, strict=True):
        if len(set(counts)) != 1:
            raise ValueError(f"expected as many runs of {name} in every stratum, got {counts}")
    low = high = p = None
    if min(sizes[0]) >= LEAST:
        means = resampled_means(one, other, resamples=resamples, seed=seed)
        low, high = (float(q) for q in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
        # The largest level whose interval excludes zero is 1 - p; the ones keep p above 0, which no resampling shows.
        tail = min((means <= 0).sum(), (means >= 0).sum())
        p = min(1.0, 2 * float(tail + 1) / (resamples + 1))
    mean = float(np.mean([x.mean() - y.mean() for x, y in zip(one, other, strict=True)]))
    return Difference(a, b, mean, low, high, sum(sizes[0]), p, (runs[0][0], runs[1][0]))


def by_mechanism(
    a: str, b: str, values_a: Mapping[str, Values], values_b: Mapping[str, Values], *, seed: int = 0
) -> dict[str, Difference]:
    """Compare within each mechanism, and over all of them under the name `all`."""
    compared = {m: paired(a, b, [values_a[m]], [values_b[m]], seed=seed) for m in values_a}
    return compared | {"all": paired(a, b, list(values_a.values()), [values_b[m] for m in values_a], seed=seed)}


def resampled_means(
    one: Sequence[Float[np.ndarray, "r _"]],
    other: Sequence[Float[np.ndarray, "s _"]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, " resamples"]:
    """Draw the mean difference anew, `resamples` times: runs of each side, and clips of each stratum (one array each).

    Every stratum weighs the same, as the mean over mechanisms does.
    """
    rng = np.random.default_rng(seed)
    runs, others = (_weights(rng, resamples, len(side[0])) for side in (one, other))
    means = np.zeros(resamples)
    for x, y in zip(one, other, strict=True):
        means += ((runs @ x - others @ y) * _weights(rng, resamples, x.shape[1])).sum(1)
    return means / len(one)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values so that the chance of any false alarm among them stays below the level, whatever their
    dependence: the i-th smallest of m times m - i + 1, and no smaller than the one before.

    >>> [round(q, 3) for q in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return adjusted[np.argsort(order)].tolist()


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjust p values so that of those below the level no more than that share is expected to be false alarms
    (independent or positively dependent tests): the i-th smallest of m times m / i, and no larger than the one after.

    >>> [round(q, 3) for q in benjamini_hochberg([0.01, 0.04, 0.03])]
    [0.03, 0.04, 0.04]
    """
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")[::-1]
    scaled = values[order] * len(values) / np.arange(len(values), 0, -1)
    adjusted = np.minimum.accumulate(scaled).clip(max=1)
    return adjusted[np.argsort(order)].tolist()


def share_margin(n: int, level: float = LEVEL) -> float:
    """Half the width of the Wilson interval of a share of one half in `n` clips: how coarse a pass share is at most.

    >>> round(share_margin(16), 2)
    0.22
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    return 0.5 * z / (n + z * z) ** 0.5


def expected_by_chance(intervals: int, level: float = LEVEL) -> float:
    """Say how many of so many intervals exclude zero on average when nothing differs at all.

    >>> round(expected_by_chance(24), 2)
    1.2
    """
    return intervals * (1 - level)


def _weights(rng: np.random.Generator, resamples: int, n: int) -> Float[np.ndarray, "resamples n"]:
    """How much each of n counts in each resample of n - 1."""
    if n == 1:
        return np.ones((resamples, 1))
    return rng.multinomial(n - 1, np.full(n, 1 / n), size=resamples) / (n - 1)
