"""Pictures of a token-level routing: who answers where.

A routing over the tokens of a (t, h, w) grid becomes one map an expert; a map becomes a picture, uint8 (t, h, w, 3) as
the files of this project are. Patches are drawn as squares: a smooth picture would claim a resolution that is not
there.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from physexperts.routing import Routing

__all__ = ["PALETTE", "expert_maps", "experts_picture", "heat_picture"]

PALETTE: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (153, 153, 153),
)
"""Eight colours that colour-blind readers tell apart (Okabe and Ito, 2008, with grey for black); they repeat."""


def expert_maps(routing: Routing, grid: tuple[int, int, int]) -> Float[Tensor, "b E t h w"]:
    """The weight of each expert at each token of the grid, zero where it was not selected or the token is masked.

    >>> from physexperts import route
    >>> expert_maps(route(torch.randn(2, 24, 8), 2), (2, 3, 4)).shape
    torch.Size([2, 8, 2, 3, 4])
    """
    t, h, w = grid
    if routing.mask.ndim != 2 or routing.mask.shape[1] != t * h * w:
        raise ValueError(f"expected a routing of (samples, {t * h * w} tokens), got {tuple(routing.mask.shape)}")
    return routing.dense().detach().transpose(1, 2).unflatten(2, grid)


def experts_picture(
    maps: Float[Tensor, "E t h w"], *, patch: int = 8, palette: Sequence[tuple[int, int, int]] = PALETTE
) -> UInt8[Tensor, "t y x 3"]:
    """Each token in the mixed colour of its experts, by weight; black where nobody answers.

    >>> experts_picture(torch.tensor([[[[1.0, 0.0]]], [[[0.0, 0.0]]]]), patch=1).tolist()
    [[[[230, 159, 0], [0, 0, 0]]]]
    """
    colours = torch.tensor(
        [palette[e % len(palette)] for e in range(len(maps))], dtype=torch.float32, device=maps.device
    )
    share = maps.float() / maps.float().sum(0).clamp(min=1e-12)
    return _enlarge(torch.einsum("ethw,ec->thwc", share, colours), patch)


def heat_picture(
    field: Float[Tensor, "t h w"], *, patch: int = 8, top: float | None = None
) -> UInt8[Tensor, "t y x 3"]:
    """One map from black (0) over red and yellow to white (`top`, the largest value of the map by default).

    >>> heat_picture(torch.tensor([[[0.0, 1.0]]]), patch=1)[0, 0].tolist()
    [[0, 0, 0], [255, 255, 255]]
    """
    top = float(field.max()) if top is None else top
    x = (field.float() / max(top, 1e-12)).clamp(0, 1)
    return _enlarge(torch.stack([3 * x, 3 * x - 1, 3 * x - 2], -1).clamp(0, 1) * 255, patch)


def _enlarge(picture: Float[Tensor, "t h w 3"], patch: int) -> UInt8[Tensor, "t y x 3"]:
    if patch < 1:
        raise ValueError(f"expected a patch of at least one pixel, got {patch}")
    return picture.round().to(torch.uint8).repeat_interleave(patch, 1).repeat_interleave(patch, 2).cpu()
