"""Six colours for subjects that colour-blind readers tell apart, each the middle of a cell of the colour cube.

The cube [0, 1]^3 holds a cell of side `SIDE` at six of its corners and a smaller grey one for the background in the
middle. A cell says *who*; where in its cell a colour lies is free to say *where* (`pseudo`). Cells keep a distance of
(1 - 2 SIDE) from one another and of (1 - GREY) / 2 - SIDE from the grey, so that a decoder's noise does not turn one
subject into another. The six corners are those whose middles, with grey, differ most for the least able of four kinds
of eyes (Machado et al., 2009): by 23.9 in CIELAB under protanopia, where Okabe and Ito's first six with grey come to
9.6 under deuteranopia. The sides are our choice.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

__all__ = ["CELLS", "GREY", "MOST", "NAMES", "SIDE", "legend", "middle"]

SIDE = 0.32
GREY = 0.20
CELLS = {
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "red": (1, 0, 0),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
    "dark": (0, 0, 0),
}
NAMES = tuple(CELLS)
MOST = len(CELLS)
"""Subjects that a pseudo-RGB video can tell apart."""


def middle(cell: int | None) -> Float[np.ndarray, "3"]:
    """Give the colour, 0 to 1, that stands for the subject of a cell; None: the background's grey.

    >>> middle(0).round(2).tolist(), middle(None).tolist()
    ([0.16, 0.16, 0.84], [0.5, 0.5, 0.5])
    """
    if cell is None:
        return np.full(3, 0.5)
    return SIDE / 2 + (1 - SIDE) * np.array(CELLS[NAMES[cell]], float)


def legend(subjects: Sequence[str], *, cells: Sequence[int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Draw which colour stands for whom: a swatch, the colour's name and the subject's, a line each.

    >>> legend(["ball"]).shape
    (40, 260, 3)
    """
    line, width = 20, 260
    picture = Image.new("RGB", (width, line * (len(subjects) + 1)), "white")
    draw = ImageDraw.Draw(picture)
    rows = [(None, "background")] + [(k, s) for k, s in zip(cells or range(MOST), subjects, strict=False)]
    for row, (cell, subject) in enumerate(rows):
        colour = tuple(int(c) for c in np.rint(255 * middle(cell)))
        draw.rectangle((4, row * line + 3, 34, row * line + 16), fill=colour, outline="black")
        draw.text((42, row * line + 4), f"{'grey' if cell is None else NAMES[cell]}: {subject}", fill="black")
    return np.asarray(picture).copy()
