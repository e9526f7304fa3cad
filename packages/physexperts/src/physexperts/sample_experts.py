"""Experts that answer for whole samples: run the selected (sample, expert) pairs and nothing else.

A video-level router picks k of E experts for each video. Running all of them and multiplying by zero costs E/k times as
much, so the selected samples of each expert are gathered and run as one sub-batch. The pairs stay readable in the
result, because a loss may look at each expert's own proposal. What surprises: the choice must be known to the host, so
a forward waits for the device once; and an expert that nobody selected gets no gradient (`None`), which plain DDP
reports as an unused parameter.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from physexperts.routing import Routing

__all__ = ["Pairs", "SampleExperts"]


@dataclass(frozen=True)
class Pairs:
    """What the selected experts said, one row a (sample, expert) pair, by expert and then by sample.

    >>> one = torch.tensor([0, 0])  # both pairs belong to sample 0 of two
    >>> pairs = Pairs(torch.tensor([[1.0], [3.0]]), one, torch.tensor([0, 1]), torch.tensor([0.5, 0.5]), batch=2)
    >>> pairs.combine().tolist()
    [[2.0], [0.0]]
    """

    values: Float[Tensor, "p *shape"]
    samples: Int[Tensor, " p"]
    experts: Int[Tensor, " p"]
    weights: Float[Tensor, " p"]
    batch: int

    def combine(self) -> Float[Tensor, "b *shape"]:
        """Sum weight * value over the experts of each sample, zero for samples that asked nobody.

        Summed in the wider of the two dtypes (fp32 weights make it fp32) and in a fixed order, so equal inputs give
        equal bits on a GPU too, which index_add does not promise.
        """
        weighted = self.values * self.weights.view(-1, *(1 for _ in self.values.shape[1:]))
        owners = self.samples.tolist()
        rows = [[i for i, owner in enumerate(owners) if owner == sample] for sample in range(self.batch)]
        if not rows:
            return weighted
        return torch.stack([weighted[row].sum(0) for row in rows])


class SampleExperts(nn.Module):
    """A list of experts called as `expert(x, *context)`, every argument with the batch in front.

    >>> from physexperts import route
    >>> experts = SampleExperts([nn.Identity(), nn.Identity(), nn.Identity()])
    >>> pairs = experts(torch.ones(2, 4), route(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), 1))
    >>> pairs.samples.tolist(), pairs.experts.tolist(), pairs.combine().shape
    ([0, 1], [0, 2], torch.Size([2, 4]))
    """

    def __init__(self, experts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def __len__(self) -> int:
        return len(self.experts)

    def forward(self, x: Float[Tensor, "b *shape"], routing: Routing, *context: Tensor) -> Pairs:
        """Run each selected pair once; experts must return the shape of x."""
        if routing.logits.shape != (len(x), len(self.experts)):
            raise ValueError(
                f"expected a routing of {len(x)} samples over {len(self.experts)} experts, "
                f"got {tuple(routing.logits.shape)}; video-level experts take one decision a sample"
            )
        selected = routing.selected.tolist()
        dense = routing.dense()
        values, pairs = [], []
        for e, expert in enumerate(self.experts):
            rows = [n for n, row in enumerate(selected) if row[e]]
            if rows:
                index = torch.tensor(rows, device=x.device)
                values.append(expert(x[index], *(c[index] for c in context)))
                pairs += [(n, e) for n in rows]
        ids = torch.tensor(pairs, dtype=torch.long, device=x.device).view(-1, 2)
        samples, experts = ids.unbind(1)
        return Pairs(
            values=torch.cat(values) if values else x[:0],
            samples=samples,
            experts=experts,
            weights=dense[samples, experts],
            batch=len(x),
        )
