"""Run tokens through the experts that they selected, and only those: sort, one matrix product an expert, gather back.

A *pair* is (token, slot); there are s = n k of them and nothing here is larger than s rows. `plan` sorts the pairs by
expert, `gather` copies each pair's token, `grouped_linear` multiplies each expert's rows with its own matrix, `combine`
sums the answers of each token. No token is ever dropped. What surprises:

- A pair of weight zero is *dead*: its expert is not asked, its row lies behind all others and is never computed. The
  native kernel leaves such rows uninitialised, and 0 * NaN is NaN, so dead pairs point at one spare row that no sum
  reads; the loop writes zeros instead.
- Sums run over a token's slots in slot order (`embedding_bag`), never by scattered adds, so equal inputs give equal
  bits on a GPU too.
- `torch.nn.functional.grouped_mm` has no fp64, wants strides of whole 16 bytes, and does not know autocast; the loop
  has no such limits but reads the group ends on the host: free on a CPU, one wait for the device elsewhere.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Implementation", "Plan", "choose", "combine", "gather", "grouped_linear", "plan", "spread"]

Implementation = Literal["auto", "grouped_mm", "loop", "dense"]


@dataclass(frozen=True)
class Plan:
    """Where each pair goes: `rows` sorted rows, those of expert e from ends[e - 1] to ends[e], dead ones behind.

    `token[r]` is the token of row r, `pair[r]` its number n k + slot, `place` the row of each pair, `live` false for
    dead pairs. `spare` is the row that no sum reads (native kernel), or None where dead rows hold zeros (loop).

    >>> p = plan(torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.0]]), experts=2)
    >>> p.place.tolist(), p.live.tolist(), p.spare
    ([[0, 1]], [[True, False]], None)
    """

    token: Int[Tensor, " r"]
    pair: Int[Tensor, " r"]
    place: Int[Tensor, "n k"]
    ends: Int[Tensor, " E"]
    live: Bool[Tensor, "n k"]
    spare: int | None


def plan(indices: Int[Tensor, "n k"], weights: Float[Tensor, "n k"], experts: int, *, native: bool = False) -> Plan:
    """Sort the pairs by expert; equal experts keep the order of their tokens. Waits for no device.

    >>> p = plan(torch.tensor([[1], [0], [1]]), torch.tensor([[1.0], [1.0], [0.0]]), experts=2)
    >>> p.token.tolist(), p.ends.tolist()
    ([1, 0, 2], [1, 2])
    """
    n, k = indices.shape
    live = weights.detach() != 0  # a NaN weight is alive, so that it cannot hide
    _check(indices, live, experts)
    ids = indices.masked_fill(~live, experts).flatten().int()
    ids, pair = ids.sort(stable=True)
    place = torch.empty_like(pair)
    place[pair] = torch.arange(n * k, device=pair.device)  # a permutation: no two writes meet
    ends = torch.searchsorted(ids, torch.arange(experts, device=ids.device, dtype=torch.int32), right=True).int()
    place = place.view(n, k)
    if native:
        place, pair = place.masked_fill(~live, n * k), F.pad(pair, (0, 1))
    token = pair // k if k else pair
    return Plan(token.int(), pair.int(), place.int(), ends, live, n * k if native else None)


def _check(indices: Tensor, live: Tensor, experts: int) -> None:
    """Refuse experts that do not exist: at once where that is free, on a GPU by an assertion on the device."""
    if torch.compiler.is_compiling() or indices.device.type == "meta" or not indices.numel():
        return
    inside = ((indices >= 0) & (indices < experts) | ~live).all()
    if indices.device.type != "cpu":
        torch._assert_async(inside, f"expected expert numbers in 0..{experts - 1}")
    elif not inside:
        low, high = int(indices.min()), int(indices.max())
        raise ValueError(f"expected expert numbers in 0..{experts - 1}, got {low}..{high}")


def spread(indices: Int[Tensor, "*b k"], weights: Float[Tensor, "*b k"], experts: int) -> Float[Tensor, "*b E"]:
    """The weight of each expert in a row of E; a slot of weight zero names nobody and gets no gradient.

    >>> spread(torch.tensor([[1, 9]]), torch.tensor([[0.5, 0.0]]), experts=2).tolist()
    [[0.0, 0.5]]
    """
    live = weights.detach() != 0
    _check(indices, live, experts)
    named = indices.long().masked_fill(~live, experts)  # a column of its own, cut off again
    return weights.new_zeros(*weights.shape[:-1], experts + 1).scatter_add(-1, named, weights)[..., :experts]


def choose(
    implementation: Implementation, x: Float[Tensor, "n _"], weight: Float[Tensor, "E o i"], k: int
) -> Implementation:
    """Pick what runs fastest and can run: every expert on every token when k = E, the native kernel, or the loop.

    The native kernel is for bf16 on a GPU of compute capability 8 or more; its other types are a loop inside torch. A
    kernel asked for by name that cannot run raises ValueError.

    >>> choose("auto", torch.zeros(3, 8), torch.zeros(4, 8, 8), k=2)
    'loop'
    """
    if implementation == "auto":
        if k == len(weight) > 0:
            return "dense"
        on_gpu = x.is_cuda and weight.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (8, 0)
        return "grouped_mm" if on_gpu and not _obstacle(weight) else "loop"
    if implementation == "grouped_mm" and (problem := _obstacle(weight)):
        raise ValueError(f"grouped_mm cannot run: {problem}; use implementation='auto'")
    return implementation


def _obstacle(weight: Tensor) -> str:
    """Why the native kernel cannot multiply with this weight, or nothing."""
    if weight.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"expected bf16, fp16 or fp32, got {weight.dtype}"
    sizes = [size * weight.element_size() for size in weight.shape[1:]]
    if any(size % 16 for size in sizes):
        return f"expected widths of whole 16 bytes, got {sizes[0]} and {sizes[1]} bytes"
    return ""


def gather(x: Float[Tensor, "n c"], plan: Plan) -> Float[Tensor, "r c"]:
    """Copy each pair's token to its row; the gradient of a token is the sum over its live pairs.

    >>> gather(torch.tensor([[1.0], [2.0]]), plan(torch.tensor([[1], [0]]), torch.ones(2, 1), experts=2)).tolist()
    [[2.0], [1.0]]
    """
    return _Gather.apply(x, plan.token, plan.place, plan.spare)


def grouped_linear(
    rows: Float[Tensor, "r i"], weight: Float[Tensor, "E o i"], plan: Plan, *, native: bool = False
) -> Float[Tensor, "r o"]:
    """Multiply the rows of expert e with weight[e], as nn.Linear does.

    Rows behind the last group are zero by the loop and undefined by the native kernel.

    >>> where = plan(torch.tensor([[1], [0]]), torch.ones(2, 1), experts=2)
    >>> grouped_linear(torch.ones(2, 1), torch.tensor([[[10.0]], [[20.0]]]), where).tolist()
    [[10.0], [20.0]]
    """
    if native:
        return F.grouped_mm(rows, weight.transpose(1, 2), offs=plan.ends)
    return _grouped(rows, weight, plan.ends)


def combine(rows: Float[Tensor, "r c"], weights: Float[Tensor, "n k"], plan: Plan) -> Float[Tensor, "n c"]:
    """Sum weight * row over the live pairs of each token, accumulated in fp32; zero for a token without any.

    >>> weights = torch.tensor([[0.5, 0.5]])
    >>> combine(torch.tensor([[1.0], [3.0]]), weights, plan(torch.tensor([[1, 0]]), weights, experts=2)).tolist()
    [[2.0]]
    """
    return _Combine.apply(rows, weights.to(rows.dtype), plan.token, plan.pair, plan.place, plan.live, plan.spare)


def _bag(rows: Tensor, place: Tensor, weights: Tensor | None, spare: int | None) -> Tensor:
    """Sum the rows at each token's places: one pass over memory, in a fixed order."""
    if not place.numel():
        return rows.new_zeros(len(place), rows.shape[1])
    return F.embedding_bag(place, rows, mode="sum", per_sample_weights=weights, padding_idx=spare)


