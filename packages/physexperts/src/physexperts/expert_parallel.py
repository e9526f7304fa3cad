"""Token-level experts spread over ranks: rank r owns experts r E/W .. (r + 1) E/W - 1, and rows travel to them and
back.

No token is dropped: each rank sends as many rows as were selected. The price is that the counts must be known on the
host (one wait a forward); on one rank nothing travels. An expert's gradient is the sum over all ranks' tokens, so with
gradients averaged elsewhere the caller divides it by the number of ranks.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch import distributed as dist

from physexperts.execution import combine, gather, plan
from physexperts.ranks import Group, world
from physexperts.routing import Routing

__all__ = ["ExpertParallel"]


class ExpertParallel(nn.Module):
    """Experts of which this rank holds its share; called as `local` would be, with indices over all ranks' experts.

    >>> from physexperts import LinearExperts
    >>> everybody = ExpertParallel(LinearExperts(4, 8))       # without a group: this process alone
    >>> everybody(torch.randn(3, 8), torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1)).shape
    torch.Size([3, 8])
    """

    def __init__(self, local: nn.Module, group: Group = None) -> None:
        super().__init__()
        if not hasattr(local, "__len__"):
            raise ValueError(
                "expected token-level experts such as LinearExperts, got a module without a number of experts"
            )
        self.local, self.group = local, group
        self.own = len(local)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.own * world(self.group)

    def forward(
        self,
        hidden_states: Float[Tensor, "*b c"],
        top_k_index: Int[Tensor, "*b k"],
        top_k_weights: Float[Tensor, "*b k"],
    ) -> Float[Tensor, "*b o"]:
        """Send each selected row to its expert's rank, run, send the answers back, sum."""
        if self.group is None:
            return self.local(hidden_states, top_k_index, top_k_weights)
        ranks, k = world(self.group), top_k_index.shape[-1]
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        gates = top_k_weights.reshape(-1, k)
        where = plan(top_k_index.reshape(-1, k), gates, len(self))
        counts = where.ends.long().diff(prepend=where.ends.new_zeros(1).long())  # rows for each expert of all ranks
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        sends = counts.view(ranks, self.own).sum(1).tolist()
        receives = arriving.view(ranks, self.own).sum(1).tolist()
        rows = gather(x, where)
        sent = _Exchange.apply(rows[: sum(sends)], sends, receives, self.group)
        expert = torch.arange(self.own, device=x.device).repeat(ranks).repeat_interleave(arriving)
        said = self.local(sent, expert[:, None], torch.ones_like(expert[:, None], dtype=gates.dtype))
        back = _Exchange.apply(said, receives, sends, self.group)
        dead = back.new_zeros(len(rows) - len(back), back.shape[1])
        out = combine(torch.cat([back, dead]), gates, where)
        return out.view(*hidden_states.shape[:-1], out.shape[-1])

    def mix(self, x: Float[Tensor, "*b c"], routing: Routing) -> Float[Tensor, "*b o"]:
        """The same from a `Routing`."""
        if routing.experts != len(self):
            raise ValueError(f"expected a routing over {len(self)} experts, got one over {routing.experts}")
        return self(x, routing.indices, routing.weights)


class _Exchange(torch.autograd.Function):
    """Rows to their ranks; the gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sends: list[int], receives: list[int], group: Any) -> Tensor:
        ctx.way = receives, sends, group
        out = rows.new_empty(sum(receives), rows.shape[1])
        dist.all_to_all_single(out, rows.contiguous(), receives, sends, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        sends, receives, group = ctx.way
        return _Exchange.apply(grads[0], sends, receives, group), None, None, None
