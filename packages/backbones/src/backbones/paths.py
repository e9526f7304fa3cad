"""The flow-matching path between data and noise.

sigma is in [0, 1], sigma = 1 is noise. With data x0 and noise eps:

    x_s = (1 - s) x0 + s eps,    v = dx_s/ds = eps - x0,    x0 = x_s - s v,    eps = x_s + (1 - s) v.

`sigma` is one number a sample, `(b,)`, or anything that broadcasts against x0 (a per-token map of a clean prefix).

References: Flow Matching for Generative Modeling (Lipman et al., 2022); Scaling Rectified Flow Transformers (Esser et
al., 2024).
"""

from jaxtyping import Float
from torch import Tensor

__all__ = ["noise", "target", "to_eps", "to_x0"]


def noise(x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], sigma: Float[Tensor, "..."]) -> Float[Tensor, "b *d"]:
    """Give x_s = (1 - s) x0 + s eps.

    >>> import torch
    >>> noise(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25]))
    tensor([[0.2500, 0.2500]])
    """
    s = spread(sigma, x0)
    return (1 - s) * x0 + s * eps


def target(x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """Give the velocity v = eps - x0 that a flow model learns."""
    return eps - x0


def to_x0(x_s: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], sigma: Float[Tensor, "..."]) -> Float[Tensor, "b *d"]:
    """Give the clean estimate x0 = x_s - s v."""
    return x_s - spread(sigma, x_s) * v


def to_eps(x_s: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], sigma: Float[Tensor, "..."]) -> Float[Tensor, "b *d"]:
    """Give the noise estimate eps = x_s + (1 - s) v."""
    return x_s + (1 - spread(sigma, x_s)) * v


def spread(sigma: Float[Tensor, "..."], like: Float[Tensor, "b *d"]) -> Float[Tensor, "..."]:
    """Give a sigma of shape (b,) trailing ones so that it broadcasts against `like`; leave a map as it is."""
    return sigma.view(-1, *[1] * (like.ndim - 1)) if sigma.ndim == 1 else sigma
