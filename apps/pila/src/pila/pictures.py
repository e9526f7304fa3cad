"""Pictures for people: what an adapter saw.

`draw` shows the fields of the bank over latent times, and where each expert changed them, under the frames of the
video itself. Fields are in latent pixels and source frames / 4 (the unit stands at each row); vectors and tensors are
shown by their size, scalars as they are, those with a sign around white. Each row has its own colour scale, printed
at its right: compare places within a row, and rows by their numbers.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from physexperts import MECHANISMS
from pila.adapter import Anatomy, PilaAdapter
from pila.bank import COMPONENTS
from trainers import pictures

__all__ = ["draw", "size"]

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
    frames = [film[(a + b) // 2] for a, b in spans]
    named = {slot: f"{slot}\n({unit})" for slot, unit in UNITS.items()}
    fields = {named[slot]: size(f[0], slot) for slot, f in adapter.afe.readout(anatomy.refined).items()}
    pairs, maps = anatomy.proposals, {}
    for value, sample, expert, weight in zip(
        pairs.values, pairs.samples.tolist(), pairs.experts.tolist(), pairs.weights.tolist(), strict=True
    ):
        if sample == 0:
            maps[f"{MECHANISMS[expert].replace('_', ' ')}\nrouting weight {weight:.2f}"] = size(value)
    title = f"fields after the experts' correction: {about}"
    signed = [named[slot] for slot in SIGNED]
    written = [pictures.rows(fields, frames, columns, out.with_name(f"{out.stem}-fields.png"), title, signed=signed)]
    if maps:
        title = f"size of each expert's change of the 32 channels: {about}"
        written.append(pictures.rows(maps, frames, columns, out.with_name(f"{out.stem}-experts.png"), title))
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
