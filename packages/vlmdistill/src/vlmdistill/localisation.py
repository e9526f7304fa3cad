"""How well a map finds a phenomenon: against the mask of the cells where it truly is, on the same grid.

    average precision   sum_n (R_n - R_{n-1}) P_n over the cells of a clip ordered by the map
    above chance        (AP - prevalence) / (1 - prevalence):  1 for a perfect order, 0 for any constant map
    IoU                 of the k highest cells with the k true ones: no threshold to choose
    pointing game       share of the frames with a true cell whose highest cell is a true one

Cells of equal value share what their places would give, so that a constant map scores what chance gives, in whatever
order it is stored. A random router has an order too, and an expert of its own may happen to follow the object: `bar`
therefore asks for a score above a floor *and* above the 97.5 % quantile of 200 random routers on the same tokens.

References: Pascal VOC and scikit-learn (average precision without interpolation); Excitation Backprop (Zhang et al.,
2016), the pointing game. The bar is our choice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Bar", "Localisation", "bar", "localise", "macro", "random_router"]


@dataclass(frozen=True)
class Localisation:
    """Scores of one map, all in [0, 1] but `above_chance`, which is negative for a map that avoids the phenomenon."""

    average_precision: float
    iou: float
    pointing: float
    prevalence: float

    @property
    def above_chance(self) -> float:
        """(AP - prevalence) / (1 - prevalence)."""
        return (self.average_precision - self.prevalence) / (1 - self.prevalence)


@dataclass(frozen=True)
class Bar:
    """A score with the floor and the quantile of random routers that it must pass."""

    score: float
    floor: float
    random_quantile: float

    @property
    def passes(self) -> bool:
        """At least the floor, and above the random routers."""
        return self.score >= self.floor and self.score > self.random_quantile


def localise(scores: Float[Tensor, "t h w"], truth: Bool[Tensor, "t h w"]) -> Localisation:
    """Score a map against the true cells; ValueError where none or all of them are true: nothing can be found there.

    >>> truth = torch.tensor([[[True, False, False, False]]])
    >>> localise(torch.tensor([[[4.0, 3.0, 2.0, 1.0]]]), truth).above_chance
    1.0
    >>> localise(torch.zeros(1, 1, 4), truth).above_chance
    0.0
    """
    if scores.shape != truth.shape:
        raise ValueError(f"expected map and mask on one grid, got {tuple(scores.shape)} and {tuple(truth.shape)}")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("expected a finite map, got NaN or infinity")
    if not bool(truth.any()) or bool(truth.all()):
        raise ValueError(
            "expected some cells true and some not: a phenomenon nowhere or everywhere has no place, skip the clip"
        )
    return Localisation(
        average_precision=_average_precision(scores.flatten(), truth.flatten()),
        iou=_iou(scores.flatten(), truth.flatten()),
        pointing=_pointing(scores.flatten(1), truth.flatten(1)),
        prevalence=float(truth.double().mean()),
    )


def macro(found: Mapping[str, Sequence[Localisation]], *, below: float = 0.5) -> float:
    """Mean over mechanisms of the mean score above chance, without those that fill `below` of the clip or more.

    >>> sharp, wide = Localisation(0.9, 0.5, 1.0, 0.1), Localisation(0.9, 0.8, 1.0, 0.8)
    >>> round(macro({"collision": [sharp, sharp], "thermal": [wide]}), 3)
    0.889
    """
    kept = {name: each for name, each in found.items() if each and fmean(one.prevalence for one in each) < below}
    if not kept:
        raise ValueError(f"expected a mechanism with prevalence below {below}, got none of {sorted(found)}")
    return fmean(fmean(one.above_chance for one in each) for each in kept.values())


def bar(
    score: float,
    random_score: Callable[[int], float],
    *,
    floor: float = 0.3,
    quantile: float = 0.975,
    draws: int = 200,
) -> Bar:
    """Put a score beside the quantile of `random_score(seed)` over seeds 0 .. draws - 1.

    `random_score` scores the maps of a `random_router` of that seed exactly as `score` was made.

    >>> bar(0.5, lambda seed: seed / 1000).passes, bar(0.1, lambda seed: 0.0).passes
    (True, False)
    """
    if draws < 1 or not 0 <= quantile <= 1:
        raise ValueError(f"expected at least one draw and a quantile in [0, 1], got {draws} and {quantile}")
    drawn = torch.tensor([random_score(seed) for seed in range(draws)], dtype=torch.float64)
    return Bar(score, floor, float(drawn.quantile(quantile)))


def random_router(tokens: Float[Tensor, "n d"], outputs: int, seed: int) -> Float[Tensor, "n e"]:
    """Route tokens at random: softmax of a random linear map of their standardised features, one map an output.

    >>> random_router(torch.randn(6, 4), 3, seed=0).sum(1).allclose(torch.ones(6))
    True
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(tokens.shape[1], outputs, generator=generator).to(tokens.device) / tokens.shape[1] ** 0.5
    x = tokens.float()
    x = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-6)
    return (x @ weight).softmax(1)


def _average_precision(scores: Float[Tensor, " n"], truth: Bool[Tensor, " n"]) -> float:
    order = scores.argsort(descending=True)
    values, hits = scores[order], truth[order].double().cumsum(0)
    ends = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool, device=values.device)]).nonzero()[:, 0]
    recall, precision = hits[ends] / hits[-1], hits[ends] / (ends + 1)
    return float((recall.diff(prepend=recall.new_zeros(1)) * precision).sum())


def _iou(scores: Float[Tensor, " n"], truth: Bool[Tensor, " n"]) -> float:
    k = int(truth.sum())
    least = scores.topk(k).values[-1]
    above, tied = scores > least, scores == least
    share = (k - above.sum()) / tied.sum()  # of the tied cells, so that k are taken
    shared = float((truth & above).sum() + share * (truth & tied).sum())
    return shared / (2 * k - shared)


def _pointing(scores: Float[Tensor, "t n"], truth: Bool[Tensor, "t n"]) -> float:
    highest = scores == scores.max(1, keepdim=True).values
    hit = (highest & truth).sum(1) / highest.sum(1)
    return float(hit[truth.any(1)].double().mean())
