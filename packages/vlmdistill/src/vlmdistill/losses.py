"""Masked alignment of the router's maps with their targets.

    L = mean over the entries with mask 1 of  (P - Q)^2,  |P - Q|,  or the cross-entropy of sigmoid(P) with Q

P is what the router says of each token and category (ProPhy: an MLP over the routing weights), Q the target, both
(batch, tokens, categories) with tokens in raster order (t, h, w); `targets.stack` gives Q and the mask. The paper sums:
at 32,760 tokens its weight of 0.02 would then drown the diffusion loss, so the mean is our choice. A batch without an
active entry (no clip with labels) gives zero with a zero gradient, never NaN; what P or Q hold outside the mask, NaN
included, does not matter.

References: ProPhy (Wang et al., 2025), the fine alignment loss.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["map_alignment"]


def map_alignment(
    predicted: Float[Tensor, "b n e"],
    target: Float[Tensor, "b n e"],
    mask: Bool[Tensor, "b n e"],
    *,
    kind: Literal["squared", "absolute", "bce"] = "squared",
) -> Float[Tensor, ""]:
    """Compare maps where the mask is true; the mean over all active entries of the batch, in float32.

    "bce" takes `predicted` as logits and `target` as a probability (active targets are in (0, 1]; the rest is cut).

    >>> mask = torch.tensor([[[True, False]]])
    >>> map_alignment(torch.tensor([[[1.0, 9.0]]]), torch.tensor([[[0.5, 0.0]]]), mask).item()
    0.25
    """
    if kind not in ("squared", "absolute", "bce"):
        raise ValueError(f"expected kind 'squared', 'absolute' or 'bce', got {kind!r}")
    if predicted.shape != target.shape or predicted.shape != mask.shape:
        raise ValueError(
            "expected predicted, target and mask of one shape (batch, tokens, categories), got "
            f"{tuple(predicted.shape)}, {tuple(target.shape)} and {tuple(mask.shape)}"
        )
    p = torch.where(mask, predicted, 0).float()  # before the difference: a NaN times zero is still a NaN
    q = torch.where(mask, target, 0).float()
    if kind == "squared":
        error = (p - q) ** 2
    elif kind == "absolute":
        error = (p - q).abs()
    else:
        error = F.binary_cross_entropy_with_logits(p, q.clamp(0, 1), reduction="none")
    return (error * mask).sum() / mask.sum().clamp(min=1)
