"""The physical encoder E_phi: what a half-denoised latent says about motion and matter.

Reads the frozen model's estimate of the clean latent, x0 = x_s - sigma v, on the latent grid (b, c, t, y, x) and
gives `width` features at the same points. The noise level enters as a scale and shift (FiLM) in every block, because
an estimate from pure noise deserves other features than one from a nearly clean latent.

References: PILA (Wang et al., 2026), Eq. 2 and its hidden width of 128; blocks and FiLM are our choice.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Block", "Encoder", "SigmaEmbedding"]


class SigmaEmbedding(nn.Module):
    """Sinusoids of 1000 sigma and one linear layer; sigma 1 is noise."""

    rates: Float[Tensor, " f"]

    def __init__(self, width: int, frequencies: int) -> None:
        super().__init__()
        self.register_buffer(
            "rates", torch.exp(-math.log(10_000.0) * torch.arange(frequencies) / frequencies), persistent=False
        )
        self.linear = nn.Linear(2 * frequencies, width)

    def forward(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Embed noise levels."""
        angles = 1000.0 * sigma.float()[:, None] * self.rates
        return F.silu(self.linear(torch.cat([angles.cos(), angles.sin()], -1)))


class Block(nn.Module):
    """x + conv(silu(film(norm(x)))): one 3x3x3 convolution with the noise level as scale and shift."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.film = nn.Linear(width, 2 * width)
        self.conv = nn.Conv3d(width, width, 3, padding=1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Float[Tensor, "b d t h w"], sigma: Float[Tensor, "b d"]) -> Float[Tensor, "b d t h w"]:
        """Refine features at one noise level."""
        scale, shift = self.film(sigma)[:, :, None, None, None].chunk(2, 1)
        return x + self.conv(F.silu(self.norm(x) * (1 + scale) + shift))


class Encoder(nn.Module):
    """E_phi: a 3x3x3 convolution into `width` features and `blocks` residual blocks.

    >>> encoder = Encoder(16, width=32, blocks=2, groups=8, frequencies=16)
    >>> tuple(encoder(torch.randn(2, 16, 5, 8, 8), torch.rand(2)).shape)
    (2, 32, 5, 8, 8)
    """

    def __init__(self, channels: int, *, width: int, blocks: int, groups: int, frequencies: int) -> None:
        super().__init__()
        self.sigma = SigmaEmbedding(width, frequencies)
        self.inlet = nn.Conv3d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, groups) for _ in range(blocks))

    def forward(self, x0: Float[Tensor, "b c t h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b d t h w"]:
        """Encode an estimate of the clean latent (Eq. 2)."""
        embedded = self.sigma(sigma)
        x = self.inlet(x0)
        for block in self.blocks:
            x = block(x, embedded)
        return x
