"""What a router decided: which experts answer, and how much of each.

A `Routing` holds one decision for every element of its leading axes (`*b`: samples for a video-level router, tokens for
a token-level one). Only the `weights` carry gradients to the router's logits; `indices` are a hard choice. What
surprises: a slot whose weight is exactly zero selects nothing (it fills up a row that had fewer than k experts to
choose from, or a masked row), so the number of experts that really answer is `selected.sum(-1)`, not k.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Routing", "Score", "route"]

Score = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Routing:
    """The choice of k out of E experts, best first.

    `weights` sum to one over the selected experts of a row unless raw scores were asked for (to zero where none is
    allowed or the row is masked); `probs` are the scores of all allowed experts and `logits` what they were made from;
    `mask` is true for rows that count.

    >>> routing = route(torch.tensor([[0.0, 3.0, 3.0]]), 2)
    >>> routing.dense().tolist(), routing.selected.tolist(), routing.k, routing.experts
    ([[0.0, 0.5, 0.5]], [[False, True, True]], 2, 3)
    """

    weights: Float[Tensor, "*b k"]
    indices: Int[Tensor, "*b k"]
    probs: Float[Tensor, "*b E"]
    logits: Float[Tensor, "*b E"]
    mask: Bool[Tensor, "*b"]

    @property
    def experts(self) -> int:
        """E, the number of experts that could have been chosen."""
        return self.logits.shape[-1]

    @property
    def k(self) -> int:
        """How many experts a row may select at most."""
        return self.indices.shape[-1]

    @property
    def selected(self) -> Bool[Tensor, "*b E"]:
        """True for the experts that answer (their weight is not zero; a NaN weight counts, so that it cannot hide)."""
        return torch.zeros_like(self.probs, dtype=torch.bool).scatter(-1, self.indices, self.weights.detach() != 0)

    def dense(self) -> Float[Tensor, "*b E"]:
        """The weights at the place of their experts, zero elsewhere; differentiable."""
        return torch.zeros_like(self.probs).scatter(-1, self.indices, self.weights)


def route(
    logits: Float[Tensor, "*b E"],
    k: int,
    *,
    temperature: float = 1.0,
    allowed: Bool[Tensor, "*#b E"] | None = None,
    mask: Bool[Tensor, "*b"] | None = None,
    score: Score = "softmax",
    renormalize: bool = True,
    bias: Float[Tensor, " E"] | None = None,
) -> Routing:
    """Keep the k best experts of each row and weigh them by their scores, divided by the sum of the kept ones.

    The score is a softmax over the allowed experts (kept and divided: a softmax over the kept) or the sigmoid of each
    logit; `renormalize=False` keeps it as it is. `bias` is added to the scores for the choice alone, never for the
    weights. Equal logits are taken in the order of their index. An expert that is not `allowed` is never selected: with
    fewer than k allowed the weights run over those, with none they are zero. Computed in fp32 (fp64 for fp64 logits),
    whatever autocast says. NaN logits give NaN weights.

    References: PILA (Wang et al., 2026), Eq. 23; for sigmoid scores and the bias DeepSeek-V3 (2024), Eq. 13-16.

    >>> route(torch.tensor([0.0, 2.0, 2.0, 1.0]), 2).indices.tolist()
    [1, 2]
    >>> route(torch.zeros(4), 2, renormalize=False).weights.tolist()
    [0.25, 0.25]
    """
    _fit(logits, allowed, mask, bias)
    experts = logits.shape[-1]
    if not 0 <= k <= experts:
        raise ValueError(f"expected k in 0..{experts} (the number of experts), got {k}")
    if not temperature > 0:
        raise ValueError(f"expected a positive temperature, got {temperature}; a small one such as 0.01 is nearly hard")
    if score not in ("softmax", "sigmoid"):
        raise ValueError(f"expected score softmax or sigmoid, got {score!r}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    mask = torch.ones_like(logits[..., 0], dtype=torch.bool) if mask is None else mask
    permitted = mask[..., None].expand_as(logits) if allowed is None else mask[..., None] & allowed
    logits = logits.masked_fill(~mask[..., None], 0.0)  # padding may hold anything, NaN too
    # A finite floor, not -inf: a row with nothing allowed would turn into NaN, and so would its gradient.
    floor = torch.finfo(logits.dtype).min
    scaled = (logits / temperature).masked_fill(~permitted, floor)
    probs = (scaled.softmax(-1) if score == "softmax" else (logits / temperature).sigmoid()) * permitted
    ranking = scaled if bias is None else (probs + bias).masked_fill(~permitted, floor)
    indices = _best(ranking.detach(), k)
    chosen = permitted.gather(-1, indices)
    if not renormalize:
        weights = probs.gather(-1, indices)
    elif score == "softmax":
        weights = scaled.gather(-1, indices).softmax(-1) * chosen
    else:  # as a softmax of log-scores: small scores do not vanish in the division
        kept = torch.nn.functional.logsigmoid(logits / temperature).gather(-1, indices)
        weights = kept.masked_fill(~chosen, floor).softmax(-1) * chosen
    return Routing(weights=weights, indices=indices, probs=probs, logits=logits, mask=mask)


def _fit(logits: Tensor, allowed: Tensor | None, mask: Tensor | None, bias: Tensor | None) -> None:
    """Refuse what broadcasting would take for something else, such as the mask of one sample for a batch."""
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(f"expected logits with a last axis of at least one expert, got shape {tuple(logits.shape)}")
    if mask is not None and (mask.shape != logits.shape[:-1] or mask.dtype != torch.bool):
        raise ValueError(
            f"expected a bool mask of shape {tuple(logits.shape[:-1])}, true for rows that count, got {mask.dtype} of "
            f"shape {tuple(mask.shape)}"
        )
    if allowed is not None:
        sizes = zip(reversed(allowed.shape[:-1]), reversed(logits.shape[:-1]), strict=False)
        fits = allowed.ndim <= logits.ndim and all(have in (1, want) for have, want in sizes)
        if not fits or allowed.shape[-1:] != logits.shape[-1:] or allowed.dtype != torch.bool:
            raise ValueError(
                f"expected `allowed` as bool that broadcasts to {tuple(logits.shape)}, one column an expert, got "
                f"{allowed.dtype} of shape {tuple(allowed.shape)}"
            )
    if bias is not None and bias.shape != logits.shape[-1:]:
        raise ValueError(f"expected a bias of shape {tuple(logits.shape[-1:])}, got {tuple(bias.shape)}")


def _best(ranking: Float[Tensor, "*b E"], k: int) -> Int[Tensor, "*b k"]:
    """The places of the k largest, best first, equal ones by index: torch.topk leaves the order of ties open."""
    if k > 4:
        return ranking.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    found, ranking = [], ranking.clamp(min=torch.finfo(ranking.dtype).min)
    for _ in range(k):  # argmax takes the first of equals; a few passes cost less than sorting 32 experts
        found.append(ranking.argmax(-1, keepdim=True))
        ranking = ranking.scatter(-1, found[-1], -torch.inf)
    return torch.cat(found, -1) if found else ranking.new_zeros(*ranking.shape[:-1], 0, dtype=torch.long)
