"""Means and shares over items with what they rest on: how many items count, and an interval: the bootstrap's for a mean
(from eight items on), Wilson's for a share.

None stands for what could not be decided. It counts in `n` and not in `n_valid`, and moves no figure.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bench.compare import wilson
from bench.results import Item, Metric
from physworld.paired import LEAST, paired

__all__ = ["Value", "grouped", "mean", "share"]


Value = float | int | None
"""A figure of one video; a share's is 1 or 0."""


def mean(values: Sequence[float | None], *, unit: str = "") -> Metric:
    """Return the mean of what is known and finite, with its 95 % bootstrap interval over items.

    >>> mean([1.0, None, 3.0]).value, mean([1.0, None, 3.0]).n_valid
    (2.0, 2)
    """
    known = [value for value in values if value is not None and np.isfinite(value)]
    n_valid = None if len(known) == len(values) else len(known)
    if not known:
        return Metric(value=None, n=len(values), n_valid=n_valid, unit=unit)
    if len(known) < LEAST:
        return Metric(value=float(np.mean(known)), n=len(values), n_valid=n_valid, unit=unit)
    difference = paired("items", "nothing", [known], [[0.0] * len(known)])
    return Metric(
        value=difference.mean,
        n=len(values),
        n_valid=n_valid,
        low=difference.low,
        high=difference.high,
        interval="bootstrap over items",
        unit=unit,
    )


def grouped(items: Sequence[Item], units: Mapping[str, str]) -> tuple[dict[str, Metric], dict[str, dict[str, Metric]]]:
    """Return the mean of each figure in `units` over all items, and by group."""

    def over(some: Sequence[Item]) -> dict[str, Metric]:
        return {key: mean([item.values.get(key) for item in some], unit=unit) for key, unit in units.items()}

    groups = sorted({item.group for item in items if item.group})
    return over(items), {group: over([item for item in items if item.group == group]) for group in groups}


def share(flags: Sequence[Value], *, unit: str = "share") -> Metric:
    """Return the share of true among what is decided, with Wilson's 95 % interval.

    >>> share([True, False, True, None]).value
    0.6666666666666666
    """
    known = [flag for flag in flags if flag is not None]
    if not known:
        return Metric(value=None, n=len(flags), n_valid=0, unit=unit)
    value = sum(known) / len(known)
    low, high = wilson(value, len(known))
    return Metric(
        value=value,
        n=len(flags),
        n_valid=None if len(known) == len(flags) else len(known),
        low=low,
        high=high,
        interval="Wilson",
        unit=unit,
    )
