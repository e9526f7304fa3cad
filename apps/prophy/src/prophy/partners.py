"""The other videos that L_coarse compares a micro-batch with: all that one optimizer step sees, over ranks and
micro-batches.

Ranks are gathered. The micro-batches of a step come one after the other, so the rows of the earlier ones are kept in a
queue, without gradient: each micro-batch is compared with the latest micro-batches, at most one step old. The queue is
a buffer of the semantic block and is saved with it, so that a resumed run has the same partners.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from physexperts import Whole, collect

__all__ = ["Partners"]


class Partners(nn.Module):
    """The rows of the semantic head and their labels from a step's earlier micro-batches.

    >>> partners = Partners(rows=2, width=3, labels=2, micro_batches=3)
    >>> [len(partners(torch.ones(1, 3), torch.ones(1, 2)).outputs) for _ in range(4)]
    [1, 2, 3, 3]
    """

    outputs: Float[Tensor, "rows d"]
    labels: Float[Tensor, "rows L"]
    filled: Tensor

    def __init__(self, *, rows: int, width: int, labels: int, micro_batches: int) -> None:
        super().__init__()
        self.micro_batches = micro_batches
        self.register_buffer("outputs", torch.zeros(rows, width))
        self.register_buffer("labels", torch.zeros(rows, labels))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def forward(self, outputs: Float[Tensor, "n d"], labels: Float[Tensor, "n L"]) -> Whole:
        """These rows, those of the other ranks, and those in the queue; then put the new ones into it."""
        group = torch.distributed.group.WORLD if torch.distributed.is_initialized() else None
        here = collect([outputs], [labels], group=group)[0]
        rows = len(self.outputs)
        past = int(self.filled)
        kept = (self.outputs[:past], self.labels[:past])
        whole = Whole(
            torch.cat([here.outputs.float(), kept[0]]),
            torch.cat([here.labels.float(), kept[1]]),
            start=here.start,
            parts=here.parts * self.micro_batches,  # each of them carries the gradient of its own rows alone
        )
        if rows:
            new = min(rows, past + len(here.outputs))
            self.outputs[:new] = whole.outputs[:new].detach()
            self.labels[:new] = whole.labels[:new].detach()
            self.filled.fill_(new)
        return whole
