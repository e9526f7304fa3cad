"""A transformer as a stack of blocks: `begin`, then `block(k)` for each k, then `end`; bit for bit the stock forward.

`blocks_of(transformer)` reads a stock diffusers `WanTransformer3DModel`, `WanVACETransformer3DModel` or
`CogVideoXTransformer3DModel`, attached to or not; it owns no weight and changes none. Between two blocks everything is
in `Tokens`: hidden states h (b, n, d) with the n = t y x video tokens in raster order of `grid`, text states, time.

Inside a block there are two seams, both on the video tokens:

- `after_self_attention(a, s) -> a`: a is the output of self-attention *before* its gate and the residual sum, where a
  second stream couples in (Phantom). CogVideoX attends to text and video at once; a is the video part of that.
- `after_cross_attention(h, s) -> h`: h is the hidden state, residual included, between attention to the text and the
  feed-forward, where token experts sit (ProPhy). In CogVideoX this is after the gated joint attention.

s is the `Tokens` that the block was given. Without seams the block module is called as the stock forward calls it, so
compiled blocks, caches and offload go on working. With seams a mirror of its forward runs *inside* the hooks around the
block (offload, context parallel, casting); a compiled block then runs uncompiled, and a cache that skips it is refused.

When the transformer has gradient checkpointing on, blocks are checkpointed as in the stock forward, `lockstep` jointly.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import unwrap
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["BlockSpec", "BlockStack", "Seam", "Tokens", "blocks_of", "lockstep"]


@dataclass(frozen=True)
class BlockSpec:
    """Sizes of a stack of blocks. `patch` is (t, y, x); `ctx_evolves`: the text states change from block to block;
    `latent_layout` is that of the model's input and output, "bnc" for tokens that its pipeline packs.
    """

    kind: str
    n_blocks: int
    dim: int
    heads: int
    head_dim: int
    patch: tuple[int, int, int]
    in_channels: int
    out_channels: int
    text_dim: int
    ctx_evolves: bool
    latent_layout: Literal["bcthw", "btchw", "bnc"]


@dataclass(frozen=True)
class Tokens:
    """The state between two blocks; `dataclasses.replace(s, h=...)` makes the next one.

    `temb` is the time embedding; `modulation` is what Wan makes of it for all blocks, (b, 6, d) or, with a timestep for
    each token, (b, n, 6, d); CogVideoX makes it inside each block (None). `rotary` is (cos, sin) or None. `hints` are
    what VACE adds after some blocks, by block.
    """

    h: Float[Tensor, "b n d"]
    ctx: Float[Tensor, "b l d"]
    temb: Float[Tensor, "bt *time e"]
    modulation: Float[Tensor, "bt *per_token 6 d"] | None
    rotary: tuple[Tensor, Tensor] | None
    grid: tuple[int, int, int]
    attention_kwargs: dict[str, Any] | None = None
    hints: dict[int, Tensor] = field(default_factory=dict)

    @property
    def per_token(self) -> bool:
        """True when each token has a noise level of its own (TI2V)."""
        return self.modulation is not None and self.modulation.ndim == 4


Seam = Callable[[Tensor, Tokens], Tensor]


class BlockStack(ABC):
    """The blocks of one transformer, called one by one. Subclasses know one stock class each.

    A family of another package says which (`stock`), of what class its blocks are (`block_class`) and how one of the
    sizes in a transformer's config is built (`new_block`): `blocks_of` and `fresh_copy` look there.
    """

    spec: BlockSpec
    stock: ClassVar[type[nn.Module] | None] = None
    block_class: ClassVar[type[nn.Module] | None] = None
    new_block: ClassVar[Callable[[Any], nn.Module]]

    def __init__(self, transformer: nn.Module, blocks: nn.ModuleList) -> None:
        self.transformer: Any = transformer
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    @abstractmethod
    def begin(self, *_: Any, **transformer_kwargs: Any) -> Tokens:
        """Embed patches, text and time. Takes the stock forward's arguments, by keyword; `return_dict` and
        `attention_kwargs["physics"]` are ignored, and a LoRA scale is left to who calls the whole transformer.
        """

    @abstractmethod
    def end(self, s: Tokens) -> Float[Tensor, "b _ _ _ _"]:
        """Normalise, project and put the patches together: the model's output in its own layout (`latent_layout`)."""

    def block(
        self,
        k: int,
        s: Tokens,
        *,
        module: nn.Module | None = None,
        after_self_attention: Seam | None = None,
        after_cross_attention: Seam | None = None,
    ) -> Tokens:
        """Run block k, or `module` (a copy of a block, `fresh_copy`) in its place, with functions at its seams.

        VACE's hints belong to the stack's own blocks: a `module` gets none. ValueError for a k out of range and for a
        seam that changes the shape; RuntimeError when the block's forward was replaced by something unknown, or a
        block cache skipped the seams.
        """
        step = partial(
            self._step,
            k,
            module=module,
            after_self_attention=after_self_attention,
            after_cross_attention=after_cross_attention,
        )
        if not self._checkpointing:
            return step(s)

        def tensors(h: Tensor, ctx: Tensor) -> tuple[Tensor, Tensor]:
            out = step(replace(s, h=h, ctx=ctx))
            return out.h, out.ctx

        h, ctx = self.transformer._gradient_checkpointing_func(tensors, s.h, s.ctx)
        return replace(s, h=h, ctx=ctx)

    @property
    def _checkpointing(self) -> bool:
        return torch.is_grad_enabled() and bool(self.transformer.gradient_checkpointing)

    def _step(
        self,
        k: int,
        s: Tokens,
        *,
        module: nn.Module | None = None,
        after_self_attention: Seam | None = None,
        after_cross_attention: Seam | None = None,
    ) -> Tokens:
        if not 0 <= k < len(self.blocks):
            raise ValueError(f"expected a block from 0 to {len(self.blocks) - 1}, got {k}")
        chosen = self.blocks[k] if module is None else module
        if after_self_attention is None and after_cross_attention is None:
            out = self._call(chosen, s)
        else:
            ran = False

            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal ran
                ran = True
                return self._mirror(
                    chosen,
                    s,
                    checked(after_self_attention, "after_self_attention", s),
                    checked(after_cross_attention, "after_cross_attention", s),
                    *args,
                    **kwargs,
                )

            out = self._call(partial(inside_hooks, chosen, forward), s)
            if not ran:
                raise RuntimeError(
                    f"a block cache answered for block {k}, and the functions at its seams were passed by. Disable the"
                    " cache (transformer.disable_cache()) while blocks are changed from inside."
                )
        return self._result(k, s, out) if module is None else self._result(None, s, out)

    @abstractmethod
    def _call(self, block: Callable[..., Any], s: Tokens) -> Any:
        """Call a block as the stock forward does."""

    @abstractmethod
    def _mirror(
        self,
        block: nn.Module,
        s: Tokens,
        after_self_attention: Callable[[Tensor], Tensor],
        after_cross_attention: Callable[[Tensor], Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Do what the forward of the stock block does with `args` and `kwargs`, with a function at each seam."""

    @abstractmethod
    def _result(self, k: int | None, s: Tokens, out: Any) -> Tokens:
        """Put what block k (None: a module in its place) returned into the tokens."""


def lockstep(
    k: int,
    stack1: BlockStack,
    s1: Tokens,
    stack2: BlockStack,
    s2: Tokens,
    couple: Callable[[Tensor, Tensor, Tokens, Tokens], tuple[Tensor, Tensor]],
) -> tuple[Tokens, Tokens]:
    """Run block k of two streams at once: (a1, a2) <- couple(a1, a2, s1, s2) before the two gates.

    a1 (b, n1, d1) and a2 (b, n2, d2) are both self-attention outputs *before* coupling, so that both directions read
    the same state; widths and token counts may differ. With the identity this equals two separate blocks bit for bit.

    References: Phantom (2026), overview figure: the coupling attention sits between self-attention and the AdaLN gate.
    """

    def both(t1: Tokens, t2: Tokens) -> tuple[Tokens, Tokens]:
        done: list[Tokens] = []

        # Stream 2 runs inside the seam of stream 1: neither block has to stop halfway, and hooks around both stay on.
        def seam1(a1: Tensor, _: Tokens) -> Tensor:
            after: list[Tensor] = []

            def seam2(a2: Tensor, _: Tokens) -> Tensor:
                new1, new2 = couple(a1, a2, t1, t2)
                after.append(new1)
                return new2

            done.append(stack2._step(k, t2, after_self_attention=seam2))
            return after[0]

        out1 = stack1._step(k, t1, after_self_attention=seam1)
        return out1, done[0]

    owner = next((x for x in (stack1, stack2) if x._checkpointing), None)
    if owner is None:
        return both(s1, s2)

    def tensors(h1: Tensor, ctx1: Tensor, h2: Tensor, ctx2: Tensor) -> tuple[Tensor, ...]:
        o1, o2 = both(replace(s1, h=h1, ctx=ctx1), replace(s2, h=h2, ctx=ctx2))
        return o1.h, o1.ctx, o2.h, o2.ctx

    h1, ctx1, h2, ctx2 = owner.transformer._gradient_checkpointing_func(tensors, s1.h, s1.ctx, s2.h, s2.ctx)
    return replace(s1, h=h1, ctx=ctx1), replace(s2, h=h2, ctx=ctx2)


def blocks_of(transformer: Any) -> BlockStack:
    """Give the block stack of a stock transformer, chosen by its class.

    ValueError for any other class, and for a subclass with a forward of its own: its blocks would be run in another
    way than it does.
    """
    from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel, WanVACETransformer3DModel

    from backbones.cogvideox_blocks import CogVideoXBlocks
    from backbones.stock import families
    from backbones.wan_blocks import WanBlocks, WanVACEBlocks

    known: dict[type, Any] = {
        WanTransformer3DModel: WanBlocks,
        WanVACETransformer3DModel: WanVACEBlocks,
        CogVideoXTransformer3DModel: CogVideoXBlocks,
    }
    if not isinstance(transformer, tuple(known)):
        known |= {s.stock: s for family in families() for s in family.stacks if s.stock is not None}
    for stock, stack in known.items():
        if isinstance(transformer, stock):
            if unwrap(type(transformer).forward) is not unwrap(stock.forward):
                raise ValueError(
                    f"{type(transformer).__name__} has a forward of its own, and its blocks would be run as in"
                    f" {stock.__name__}: give the stock class"
                )
            return stack(transformer)
    raise ValueError(
        f"expected one of {', '.join(c.__name__ for c in known)}, got {type(transformer).__name__}: the order of steps"
        " inside its blocks is not known here"
    )


def checked(seam: Seam | None, name: str, s: Tokens) -> Callable[[Tensor], Tensor]:
    """Bind a seam to its tokens; what it gives back must have the shape it got, and is cast to the dtype it got."""
    if seam is None:
        return lambda x: x

    def call(x: Tensor) -> Tensor:
        out = seam(x, s)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"expected {name} to give a tensor {tuple(x.shape)} back, got {got}")
        return out.to(x.dtype)

    return call


def inside_hooks(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a module with another innermost forward, inside the hooks that diffusers, accelerate or torch put around it.

    RuntimeError when its forward was replaced by something that hides the original one.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if "forward" not in vars(module) and not any(hooks):
        return forward(*args, **kwargs)
    with innermost(module, forward):
        return module._call_impl(*args, **kwargs)  # not __call__: a compiled block holds its own forward


@dataclass(frozen=True)
class Mirror:
    """A forward that stands in a module's place for one call; known again when the same block is entered twice."""

    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


@contextmanager
def innermost(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Put `forward` where the hooks around a module keep the module's original forward."""
    own = vars(module)
    places = [(own, "forward"), (own, "_old_forward")]  # torch, accelerate
    for ref in getattr(own.get("_diffusers_hook"), "_fn_refs", ()):
        places += [(vars(ref), "forward"), (vars(ref), "original_forward")]

    def original(f: Any) -> bool:
        return isinstance(f, Mirror) or getattr(f, "__func__", None) is type(module).forward

    held = [(d, name, d[name]) for d, name in places if original(d.get(name))]
    if not held and "forward" in own:
        raise RuntimeError(
            f"the forward of a {type(module).__name__} was replaced by something other than the hooks of diffusers or"
            " accelerate: functions at the seams inside it cannot be called. Remove the replacement."
        )
    for d, name, _ in held or [(own, "forward", None)]:
        d[name] = Mirror(forward)
    try:
        yield
    finally:
        if not held:
            del own["forward"]
        for d, name, before in held:
            d[name] = before
