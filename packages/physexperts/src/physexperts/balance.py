"""Losses that keep a router healthy, one layer at a time.

Each takes one `Routing` and returns a scalar that the caller weighs and sums; nothing is kept in module globals.
Pooling the layers before the product would hide a layer that sends everything to one expert behind another that does
the opposite. Rows that are masked count nowhere; a routing without a single valid row gives zero.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from physexperts.routing import Routing

__all__ = ["importance_loss", "load_balancing_loss", "router_z_loss"]


def load_balancing_loss(routing: Routing, *, reduction: Literal["global", "sequence"] = "global") -> Float[Tensor, ""]:
    """E * sum_e f_e P_e: the share of selections times the mean probability; 1 at balance for every k, E at collapse.

    f counts the selections (no gradient), P is the mean of the *full* softmax: with only the selected probabilities a
    starved expert gets no gradient. `"sequence"` balances within each sample (the last axis before E is the tokens) and
    averages.

    References: Switch Transformers (Fedus et al., 2021), Eq. 4-6.
    """
    selected, probs = routing.selected.to(routing.probs.dtype), routing.probs
    valid = routing.mask.to(probs.dtype)[..., None]
    rows = tuple(range(valid.ndim - 1)) if reduction == "global" else (-2,)
    chosen = selected.sum(rows)
    f = chosen / chosen.sum(-1, keepdim=True).clamp(min=1)
    p = probs.sum(rows) / valid.sum(rows).clamp(min=1)
    loss = routing.experts * (f * p).sum(-1)
    counted = (valid.sum(rows)[..., 0] > 0).to(loss.dtype)
    return (loss * counted).sum() / counted.sum().clamp(min=1)


def router_z_loss(routing: Routing) -> Float[Tensor, ""]:
    """Mean squared log-partition of the logits: keeps them small, so that rounding does not choose.

    References: ST-MoE (Zoph et al., 2022), Eq. 5.
    """
    valid = routing.mask.to(routing.logits.dtype)
    return (routing.logits.logsumexp(-1).square() * valid).sum() / valid.sum().clamp(min=1)


def importance_loss(routing: Routing) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the experts' summed weights: zero when all matter equally.

    References: Outrageously Large Neural Networks (Shazeer et al., 2017), Eq. 6-7.
    """
    importance = routing.dense().flatten(0, -2).sum(0)
    mean = importance.mean()
    eps = torch.finfo(importance.dtype).eps
    return importance.var(correction=0) / (mean.square() + eps)
