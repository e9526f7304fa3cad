"""Read, or change, the hidden states at a named place of a named block, in one forward of the own block loop.

Places, all (b, n, d) on the video tokens (`backbones.blocks` says what the seams are in each family):

- `embedding`: the tokens before block 0;
- `block.7.self_attention`: the output of block 7's self-attention before its gate;
- `block.7.cross_attention`: the hidden state between attention to the text and the feed-forward;
- `block.7`: the hidden state after block 7 (and the hint that VACE adds there).

A place that is edited is read after the edit: a tap is what the model goes on with. Blocks without a place inside them
run as stock modules. Taps keep their hidden states alive: one is 96 MiB for Wan 2.1 1.3B at 81 x 480 x 832 in bf16.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from backbones.blocks import BlockStack, Seam, Tokens, checked

__all__ = ["Run", "run"]

PLACE = re.compile(r"embedding|block\.(\d+)(?:\.(self_attention|cross_attention))?")


@dataclass(frozen=True)
class Run:
    """What a forward gave: `output` in the model's own layout (None after an early stop), the taps by name, and the
    tokens after the last block that ran.
    """

    output: Float[Tensor, "b _ _ _ _"] | None
    taps: dict[str, Float[Tensor, "b n d"]]
    tokens: Tokens


def run(
    stack: BlockStack,
    transformer_kwargs: Mapping[str, Any],
    *,
    taps: Iterable[str] = (),
    edit: Mapping[str, Seam] | None = None,
    until: int | None = None,
) -> Run:
    """Run a forward; `edit[place](h, s)` gives the hidden state that takes h's place.

    `until=k` stops after block k: no later block is run, and gradients reach blocks 0..k and the embeddings alone.
    ValueError for a place that does not exist, and for one that an early stop would never reach; RuntimeError while a
    block cache is enabled.
    """
    if isinstance(taps, str):
        raise ValueError(f"expected names of places in a list, got the string {taps!r}")
    edit, wanted = dict(edit or {}), set(taps)
    last = len(stack) - 1 if until is None else until
    if not 0 <= last < len(stack):
        raise ValueError(f"expected `until` from 0 to {len(stack) - 1}, got {until}")
    for place in wanted | set(edit):
        check_place(place, len(stack), last)
    if (wanted or edit) and getattr(stack.transformer, "is_cache_enabled", False):
        raise RuntimeError(
            "a block cache is enabled: it hands hidden states past the blocks it skips, so that taps would read, and"
            " edits change, another step's state. Call transformer.disable_cache() first."
        )
    found: dict[str, Tensor] = {}

    def at(place: str) -> Callable[[Tensor, Tokens], Tensor] | None:
        if place not in wanted and place not in edit:
            return None

        def seam(h: Tensor, s: Tokens) -> Tensor:
            h = checked(edit.get(place), f"edit[{place!r}]", s)(h)
            if place in wanted:
                found.setdefault(place, h)  # a checkpointed block comes by again in the backward pass
            return h

        return seam

    def between(place: str, s: Tokens) -> Tokens:
        seam = at(place)
        return s if seam is None else replace(s, h=seam(s.h, s))

    s = between("embedding", stack.begin(**transformer_kwargs))
    for k in range(last + 1):
        s = stack.block(
            k,
            s,
            after_self_attention=at(f"block.{k}.self_attention"),
            after_cross_attention=at(f"block.{k}.cross_attention"),
        )
        s = between(f"block.{k}", s)
    return Run(stack.end(s) if until is None else None, found, s)


def check_place(place: str, blocks: int, last: int) -> None:
    """Refuse a place that does not exist or that comes after the last block."""
    match = PLACE.fullmatch(place)
    if match is None:
        raise ValueError(
            f"expected 'embedding', 'block.K', 'block.K.self_attention' or 'block.K.cross_attention', got {place!r}"
        )
    k = int(match[1] or 0)
    if k >= blocks:
        raise ValueError(f"expected a block from 0 to {blocks - 1}, got {place!r}")
    if k > last:
        raise ValueError(f"the run stops after block {last} and never comes to {place!r}: raise `until`")
