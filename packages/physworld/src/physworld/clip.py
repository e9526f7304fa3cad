"""A simulated clip: what is seen, what is true, and in which units.

One world unit is one pixel of the 32-pixel picture, one time unit is one frame: every law is quoted in px and frames, whatever
`scale` the clip is drawn at (at `scale=2` the picture has 64 pixels and a law keeps its numbers). Axes are (t, y, x), y points
DOWN, and component i of a vector belongs to spatial axis i: (y, x). Seconds and metres are for display: `times_s`, `pitch_m`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, UInt8

MECHANISMS = (
    "rigid_body",
    "elastic",
    "fluid",
    "compressible_flow",
    "phase_change",
    "collision",
    "thermal",
    "optical",
)
"""The eight mechanisms in the order of PILA's label vector."""

SPLITS = ("train", "val", "test", "ood")
FRAMES = 17
SIZE = 32
FPS = 16.0
METRES_PER_UNIT = 0.05

SLOTS = {
    "displacement": 2,
    "velocity": 2,
    "pressure": 1,
    "density": 1,
    "temperature": 1,
    "phase": 1,
    "strain": 3,
    "stress": 3,
    "impulse": 2,
    "wave": 1,
}
"""Components of each field: vectors (y, x), symmetric tensors (yy, xx, yx), scalars one."""


@dataclass(frozen=True)
class Clip:
    """One simulated video with its ground truth.

    `video` (t, h, w, 3) is uint8 RGB; `fields[slot]` is (t, h, w, components of SLOTS) in px and frames and `valid[slot]`
    (t, h, w) is true where that field means something (a velocity inside a ball; everywhere in a fluid). `params` holds the
    law's parameters in px and frames (`g`, `D`, `c`, tracks, radii ...), `seed` and `split` reproduce the clip.
    """

    mechanism: str
    scenario: str
    seed: int
    split: str
    scale: int
    video: UInt8[np.ndarray, "t h w 3"]
    caption: str
    labels: tuple[str, ...]
    params: dict[str, Any]
    fields: dict[str, Float16[np.ndarray, "t h w _"]] = field(default_factory=dict)
    valid: dict[str, Bool[np.ndarray, "t h w"]] = field(default_factory=dict)

    @property
    def times_s(self) -> Float[np.ndarray, " t"]:
        """Presentation time of each frame in seconds."""
        return np.arange(len(self.video)) / FPS

    @property
    def pitch_m(self) -> float:
        """Size of one pixel in metres."""
        return METRES_PER_UNIT / self.scale
