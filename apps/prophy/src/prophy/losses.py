"""The terms of ProPhy's loss: diffusion, coarse and fine alignment, balance.

    L = L_diff + 0.1 L_coarse + 0.02 L_fine-align + 0.01 L_fine-balance

L_diff is the backbone's own: the error of the flow velocity, or for a v-prediction model that of v, which is the flow
velocity's divided by a + r. L_coarse compares pairs of videos (physexperts), L_fine-align maps of tokens (vlmdistill).
The pairs of L_coarse are those of all rows that one optimizer step sees (`prophy.partners`).

References: ProPhy (Wang et al., 2025), losses; WISA (Wang et al., 2025) for the classifier's weight.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from backbones import paths
from physexperts import Whole, label_loss, load_balancing_loss, relative_alignment
from prophy.config import Losses
from prophy.refine import Refinement
from prophy.semantic import Semantics
from vlmdistill import map_alignment

__all__ = ["balance", "coarse", "diffusion", "fine"]


def diffusion(
    velocity: Float[Tensor, "b c t h w"],
    target: Float[Tensor, "b c t h w"],
    sigma: Float[Tensor, " b"],
    prediction: str,
) -> Float[Tensor, ""]:
    """L_diff: mean |u - u*|^2 of the flow velocity, divided by (a + r)^2 for a model that predicts v."""
    error = (velocity - target).square().flatten(1).mean(1)
    if prediction == "v":
        error = error / paths.v_scale(sigma).square()
    return error.mean()


def coarse(semantics: Semantics, labels: Float[Tensor, "b L"], whole: Whole, weights: Losses) -> Float[Tensor, ""]:
    """L_coarse: alike labels, alike routing; or, as an ablation, plainly the labels (BCE)."""
    if weights.coarse_kind == "bce":
        return label_loss(semantics.output, labels, whole=whole)
    return relative_alignment(semantics.output, labels, whole=whole, distance=weights.coarse_distance)


def fine(
    refinement: Refinement,
    target: Float[Tensor, "b n L"],
    active: Bool[Tensor, "b n L"],
    weights: Losses,
) -> Float[Tensor, ""]:
    """L_fine-align: the maps read from the token routing against where each phenomenon is."""
    return map_alignment(refinement.maps, target.float(), active, kind=weights.align_distance)


def balance(refinement: Refinement) -> Float[Tensor, ""]:
    """L_fine-balance: E_r sum_e f_e p_e of the token router; 1 at balance."""
    return load_balancing_loss(refinement.routing)
