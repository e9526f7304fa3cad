"""Where residuals count: masks (b, 1, t, y, x) in [floor, 1], without gradient.

Before anything is learned, physics is looked for where something moves (bootstrap); later, where the routed experts
act (active); the training blends from one to the other. Both are divided by a quantile over each sample, so that a
slow clip is not a clip without physics.

References: PILA (Wang et al., 2026), bootstrap weights .55/.25/.20 and floor .08; the quantile and the scaling of
each term are our choice.
"""

import torch
from jaxtyping import Float
from torch import Tensor

import physfields as pf

__all__ = ["active", "blend", "bootstrap"]


def bootstrap(
    velocity: Float[Tensor, "b 2 t h w"],
    x0: Float[Tensor, "b c t h w"],
    grid: pf.Grid,
    *,
    weights: tuple[float, float, float],
    quantile: float,
    floor: float,
) -> Float[Tensor, "b 1 t h w"]:
    """Mark motion: weighted |D_t v|, |D_t x0| and |grad v|, each over its mean in the sample."""
    with torch.no_grad():
        terms = (
            pf.time_derivative(velocity, grid).square().sum(1, keepdim=True).sqrt(),
            pf.time_derivative(x0, grid).abs().mean(1, keepdim=True),
            pf.jacobian(velocity, grid).square().sum((1, 2))[:, None].sqrt(),
        )
        motion = sum(w * _over_mean(term) for w, term in zip(weights, terms, strict=True))
        assert isinstance(motion, Tensor)
        return _normalised(motion, quantile, floor)


def active(energy: Float[Tensor, "b 1 t h w"], *, quantile: float, floor: float) -> Float[Tensor, "b 1 t h w"]:
    """Mark where routed fields act; `energy` is their weighted magnitude."""
    return _normalised(energy.detach(), quantile, floor)


def blend(
    bootstrapped: Float[Tensor, "b 1 t h w"], acting: Float[Tensor, "b 1 t h w"], share: float
) -> Float[Tensor, "b 1 t h w"]:
    """Go from the bootstrap mask (share 0) to the active one (share 1)."""
    return (1 - share) * bootstrapped + share * acting


def _over_mean(term: Tensor) -> Tensor:
    return term / term.mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-8)


def _normalised(motion: Tensor, quantile: float, floor: float) -> Tensor:
    top = motion.flatten(1).quantile(quantile, dim=1).clamp_min(1e-8)
    return (motion / top[:, None, None, None, None]).clamp(floor, 1.0)
