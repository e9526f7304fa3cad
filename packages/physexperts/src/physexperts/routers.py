"""Who is asked: routers from a condition, and optionally labels, to a `Routing`.

Every router here is called as `router(condition, labels, allowed=..., mask=...)`, so that an ablation swaps one for
another. Gates compute in fp32 even inside autocast and with bf16 weights (fp64 stays fp64): a router in half precision
flips its choice with rounding. Labels are a prior, not an order: they add to the logits and a confident gate may
overrule them; `allowed` is the order.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from physexperts.routing import Routing, route

__all__ = ["LabelPriorRouter", "UniformRouter", "random_labels"]


class LabelPriorRouter(nn.Module):
    """Top-k of an MLP's logits with an additive bonus for labelled experts: l~ = MLP(c) + beta * labels.

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
    ) -> None:
        super().__init__()
        if not 0 <= k <= experts:
            raise ValueError(f"expected k in 0..{experts} (the number of experts), got {k}")
        if prior_strength < 0:
            raise ValueError(f"expected prior_strength >= 0 (a label raises its expert), got {prior_strength}")
        hidden = cond_dim if hidden is None else hidden
        self.experts, self.k = experts, k
        self.prior_strength, self.temperature = prior_strength, temperature
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
        with torch.autocast(condition.device.type, enabled=False):
            hidden = F.silu(_linear(self.inner, condition, dtype))
            logits = _linear(self.outer, hidden, dtype)
            if labels is not None:
                logits = logits + (prior_scale * self.prior_strength) * labels.to(dtype)
            return route(logits, self.k, temperature=self.temperature, allowed=allowed, mask=mask)


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


def random_labels(labels: Float[Tensor, "*b E"], generator: torch.Generator | None = None) -> Float[Tensor, "*b E"]:
    """Shuffle each row: as many labels as before, on random experts (ablation "random label").

    The same generator state gives the same labels on every device: the numbers are drawn where the generator lives, on
    the CPU when there is none.
    """
    device = torch.device("cpu") if generator is None else generator.device
    order = torch.rand(labels.shape, generator=generator, device=device).argsort(-1).to(labels.device)
    return labels.gather(-1, order)


def _linear(layer: nn.Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return F.linear(x.to(dtype), layer.weight.to(dtype), bias)
