"""The flow-matching path between data and noise.

sigma is in [0, 1], sigma = 1 is noise. With data x0 and noise eps:

    x_s = (1 - s) x0 + s eps,    v = dx_s/ds = eps - x0,    x0 = x_s - s v,    eps = x_s + (1 - s) v.

`sigma` is one number a sample, `(b,)`, or anything that broadcasts against x0 (a per-token map of a clean prefix).

A v-prediction model (CogVideoX) walks another path between the same ends, with a = sqrt(alpha_bar) and r = sqrt(1 -
alpha_bar), a^2 + r^2 = 1:

    x_t = a x0 + r eps,    v_t = a eps - r x0,    x0 = a x_t - r v_t.

Both paths are one up to scale: with k = a + r and s = r / k the flow latent is x_s = x_t / k, and its velocity is
v = k v_t + (r - a) x_t. The map is affine and both guidance branches share its x-term, so guidance commutes with it; a
correction d of the flow velocity is d / k of v_t. It holds at zero terminal SNR, too (alpha_bar = 0: s = 1, k = 1).

References: Flow Matching for Generative Modeling (Lipman et al., 2022); Scaling Rectified Flow Transformers (Esser et
al., 2024); Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022), for v-prediction.
"""

from jaxtyping import Float
from torch import Tensor

__all__ = ["from_flow", "level", "noise", "target", "to_eps", "to_flow", "to_x0", "v_scale"]


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


def level(alpha_bar: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Give the flow sigma = r / (a + r) of a variance-preserving level.

    >>> import torch
    >>> level(torch.tensor([1.0, 0.5, 0.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    a, r = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return r / (a + r)


def v_scale(sigma: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Give k = a + r of the v-prediction path at a flow sigma: 1 / sqrt(s^2 + (1 - s)^2), from 1 to sqrt(2)."""
    return (sigma.square() + (1 - sigma).square()).rsqrt()


def to_flow(
    x_t: Float[Tensor, "b *d"], v_t: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b *d"]]:
    """Map a latent and a v-prediction to (x_s, flow velocity): x_t / k and k (v_t + (2 s - 1) x_t)."""
    s, k = spread(sigma, x_t), spread(v_scale(sigma), x_t)
    return x_t / k, k * (v_t + (2 * s - 1) * x_t)


def from_flow(
    x_s: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], sigma: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b *d"]]:
    """Map a flow latent and velocity to (x_t, v-prediction): the inverse of `to_flow`."""
    s, k = spread(sigma, x_s), spread(v_scale(sigma), x_s)
    x_t = k * x_s
    return x_t, v / k + (1 - 2 * s) * x_t


def spread(sigma: Float[Tensor, "..."], like: Float[Tensor, "b *d"]) -> Float[Tensor, "..."]:
    """Give a sigma of shape (b,) trailing ones so that it broadcasts against `like`; leave a map as it is."""
    return sigma.view(-1, *[1] * (like.ndim - 1)) if sigma.ndim == 1 else sigma
