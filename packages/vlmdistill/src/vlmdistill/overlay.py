"""A map laid over the frames it belongs to: red where it is positive, blue where it is negative, clear where zero.

Cells are drawn as squares and a frame shows the cell of time nearest to it: a smooth picture would claim a resolution
that is not there.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from vlmdistill.clips import Clip

__all__ = ["overlay"]

_POSITIVE, _NEGATIVE = (220.0, 30.0, 20.0), (30.0, 80.0, 220.0)


def overlay(
    clip: Clip,
    values: Float[Tensor, "t h w"],
    times_s: Float[Tensor, " t"],
    *,
    scale: int = 1,
    opacity: float = 0.7,
    top: float | None = None,
) -> UInt8[Tensor, "f y x 3"]:
    """Colour each frame by its map, fully (`opacity`) at `top`, the largest magnitude of the map by default.

    `scale` enlarges small frames by whole pixels. Give maps of several questions one `top` to compare them.

    >>> grey = Clip.at(torch.full((1, 2, 4, 3), 100, dtype=torch.uint8), fps=1.0)
    >>> overlay(grey, torch.tensor([[[1.0, 0.0]]]), torch.zeros(1), opacity=1.0)[0, 0, :, 0].tolist()
    [220, 220, 100, 100]
    """
    if values.ndim != 3 or len(values) != len(times_s):
        raise ValueError(f"expected a map (t, h, w) with t times, got {tuple(values.shape)} and {len(times_s)} times")
    if scale < 1 or not 0 <= opacity <= 1:
        raise ValueError(f"expected scale >= 1 and opacity in [0, 1], got {scale} and {opacity}")
    frames = clip.frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2).float()
    top = float(values.abs().max()) if top is None else top
    nearest = (clip.times_s[:, None] - times_s.to(clip.times_s.device)).abs().argmin(1)
    cells = values.float().to(frames.device)[nearest.to(frames.device)]
    pixels = F.interpolate(cells[:, None], size=tuple(frames.shape[1:3]), mode="nearest-exact")[:, 0, :, :, None]
    alpha = opacity * (pixels.abs() / max(top, 1e-12)).clamp(max=1)
    positive, negative = (torch.tensor(colour, device=frames.device) for colour in (_POSITIVE, _NEGATIVE))
    return ((1 - alpha) * frames + alpha * torch.where(pixels > 0, positive, negative)).round().to(torch.uint8).cpu()
