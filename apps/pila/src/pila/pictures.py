"""Pictures of what an adapter saw: the fields of the bank over time, and where each expert changed them.

Fields are in latent pixels and source frames / 4, vectors shown by their length; each row has its own colour scale,
printed at its right.
"""

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from physexperts import MECHANISMS
from pila.adapter import Anatomy, PilaAdapter

__all__ = ["draw"]


def draw(anatomy: Anatomy, adapter: PilaAdapter, out: Path) -> list[Path]:
    """Write `<out>-fields.png` and `<out>-experts.png` for the first clip of the batch."""
    fields = {slot: _length(f[0]) for slot, f in adapter.afe.readout(anatomy.refined).items()}
    pairs, maps = anatomy.proposals, {}
    for value, sample, expert, weight in zip(
        pairs.values, pairs.samples.tolist(), pairs.experts.tolist(), pairs.weights.tolist(), strict=True
    ):
        if sample == 0:
            maps[f"{MECHANISMS[expert]}\n{weight:.2f}"] = _length(value)
    written = [_rows(fields, out.with_name(f"{out.stem}-fields.png"), "refined fields")]
    if maps:
        written.append(_rows(maps, out.with_name(f"{out.stem}-experts.png"), "size of each expert's change"))
    return written


def _length(field: Tensor) -> np.ndarray:
    """A scalar as it is, anything else by its length: (t, y, x)."""
    field = field.detach().float().cpu()
    return (field[0] if len(field) == 1 else field.square().sum(0).sqrt()).numpy()


def _rows(rows: dict[str, np.ndarray], path: Path, title: str) -> Path:
    columns = len(next(iter(rows.values())))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.2 * columns + 2.2, 1.2 * len(rows) + 0.6), squeeze=False, layout="constrained"
    )
    figure.suptitle(f"{title} (columns: latent times)")
    for line, (name, field) in zip(axes, rows.items(), strict=True):
        low, high = float(field.min()), float(field.max())
        drawn = [
            axis.imshow(picture, vmin=low, vmax=high if high > low else low + 1, cmap="viridis")
            for axis, picture in zip(line, field, strict=True)
        ]
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        figure.colorbar(drawn[0], ax=list(line), fraction=0.05, pad=0.01)
    part = path.with_name(f".{path.stem}.{os.getpid()}.tmp.png")
    figure.savefig(part, dpi=110)
    plt.close(figure)
    part.replace(path)
    return path
