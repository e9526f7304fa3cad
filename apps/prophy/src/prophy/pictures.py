"""Pictures for people: where REB finds what a prompt speaks of, who refines which token, where the truth and the frozen
generator's own attention put a phenomenon beside that, and how alike the semantic router treats the categories.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from physexperts import MECHANISMS, expert_maps
from prophy.adapter import Seen
from prophy.config import Recipe
from prophy.labels import names, said_in
from prophy.places import Places
from trainers.pictures import rows, save
from vlmdistill.localisation import localise

__all__ = ["compared", "experts", "found", "pearson"]

CATEGORIES_SHOWN = 3
"""Maps of a prompt that names no category: the strongest of the clip."""


def found(
    seen: Seen, film: UInt8[np.ndarray, "t h w 3"], out: Path, recipe: Recipe, *, prompt: str, about: str
) -> Path:
    """Draw the map that REB's head reads for each category that the prompt speaks of, below the frames; the strongest
    ones of a prompt that speaks of none.
    """
    refinement, known = seen.refinement, names(recipe.data.vocabulary)
    assert refinement is not None
    read = refinement.on_grid[_row(seen)].detach().float().cpu()
    asked = said_in(prompt, recipe.data.vocabulary).nonzero()[:, 0].tolist()
    title = f"where REB finds what the prompt speaks of: {about}"
    if not asked:
        asked = read.flatten(1).amax(1).argsort(descending=True)[:CATEGORIES_SHOWN].tolist()
        title = f"the prompt names no category; REB's strongest maps: {about}"
    fields = {known[c].replace("_", "\n"): read[c].numpy() for c in asked}
    return _over_time(fields, film, refinement.grid[0], out, title)


def experts(seen: Seen, film: UInt8[np.ndarray, "t h w 3"], out: Path, *, about: str) -> Path:
    """Draw the weight of each refinement expert over latent times, below the frames."""
    assert seen.refinement is not None
    weights = expert_maps(seen.refinement.routing, seen.refinement.grid)[_row(seen)].cpu()
    fields = {f"expert {e}\nweight": weights[e].numpy() for e in range(len(weights))}
    return _over_time(fields, film, seen.refinement.grid[0], out, f"refinement experts: {about}")


def compared(places: Places, out: Path) -> Path:
    """Draw one clip a mechanism: a frame, where the exact fields, REB and the generator's own attention put it.

    The clip is the first of its mechanism, its latent time the one in which the mechanism is strongest; above each map
    stands its average precision above chance over the whole clip.
    """
    chosen = [_first(places, name) for name in MECHANISMS]
    shown = [(name, i) for name, i in zip(MECHANISMS, chosen, strict=True) if i is not None]
    lines = ("frame", "exact fields", "REB", "own attention")
    figure, axes = plt.subplots(
        len(lines), len(shown), figsize=(1.45 * len(shown) + 1, 1.62 * len(lines) + 0.5), layout="constrained"
    )
    read = places.read()
    for column, (name, i) in zip(axes.T, shown, strict=True):
        truth, clip = places.truth[i][name], places.clips[i]
        at = int(places.strength[i][name].clamp(min=0).flatten(1).sum(1).argmax())
        column[0].imshow(clip.video[places.frames[at]])
        column[0].set_title(name.replace("_", " "), fontsize=9)
        column[1].imshow(places.strength[i][name][at].clamp(min=0).numpy(), cmap="viridis")
        for axis, maps in zip(column[2:], (read[i], places.attention[i]), strict=True):
            if name in maps:
                axis.imshow(maps[name][at].numpy(), cmap="viridis")
                axis.set_title(f"{localise(maps[name], truth).above_chance:.2f}", fontsize=8)
    for line, label in zip(axes, lines, strict=True):
        line[0].set_ylabel(label, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle("where a phenomenon is, at 10 % noise (average precision above chance of the clip)", fontsize=10)
    return save(figure, out)


def pearson(matrix: Float[Tensor, "L L"], categories: Sequence[str], out: Path) -> Path:
    """Draw the correlation between the categories' mean semantic routing; grey where a category was not met."""
    figure, axis = plt.subplots(figsize=(0.5 * len(categories) + 3, 0.5 * len(categories) + 2), layout="constrained")
    axis.set_facecolor("0.8")
    drawn = axis.imshow(matrix.float().numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
    axis.set_xticks(range(len(categories)), categories, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(categories)), categories, fontsize=8)
    axis.set_title("Pearson correlation of semantic routing", fontsize=9)
    figure.colorbar(drawn, ax=axis, fraction=0.05)
    return save(figure, out)


def _row(seen: Seen) -> int:
    """The conditional side's first clip."""
    return seen.branch_rows.get("cond", slice(0, 1)).start


def _first(places: Places, name: str) -> int | None:
    """The first clip made for a mechanism in which it is somewhere and not everywhere."""
    for i, (clip, truth) in enumerate(zip(places.clips, places.truth, strict=True)):
        if clip.mechanism == name and name in truth and bool(truth[name].any()) and not bool(truth[name].all()):
            return i
    return None


def _over_time(
    fields: dict[str, np.ndarray], film: UInt8[np.ndarray, "t h w 3"], latents: int, out: Path, title: str
) -> Path:
    times = np.linspace(0, len(film) - 1, latents).round().astype(int)
    return rows(fields, [film[t] for t in times], [f"frame {t}" for t in times], out, title)