class _Gather(torch.autograd.Function):
    """index_select whose gradient is an ordered sum instead of scattered adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, place: Tensor, spare: int | None) -> Tensor:
        ctx.save_for_backward(place)
        ctx.spare = spare
        # A set without tokens still has the native kernel's spare row.
        return x.index_select(0, token) if len(x) else x.new_zeros(len(token), x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (place,) = ctx.saved_tensors
        return _bag(grads[0].contiguous(), place, None, ctx.spare), None, None, None


class _Combine(torch.autograd.Function):
    """Weighted sum over the slots of a token, with its gradient written out so that no (n, k, c) copy is made."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weights: Tensor,
        token: Tensor,
        pair: Tensor,
        place: Tensor,
        live: Tensor,
        spare: int | None,
    ) -> Tensor:
        ctx.save_for_backward(rows, weights, token, pair, place, live)
        return _bag(rows, place, weights, spare)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        rows, weights, token, pair, place, live = ctx.saved_tensors
        if not weights.numel():
            return torch.zeros_like(rows), torch.zeros_like(weights), None, None, None, None, None
        back = grads[0].index_select(0, token)
        dweights = drows = None
        if ctx.needs_input_grad[1]:
            dots = torch.linalg.vecdot(rows, back)  # of every row, the undefined ones too
            dweights = torch.where(live, dots[place], 0.0)
        if ctx.needs_input_grad[0]:
            gate = weights.flatten().index_select(0, pair)[:, None]
            # In place unless a second derivative will need `back` as it was.
            drows = back * gate if torch.is_grad_enabled() else back.mul_(gate)
        return drows, dweights, None, None, None, None, None


def _loop(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out = rows.new_empty(len(rows), weight.shape[1])
    start = 0
    for e, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(rows[start:end], weight[e].t(), out=out[start:end])
        start = end
    out[start:] = 0
    return out


def _loop_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """For each expert left_e^T right_e: the gradient of its matrix, zero for an expert that nobody asked."""
    out = left.new_empty(len(ends), left.shape[1], right.shape[1])
    start = 0
    for e, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(left[start:end].t(), right[start:end], out=out[e])
        else:
            out[e] = 0
        start = end
    return out


_schema = "(Tensor rows, Tensor weight, Tensor ends) -> Tensor"
_grouped = torch.library.custom_op("physexperts::grouped", _loop, mutates_args=(), schema=_schema)
_outer = torch.library.custom_op(
    "physexperts::grouped_outer",
    _loop_outer,
    mutates_args=(),
    schema="(Tensor left, Tensor right, Tensor ends) -> Tensor",
)


@_grouped.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[1])


@_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    rows, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()
    drows = _grouped(grad, weight.transpose(1, 2), ends) if ctx.needs_input_grad[0] else None
    dweight = _outer(grad, rows, ends) if ctx.needs_input_grad[1] else None
    return drows, dweight, None


_grouped.register_autograd(_grouped_backward, setup_context=_save)


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    """Second derivatives, for losses on gradients."""
    left, right, ends = ctx.saved_tensors
    dleft = _grouped(right, grad, ends) if ctx.needs_input_grad[0] else None
    dright = _grouped(left, grad.transpose(1, 2), ends) if ctx.needs_input_grad[1] else None
    return dleft, dright, None


_outer.register_autograd(_outer_backward, setup_context=_save)
