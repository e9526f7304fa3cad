"""Paired comparison: the same caption and the same noise through two systems, the difference taken clip by clip.

A clip's difficulty (its caption, its noise) is shared by both systems and cancels, which is why a few clips per
mechanism say something at all. The interval is the percentile bootstrap over clips; over several mechanisms it is
stratified, each mechanism resampled on its own, so that the mix of mechanisms stays fixed.

What surprises: with n = 16 the percentile interval is a little too narrow (nominal 95 % covers about 92 %), with fewer
than `LEAST` clips in a stratum it says nothing (two clips that agree have an interval of no width) and is NaN; and of
many intervals some exclude zero by chance: `expected_by_chance` says how many.

References: An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapters 8 and 13.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

RESAMPLES = 4000
LEVEL = 0.95
LEAST = 8
"""Clips a stratum below which no interval is given (our choice)."""


@dataclass(frozen=True)
class Difference:
    """Mean of `a - b` over `n` pairs with its bootstrap interval, NaN where there are too few clips for one."""

    a: str
    b: str
    mean: float
    low: float
    high: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether there is an interval and it excludes zero."""
        return self.low > 0 or self.high < 0


def paired(
    a: str,
    b: str,
    values_a: Sequence[Sequence[float]],
    values_b: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Difference:
    """Compare two systems on the same clips, given by stratum: `values_a[stratum][clip]`.

    Raises:
        ValueError: if the two sides do not have the same clips, or there is none.

    >>> paired("x", "y", [[1.0, 2.0]], [[0.0, 1.0]]).mean
    1.0
    """
    sizes = [len(v) for v in values_a], [len(v) for v in values_b]
    if sizes[0] != sizes[1] or not sizes[0] or min(sizes[0]) < 1:
        raise ValueError(f"expected the same clips on both sides, got {sizes[0]} and {sizes[1]}; pair them by caption")
    strata = [np.subtract(x, y, dtype=float) for x, y in zip(values_a, values_b, strict=True)]
    rng = np.random.default_rng(seed)
    # Every stratum weighs the same, as the mean over mechanisms does.
    means = np.mean([_resampled_means(values, rng, resamples) for values in strata], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]) if min(sizes[0]) >= LEAST else (np.nan, np.nan)
    return Difference(
        a=a,
        b=b,
        mean=float(np.mean([values.mean() for values in strata])),
        low=float(low),
        high=float(high),
        n=int(sum(len(values) for values in strata)),
    )


def by_mechanism(
    a: str,
    b: str,
    values_a: Mapping[str, Sequence[float]],
    values_b: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare within each mechanism, and over all of them under the name `all`."""
    compared = {m: paired(a, b, [values_a[m]], [values_b[m]], seed=seed) for m in values_a}
    return compared | {"all": paired(a, b, list(values_a.values()), [values_b[m] for m in values_a], seed=seed)}


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


def _resampled_means(
    values: Float[np.ndarray, " n"], rng: np.random.Generator, resamples: int
) -> Float[np.ndarray, " r"]:
    return values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
