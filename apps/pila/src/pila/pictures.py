"""Pictures for people: two videos side by side under their names, and what an adapter saw.

`draw` shows the fields of the bank over latent times, and where each expert changed them, under the frames of the
video itself. Fields are in latent pixels and source frames / 4 (the unit stands at each row); vectors and tensors are
shown by their size, scalars as they are, those with a sign around white. Each row has its own colour scale, printed
at its right: compare places within a row, and rows by their numbers.
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

from physexperts import MECHANISMS
from pila.adapter import Anatomy, PilaAdapter
from pila.bank import COMPONENTS

__all__ = ["beside", "draw", "size"]

HEADER = 28
"""Height of the strip of names in pixels."""
GAP = 16
UNITS = {
    "displacement": "latent px",
    "velocity": "latent px / 4 frames",
    "pressure": "latent units",
    "density": "latent units",
    "temperature": "latent units",
    "phase": "0 to 1",
    "strain": "rate, 1 / 4 frames",
    "stress": "latent units",
    "impulse": "latent units",
    "wave": "latent units",
}
SIGNED = ("pressure", "temperature", "wave")


def beside(
    films: Sequence[UInt8[np.ndarray, "t h w 3"]], names: Sequence[str], *, scale: int
) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Videos side by side, enlarged by pixel copies, each under its name."""
    columns = []
    for film, name in zip(films, names, strict=True):
        panel = film.repeat(scale, 1).repeat(scale, 2)
        header = np.broadcast_to(_written(name, panel.shape[2]), (len(panel), HEADER, panel.shape[2], 3))
        gap = np.full((len(panel), HEADER + panel.shape[1], GAP, 3), 255, np.uint8)
        columns += [gap, np.concatenate([header, panel], 1)]
    return np.concatenate(columns[1:], 2)


def draw(
    anatomy: Anatomy,
    adapter: PilaAdapter,
    film: UInt8[np.ndarray, "t h w 3"],
    out: Path,
    *,
    about: str,
) -> list[Path]:
    """Write `<out>-fields.png` and, if an expert was asked, `<out>-experts.png` for the first clip of the batch.

    `film` is the video that came out, `about` what the titles say of it.
    """
    stride = adapter.spec.time.stride
    latents = anatomy.refined.shape[2]
    spans = [(0, 0)] + [((j - 1) * stride + 1, j * stride) for j in range(1, latents)]
    columns = ["frame 0"] + [f"frames {a}–{b}" for a, b in spans[1:]]
    pictures = [film[(a + b) // 2] for a, b in spans]
    fields = {
        f"{slot}\n({UNITS[slot]})": (size(f[0], slot), slot in SIGNED)
        for slot, f in adapter.afe.readout(anatomy.refined).items()
    }
    pairs, maps = anatomy.proposals, {}
    for value, sample, expert, weight in zip(
        pairs.values, pairs.samples.tolist(), pairs.experts.tolist(), pairs.weights.tolist(), strict=True
    ):
        if sample == 0:
            maps[f"{MECHANISMS[expert].replace('_', ' ')}\nrouting weight {weight:.2f}"] = (size(value), False)
    title = f"fields after the experts' correction: {about}"
    written = [_rows(fields, pictures, columns, out.with_name(f"{out.stem}-fields.png"), title)]
    if maps:
        title = f"size of each expert's change of the 32 channels: {about}"
        written.append(_rows(maps, pictures, columns, out.with_name(f"{out.stem}-experts.png"), title))
    return written


def size(field: Float[Tensor, "c t h w"], slot: str | None = None) -> Float[np.ndarray, "t h w"]:
    """A scalar as it is, a symmetric tensor (yy, xx, yx) by its Frobenius norm, anything else by its length."""
    field = field.detach().float().cpu()
    if len(field) == 1:
        return field[0].numpy()
    squares = field.square().sum(0)
    if slot is not None and COMPONENTS[slot] == 3:
        squares = squares + field[2].square()  # yx stands for xy too
    return squares.sqrt().numpy()


def _written(text: str, width: int) -> UInt8[np.ndarray, "h w 3"]:
    figure = Figure(figsize=(width / 100, HEADER / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:HEADER, :width, :3].copy()


def _rows(
    rows: dict[str, tuple[np.ndarray, bool]],
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
    columns: Sequence[str],
    path: Path,
    title: str,
) -> Path:
    tall = 1.2 * pictures[0].shape[0] / pictures[0].shape[1]
    figure, axes = plt.subplots(
        len(rows) + 1,
        len(columns),
        figsize=(1.2 * len(columns) + 3.2, (tall + 0.12) * (len(rows) + 1) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(title, wrap=True, fontsize=9)
    for axis, picture, name in zip(axes[0], pictures, columns, strict=True):
        axis.imshow(picture)
        axis.set_title(name, fontsize=8)
    axes[0][0].set_ylabel("video", rotation=0, ha="right", va="center", fontsize=8)
    for line, (name, (field, signed)) in zip(axes[1:], rows.items(), strict=True):
        low, high = float(field.min()), float(field.max())
        if signed:
            low, high = -max(-low, high), max(-low, high)
        elif low < 0.5 * high:
            low = 0.0  # a size: black is none
        drawn = [
            axis.imshow(picture, vmin=low, vmax=high if high > low else low + 1, cmap="RdBu_r" if signed else "viridis")
            for axis, picture in zip(line, field, strict=True)
        ]
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        figure.colorbar(drawn[0], ax=list(line), fraction=0.05, pad=0.01).ax.tick_params(labelsize=7)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    part = path.with_name(f".{path.stem}.{os.getpid()}.tmp.png")
    figure.savefig(part, dpi=110, bbox_inches="tight")
    plt.close(figure)
    part.replace(path)
    return path
