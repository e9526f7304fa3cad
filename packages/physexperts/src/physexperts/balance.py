"""Losses that keep a router healthy, one layer at a time.

Each takes one `Routing` and returns a scalar that the caller weighs and sums; nothing is kept in module globals.
Pooling the layers before the product would hide a layer that sends everything to one expert behind another that does
the opposite. Rows that are masked count nowhere; a routing without a single valid row gives zero.

A batch may be spread over ranks and micro-batches. Its loss is not the average of its parts' losses (f P is no sum), so
every loss takes the `Tally` of the whole: with it each part returns the loss of the whole batch, and gradients that
*averaged* over all parts are the whole batch's. First tally all parts without gradient, add, sum over the ranks; then
run the losses:

    whole = sum((tally(r) for r in routings[1:]), tally(routings[0])).over(group)      # two passes
    losses = [load_balancing_loss(r, whole=whole) for r in routings]

References: Demons in the Detail (Qiu et al., 2025) for the balance over the global batch.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from physexperts.ranks import Group, joined, summed, world
from physexperts.routing import Routing

__all__ = ["Tally", "importance_loss", "load_balancing_loss", "router_z_loss", "tally"]


@dataclass(frozen=True)
class Tally:
    """Sums over the valid rows of one layer's routing: all that the losses need; they add up over parts.

    `selections` counts who was asked, `probs` and `importance` are summed scores and weights, `log_z2` the squared
    log-partitions, `parts` how many micro-batches (over all ranks) went in.

    >>> from physexperts import route
    >>> both = tally(route(torch.eye(2), 1)) + tally(route(torch.zeros(3, 2), 1))
    >>> both.rows.item(), both.selections.tolist(), both.parts
    (5.0, [4.0, 1.0], 2)
    """

    rows: Float[Tensor, ""]
    selections: Float[Tensor, " E"]
    probs: Float[Tensor, " E"]
    importance: Float[Tensor, " E"]
    log_z2: Float[Tensor, ""]
    parts: int = 1

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def detach(self) -> "Tally":
        """The same without gradient."""
        return Tally(*(getattr(self, f.name).detach() for f in fields(self) if f.name != "parts"), parts=self.parts)

    def over(self, group: Group) -> "Tally":
        """The sum over the ranks of a group, without gradient; every rank must hold as many parts."""
        sums = (summed(getattr(self, f.name), group) for f in fields(self) if f.name != "parts")
        return Tally(*sums, parts=self.parts * world(group))


def tally(routing: Routing | Tally) -> Tally:
    """Sum up one routing; a tally is one already. The losses take either, so that several of them sum up once.

    >>> from physexperts import route
    >>> tally(route(torch.eye(3), 1)).selections.tolist()
    [1.0, 1.0, 1.0]
    """
    if isinstance(routing, Tally):
        return routing
    probs = routing.probs
    valid = routing.mask.to(probs.dtype)
    return Tally(
        rows=valid.sum(),
        selections=routing.selected.to(probs.dtype).flatten(0, -2).sum(0),
        probs=probs.flatten(0, -2).sum(0),
        importance=routing.dense().flatten(0, -2).sum(0),
        log_z2=(routing.logits.logsumexp(-1).square() * valid).sum(),
    )


def load_balancing_loss(
    routing: Routing | Tally, *, reduction: Literal["global", "sequence"] = "global", whole: Tally | None = None
) -> Float[Tensor, ""]:
    """E * sum_e f_e P_e: the share of selections times the mean probability; 1 at balance for every k, E at collapse.

    f counts the selections (no gradient), P is the mean of the *full* scores: with only the selected probabilities a
    starved expert gets no gradient (sigmoid scores are first divided by their sum). `"sequence"` balances within each
    sample (the last axis before E is the tokens) and averages, so it needs no `whole`.

    References: Switch Transformers (Fedus et al., 2021), Eq. 4-6.

    >>> from physexperts import route
    >>> balanced, collapsed = torch.eye(4) * 100, torch.tensor([[100.0, 0.0, 0.0, 0.0]] * 4)
    >>> load_balancing_loss(route(balanced, 1)).item(), load_balancing_loss(route(collapsed, 1)).item()
    (1.0, 4.0)
    """
    if reduction not in ("global", "sequence"):
        raise ValueError(f"expected reduction global or sequence, got {reduction!r}")
    if reduction == "global":
        part = tally(routing)
        total = part if whole is None else whole
        p = part.probs if whole is None else joined(whole.probs, part.probs, whole.parts)
        f = total.selections / total.selections.sum().clamp(min=1)
        # Softmax scores sum to the number of rows (that have any expert allowed), sigmoid ones to anything.
        return len(p) * (f * p).sum() / p.sum().clamp(min=torch.finfo(p.dtype).tiny)
    if whole is not None:
        raise ValueError("expected no `whole` with reduction='sequence': its losses are means already; average them")
    if isinstance(routing, Tally):
        raise ValueError("expected a Routing with reduction='sequence', got a Tally, which has summed the sequences up")
    selected = routing.selected.to(routing.probs.dtype).sum(-2)
    f = selected / selected.sum(-1, keepdim=True).clamp(min=1)
    p = routing.probs.sum(-2)
    loss = routing.experts * (f * p).sum(-1) / p.sum(-1).clamp(min=torch.finfo(p.dtype).tiny)
    counted = routing.mask.any(-1).to(loss.dtype)
    return (loss * counted).sum() / counted.sum().clamp(min=1)


def router_z_loss(routing: Routing | Tally, *, whole: Tally | None = None) -> Float[Tensor, ""]:
    """Mean squared log-partition of the logits: keeps them small, so that rounding does not choose.

    References: ST-MoE (Zoph et al., 2022), Eq. 5.

    >>> from physexperts import route
    >>> round(router_z_loss(route(torch.zeros(3, 4), 2)).item(), 4)  # log(4)^2
    1.9218
    """
    part = tally(routing)
    total = part if whole is None else whole
    log_z2 = part.log_z2 if whole is None else joined(whole.log_z2, part.log_z2, whole.parts)
    return log_z2 / total.rows.clamp(min=1)


def importance_loss(routing: Routing | Tally, *, whole: Tally | None = None) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the experts' summed weights: zero when all matter equally.

    References: Outrageously Large Neural Networks (Shazeer et al., 2017), Eq. 6-7.

    >>> from physexperts import route
    >>> importance_loss(route(torch.eye(4), 1)).item()
    0.0
    """
    part = tally(routing)
    importance = part.importance if whole is None else joined(whole.importance, part.importance, whole.parts)
    mean = importance.mean()
    eps = torch.finfo(importance.dtype).eps
    return importance.var(correction=0) / (mean.square() + eps)
