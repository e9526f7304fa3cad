"""Experts that are maps: each a learnable tensor on a latent grid, added to the latent with its expert's weight.

Maps are (E, c, t, h, w) on the grid of training; on another grid the weighted sum is resized trilinearly, one resize a
sample whatever E is (a weighted sum and a resize commute). Pixel centres are kept, corners are not aligned.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from physexperts.precision import outside_autocast
from physexperts.routing import Routing

__all__ = ["BasisMaps"]


class BasisMaps(nn.Module):
    """sum_e rho_e B_e, ProPhy's semantic expert block; the caller adds it to the latent.

    `std` is the size at the start (our choice: 0.02; with 0 the weights get no gradient until the maps have grown).

    References: ProPhy (Wang et al., 2025), semantic expert block.

    >>> maps = BasisMaps(experts=3, channels=16, grid=(3, 4, 4))
    >>> maps(torch.full((2, 3), 1 / 3), (5, 8, 6)).shape
    torch.Size([2, 16, 5, 8, 6])
    """

    def __init__(self, experts: int, channels: int, grid: tuple[int, int, int], *, std: float = 0.02) -> None:
        super().__init__()
        if experts < 1 or channels < 1 or min(grid) < 1:
            raise ValueError(f"expected at least one expert, channel and point, got {experts}, {channels}, {grid}")
        self.maps = nn.Parameter(torch.randn(experts, channels, *grid) * std)

    def __len__(self) -> int:
        return len(self.maps)

    def forward(
        self, weights: Float[Tensor, "b E"], grid: tuple[int, int, int] | None = None
    ) -> Float[Tensor, "b c t h w"]:
        """The weighted sum of the maps, on `grid` or their own, in the wider of the two dtypes."""
        if weights.shape[-1] != len(self):
            raise ValueError(f"expected weights of {len(self)} experts, got {weights.shape[-1]}")
        dtype = torch.promote_types(weights.dtype, self.maps.dtype)
        with outside_autocast(weights.device):
            mixed = torch.einsum("be,ecthw->bcthw", weights.to(dtype), self.maps.to(dtype))
            if grid is None or tuple(grid) == tuple(self.maps.shape[2:]):
                return mixed
            return F.interpolate(mixed, tuple(grid), mode="trilinear", align_corners=False)

    def mix(self, x: Float[Tensor, "b c t h w"], routing: Routing) -> Float[Tensor, "b c t h w"]:
        """The change of the latent x for a routing of samples, on the grid of x."""
        if x.shape[1] != self.maps.shape[1]:
            raise ValueError(f"expected a latent of {self.maps.shape[1]} channels, got {x.shape[1]}")
        return self(routing.dense(), tuple(x.shape[2:]))
