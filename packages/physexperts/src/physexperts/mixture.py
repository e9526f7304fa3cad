"""A router and its experts as one module with one named result."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from physexperts.routing import Routing
from physexperts.sample_experts import Pairs, SampleExperts

__all__ = ["Mixed", "Mixture"]


@dataclass(frozen=True)
class Mixed:
    """`delta` is the weighted sum of the proposals, `pairs` the proposals one by one, `routing` who was asked."""

    delta: Float[Tensor, "b *shape"]
    pairs: Pairs
    routing: Routing


class Mixture(nn.Module):
    """Route on the condition, run the selected experts on (x, condition), sum: delta = sum_k pi_k O_k(x, c).

    The caller adds it, x + delta (PILA, Wang et al., 2026, Eq. 8): a mixture of fresh experts returns zero.

    >>> import torch
    >>> from physexperts import LabelPriorRouter, OperatorExpert
    >>> mixture = Mixture(LabelPriorRouter(3, experts=2, k=1), SampleExperts(OperatorExpert(4, 3, 8) for _ in range(2)))
    >>> mixed = mixture(torch.randn(2, 4, 3, 5, 5), torch.randn(2, 3))
    >>> tuple(mixed.delta.shape), tuple(mixed.pairs.values.shape)
    ((2, 4, 3, 5, 5), (2, 4, 3, 5, 5))
    """

    def __init__(self, router: nn.Module, experts: SampleExperts) -> None:
        super().__init__()
        if getattr(router, "experts", None) != len(experts):
            raise ValueError(f"expected a router over {len(experts)} experts, got {getattr(router, 'experts', None)}")
        self.router, self.experts = router, experts

    def forward(
        self,
        x: Float[Tensor, "b *shape"],
        condition: Float[Tensor, "b d"],
        labels: Float[Tensor, "b E"] | None = None,
        *,
        allowed: Bool[Tensor, "#b E"] | None = None,
        prior_scale: float = 1.0,
    ) -> Mixed:
        """Mix the experts' proposals for each sample."""
        routing = self.router(condition, labels, allowed=allowed, prior_scale=prior_scale)
        pairs = self.experts(x, routing, condition)
        return Mixed(delta=pairs.combine(), pairs=pairs, routing=routing)
