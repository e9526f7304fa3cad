"""Adapters of the hidden states: they act between the blocks of a transformer, and at the seams inside them.

Beside adapters of the velocity (`contract.Adapter`), whose `correction` sees a finished forward, these run inside it:
the host walks the block stack itself (`backbones.blocks`), inside the model's root forward, where offload and context
parallel hooks have done their work. Every guidance branch is its own forward, or its own rows of one: what the adapter
adds to a branch is multiplied by the guidance scale like anything else in it.

Under context parallel the tokens are the shard of one rank: only adapters that treat tokens one by one can work.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.utils import apply_lora_scale
from jaxtyping import Float
from torch import Tensor, nn

from backbones.blocks import BlockStack, Tokens, blocks_of
from backbones.contract import Asked, Text
from backbones.host import eagerly, hooks_of

__all__ = ["BlockAdapter", "Call", "through_blocks"]

SEAMS = ("after_self_attention", "after_cross_attention")


@dataclass(frozen=True)
class Call:
    """What a forward is asked, before it is answered; fields as in `contract.Asked`, float32, flow space.

    `physics` is what the pipeline was given as `attention_kwargs={"physics": {...}}`: the caller's own dict, so an
    adapter can leave something there for `callback_on_step_end`. `pipe` is the pipeline that asks, None for a bare
    forward: an adapter with a latent of its own steps it with a copy of the scheduler, under the same guidance.
    """

    x_s: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, " b"]
    noisy: Float[Tensor, "b 1 t h w"] | None
    text: Text
    timestep: Tensor
    branch_rows: dict[str, slice]
    physics: dict[str, Any]
    pipe: Any = None


@runtime_checkable
class BlockAdapter(Protocol):
    """What attaches at block level: an `nn.Module` with `needs_blocks = True`.

    `begin` sees the embedded tokens of a call and makes the adapter's state, anything at all; `after_block` gives the
    tokens and the state on, block by block. Optional attributes:

    - `seams`: names of what the adapter wants to do inside blocks, `after_self_attention(k, a, tokens, state)` and
      `after_cross_attention(k, h, tokens, state)`, each giving its tensor back (`backbones.blocks` says what they are);
    - `block(k, tokens, state, stack)`: runs block k itself (`lockstep` of two streams) and gives (tokens, state);
    - `end(tokens, state, stack)`: gives the model's output itself, in its own layout (other weights, two heads);
    - `token_wise = True`: nothing mixes tokens, so a shard of them is as good as all (context parallel).

    With gradient checkpointing a block and its seams run twice: a seam must not change anything but its result.
    """

    kind: str
    needs_blocks: bool

    def prepare(self, prompts: list[str], text: Text) -> None: ...
    def begin(self, call: Call, tokens: Tokens, stack: BlockStack) -> Any: ...
    def after_block(self, k: int, tokens: Tokens, state: Any, stack: BlockStack) -> tuple[Tokens, Any]: ...
    def groups(self) -> dict[str, nn.Module]: ...


@eagerly
def unanswered(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """Give zeros of the shape that the model will answer with, for reading a call before its answer."""
    spec, x = blocks_of(model).spec, arguments["hidden_states"]
    return torch.zeros_like(x.narrow(1 if spec.latent_layout == "bcthw" else 2, 0, spec.out_channels))


@apply_lora_scale("attention_kwargs")
@torch.compiler.disable(recursive=False)  # compile what it calls
def through_blocks(
    model: nn.Module, adapter: Any, asked: Asked, physics: dict[str, Any], pipe: Any = None, /, **arguments: Any
) -> Tensor:
    """Run a call through the model's blocks with the adapter between them; give the model's output in its own layout.

    RuntimeError under a block cache, and under context parallel unless the adapter is `token_wise`.
    """
    check_hooks(model, adapter)
    stack = blocks_of(model)
    tokens = stack.begin(**arguments)
    call = Call(asked.x_s, asked.sigma, asked.noisy, asked.text, asked.timestep, asked.branch_rows, physics, pipe)
    state = adapter.begin(call, tokens, stack)
    for k in range(len(stack)):
        if hasattr(adapter, "block"):
            new, state = adapter.block(k, tokens, state, stack)
        else:
            seams = {name: at_seam(getattr(adapter, name), k, state) for name in getattr(adapter, "seams", ())}
            new = stack.block(k, tokens, **seams)
        changed, state = adapter.after_block(k, new, state, stack)
        if changed.h.shape != new.h.shape or changed.h.dtype != new.h.dtype:
            raise ValueError(
                f"expected hidden states {tuple(new.h.shape)} {new.h.dtype} after block {k}, got"
                f" {tuple(changed.h.shape)} {changed.h.dtype} from {adapter.kind}: cast what is added to `tokens.h`"
            )
        tokens = changed
    return adapter.end(tokens, state, stack) if hasattr(adapter, "end") else stack.end(tokens)


def at_seam(function: Any, k: int, state: Any) -> Any:
    """Bind block and state to a function of the adapter; a seam is called with its tensor and the block's tokens."""
    return partial(lambda x, s, k, state: function(k, x, s, state), k=k, state=state)


def check_hooks(model: nn.Module, adapter: Any) -> None:
    """Refuse what would make the adapter's work wrong: `apply_*` of diffusers enables caches behind `enable_cache`."""
    hooks = hooks_of(model)
    if caches := sorted(h for h in hooks if h.endswith(("_cache", "attention_broadcast"))):
        raise RuntimeError(
            f"a block cache ({', '.join(caches)}) skips blocks or attentions, and the changes of the adapter"
            f" {adapter.kind!r} between them would count twice or be lost: disable it."
        )
    if "context_parallel" in hooks and not getattr(adapter, "token_wise", False):
        raise RuntimeError(
            f"under context parallel each rank holds a part of the tokens, and the adapter {adapter.kind!r} does not"
            " say that it treats tokens one by one (`token_wise = True`): sample it on one device."
        )
