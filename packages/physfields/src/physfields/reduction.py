"""From residual fields to one number a sample, for all residuals at once.

Residuals that share a place and a weight are laid side by side as channels: one square, one weighted mean for them all.
Twenty-nine times a dozen small operators would be launches that a GPU waits for; here they are a few dozen.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from physfields.balance import Balance, Field
from physfields.fields import symmetric_pairs
from physfields.grid import Grid

Reach = tuple[str, ...]
Mean = Callable[[Tensor, Reach, str], Tensor]  # of a field, under the weight of a reach and a place


@dataclass(frozen=True)
class Residual:
    """`field`: the residual by place ("node", or the axis it sits half-way along); the rest is one row a sample.

    `loss` is reduced and weighted. `terms` are the RMS of the terms that make up the residual, `scale` the largest of
    them, both without gradient: residual / scale is free of units.
    """

    field: Mapping[str, Field]
    loss: Float[Tensor, " b"]
    scale: Float[Tensor, " b"]
    terms: Float[Tensor, "b k"]


@dataclass(frozen=True)
class Part:
    """A value somewhere: the residual or term it counts for, the axes its stencil reaches, how its channels count."""

    owner: int
    place: str
    reach: Reach
    value: Tensor
    counts: tuple[float, ...]


def reduce_all(
    balances: Sequence[Balance],
    reaches: Sequence[Reach],
    factors: Sequence[float],
    grid: Grid,
    mean: Mean,
    *,
    divisor: float | None,
    charbonnier: float | None,
) -> list[Residual]:
    """Reduce each balance to mean squares (or Charbonnier means), over its terms' size if `divisor` floors that."""
    if not balances:
        return []

    def part(owner: int, reach: Reach, place: str, value: Tensor, symmetric: bool) -> Part:
        pairs = symmetric_pairs(len(grid.space))
        corners = symmetric and value.shape[1] == len(pairs)  # |s|^2 = yy^2 + xx^2 + 2 yx^2
        counts = tuple(2.0 if i != j else 1.0 for i, j in pairs) if corners else (1.0,) * value.shape[1]
        return Part(owner, place, reach, value, counts)

    terms, term = [], 0
    for b, reach in zip(balances, reaches, strict=True):
        for place, value in b.terms:
            terms.append(part(term, reach, place, value.detach(), b.symmetric))
            term += 1
    squares = _means(terms, [1.0] * term, mean, lambda v, _: v.square())
    sizes = squares.sqrt()
    widths = [len(b.terms) for b in balances]
    rms = sizes.split(widths, dim=1)
    scales = torch.stack([r.amax(dim=1) for r in rms], dim=1)

    def prepare(values: Tensor, owners: list[int]) -> Tensor:
        if divisor is not None:
            by_channel = scales[:, owners].clamp(min=divisor)
            values = values / by_channel.reshape([*by_channel.shape] + [1] * (values.ndim - 2))
        squared = values.square()
        return squared if charbonnier is None else (squared + charbonnier).sqrt()

    parts = [
        part(k, reach, place, value, b.symmetric)
        for k, (b, reach) in enumerate(zip(balances, reaches, strict=True))
        for place, value in b.field.items()
    ]
    losses = _means(parts, factors, mean, prepare)
    rows = zip(balances, losses.unbind(dim=1), scales.unbind(dim=1), rms, strict=True)
    return [Residual(b.field, loss, scale, r) for b, loss, scale, r in rows]


def _means(
    parts: Iterable[Part], factors: Sequence[float], mean: Mean, prepare: Callable[[Tensor, list[int]], Tensor]
) -> Float[Tensor, "b owners"]:
    """For each owner, factor x the sum over its parts and channels of count x mean over points of prepare(value)."""
    groups: dict[tuple[Reach, str], list[Part]] = {}
    for p in parts:
        groups.setdefault((p.reach, p.place), []).append(p)
    means, table = [], []
    for (reach, place), members in groups.items():
        owners = [p.owner for p in members for _ in p.counts]
        means.append(mean(prepare(torch.cat([p.value for p in members], dim=1), owners), reach, place))
        for p in members:
            table += [[c * factors[k] if k == p.owner else 0.0 for k in range(len(factors))] for c in p.counts]
    together = torch.cat(means, dim=1)[:, :, None]
    share = together.new_tensor(table)
    # No matmul: TF32 would round it. No bare product: 0 x NaN would carry one residual's NaN into the others.
    return (torch.where(share != 0, together, 0.0) * share).sum(dim=1)
