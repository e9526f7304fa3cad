"""How much of a correction is let through at a noise level.

Early, noisy states are handled with care: g(sigma) is 1 on clean latents and falls quadratically to a floor at pure
noise. The same gate in training and in sampling.

References: PILA (Wang et al., 2026), Eq. 10 ("quadratic gate with a floor"); the floor's value is our choice.
"""

from jaxtyping import Float
from torch import Tensor

__all__ = ["gate"]


def gate(sigma: Float[Tensor, "*b"], floor: float) -> Float[Tensor, "*b"]:
    """Weigh a correction: g = floor + (1 - floor) (1 - sigma)^2.

    >>> import torch
    >>> gate(torch.tensor([0.0, 0.5, 1.0]), 0.2).tolist()
    [1.0, 0.4000000059604645, 0.20000000298023224]
    """
    return floor + (1 - floor) * (1 - sigma).square()
