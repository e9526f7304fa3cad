"""Is the routing healthy: running counts of who was asked, by whom.

Counts live on the router's device and `update` never waits for it; reading a figure does. Call `update` on the result
of a forward, outside of anything that activation checkpointing runs again, or a row is counted twice.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from physexperts.routing import Routing

__all__ = ["Health", "RouterStats"]


@dataclass(frozen=True)
class Health:
    """Figures of a router so far.

    `load` is each expert's share of all selections (sums to 1); `max_violation` = max(load) * E - 1, 0 at balance and E
    - 1 at collapse; `entropy` the mean entropy of a row's probabilities in units of log E (1 undecided, 0 certain);
    `dead` the experts that were never selected; `label_expert[l, e]` the share of the rows with label l that selected e
    (NaN for labels not seen).
    """

    rows: int
    load: Float[Tensor, " E"]
    max_violation: float
    entropy: float
    dead: tuple[int, ...]
    label_expert: Float[Tensor, "L E"]


class RouterStats(nn.Module):
    """Running statistics of one router; the buffers are not saved with the model.

    >>> from physexperts import UniformRouter
    >>> stats = RouterStats(experts=4)
    >>> stats.update(UniformRouter(4)(torch.zeros(3, 2)))
    >>> health = stats.read()
    >>> health.rows, health.max_violation, health.entropy, health.dead
    (3, 0.0, 1.0, ())
    """

    selections: Int[Tensor, " E"]
    rows: Int[Tensor, ""]
    entropy: Float[Tensor, ""]
    labelled: Float[Tensor, " L"]
    together: Float[Tensor, "L E"]

    def __init__(self, experts: int, labels: int | None = None) -> None:
        super().__init__()
        labels = experts if labels is None else labels
        self.experts = experts
        self.register_buffer("selections", torch.zeros(experts, dtype=torch.long), persistent=False)
        self.register_buffer("rows", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("entropy", torch.zeros((), dtype=torch.float64), persistent=False)
        self.register_buffer("labelled", torch.zeros(labels, dtype=torch.float64), persistent=False)
        self.register_buffer("together", torch.zeros(labels, experts, dtype=torch.float64), persistent=False)

    @torch.no_grad()
    def update(self, routing: Routing, labels: Float[Tensor, "*b L"] | None = None) -> None:
        """Count one batch; masked rows count nowhere."""
        selected = routing.selected.flatten(0, -2)
        self.selections += selected.sum(0)
        self.rows += routing.mask.sum()
        self.entropy += torch.special.entr(routing.probs.double()).sum()
        if labels is not None:
            present = labels.flatten(0, -2).double().masked_fill(~routing.mask.flatten()[:, None], 0.0)
            self.labelled += present.sum(0)
            self.together += present.T @ selected.double()

    def reset(self) -> None:
        """Start counting anew."""
        for buffer in (self.selections, self.rows, self.entropy, self.labelled, self.together):
            buffer.zero_()

    def read(self) -> Health:
        """Read the figures; waits for the device."""
        selections = self.selections.double().cpu()
        load = selections / selections.sum().clamp(min=1)
        rows = int(self.rows)
        undecided = torch.log(torch.tensor(float(max(self.experts, 2)), dtype=torch.float64))
        return Health(
            rows=rows,
            load=load,
            max_violation=float(load.max() * self.experts - 1) if selections.sum() else 0.0,
            entropy=float(self.entropy.cpu() / max(rows, 1) / undecided),
            dead=tuple(torch.nonzero(selections == 0).flatten().tolist()),
            label_expert=(self.together / self.labelled[:, None]).cpu(),
        )
