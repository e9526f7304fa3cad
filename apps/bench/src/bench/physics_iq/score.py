"""From comparisons of views to one number, in the two ways that are published: never mix them.

*Original* (2025): the three IoUs of all views, averaged, over those of the two real takes; the ratios averaged; less
how much the MSE exceeds that of the takes. A ratio of means. *Verified* (2026): in each view four ratios, each cut to
[0, 1], the MSE's turned over; a mean of ratios.

Frame values are rounded to four decimals first, the takes' means to four (spatial: five), as the official script does.

What surprises: the MSE is about .002, so that four decimals cost it up to a few per cent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.physics_iq.overlap import Comparison

__all__ = ["Scores", "score", "verified_terms"]

EPSILON = 1e-8
"""Keeps a view whose takes share nothing from dividing by zero, as the official script has it."""


@dataclass(frozen=True)
class Scores:
    """`original` and `verified` in 0..100, `raw` is the original before it is cut to 0..100; None where the takes share
    no motion at all, so that nothing can be divided by it.

    `means` and `variances` hold spatiotemporal, spatial, weighted and mse: of the generated clips against take 1, and
    of take 2 against take 1. `physical_variance` sums the latter as the official script prints it.
    """

    original: float | None
    raw: float | None
    verified: float
    means: dict[str, float]
    variances: dict[str, float]
    physical_variance: float


def score(generated: Sequence[Comparison], takes: Sequence[Comparison]) -> Scores:
    """Score views: `generated[i]` and `takes[i]` against take 1 of view i.

    original = 100 clip([ST/ST_var + S/S_var + W/W_var] / 3 - (MSE - MSE_var)).

    >>> same = Comparison(0.5, 0.25, (0.5, 0.5), (0.001, 0.001))
    >>> score([same], [same]).original, round(score([same], [same]).verified, 4)
    (100.0, 100.0)
    """
    if not generated or len(generated) != len(takes):
        raise ValueError(f"expected as many views as real pairs, at least one, got {len(generated)} and {len(takes)}")
    means, free = _means(generated), _means(takes)
    variances = {name: round(value, 5 if name == "spatial" else 4) for name, value in free.items()}
    raw = None
    if all(variances[name] > 0 for name in ("spatiotemporal", "spatial", "weighted")):
        ratios = [means[name] / variances[name] for name in ("spatiotemporal", "spatial", "weighted")]
        raw = 100 * (sum(ratios) / 3 - (means["mse"] - variances["mse"]))
    terms = [list(verified_terms(one, two).values()) for one, two in zip(generated, takes, strict=True)]
    summed = variances["spatiotemporal"] + variances["spatial"] + variances["weighted"] - variances["mse"]
    return Scores(
        original=None if raw is None else min(100.0, max(0.0, raw)),
        raw=raw,
        verified=100 * float(np.mean(terms)),
        means=means,
        variances=variances,
        physical_variance=round(summed, 4),
    )


def verified_terms(generated: Comparison, takes: Comparison) -> dict[str, float]:
    """The four ratios of one view, cut to [0, 1]: q / (q_var + 1e-8) for the IoUs, its inverse for the MSE.

    References: Physics-IQ Verified (arXiv 2606.18943), calculate_iq_score_stable.py.
    """
    mine, true = _means([generated]), _means([takes])
    ratios = {name: mine[name] / (true[name] + EPSILON) for name in mine}
    mse = ratios["mse"]
    return {name: min(1.0, ratio) for name, ratio in ratios.items() if name != "mse"} | {
        "mse": min(1.0, 1 / mse) if mse > 0 else 1.0
    }


def _means(clips: Sequence[Comparison]) -> dict[str, float]:
    """Means over frames, then over views, of values rounded as the official table is read."""
    return {
        "spatiotemporal": float(np.mean([_rounded(clip.spatiotemporal) for clip in clips])),
        "spatial": float(np.mean([clip.spatial for clip in clips])),
        "weighted": float(np.mean([clip.weighted for clip in clips])),
        "mse": float(np.mean([_rounded(clip.mse) for clip in clips])),
    }


def _rounded(values: Sequence[float]) -> float:
    return float(np.mean([round(value, 4) for value in values]))
