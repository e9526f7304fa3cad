"""What joins the two streams of the teacher: control links, task embeddings, or (an ablation) shared channels.

All of it begins at zero, so that a fresh teacher is the frozen model on each stream. A link is one linear map from a
token of one stream to the token at the same place of the other ("pixel-wise": the grids coincide).

References: MMPhysVideo (2026), the bidirectionally controlled teacher; the form of links and embeddings is our reading.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones import BlockStack, Tokens
from mmphysvideo.config import Way

__all__ = ["Channels", "Links", "Tasks", "applied"]


class Links(nn.Module):
    """After block k, both from the states before the update:

    h_r <- h_r + A_k h_q,    h_q <- h_q + B_k h_r,    A_k, B_k zero at the start.

    Links sit behind every `every`-th block, the last one included.
    """

    def __init__(self, dim: int, blocks: int, *, every: int, way: Way) -> None:
        super().__init__()
        if every > blocks:
            raise ValueError(
                f"expected teacher.links.every of at most the {blocks} blocks of the backbone, got {every}"
            )
        places = [] if way == "none" else [k for k in range(blocks) if (blocks - 1 - k) % every == 0]
        self.to_rgb, self.to_perception = (
            nn.ModuleDict({str(k): _zero(dim) for k in places if way in ("both", wanted)})
            for wanted in ("to_rgb", "to_perception")
        )

    def forward(
        self, k: int, rgb: Float[Tensor, "b n d"], perception: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Join the states behind block k."""
        name, new_rgb, new_perception = str(k), rgb, perception
        if name in self.to_rgb:
            new_rgb = rgb + applied(self.to_rgb[name], perception)
        if name in self.to_perception:
            new_perception = perception + applied(self.to_perception[name], rgb)
        return new_rgb, new_perception


class Tasks(nn.Module):
    """One embedding a stream, added to the time embedding (`time`) or to the tokens before block 0 (`tokens`)."""

    def __init__(self, place: str, dim: int) -> None:
        super().__init__()
        self.place = place
        self.rgb, self.perception = (nn.Parameter(torch.zeros(dim)) for _ in range(2))

    def forward(self, s: Tokens, stack: BlockStack, streams: Float[Tensor, "b 2"]) -> Tokens:
        """Tell each row of a batch which stream it is (one-hot rows: RGB, perception)."""
        told = streams.to(self.rgb) @ torch.stack([self.rgb, self.perception])
        if self.place == "tokens":
            return replace(s, h=s.h + told[:, None].to(s.h.dtype))
        told = told.to(s.temb.dtype)
        temb = s.temb + (told if s.temb.ndim == 2 else told[:, None])
        if s.modulation is None:  # CogVideoX: each block reads the time embedding itself
            return replace(s, temb=temb)
        embedder = stack.transformer.condition_embedder
        modulation = embedder.time_proj(embedder.act_fn(temb)).unflatten(-1, (6, -1))
        return replace(s, temb=temb, modulation=modulation)


class Channels(nn.Module):
    """The ablation: one stream reads both latents, as if their channels were concatenated before the patch embedding.

    A patch embedding of both is W_r x_r + W_q x_q; W_q is Z W_r with Z zero at the start. The perception is said by a
    head of its own, the backbone's head on h + U h, U zero at the start.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.into, self.out = _zero(dim), _zero(dim)


def applied(linear: Any, h: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """A layer in its own precision, given back in that of the stream."""
    return linear(h.to(linear.weight.dtype)).to(h.dtype)


def _zero(dim: int) -> nn.Linear:
    linear = nn.Linear(dim, dim)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
