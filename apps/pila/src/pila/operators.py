"""The eight operators: one expert a mechanism, each allowed to change only the fields of its recipe.

The order is the label vector's (`physexperts.MECHANISMS`). The recipes follow from the residuals that judge each
mechanism: the paper's table of proxy fields was not to be had, so they are our choice.

References: PILA (Wang et al., 2026), Eq. 5, 8 and 24, Table 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from physexperts import MECHANISMS, Pairs, Routing, SampleExperts, operator
from pila.bank import CHANNELS, channels_of

__all__ = ["RECIPES", "Operators"]

RECIPES: dict[str, tuple[str, ...]] = {
    "rigid_body": ("displacement", "velocity", "strain", "stress"),
    "elastic": ("displacement", "velocity", "strain", "stress"),
    "fluid": ("velocity", "pressure", "density"),
    "compressible_flow": ("velocity", "pressure", "density"),
    "phase_change": ("velocity", "temperature", "phase", "density"),
    "collision": ("displacement", "velocity", "impulse"),
    "thermal": ("velocity", "temperature"),
    "optical": ("phase", "wave"),
}
"""Fields that each mechanism's operator may change (our choice)."""

assert tuple(RECIPES) == MECHANISMS


class Operators(nn.Module):
    """The operators and the running size of their residuals, from which adaptive weights are made.

    `shared` (ablation "w/o MoE operator") is one operator over the whole bank: it answers for every clip, and its
    proposal is judged by the residuals of each mechanism that the router selected. `kind` names the operator
    (`physexperts.operator`).
    """

    mean_square: Float[Tensor, " r"]

    def __init__(self, *, condition: int, hidden: int, residuals: int, shared: bool = False, kind: str) -> None:
        super().__init__()
        make = operator(kind)
        recipes = [None] if shared else [channels_of(RECIPES[m]) for m in MECHANISMS]
        self.shared = shared
        self.experts = SampleExperts(make(CHANNELS, condition, hidden, recipe=r) for r in recipes)
        self.register_buffer("mean_square", torch.zeros(residuals))

    def forward(
        self, bank: Float[Tensor, "b p t h w"], routing: Routing, condition: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b p t h w"], Pairs]:
        """Propose changes of the bank: their weighted sum, and one row for each (sample, mechanism)."""
        if not self.shared:
            pairs = self.experts(bank, routing, condition)
            return pairs.combine(), pairs
        (only,) = self.experts.experts
        change = only(bank, condition)
        samples, mechanisms = routing.selected.nonzero().unbind(1)
        weights = routing.dense()[samples, mechanisms]
        return change, Pairs(change[samples], samples, mechanisms, weights, len(bank))
