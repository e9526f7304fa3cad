"""Physical Blocks: weight copies of some of the backbone's blocks, run as a chain beside it and added to its stream.

h_j = PB_j(h_(j-1), text, t); the backbone's stream after the paired block l_j gets + Z_j(h_j), one after the other, so
that physics accumulates. Z_j is a linear layer that starts at zero: a fresh branch changes nothing, bit for bit.
The copies are built from the backbone's config (`backbones.fresh_copy`) and kept in fp32; beside a bf16 backbone they
run under autocast.

References: ProPhy (Wang et al., 2025), physical block; the zero start of Z_j is our choice (the figure shows a bare
plus, which copied weights would turn into a change of every output).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import BlockStack, Tokens, fresh_copy

__all__ = ["PhysicalBlocks", "in_dtype_of", "places"]


def places(layers: int, blocks: int) -> tuple[int, ...]:
    """Pair M physical blocks with round(linspace(0, L - 1, M)): the first with the first, the last with the last.

    One block is paired with the last. ValueError for more blocks than layers.

    >>> places(30, 10)
    (0, 3, 6, 10, 13, 16, 19, 23, 26, 29)
    >>> places(4, 1)
    (3,)
    """
    if not 1 <= blocks <= layers:
        raise ValueError(f"expected branch.blocks in 1..{layers} (the backbone's blocks), got {blocks}")
    if blocks == 1:
        return (layers - 1,)
    return tuple(int(x) for x in torch.linspace(0, layers - 1, blocks, dtype=torch.float64).round())


class PhysicalBlocks(nn.Module):
    """The chain of M copies with their projections Z_j back into the backbone's stream.

    `widening` > 0 puts h + W_2 silu(W_1 h) of that width in front of each Z_j: parameters for a control that has no
    experts.
    """

    def __init__(self, stack: BlockStack, blocks: int, *, widening: int = 0) -> None:
        super().__init__()
        config, dim = stack.transformer.config, stack.spec.dim
        self.places = places(len(stack), blocks)
        self.copies = nn.ModuleList(fresh_copy(stack.blocks[k], config).float() for k in self.places)
        self.projections = nn.ModuleList(nn.Linear(dim, dim) for _ in self.places)
        for projection in self.projections:
            nn.init.zeros_(projection.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(projection.bias)  # pyright: ignore[reportArgumentType]
        self.widen = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, widening), nn.SiLU(), nn.Linear(widening, dim)) if widening else nn.Identity()
            for _ in self.places
        )

    def __len__(self) -> int:
        return len(self.places)

    @property
    def last(self) -> int:
        """The block that the last physical block, where refinement experts sit, is paired with."""
        return self.places[-1]

    def step(
        self, k: int, branch: Tokens, stack: BlockStack, *, refine: Callable[[Tensor, Tokens], Tensor] | None = None
    ) -> Tokens:
        """Run the physical block that is paired with block k; `refine` acts between text attention and feed-forward."""
        copy = self.copies[self.places.index(k)]
        with in_dtype_of(branch.h, copy):
            out = stack.block(k, branch, module=copy, after_cross_attention=refine)
        return replace(out, h=out.h.to(branch.h.dtype), ctx=out.ctx.to(branch.ctx.dtype))

    def inject(self, k: int, h: Float[Tensor, "b n d"], branch: Tokens) -> Float[Tensor, "b n d"]:
        """Add Z_j(h_j) to the backbone's stream after block k."""
        j = self.places.index(k)
        seen = branch.h.float()
        wide = self.widen[j]
        if not isinstance(wide, nn.Identity):
            seen = seen + wide(seen)
        return h + self.projections[j](seen).to(h.dtype)


def in_dtype_of(h: Tensor, module: nn.Module) -> AbstractContextManager[Any]:
    """Autocast where fp32 weights meet a stream in half precision."""
    if h.dtype == torch.float32 or next(module.parameters()).dtype == h.dtype:
        return nullcontext()
    return torch.autocast(h.device.type, dtype=h.dtype)


def embedded(stack: BlockStack, delta: Float[Tensor, "b c t y x"]) -> Float[Tensor, "b n d"]:
    """The linear part of the backbone's patch embedding: embed(X + D) = embed(X) + embedded(D).

    Channels that an image model reads beside the latent get none of it. ValueError for a family other than Wan and
    CogVideoX: where its patch embedding is linear is not known here.
    """
    transformer, spec = stack.transformer, stack.spec
    if spec.latent_layout == "bnc":
        raise ValueError(
            f"expected a Wan or a CogVideoX for semantic experts, got {type(transformer).__name__}: train without them"
            " (semantic.on=false)"
        )
    if spec.latent_layout == "bcthw":
        conv = transformer.patch_embedding
        delta = F.pad(delta, (0, 0) * 3 + (0, conv.in_channels - delta.shape[1]))
        return F.conv3d(delta.to(conv.weight.dtype), conv.weight, stride=conv.stride).flatten(2).mT
    proj, (p_t, p, _) = transformer.patch_embed.proj, spec.patch
    b, c, t, y, x = delta.shape
    delta = delta.to(proj.weight.dtype)
    if isinstance(proj, nn.Conv2d):
        delta = F.pad(delta.transpose(1, 2), (0, 0) * 2 + (0, proj.in_channels - c)).flatten(0, 1)
        return F.conv2d(delta, proj.weight, stride=proj.stride).flatten(2).mT.unflatten(0, (b, t)).flatten(1, 2)
    channels = proj.in_features // (p_t * p * p)
    delta = F.pad(delta, (0, 0) * 3 + (0, channels - c)).transpose(1, 2)
    patches = delta.reshape(b, t // p_t, p_t, channels, y // p, p, x // p, p).permute(0, 1, 4, 6, 3, 2, 5, 7)
    return F.linear(patches.flatten(4, 7).flatten(1, 3), proj.weight)
