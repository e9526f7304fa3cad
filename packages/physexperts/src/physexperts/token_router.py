"""Who is asked, token by token: one linear gate, top-k, and a bias that balances the load without a loss.

What surprises: the gate multiplies in the tokens' own dtype and only its logits are fp32 (a copy of the tokens in fp32
would cost more than the gate; `fp32_gate=True` makes it anyway), but never in a dtype that autocast picked. Jitter is
for training alone.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from physexperts.precision import outside_autocast
from physexperts.ranks import Group, summed
from physexperts.routing import Routing, Score, route

__all__ = ["TokenTopKRouter"]


class TokenTopKRouter(nn.Module):
    """Top-k of a linear gate's scores, ProPhy's refinement router with its defaults changed to `renormalize=False`.

    Softmax or sigmoid scores; kept scores divided by their sum or raw. `jitter` multiplies the tokens that the gate
    sees by uniform noise in 1 +- jitter while training. `expert_bias=True` keeps a bias for the choice alone (never in
    the weights, no gradient), which `update_bias` moves towards balance once an optimizer step.

    References: ProPhy (Wang et al., 2025), refinement expert block (softmax, raw weights); Switch Transformers (Fedus
    et al., 2021), jitter; Auxiliary-Loss-Free Load Balancing (Wang et al., 2024), Alg. 1.

    >>> router = TokenTopKRouter(8, experts=4, k=2, renormalize=False)
    >>> routing = router(torch.randn(2, 5, 8))
    >>> routing.indices.shape, bool((routing.weights.sum(-1) < 1).all())
    (torch.Size([2, 5, 2]), True)
    """

    expert_bias: Float[Tensor, " E"] | None

    def __init__(
        self,
        dim: int,
        experts: int,
        k: int,
        *,
        score: Score = "softmax",
        renormalize: bool = True,
        temperature: float = 1.0,
        jitter: float = 0.0,
        expert_bias: bool = False,
        fp32_gate: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= k <= experts:
            raise ValueError(f"expected k in 0..{experts} (the number of experts), got {k}")
        if not temperature > 0:
            raise ValueError(f"expected a positive temperature, got {temperature}")
        if score not in ("softmax", "sigmoid"):
            raise ValueError(f"expected score softmax or sigmoid, got {score!r}")
        if not 0 <= jitter < 1:
            raise ValueError(f"expected jitter in [0, 1), got {jitter}")
        self.experts, self.k = experts, k
        self.score: Score = score
        self.renormalize, self.temperature = renormalize, temperature
        self.jitter, self.fp32_gate = jitter, fp32_gate
        self.gate = nn.Linear(dim, experts, bias=False)
        self.register_buffer("expert_bias", torch.zeros(experts) if expert_bias else None)

    def forward(
        self,
        tokens: Float[Tensor, "*b d"],
        labels: Float[Tensor, "*b E"] | None = None,
        *,
        allowed: Bool[Tensor, "*#b E"] | None = None,
        mask: Bool[Tensor, "*b"] | None = None,
        prior_scale: float = 1.0,
    ) -> Routing:
        """Route each token; labels are not looked at (give `allowed` to order), masked tokens may hold anything."""
        if mask is not None:
            tokens = tokens.masked_fill(~mask[..., None], 0.0)
        dtype = torch.promote_types(tokens.dtype, torch.float32) if self.fp32_gate else tokens.dtype
        with outside_autocast(tokens.device):
            if self.training and self.jitter:
                tokens = tokens * torch.empty_like(tokens).uniform_(1 - self.jitter, 1 + self.jitter)
            logits = F.linear(tokens.to(dtype), self.gate.weight.to(dtype))
            return route(
                logits,
                self.k,
                temperature=self.temperature,
                allowed=allowed,
                mask=mask,
                score=self.score,
                renormalize=self.renormalize,
                bias=self.expert_bias,
            )

    @torch.no_grad()
    def update_bias(self, selections: Int[Tensor, " E"], rate: float = 1e-3, *, group: Group = None) -> None:
        """Raise the bias of experts asked less than average by `rate` and lower the others': bias += rate sign(mean -
        n).

        `selections` counts who was asked since the last update (`RouterStats.selections`, or
        `tally(routing).selections`), summed over the ranks of `group`.
        """
        if self.expert_bias is None:
            raise ValueError("expected a router with expert_bias=True, got one without a bias to update")
        if selections.shape != self.expert_bias.shape:
            raise ValueError(f"expected counts of {self.experts} experts, got shape {tuple(selections.shape)}")
        counts = summed(selections.to(torch.float64), group)
        self.expert_bias += rate * (counts.mean() - counts).sign().to(self.expert_bias.dtype)
