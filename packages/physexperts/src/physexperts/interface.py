"""The bridge to transformers' experts, both ways; transformers is imported when a function here is called.

`register` lets any mixture model of transformers run by this package (`experts_implementation="physexperts"`); `use`
lets `GLUExperts` run by one of transformers' kernels (grouped_mm, batched_mm, sonicmoe, deepgemm). What surprises:
those kernels compute pairs of weight zero too and multiply afterwards, so a masked token that holds NaN stays NaN
there.
"""

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from physexperts.execution import Plan, choose, combine, gather, grouped_linear, plan
from physexperts.token_experts import GLUExperts

__all__ = ["NAME", "experts_forward", "register", "use"]

NAME = "physexperts"
"""Under which transformers knows this package's execution."""


def register(name: str = NAME) -> None:
    """Add this package's execution to transformers' ExpertsInterface; again is harmless.

    >>> register()  # then AutoModel.from_pretrained(..., experts_implementation="physexperts")
    """
    _functions().register(name, experts_forward)


def experts_forward(
    self: Any,
    hidden_states: Float[Tensor, "n c"],
    top_k_index: Int[Tensor, "n k"],
    top_k_weights: Float[Tensor, "n k"],
) -> Float[Tensor, "n c"]:
    """Run an experts module of transformers: gated or not, with or without biases, either layout of its weights.

    >>> experts = GLUExperts(4, dim=8, hidden=16)
    >>> experts.has_gate = True  # what transformers sets on its own modules
    >>> experts.has_bias = experts.is_transposed = experts._is_expert_parallel = False
    >>> experts_forward(experts, torch.randn(5, 8), torch.tensor([[0, 3]] * 5), torch.full((5, 2), 0.5)).shape
    torch.Size([5, 8])
    """
    up = self.gate_up_proj if self.has_gate else self.up_proj
    down = self.down_proj
    if self.is_transposed:  # (E, in, out) there
        up, down = up.transpose(1, 2), down.transpose(1, 2)
    how = choose("auto", hidden_states, up, top_k_index.shape[-1])
    native = how == "grouped_mm" and choose("auto", hidden_states, down, top_k_index.shape[-1]) == how
    if getattr(self, "_is_expert_parallel", False):  # newer ones: experts of other ranks have numbers past the end
        top_k_weights = top_k_weights.masked_fill(top_k_index >= len(up), 0.0)
    where = plan(top_k_index, top_k_weights, len(up), native=native)
    rows = grouped_linear(gather(hidden_states.to(up.dtype), where), up, where, native=native)
    rows = (
        rows + _biases(self.gate_up_proj_bias if self.has_gate else self.up_proj_bias, where) if self.has_bias else rows
    )
    rows = self._apply_gate(rows) if self.has_gate else self.act_fn(rows)
    rows = grouped_linear(rows, down, where, native=native)
    rows = rows + _biases(self.down_proj_bias, where) if self.has_bias else rows
    if getattr(self, "has_post_expert_norm", False):
        rows = self.post_expert_norm(rows)
    return combine(rows, top_k_weights, where).to(hidden_states.dtype)


def use(experts: GLUExperts, name: str) -> GLUExperts:
    """Run these experts by the kernel that transformers knows by `name`; an unknown name raises ValueError.

    >>> experts = use(GLUExperts(4, dim=8, hidden=16), "grouped_mm")
    >>> experts(torch.randn(5, 8), torch.tensor([[0, 3]] * 5), torch.full((5, 2), 0.5)).shape
    torch.Size([5, 8])
    """
    functions = _functions()
    if name not in functions.valid_keys():
        raise ValueError(f"expected one of transformers' experts {sorted(functions.valid_keys())}, got {name!r}")
    facts = {
        "config": SimpleNamespace(hidden_act=experts.activation),
        "has_gate": True,
        "has_bias": False,
        "has_post_expert_norm": False,
        "is_transposed": False,
        "is_concatenated": True,
        "_is_expert_parallel": False,
    }
    for key, value in facts.items():
        setattr(experts, key, value)
    experts.borrowed = functions[name]
    return experts


def _biases(bias: Tensor, where: Plan) -> Tensor:
    """The bias of each sorted row's expert; rows that nobody reads get the last one."""
    rows = torch.arange(len(where.token), device=bias.device, dtype=where.ends.dtype)
    return bias[torch.searchsorted(where.ends, rows, right=True).clamp(max=len(bias) - 1)]


def _functions() -> Any:
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    except ImportError as error:
        raise ImportError("transformers >= 5.10 is needed for this: pip install 'transformers>=5.10'") from error
    return ALL_EXPERTS_FUNCTIONS
