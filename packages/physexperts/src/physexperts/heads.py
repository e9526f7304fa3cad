"""Experts that are attention heads: each category owns some heads, and a gate says how loudly they speak.

A gate is soft: an absent category keeps a floor, because labels are often incomplete. What surprises: the random flips
that train against wrong labels belong to training alone; applied at inference, as in public code, they make the same
prompt give another video.

References: WISA (Wang et al., 2025), mixture of physical experts attention.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from physexperts.routing import Routing

__all__ = ["FloorGate", "HeadExperts"]


class FloorGate(nn.Module):
    """Labels in [0, 1] to gates in [floor, 1]; while training each label is flipped with probability `flip`.

    >>> FloorGate(floor=0.1).eval()(torch.tensor([[1.0, 0.0]]))
    tensor([[1.0000, 0.1000]])
    """

    def __init__(self, floor: float = 0.1, flip: float = 0.2) -> None:
        super().__init__()
        if not 0 <= floor <= 1 or not 0 <= flip <= 1:
            raise ValueError(f"expected floor and flip in [0, 1], got {floor} and {flip}")
        self.floor, self.flip = floor, flip

    def forward(self, labels: Float[Tensor, "*b E"]) -> Float[Tensor, "*b E"]:
        """Gate each expert by its label: floor + (1 - floor) label."""
        if self.training and self.flip:
            labels = torch.where(torch.rand_like(labels) < self.flip, 1 - labels, labels)
        return self.floor + (1 - self.floor) * labels


class HeadExperts(nn.Module):
    """Self-attention whose heads belong to experts: out(concat_h g_e(h) head_h(x)); it starts as zero.

    Heads come expert by expert, `heads` each, then `shared` ones that are never gated. An expert with gate 0 adds
    nothing and gets no gradient in its part of the output layer.

    >>> block = HeadExperts(dim=16, experts=3, head_dim=8, heads=2, shared=1)
    >>> block(torch.randn(2, 5, 16), torch.rand(2, 3)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(self, dim: int, experts: int, *, head_dim: int, heads: int = 2, shared: int = 0) -> None:
        super().__init__()
        if min(dim, experts, head_dim, heads) < 1 or shared < 0:
            raise ValueError(f"expected positive sizes, got {dim=}, {experts=}, {head_dim=}, {heads=}, {shared=}")
        self.experts, self.heads, self.shared = experts, heads, shared
        self.all_heads = experts * heads + shared
        self.qkv = nn.Linear(dim, 3 * self.all_heads * head_dim)
        self.out = nn.Linear(self.all_heads * head_dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def __len__(self) -> int:
        return self.experts

    def forward(self, tokens: Float[Tensor, "b n c"], gates: Float[Tensor, "b E"]) -> Float[Tensor, "b n c"]:
        """Attend within each sample and gate the heads by expert."""
        if gates.shape != (len(tokens), self.experts):
            raise ValueError(f"expected gates of shape {(len(tokens), self.experts)}, got {tuple(gates.shape)}")
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.all_heads, -1)).permute(2, 0, 3, 1, 4)
        loud = F.pad(gates.repeat_interleave(self.heads, 1), (0, self.shared), value=1.0)
        said = F.scaled_dot_product_attention(q, k, v) * loud[:, :, None, None].to(v.dtype)
        return self.out(said.transpose(1, 2).flatten(2))

    def mix(self, x: Float[Tensor, "b n c"], routing: Routing) -> Float[Tensor, "b n c"]:
        """The same, gated by the weights of a routing of samples."""
        return self(x, routing.dense())
