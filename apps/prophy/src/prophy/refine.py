"""The Refinement Expert Block: which experts refine a token, between attention to the text and the feed-forward.

Each token's linear gate weighs E_r linear experts; the k best answer with their raw softmax weights, not renormalised:
x~' = x~ + sum_(i in top-k) rho_i W_i x~. An MLP takes the weights of all experts to the attention categories, where
L_fine-align compares them with where a phenomenon is. The experts start at zero: a fresh block changes nothing.

References: ProPhy (Wang et al., 2025), refinement expert block; the residual, the zero start, the norm in
front of the gate and the MLP's width are our choice.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from physexperts import LinearExperts, Routing, TokenTopKRouter

__all__ = ["Refinement", "RefinementExpertBlock"]


@dataclass(frozen=True)
class Refinement:
    """What the block decided for the tokens of a batch, and the map of each category that it reads out of that.

    `grid` is (t, y, x) of the n tokens in raster order.
    """

    routing: Routing
    maps: Float[Tensor, "b n L"]
    grid: tuple[int, int, int]

    @property
    def on_grid(self) -> Float[Tensor, "b L t y x"]:
        """The maps by category on the token grid."""
        return self.maps.mT.unflatten(-1, self.grid)


class RefinementExpertBlock(nn.Module):
    """Token router, linear experts, and the head towards the categories.

    >>> import torch
    >>> block = RefinementExpertBlock(dim=8, experts=4, k=2, labels=3, hidden=16)
    >>> x = torch.randn(1, 6, 8)
    >>> refined, refinement = block(x, (1, 2, 3))
    >>> torch.equal(refined, x), refinement.on_grid.shape
    (True, torch.Size([1, 3, 1, 2, 3]))
    """

    def __init__(self, *, dim: int, experts: int, k: int, labels: int, hidden: int, jitter: float = 0.0) -> None:
        super().__init__()
        self.router = TokenTopKRouter(dim, experts, k, renormalize=False, jitter=jitter)
        self.experts = LinearExperts(experts, dim, init="zero")
        self.head = nn.Sequential(nn.Linear(experts, hidden), nn.SiLU(), nn.Linear(hidden, labels))

    def forward(
        self, x: Float[Tensor, "b n d"], grid: tuple[int, int, int]
    ) -> tuple[Float[Tensor, "b n d"], Refinement]:
        """Refine tokens; `grid` says where they are."""
        # Hidden states grow with depth: without a norm the gate's softmax is decided before it has learned anything.
        routing = self.router(F.layer_norm(x.float(), x.shape[-1:]))
        added = self.experts(x.float(), routing.indices, routing.weights)
        return x + added.to(x.dtype), Refinement(routing, self.head(routing.probs), grid)
