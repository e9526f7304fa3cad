"""Pictures for people: two videos side by side under their names, who refines which token over the frames, and how
alike the semantic router treats the categories.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from physexperts import expert_maps
from prophy.adapter import Seen
from prophy.config import Recipe
from prophy.labels import names

__all__ = ["beside", "experts", "pearson"]

HEADER = 28
"""Height of the strip of names in pixels."""
GAP = 16
CATEGORIES_SHOWN = 3
"""Maps of categories below those of the experts: the strongest of the clip."""


def beside(
    films: Sequence[UInt8[np.ndarray, "t h w 3"]], titles: Sequence[str], *, scale: int
) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Videos side by side, enlarged by pixel copies, each under its name."""
    columns = []
    for film, title in zip(films, titles, strict=True):
        panel = film.repeat(scale, 1).repeat(scale, 2)
        header = np.broadcast_to(_written(title, panel.shape[2]), (len(panel), HEADER, panel.shape[2], 3))
        gap = np.full((len(panel), HEADER + panel.shape[1], GAP, 3), 255, np.uint8)
        columns += [gap, np.concatenate([header, panel], 1)]
    return np.concatenate(columns[1:], 2)


def experts(seen: Seen, film: UInt8[np.ndarray, "t h w 3"], out: Path, recipe: Recipe, *, about: str) -> Path:
    """Draw the weight of each refinement expert and the strongest categories' maps over latent times, below the frames.

    The conditional branch's first clip. Each row has its own colour scale, printed at its right.
    """
    assert seen.refinement is not None
    row = seen.branch_rows.get("cond", slice(0, 1)).start
    grid = seen.refinement.grid
    weights = expert_maps(seen.refinement.routing, grid)[row].cpu()
    read = seen.refinement.on_grid[row].detach().float().cpu()
    known = names(recipe.data.vocabulary)
    strongest = read.flatten(1).amax(1).argsort(descending=True)[:CATEGORIES_SHOWN].tolist()
    rows = {f"expert {e}\nweight": weights[e].numpy() for e in range(len(weights))}
    rows |= {f"read as\n{known[c]}": read[c].numpy() for c in strongest}
    times = np.linspace(0, len(film) - 1, grid[0]).round().astype(int)
    return _rows(rows, [film[t] for t in times], [f"frame {t}" for t in times], out, f"refinement experts: {about}")


def pearson(matrix: Float[Tensor, "L L"], categories: Sequence[str], out: Path) -> Path:
    """Draw the correlation between the categories' mean semantic routing; grey where a category was not met."""
    figure, axis = plt.subplots(figsize=(0.5 * len(categories) + 3, 0.5 * len(categories) + 2), layout="constrained")
    axis.set_facecolor("0.8")
    drawn = axis.imshow(matrix.float().numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
    axis.set_xticks(range(len(categories)), categories, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(categories)), categories, fontsize=8)
    axis.set_title("Pearson correlation of semantic routing", fontsize=9)
    figure.colorbar(drawn, ax=axis, fraction=0.05)
    return _saved(figure, out)


def _written(text: str, width: int) -> UInt8[np.ndarray, "h w 3"]:
    figure = Figure(figsize=(width / 100, HEADER / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:HEADER, :width, :3].copy()


def _rows(
    rows: dict[str, np.ndarray],
    frames: Sequence[UInt8[np.ndarray, "h w 3"]],
    columns: Sequence[str],
    path: Path,
    title: str,
) -> Path:
    tall = 1.2 * frames[0].shape[0] / frames[0].shape[1]
    figure, axes = plt.subplots(
        len(rows) + 1,
        len(columns),
        figsize=(1.2 * len(columns) + 3.2, (tall + 0.12) * (len(rows) + 1) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(title, wrap=True, fontsize=9)
    for axis, frame, name in zip(axes[0], frames, columns, strict=True):
        axis.imshow(frame)
        axis.set_title(name, fontsize=8)
    # The bar of the frames is not seen: it takes the room that the other rows' bars take.
    figure.colorbar(axes[0][0].images[0], ax=list(axes[0]), fraction=0.05, pad=0.01).ax.set_visible(False)
    axes[0][0].set_ylabel("video", rotation=0, ha="right", va="center", fontsize=8)
    for line, (name, field) in zip(axes[1:], rows.items(), strict=True):
        low, high = min(0.0, float(field.min())), float(field.max())
        drawn = [
            axis.imshow(picture, vmin=low, vmax=high if high > low else low + 1, cmap="viridis")
            for axis, picture in zip(line, field, strict=True)
        ]
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        figure.colorbar(drawn[0], ax=list(line), fraction=0.05, pad=0.01).ax.tick_params(labelsize=7)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return _saved(figure, path)


def _saved(figure: Figure, path: Path) -> Path:
    part = path.with_name(f".{path.stem}.{os.getpid()}.tmp.png")
    figure.savefig(part, dpi=110, bbox_inches="tight")
    plt.close(figure)
    part.replace(path)
    return path
