"""Two kinds of figures: a share of items with Wilson's interval, and a mean.

None stands for what could not be decided. It counts in `n` and not in `n_valid`, and moves no figure.
"""

from collections.abc import Iterable, Sequence
from statistics import fmean

from bench.results import Metric


def share(flags: Iterable[bool | None], *, unit: str = "share") -> Metric:
    """Return the share of true among what is decided, with Wilson's 95 % interval.

    >>> share([True, False, True, None]).value
    0.6666666666666666
    """
    from scipy.stats import binomtest

    flags = list(flags)
    known = [flag for flag in flags if flag is not None]
    if not known:
        return Metric(value=None, n=len(flags), n_valid=0, unit=unit)
    low, high = binomtest(sum(known), len(known)).proportion_ci(method="wilson")
    return Metric(
        value=sum(known) / len(known),
        n=len(flags),
        n_valid=None if len(known) == len(flags) else len(known),
        low=float(low),
        high=float(high),
        interval="Wilson",
        unit=unit,
    )


def mean(values: Sequence[float | None], *, unit: str = "") -> Metric:
    """Return the mean of what is known."""
    known = [value for value in values if value is not None]
    n_valid = None if len(known) == len(values) else len(known)
    return Metric(value=fmean(known) if known else None, n=len(values), n_valid=n_valid, unit=unit)
