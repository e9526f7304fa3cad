"""The Semantic Expert Block: from the text, how much of each learnable basis map enters the physical branch.

X~ = X + sum_e rho_e B_e, with rho = softmax(MLP(y)) over all experts: no top-k, so that a small batch starves none.
y is the mean of the valid text tokens, standardised over the training texts: a text encoder gives all sentences much in
common, and L_coarse, which compares directions, gets stuck in it. A linear head takes rho to the label space, where
L_coarse compares videos. The maps live on the latent grid of training, in the model's own input space, and are resized
for another size.

References: ProPhy (Wang et al., 2025), semantic expert block; pooling, standardising, the MLP and the maps at latent
level are our choice.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones import Text
from physexperts import BasisMaps, Routing, SoftRouter, masked_mean
from prophy.partners import Partners

__all__ = ["SemanticExpertBlock", "Semantics", "Standard"]

FLOOR = 0.1
"""Least spread of a channel, as a share of the mean over channels: a channel that hardly moves is not blown up."""


@dataclass(frozen=True)
class Semantics:
    """What the block decided for a batch: the routing (`weights` are rho_p) and the head's output rho_s."""

    routing: Routing
    output: Float[Tensor, "b L"]


class Standard(nn.Module):
    """(y - mean) / spread by channel, as measured on the training texts; before `measure` it changes nothing.

    >>> standard = Standard(2)
    >>> standard.measure(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    >>> standard(torch.tensor([[2.0, 2.0]])).tolist()
    [[0.0, 0.0]]
    """

    mean: Float[Tensor, " d"]
    spread: Float[Tensor, " d"]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def measure(self, rows: Float[Tensor, "n d"]) -> None:
        """Take mean and spread from rows; where all are alike the spread stays 1."""
        spread = rows.float().std(0, correction=0)
        spread = spread.clamp(min=FLOOR * float(spread.mean()))
        self.mean.copy_(rows.float().mean(0))
        self.spread.copy_(torch.where(spread > 0, spread, 1.0))

    def forward(self, y: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return (y - self.mean) / self.spread


class SemanticExpertBlock(nn.Module):
    """Router, basis maps and head; `partners` keeps rows for L_coarse between the micro-batches of a step.

    >>> block = SemanticExpertBlock(text_dim=8, experts=3, channels=4, grid=(2, 4, 4), labels=5)
    >>> block.maps(torch.full((1, 3), 1 / 3)).shape
    torch.Size([1, 4, 2, 4, 4])
    """

    def __init__(
        self,
        *,
        text_dim: int,
        experts: int,
        channels: int,
        grid: tuple[int, int, int],
        labels: int,
        hidden: int | None = None,
        std: float = 0.02,
        token_dropout: float = 0.0,
        partners: int = 0,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        self.token_dropout = token_dropout
        self.standard = Standard(text_dim)
        self.router = SoftRouter(text_dim, experts, hidden=hidden)
        self.maps = BasisMaps(experts, channels, grid, std=std)
        self.head = nn.Linear(experts, labels)
        self.partners = Partners(rows=partners, width=labels, labels=labels, micro_batches=micro_batches)

    def forward(self, text: Text, *, inverted: bool = False) -> Semantics:
        """Route prompts; `inverted` negates the router's logits (the paper's expert inversion, Fig. 8).

        While the router trains, a share of the tokens is left out of the mean (never all).
        """
        mask = text.mask
        if self.router.training and self.token_dropout:
            kept = mask & (torch.rand(mask.shape).to(mask.device) >= self.token_dropout)
            mask = torch.where(kept.any(1, keepdim=True), kept, mask)
        pooled = self.standard(masked_mean(text.features.float(), mask))
        routing = self.router(pooled, inverted=inverted)
        return Semantics(routing, self.head(routing.weights))

    def shift(self, semantics: Semantics, grid: tuple[int, int, int]) -> Float[Tensor, "b c t h w"]:
        """sum_e rho_e B_e on a latent grid."""
        return self.maps(semantics.routing.weights, grid)
