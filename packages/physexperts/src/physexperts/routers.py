"""Who is asked: routers of whole samples, from a condition, and optionally labels, to a `Routing`.

Every router is called as `router(condition, labels, allowed=..., mask=...)`, so that an ablation swaps one for
another. Gates compute in fp32 even inside autocast and with bf16 weights (fp64 stays fp64): a router in half precision
flips its choice with rounding. Labels are a prior, not an order: they add to the logits and a confident gate may
overrule them; `allowed` is the order.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from physexperts.precision import outside_autocast
from physexperts.routing import Routing, route

__all__ = ["LabelPriorRouter", "SoftRouter", "UniformRouter", "masked_mean", "multi_hot", "random_labels"]


class LabelPriorRouter(nn.Module):
    """Top-k of an MLP's logits with an additive bonus for labelled experts: l~ = MLP(c) + beta * labels.

    `prior="mask"` makes labels an order instead: only labelled experts are allowed, all where a row has no label.

    References: PILA (Wang et al., 2026), Eq. 21-23. The sizes of beta (2), tau (1) and the hidden layer (the
    condition's own width) are our choice: the paper does not print them.

    >>> router = LabelPriorRouter(cond_dim=4, experts=8, k=4)
    >>> labels = torch.zeros(1, 8); labels[0, 2] = 100.0
    >>> router(torch.randn(1, 4), labels).indices[0, 0].item()
    2
    """

    def __init__(
        self,
        cond_dim: int,
        experts: int,
        k: int,
        *,
        prior_strength: float = 2.0,
        temperature: float = 1.0,
        hidden: int | None = None,
        prior: Literal["add", "mask"] = "add",
    ) -> None:
        super().__init__()
        if prior not in ("add", "mask"):
            raise ValueError(f"expected prior add or mask, got {prior!r}")
        if not 0 <= k <= experts:
            raise ValueError(f"expected k in 0..{experts} (the number of experts), got {k}")
        if not temperature > 0:
            raise ValueError(f"expected a positive temperature, got {temperature}")
        if prior_strength < 0:
            raise ValueError(f"expected prior_strength >= 0 (a label raises its expert), got {prior_strength}")
        hidden = cond_dim if hidden is None else hidden
        self.experts, self.k = experts, k
        self.prior_strength, self.temperature, self.prior = prior_strength, temperature, prior
        self.inner = nn.Linear(cond_dim, hidden)
        self.outer = nn.Linear(hidden, experts)

    def forward(
        self,
        condition: Float[Tensor, "*b d"],
        labels: Float[Tensor, "*b E"] | None = None,
        *,
        allowed: Bool[Tensor, "*#b E"] | None = None,
        mask: Bool[Tensor, "*b"] | None = None,
        prior_scale: float = 1.0,
    ) -> Routing:
        """Route each condition; `labels` are 0/1 (or soft), `prior_scale` in [0, 1] warms the prior up.

        Rows outside the mask may hold anything, NaN too: they reach neither the result nor a gradient.
        """
        dtype = torch.promote_types(condition.dtype, torch.float32)
        if mask is not None:  # before the first layer: in its gradient 0 * NaN would be NaN
            condition = condition.masked_fill(~mask[..., None], 0.0)
        with outside_autocast(condition.device):
            hidden = F.silu(_linear(self.inner, condition, dtype))
            logits = _linear(self.outer, hidden, dtype)
            if labels is not None and labels.shape != logits.shape:
                raise ValueError(
                    f"expected labels of shape {tuple(logits.shape)}, one column an expert, got {tuple(labels.shape)}"
                )
            if labels is not None and self.prior == "add":
                logits = logits + (prior_scale * self.prior_strength) * labels.to(dtype)
            elif labels is not None:
                named = labels > 0
                named = named | ~named.any(-1, keepdim=True)
                allowed = named if allowed is None else named & allowed
            return route(logits, self.k, temperature=self.temperature, allowed=allowed, mask=mask)


class SoftRouter(nn.Module):
    """All experts, each with its weight: softmax(MLP(c) / temperature), ProPhy's semantic router.

    No top-k: with a few videos a batch a hard choice starves experts. The indices are 0..E-1 in order. `inverted`
    routes on the negated logits, the paper's expert inversion. Labels are not looked at: the relative alignment teaches
    them.

    References: ProPhy (Wang et al., 2025), semantic expert block, Fig. 8. The hidden layer is our choice.

    >>> router = SoftRouter(cond_dim=4, experts=3)
    >>> torch.testing.assert_close(router(torch.randn(2, 4)).weights.sum(-1), torch.ones(2))
    """

    def __init__(self, cond_dim: int, experts: int, *, temperature: float = 1.0, hidden: int | None = None) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"expected a positive temperature, got {temperature}")
        hidden = cond_dim if hidden is None else hidden
        self.experts = self.k = experts
        self.temperature = temperature
        self.inner = nn.Linear(cond_dim, hidden)
        self.outer = nn.Linear(hidden, experts)

    def forward(
        self,
        condition: Float[Tensor, "*b d"],
        labels: Float[Tensor, "*b E"] | None = None,
        *,
        allowed: Bool[Tensor, "*#b E"] | None = None,
        mask: Bool[Tensor, "*b"] | None = None,
        prior_scale: float = 1.0,
        inverted: bool = False,
    ) -> Routing:
        """Weigh all allowed experts for each condition; rows outside the mask may hold anything."""
        dtype = torch.promote_types(condition.dtype, torch.float32)
        if mask is not None:
            condition = condition.masked_fill(~mask[..., None], 0.0)
        with outside_autocast(condition.device):
            logits = _linear(self.outer, F.silu(_linear(self.inner, condition, dtype)), dtype)
            routing = route(
                -logits if inverted else logits, 1, temperature=self.temperature, allowed=allowed, mask=mask
            )
        order = torch.arange(self.experts, device=logits.device).expand_as(routing.probs)
        return replace(routing, weights=routing.probs, indices=order)


class UniformRouter(nn.Module):
    """No routing at all: every allowed expert answers with the same weight, whatever is asked (ablation "w/o routing").

    >>> UniformRouter(4)(torch.randn(2, 3)).weights[0].tolist()
    [0.25, 0.25, 0.25, 0.25]
    """

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = self.k = experts

    def forward(
        self,
        condition: Float[Tensor, "*b d"],
        labels: Float[Tensor, "*b E"] | None = None,
        *,
        allowed: Bool[Tensor, "*#b E"] | None = None,
        mask: Bool[Tensor, "*b"] | None = None,
        prior_scale: float = 1.0,
    ) -> Routing:
        """Weigh all experts alike; the condition gives the shape and the labels are ignored."""
        dtype = torch.promote_types(condition.dtype, torch.float32)
        logits = condition.new_zeros(*condition.shape[:-1], self.experts, dtype=dtype)
        return route(logits, self.experts, allowed=allowed, mask=mask)


def masked_mean(tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b d"]:
    """Average the valid tokens of a text in fp32; zero for a text without any. Padding may hold anything.

    >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).tolist()
    [[2.0]]
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    kept = tokens.to(dtype).masked_fill(~mask[..., None], 0.0)
    return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def multi_hot(ids: Iterable[Iterable[int]], experts: int) -> Float[Tensor, "b E"]:
    """Turn the label numbers of each sample into a row of zeros and ones; a number outside 0..E-1 is refused.

    >>> multi_hot([[2], [], [0, 1]], 3).tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    """
    rows = [list(row) for row in ids]
    out = torch.zeros(len(rows), experts)
    for n, row in enumerate(rows):
        for label in row:
            if not hasattr(label, "__index__") or not 0 <= label < experts:
                raise ValueError(f"expected label numbers in 0..{experts - 1}, got {label} for sample {n}")
            out[n, label] = 1.0
    return out


def random_labels(labels: Float[Tensor, "*b E"], generator: torch.Generator | None = None) -> Float[Tensor, "*b E"]:
    """Shuffle each row: as many labels as before, on random experts (ablation "random label").

    The same generator state gives the same labels on every device: the numbers are drawn where the generator lives, on
    the CPU when there is none.

    >>> random_labels(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).sum(-1).tolist()
    [2.0]
    """
    device = torch.device("cpu") if generator is None else generator.device
    order = torch.rand(labels.shape, generator=generator, device=device).argsort(-1).to(labels.device)
    return labels.gather(-1, order)


def _linear(layer: nn.Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return F.linear(x.to(dtype), layer.weight.to(dtype), bias)
