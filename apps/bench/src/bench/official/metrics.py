"""Shares of items with Wilson's interval.

None stands for what could not be decided. It counts in `n` and not in `n_valid`, and moves no figure.
"""

from collections.abc import Sequence

from bench.compare import wilson
from bench.results import Metric

Value = float | int | None
"""A figure of one video; a share's is 1 or 0."""


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
