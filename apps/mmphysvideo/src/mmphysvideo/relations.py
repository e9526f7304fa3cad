"""What aligns the student's hidden states with other features: relations between tokens, or the tokens themselves.

    relations: mean over pairs relu(|cos(a_i, a_j) - cos(b_i, b_j)| - m),  i in a frame, j in all frames
    cosine:    mean over tokens 1 - cos(a_i, b_i)

A relation compares a token with all tokens of its clip, so a whole matrix would grow with the square of their count.
It is computed `rows` at a time, and once more in the backward pass: memory grows with the count alone.

References: VideoREPA (Zhang et al., 2025), token relation distillation; REPA (Yu et al., 2024).
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Projector", "cosine", "on_grid", "pooled", "relations"]


class Projector(nn.Sequential):
    """From the student's width to that of the features: three linear layers with SiLU between them."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        layers = (nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out))
        super().__init__(*layers)


def relations(a: Float[Tensor, "b n d"], b: Float[Tensor, "b n e"], *, margin: float, rows: int) -> Float[Tensor, ""]:
    """Mean over all pairs of a clip's tokens of relu(|cos(a_i, a_j) - cos(b_i, b_j)| - m); widths may differ.

    >>> import torch
    >>> x = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    >>> turned = x @ torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    >>> round(float(relations(x, 3 * turned, margin=0.0, rows=4)), 5)  # neither a rotation nor a scale is a difference
    0.0
    """
    a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    n = a.shape[1]
    total = a.new_zeros(())
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        total = total + checkpoint(_differences, a[:, part], a, b[:, part], b, margin, use_reentrant=False)
    return total / (len(a) * n * n)


def cosine(a: Float[Tensor, "b n d"], b: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
    """Mean over tokens of 1 - cos(a_i, b_i)."""
    return (1 - F.cosine_similarity(a.float(), b.float(), dim=-1)).mean()


def pooled(
    h: Float[Tensor, "b n d"], grid: tuple[int, int, int], cells: tuple[int, int] | None
) -> Float[Tensor, "b t y x d"]:
    """Lay tokens on their grid (t, y, x) and average them to `cells` a frame (none: as they are).

    ValueError for cells that do not divide the grid.
    """
    t, y, x = grid
    cells = cells or (y, x)
    if y % cells[0] or x % cells[1]:
        raise ValueError(
            f"expected student.align.cells that divide the {y} x {x} tokens of a frame, got {cells[0]} x {cells[1]}"
        )
    parts = {"t": t, "y": cells[0], "x": cells[1], "py": y // cells[0], "px": x // cells[1]}
    return rearrange(h, "b (t y py x px) d -> b t y x (py px) d", **parts).mean(4)


def on_grid(h: Float[Tensor, "b t y x d"], grid: tuple[int, int, int]) -> Float[Tensor, "b n d"]:
    """Bring pooled tokens to the grid of the features: time is interpolated, space must be equal already.

    Features of tubelets of two frames have two times a latent; those of a clip without its first frame have none for
    latent 0, which is left out here, too. ValueError for grids that do not fit.
    """
    t, y, x = grid
    if h.shape[2:4] != (y, x):
        raise ValueError(
            f"expected features on {h.shape[2]} x {h.shape[3]} cells a frame, as the student is pooled, got {y} x {x}:"
            " set student.align.cells and student.align.size so that they agree"
        )
    if t == h.shape[1]:
        return h.flatten(1, 3)
    own = h.shape[1] - 1
    if own < 1 or t % own:
        raise ValueError(f"expected features of {own} latents behind the first, or a multiple of it, got {t} times")
    flat = rearrange(h[:, 1:], "b t y x d -> b d t (y x)")
    if t != own:
        flat = F.interpolate(flat, size=(t, y * x), mode="bilinear", align_corners=False)  # along time: space is whole
    return rearrange(flat, "b d t n -> b (t n) d")


def _differences(a: Tensor, whole_a: Tensor, b: Tensor, whole_b: Tensor, margin: float) -> Tensor:
    return F.relu((a @ whole_a.mT - b @ whole_b.mT).abs() - margin).sum()
