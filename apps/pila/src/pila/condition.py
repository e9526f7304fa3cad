"""The condition c: what the prompt, the labels and the noise level say, as one vector a sample.

The labels come from an annotation in training and from the caption's parser in sampling; a sample without labels has
a zero row. Padding of the text is left out of the mean by its mask.

References: PILA (Wang et al., 2026), "label/sigma condition encoder"; the layers are our choice.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from pila.encoder import SigmaEmbedding

__all__ = ["Condition"]


class Condition(nn.Module):
    """c = MLP([mean of the text, multi-hot labels, sigma])."""

    def __init__(self, *, text: int, labels: int, width: int, frequencies: int) -> None:
        super().__init__()
        self.text = nn.Linear(text, width)
        self.labels = nn.Linear(labels, width)
        self.sigma = SigmaEmbedding(width, frequencies)
        self.inner = nn.Linear(3 * width, width)
        self.outer = nn.Linear(width, width)

    def forward(
        self,
        text: Float[Tensor, "b l e"],
        mask: Bool[Tensor, "b l"],
        labels: Float[Tensor, "b k"],
        sigma: Float[Tensor, " b"],
    ) -> Float[Tensor, "b d"]:
        """Encode the condition of each sample."""
        parts = torch.cat([self.text(_masked_mean(text.float(), mask)), self.labels(labels), self.sigma(sigma)], -1)
        return self.outer(F.silu(self.inner(F.silu(parts))))


def _masked_mean(text: Float[Tensor, "b l e"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b e"]:
    weight = mask.to(text.dtype)[..., None]
    return (text * weight).sum(1) / weight.sum(1).clamp_min(1)
