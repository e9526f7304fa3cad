"""Means over items, with what they rest on: how many items count, and a bootstrap interval from eight on."""

from collections.abc import Mapping, Sequence

import numpy as np

from bench.results import Item, Metric
from physworld.paired import LEAST, paired

__all__ = ["grouped", "mean"]


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
