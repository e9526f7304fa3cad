"""A router and its experts as one module with one named result."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from physexperts.balance import Tally, importance_loss, load_balancing_loss, router_z_loss, tally
from physexperts.routing import Routing
from physexperts.sample_experts import Pairs, SampleExperts
from physexperts.stats import RouterStats

__all__ = ["Mixed", "MixingExperts", "Mixture"]


@runtime_checkable
class MixingExperts(Protocol):
    """Experts that sum their own answers: LinearExperts, GLUExperts, ExpertParallel, BasisMaps, HeadExperts.

    >>> from physexperts import LinearExperts, OperatorExpert
    >>> isinstance(LinearExperts(4, 8), MixingExperts), isinstance(OperatorExpert(4, 3, 8), MixingExperts)
    (True, False)
    """

    def __len__(self) -> int: ...

    def mix(self, x: Float[Tensor, "*shape"], routing: Routing) -> Float[Tensor, "*out"]:
        """Sum of weight * answer over the selected experts."""
        ...


@dataclass(frozen=True)
class Mixed:
    """What a mixture did.

    `delta` is the weighted sum of the answers, `routing` who was asked, `losses` the three losses of this layer
    unweighted (`balance`, `z`, `importance`), `statistics` this forward's sums (no gradient, on the device), `pairs`
    the proposals one by one where the experts answer for whole samples.

    >>> import torch
    >>> from physexperts import LinearExperts, TokenTopKRouter
    >>> mixed = Mixture(TokenTopKRouter(8, experts=4, k=2), LinearExperts(4, 8))(torch.randn(5, 8))
    >>> mixed.delta.shape, mixed.routing.weights.shape, mixed.statistics.rows.item(), mixed.pairs
    (torch.Size([5, 8]), torch.Size([5, 2]), 5.0, None)
    """

    delta: Float[Tensor, "*b"]
    routing: Routing
    losses: dict[str, Float[Tensor, ""]]
    statistics: Tally
    pairs: Pairs | None = None


class Mixture(nn.Module):
    """Route on the condition, run the selected experts on x, sum: delta = sum_k pi_k O_k(x, c).

    The caller adds it, x + delta (PILA, Wang et al., 2026, Eq. 8): a mixture of fresh experts returns zero. While
    training, `stats` counts who was asked; a forward that activation checkpointing repeats counts once.

    >>> import torch
    >>> from physexperts import LabelPriorRouter, LinearExperts, OperatorExpert, TokenTopKRouter
    >>> mixture = Mixture(LabelPriorRouter(3, experts=2, k=1), SampleExperts(OperatorExpert(4, 3, 8) for _ in range(2)))
    >>> mixed = mixture(torch.randn(2, 4, 3, 5, 5), torch.randn(2, 3))
    >>> tuple(mixed.delta.shape), tuple(mixed.pairs.values.shape), sorted(mixed.losses)
    ((2, 4, 3, 5, 5), (2, 4, 3, 5, 5), ['balance', 'importance', 'z'])
    >>> tokens = Mixture(TokenTopKRouter(8, experts=4, k=2), LinearExperts(4, 8))(torch.randn(2, 5, 8))
    >>> tokens.delta.shape, tokens.statistics.selections.sum().item()
    (torch.Size([2, 5, 8]), 20.0)
    """

    def __init__(self, router: nn.Module, experts: nn.Module, *, labels: int | None = None) -> None:
        super().__init__()
        if not isinstance(experts, SampleExperts | MixingExperts):
            raise ValueError(f"expected SampleExperts or experts with len() and mix(), got {type(experts).__name__}")
        if getattr(router, "experts", None) != len(experts):
            raise ValueError(f"expected a router over {len(experts)} experts, got {getattr(router, 'experts', None)}")
        self.router, self.experts = router, experts
        self.stats = RouterStats(len(experts), labels)

    def forward(
        self,
        x: Float[Tensor, "*shape"],
        condition: Float[Tensor, "*b d"] | None = None,
        labels: Float[Tensor, "*b E"] | None = None,
        *,
        allowed: Bool[Tensor, "*#b E"] | None = None,
        mask: Bool[Tensor, "*b"] | None = None,
        prior_scale: float = 1.0,
    ) -> Mixed:
        """Mix the experts' answers; without a condition the router reads x itself (tokens)."""
        asked = x if condition is None else condition
        routing = self.router(asked, labels, allowed=allowed, mask=mask, prior_scale=prior_scale)
        pairs = None
        if isinstance(self.experts, SampleExperts):
            context = () if condition is None else (condition,)
            pairs = self.experts(x, routing, *context)
            delta = pairs.combine()
        else:
            assert isinstance(self.experts, MixingExperts)
            delta = self.experts.mix(x, routing)
        if self.training:
            self.stats.update(routing, labels)
        sums = tally(routing)
        losses = {
            "balance": load_balancing_loss(sums),
            "z": router_z_loss(sums),
            "importance": importance_loss(sums),
        }
        return Mixed(delta, routing, losses, sums.detach(), pairs)
