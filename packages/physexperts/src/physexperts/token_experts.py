"""Experts that answer for single tokens: linear layers and gated layers, each expert's weights one slice of a 3-D
tensor.

Weights are (E, out, in) as transformers stores them, and `forward` takes its arguments in the same order: tokens,
chosen experts, their weights. A slot of weight zero asks nobody, whatever its index. What surprises: inside autocast
the products run in autocast's dtype, as nn.Linear's would (the native kernel alone would not), and the result has the
dtype of the tokens.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from physexperts.execution import Implementation, choose, combine, gather, grouped_linear, plan, spread
from physexperts.precision import autocast_dtype, outside_autocast
from physexperts.routing import Routing

__all__ = ["GLUExperts", "LinearExperts"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


class _TokenExperts(nn.Module):
    """Choose how to run, flatten the tokens, run."""

    implementations: tuple[str, ...] = ("auto", "grouped_mm", "loop", "dense")

    def __init__(self, experts: int, implementation: Implementation) -> None:
        super().__init__()
        if experts < 1:
            raise ValueError(f"expected at least one expert, got {experts}")
        if implementation not in self.implementations:
            raise ValueError(f"expected implementation {', '.join(self.implementations)}, got {implementation!r}")
        self.num_experts = experts
        self.implementation: Implementation = implementation

    def __len__(self) -> int:
        return self.num_experts

    def weights(self) -> tuple[Float[Tensor, "E _ _"], ...]:
        """The 3-D weights in the order in which `apply` multiplies with them."""
        raise AssertionError("each kind of expert names its weights")

    def apply_with(
        self,
        x: Float[Tensor, "r c"],
        weights: tuple[Float[Tensor, "..."], ...],
        linear: Callable[[Tensor, Tensor], Tensor],
    ) -> Float[Tensor, "r o"]:
        """What an expert computes, given the product of rows with a weight."""
        raise AssertionError("each kind of expert says what it computes")

    def forward(
        self,
        hidden_states: Float[Tensor, "*b c"],
        top_k_index: Int[Tensor, "*b k"],
        top_k_weights: Float[Tensor, "*b k"],
    ) -> Float[Tensor, "*b o"]:
        """Sum over the selected experts of weight * expert(token); zero for a token that selected none."""
        weights = self.weights()
        if hidden_states.shape[-1] != weights[0].shape[-1]:
            raise ValueError(
                f"expected tokens of {weights[0].shape[-1]} channels, got {hidden_states.shape[-1]} "
                f"(shape {tuple(hidden_states.shape)}); the channels are the last axis"
            )
        if top_k_index.shape != top_k_weights.shape or top_k_index.shape[:-1] != hidden_states.shape[:-1]:
            raise ValueError(
                f"expected k experts and k weights for each token of {tuple(hidden_states.shape[:-1])}, got "
                f"{tuple(top_k_index.shape)} and {tuple(top_k_weights.shape)}; "
                "token-level experts take one decision a token"
            )
        if not hidden_states.is_floating_point() or top_k_index.is_floating_point() or top_k_index.dtype == torch.bool:
            raise ValueError(
                f"expected floating-point tokens and whole expert numbers, got {hidden_states.dtype} and "
                f"{top_k_index.dtype}"
            )
        device = hidden_states.device
        dtype = autocast_dtype(device, weights[0].dtype)
        weights = tuple(weight.to(dtype) for weight in weights)
        x = hidden_states.flatten(0, -2).to(dtype) if hidden_states.ndim > 1 else hidden_states[None].to(dtype)
        k = top_k_index.shape[-1]
        how = choose(self.implementation, x, weights[0], k)
        for weight in weights[1:]:
            choose(how, x, weight, k)
        with outside_autocast(device):
            run = self._dense if how == "dense" else self._sorted
            out = run(x, top_k_index.reshape(len(x), k), top_k_weights.reshape(len(x), k), weights, how == "grouped_mm")
        return out.view(*hidden_states.shape[:-1], out.shape[-1]).to(hidden_states.dtype)

    def mix(self, x: Float[Tensor, "*b c"], routing: Routing) -> Float[Tensor, "*b o"]:
        """The same from a `Routing`."""
        if routing.experts != len(self):
            raise ValueError(f"expected a routing over {len(self)} experts, got one over {routing.experts}")
        return self(x, routing.indices, routing.weights)

    def _sorted(self, x: Tensor, index: Tensor, gates: Tensor, weights: tuple[Tensor, ...], native: bool) -> Tensor:
        where = plan(index, gates, len(self), native=native)
        rows = gather(x, where)
        return combine(
            self.apply_with(rows, weights, lambda r, w: grouped_linear(r, w, where, native=native)), gates, where
        )

    def _dense(self, x: Tensor, index: Tensor, gates: Tensor, weights: tuple[Tensor, ...], native: bool) -> Tensor:
        """Every expert on every token: what is left to do when everybody is selected anyway."""
        dense = spread(index, gates, len(self)).to(x.dtype)
        x = x.masked_fill(~(dense != 0).any(-1, keepdim=True), 0.0)  # dead tokens may hold anything, NaN too
        out = None
        for e in range(len(self)):
            gate = dense[:, e, None]
            answer = self.apply_with(x, tuple(w[e] for w in weights), F.linear)
            term = torch.where(gate != 0, answer * gate, 0.0)
            out = term if out is None else out + term
        assert out is not None
        return out


class LinearExperts(_TokenExperts):
    """One linear layer an expert: sum_k pi_k (W_k x + b_k), ProPhy's refinement experts.

    `init="zero"` starts as a mixture that adds nothing, `"uniform"` as nn.Linear does.

    References: ProPhy (Wang et al., 2025), refinement expert block.

    >>> experts = LinearExperts(4, dim=8, init="zero")
    >>> tokens, index = torch.randn(2, 5, 8), torch.zeros(2, 5, 2, dtype=torch.long)
    >>> experts(tokens, index, torch.full((2, 5, 2), 0.5)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        experts: int,
        dim: int,
        out_dim: int | None = None,
        *,
        bias: bool = False,
        init: Literal["zero", "uniform"] = "uniform",
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__(experts, implementation)
        _check_init(init)
        out_dim = dim if out_dim is None else out_dim
        self.weight = nn.Parameter(torch.empty(experts, out_dim, dim))
        self.bias = nn.Parameter(torch.zeros(experts, out_dim)) if bias else None
        _fill(self.weight, dim if init == "uniform" else None)

    def weights(self) -> tuple[Float[Tensor, "E _ _"], ...]:
        """One matrix an expert, (E, out, in)."""
        return (self.weight,)

    def apply_with(
        self,
        x: Float[Tensor, "r c"],
        weights: tuple[Float[Tensor, "..."], ...],
        linear: Callable[[Tensor, Tensor], Tensor],
    ) -> Float[Tensor, "r o"]:
        """W x; the bias is added after the sum over experts, where it is one small product."""
        return linear(x, weights[0])

    def forward(
        self,
        hidden_states: Float[Tensor, "*b c"],
        top_k_index: Int[Tensor, "*b k"],
        top_k_weights: Float[Tensor, "*b k"],
    ) -> Float[Tensor, "*b o"]:
        """Sum over the selected experts of weight * (W x + b); zero for a token that selected none."""
        out = super().forward(hidden_states, top_k_index, top_k_weights)
        if self.bias is None:
            return out
        with outside_autocast(out.device):
            dense = spread(top_k_index, top_k_weights, len(self))
            return out + (dense.to(self.bias.dtype) @ self.bias).to(out.dtype)


class GLUExperts(_TokenExperts):
    """One gated layer an expert: W_down (act(W_gate x) * W_up x), with gate and up in one matrix as in transformers.

    `interface.use(experts, "sonicmoe")` runs the same weights by one of transformers' kernels.

    >>> experts = GLUExperts(4, dim=8, hidden=16)
    >>> experts(torch.randn(5, 8), torch.tensor([[0, 3]] * 5), torch.full((5, 2), 0.5)).shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        experts: int,
        dim: int,
        hidden: int,
        *,
        activation: Literal["silu", "gelu", "relu"] = "silu",
        init: Literal["zero", "uniform"] = "uniform",
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__(experts, implementation)
        _check_init(init)
        if activation not in ACTIVATIONS:
            raise ValueError(f"expected an activation of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation, self.act_fn = activation, ACTIVATIONS[activation]
        self.borrowed: Callable[..., Tensor] | None = None  # a kernel of transformers, see interface.use
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * hidden, dim))
        self.down_proj = nn.Parameter(torch.empty(experts, dim, hidden))
        _fill(self.gate_up_proj, dim)
        _fill(self.down_proj, hidden if init == "uniform" else None)

    def weights(self) -> tuple[Float[Tensor, "E _ _"], ...]:
        """(E, 2 hidden, dim) and (E, dim, hidden)."""
        return self.gate_up_proj, self.down_proj

    def apply_with(
        self,
        x: Float[Tensor, "r c"],
        weights: tuple[Float[Tensor, "..."], ...],
        linear: Callable[[Tensor, Tensor], Tensor],
    ) -> Float[Tensor, "r o"]:
        """W_down (act(gate) * up)."""
        return linear(self._apply_gate(linear(x, weights[0])), weights[1])

    def _apply_gate(self, gate_up: Tensor) -> Tensor:  # the name that transformers' kernels call
        gate, up = gate_up.chunk(2, -1)
        return self.act_fn(gate) * up

    def forward(
        self,
        hidden_states: Float[Tensor, "*b c"],
        top_k_index: Int[Tensor, "*b k"],
        top_k_weights: Float[Tensor, "*b k"],
    ) -> Float[Tensor, "*b o"]:
        """Sum over the selected experts of weight * expert(token); zero for a token that selected none."""
        if self.borrowed is None:
            return super().forward(hidden_states, top_k_index, top_k_weights)
        k = top_k_index.shape[-1]
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights = top_k_weights.reshape(-1, k).to(flat.dtype)
        return self.borrowed(self, flat, top_k_index.reshape(-1, k), weights).view(hidden_states.shape)


def _check_init(init: str) -> None:
    if init not in ("zero", "uniform"):
        raise ValueError(f"expected init zero or uniform, got {init!r}")


def _fill(weight: Tensor, fan_in: int | None) -> None:
    """Each expert as nn.Linear starts, or at zero."""
    bound = fan_in**-0.5 if fan_in else 0.0
    nn.init.uniform_(weight, -bound, bound)
