"""The coupling of the two streams: in every block each one asks the other, before the gates.

Both directions read the self-attention outputs *before* coupling (simultaneous), add what they find to their own, and
end in a projection that begins at zero: at initialisation the frozen video stream is itself, bit for bit. Tokens of the
two grids meet in shared coordinates, seconds and fractions of the frame, as rotary positions of queries and keys.

References: Phantom (2026), overview figure and the coupling attention; the residual around it, its zero start and the
coordinates are our choice (the figure draws no skip, which would overwrite a frozen model's state at step 0).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Coordinates", "Coupling", "Way", "coordinates", "rotate"]

Way = Literal["both", "none", "to_video", "to_physics", "joint"]

Coordinates = Float[Tensor, "n 3"]
"""(t, y, x) of tokens in raster order: seconds, fractions of the frame's height and width."""


def coordinates(
    times_s: Float[Tensor, " t"], height: int, width: int, *, device: torch.device | str = "cpu"
) -> Float[Tensor, "n 3"]:
    """Give the centres of the cells of a (t, height, width) grid.

    >>> coordinates(torch.tensor([0.0, 0.5]), 1, 2).tolist()
    [[0.0, 0.5, 0.25], [0.0, 0.5, 0.75], [0.5, 0.5, 0.25], [0.5, 0.5, 0.75]]
    """
    y, x = (torch.arange(n) + 0.5 for n in (height, width))
    grid = torch.meshgrid(times_s.float().cpu(), y / height, x / width, indexing="ij")
    return torch.stack([axis.flatten() for axis in grid], 1).to(device)


def rotate(x: Float[Tensor, "b n heads d"], at: Float[Tensor, "n 3"], scale: tuple[float, float, float]) -> Tensor:
    """Turn pairs of features by angles that grow with position: a third of the pairs for each of t, y, x.

    `scale` turns seconds and fractions into steps of about a token, at which rotary frequencies are resolved.
    """
    pairs = x.shape[-1] // 2
    parts = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    angles = torch.cat(
        [
            at[:, axis, None] * scale[axis] * 10000.0 ** -(torch.arange(n, device=at.device) / max(n, 1))
            for axis, n in enumerate(parts)
        ],
        1,
    )[None, :, None]
    even, odd = x.float().unflatten(-1, (pairs, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)


@dataclass(frozen=True)
class Projected:
    """Queries, keys and values of one stream, (b, n, heads, d)."""

    q: Tensor
    k: Tensor
    v: Tensor


class Stream(nn.Module):
    """One stream's side of a coupling: projections into the shared inner width, and the way back, begun at zero."""

    def __init__(self, width: int, heads: int, head_dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.q_norm, self.k_norm = (nn.RMSNorm(inner, eps=eps) for _ in range(2))  # over all heads, as in Wan
        self.out = nn.Linear(inner, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def project(
        self, a: Float[Tensor, "b n d"], at: Float[Tensor, "n 3"], scale: tuple[float, float, float]
    ) -> Projected:
        """Project self-attention outputs; queries and keys are normed and placed."""
        a = a.to(self.q.weight.dtype)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)) for x in (self.q_norm(self.q(a)), self.k_norm(self.k(a)), self.v(a))
        )
        return Projected(rotate(q, at, scale), rotate(k, at, scale), v)


class Coupling(nn.Module):
    """Vis- and Phy-Attention of one block.

    `way`: "both" (the paper's); "to_video" or "to_physics" (one way); "joint" (each asks the tokens of both streams at
    once: the ablation that the authors found unstable); "none".
    """

    def __init__(
        self,
        video_width: int,
        physics_width: int,
        *,
        heads: int,
        head_dim: int,
        way: Way = "both",
        scale: tuple[float, float, float] = (4.0, 16.0, 16.0),
    ) -> None:
        super().__init__()
        if head_dim % 2 or head_dim < 6:
            raise ValueError(f"expected an even head_dim of 6 or more (a pair for each axis), got {head_dim}")
        self.way, self.scale = way, scale
        self.video = Stream(video_width, heads, head_dim)
        self.physics = Stream(physics_width, heads, head_dim)

    def forward(
        self,
        a_video: Float[Tensor, "b n d"],
        a_physics: Float[Tensor, "b m e"],
        at_video: Float[Tensor, "n 3"],
        at_physics: Float[Tensor, "m 3"],
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m e"]]:
        """Give both self-attention outputs with what was found in the other stream."""
        if self.way == "none":
            return a_video, a_physics
        video = self.video.project(a_video, at_video, self.scale)
        physics = self.physics.project(a_physics, at_physics, self.scale)
        if self.way == "joint":
            k, v = torch.cat([video.k, physics.k], 1), torch.cat([video.v, physics.v], 1)
            return (
                a_video + self.video.out(attend(video.q, k, v)).type_as(a_video),
                a_physics + self.physics.out(attend(physics.q, k, v)).type_as(a_physics),
            )
        to_video, to_physics = self.way in ("both", "to_video"), self.way in ("both", "to_physics")
        found_video = self.video.out(attend(video.q, physics.k, physics.v)).type_as(a_video) if to_video else 0
        found_physics = self.physics.out(attend(physics.q, video.k, video.v)).type_as(a_physics) if to_physics else 0
        return a_video + found_video, a_physics + found_physics


def attend(q: Float[Tensor, "b n h d"], k: Float[Tensor, "b m h d"], v: Float[Tensor, "b m h d"]) -> Tensor:
    """Softmax attention over the tokens; heads are joined again, (b, n, h d)."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)
