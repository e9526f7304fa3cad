"""The correction decoder D_psi: from a refined bank to a change of the flow velocity.

delta_v = D_psi([P^, c, v]) on the latent grid, in the units of the flow velocity (eps - x0, not pixels). The last
layer starts at zero, so a fresh adapter is the frozen model bit for bit.

References: PILA (Wang et al., 2026), Eq. 9; layers are our choice.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Two 3x3x3 convolutions with SiLU and a last one that starts at zero.

    The condition enters as a per-channel shift of the first layer: what concatenating its broadcast would do, without
    the convolution over a constant.

    >>> decoder = Decoder(bank=32, channels=16, condition=8, width=32)
    >>> decoder(torch.randn(1, 32, 2, 4, 4), torch.randn(1, 8), torch.randn(1, 16, 2, 4, 4)).abs().max().item()
    0.0
    """

    def __init__(self, *, bank: int, channels: int, condition: int, width: int) -> None:
        super().__init__()
        self.inlet = nn.Conv3d(bank + channels, width, 3, padding=1)
        self.condition = nn.Linear(condition, width, bias=False)
        self.middle = nn.Conv3d(width, width, 3, padding=1)
        self.out = nn.Conv3d(width, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        bank: Float[Tensor, "b p t h w"],
        condition: Float[Tensor, "b d"],
        velocity: Float[Tensor, "b c t h w"],
    ) -> Float[Tensor, "b c t h w"]:
        """Decode the correction, before the gate (Eq. 9)."""
        x = self.inlet(torch.cat([bank, velocity], 1)) + self.condition(condition)[:, :, None, None, None]
        return self.out(F.silu(self.middle(F.silu(x))))
