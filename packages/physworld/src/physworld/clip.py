"""A simulated clip: what is seen, what is true, and in which units.

One world unit is one pixel of the 32-pixel picture, one time unit is one frame: every law is quoted in px and frames,
whatever `scale` the clip is drawn at (at `scale=2` the picture has 64 pixels and a law keeps its numbers). Axes are (t,
y, x), y points DOWN, and component i of a vector belongs to spatial axis i: (y, x). Seconds and metres are for display:
`times_s`, `pitch_m`.
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

    `video` (t, h, w, 3) is uint8 RGB; `fields[slot]` is (t, h, w, components of SLOTS) in px and frames and
    `valid[slot]` (t, h, w) is true where that field means something (a velocity inside a ball; everywhere in a fluid).
    `params` holds the law's parameters in px and frames (`g`, `D`, `c`, tracks, radii ...), `seed` and `split`
    reproduce the clip.
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

    def record(self) -> dict[str, Any]:
        """The clip as a WISA-80K training record (`file`, `captions`, `physical_annotation`, ...) with our `labels` and
        `params`.

        Everything in it is plain JSON. `file` is relative to the data set's folder. WISA's loader keeps clips of at
        least 3 s and 720 px: these clips last 1.06 s at 32 px, so its filters have to be opened.
        """
        name = f"{self.mechanism}-{self.split}-{self.seed:06d}"
        return {
            "file": f"videos/{name}.mp4",
            "video_id": name,
            "captions": self.caption,
            "duration": len(self.video) / FPS,
            "width": int(self.video.shape[2]),
            "text_bbox_num": 0,
            "physical_annotation": annotation(self.mechanism, self.scenario, len(self.video)),
            "labels": list(self.labels),
            "category": self.mechanism,
            "scenario": self.scenario,
            "seed": self.seed,
            "split": self.split,
            "scale": self.scale,
            "times_s": self.times_s.tolist(),
            "pitch_m": self.pitch_m,
            "params": _plain(self.params),
        }


def scale_of(frames: int, height: int, width: int) -> int:
    """How many times larger than its smallest the world is drawn in clips of this size; ValueError where it makes none.

    >>> scale_of(17, 64, 64)
    2
    """
    if height != width or height % SIZE or height < SIZE or frames != FRAMES:
        raise ValueError(
            f"expected {FRAMES} square frames of {SIZE}, {2 * SIZE}, ... px of the simulated world, got {frames} of "
            f"{height} x {width}; change frames, height and width"
        )
    return height // SIZE


NO_DYNAMICS = "no obvious dynamic phenomenon"
NO_THERMODYNAMICS = "no obvious thermodynamic phenomenon"
NO_OPTICS = "no obvious optical phenomenon"

# law sentence, q0, q1, q2, q4, density range (relative to water), temperature range (degrees Celsius)
_LAWS: dict[str, tuple[str, str, str, str, str, tuple[float, float], tuple[float, float]]] = {
    "rigid_body": (
        "Under gravity a thrown body keeps its sideways speed and gains downward speed at a constant rate.",
        "rigid body motion", NO_THERMODYNAMICS, NO_OPTICS, "no change", (0.9, 1.2), (20.0, 25.0),
    ),
    "lattice": (
        "A plucked elastic block sends waves through itself at a speed that its stiffness sets.",
        "elastic motion", NO_THERMODYNAMICS, NO_OPTICS, "no change", (0.9, 1.2), (20.0, 25.0),
    ),
    "spring": (
        "A spring pulls its mass back in proportion to the stretch, so the mass swings with one period.",
        "elastic motion", NO_THERMODYNAMICS, NO_OPTICS, "no change", (0.9, 1.2), (20.0, 25.0),
    ),
    "fluid": (
        "An incompressible flow carries ink along, stretches it and never changes its amount.",
        "liquid motion", NO_THERMODYNAMICS, NO_OPTICS, "mixing of multiple objects", (0.95, 1.05), (20.0, 25.0),
    ),
    "compressible_flow": (
        "A blast of compressed gas drives a shock front outward; mass, momentum and energy are conserved.",
        "gas motion", "explosion", NO_OPTICS, "no change", (0.001, 0.01), (20.0, 500.0),
    ),
    "melt": (
        "Ice in warm water takes up latent heat and melts from its surface inward.",
        NO_DYNAMICS, "melting", NO_OPTICS, "object disappearance", (0.9, 1.0), (0.0, 40.0),
    ),
    "grow": (
        "Water next to a cold body gives off latent heat and freezes, so the ice grows outward.",
        NO_DYNAMICS, "solidification", NO_OPTICS, "solid objects appearance", (0.9, 1.0), (-40.0, 0.0),
    ),
    "bounces": (
        "Two bodies collide elastically: momentum and kinetic energy are conserved.",
        "collision, rigid body motion", NO_THERMODYNAMICS, NO_OPTICS, "no change", (0.9, 1.2), (20.0, 25.0),
    ),
    "sticks": (
        "Two bodies collide and stay together: momentum is conserved, kinetic energy is not.",
        "collision, rigid body motion", NO_THERMODYNAMICS, NO_OPTICS, "no change", (0.9, 1.2), (20.0, 25.0),
    ),
    "thermal": (
        "Heat flows from hot to cold at a rate set by the diffusivity; an insulated plate keeps its heat.",
        NO_DYNAMICS, NO_THERMODYNAMICS, NO_OPTICS, "no change", (2.5, 9.0), (20.0, 400.0),
    ),
    "optical": (
        "Waves spread at one speed, add up where they meet and bend around edges.",
        NO_DYNAMICS, NO_THERMODYNAMICS, "interference and diffraction", "no change", (0.95, 1.05), (20.0, 25.0),
    ),
}  # fmt: skip


def annotation(mechanism: str, scenario: str, frames: int = FRAMES) -> dict[str, Any]:
    """WISA-80K's `physical_annotation` of a scenario: the law, the categories q0 to q4 and the three quantity
    ranges."""
    law, q0, q1, q2, q4, density, temperature = _LAWS[scenario if scenario in _LAWS else mechanism]
    return {
        "phys_law": law,
        "q0": q0,
        "q1": q1,
        "q2": q2,
        "q3": "no",
        "q4": q4,
        "quantify_n0": [list(density)],
        "quantify_n1": [0.0, frames / FPS],
        "quantify_n2": list(temperature),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
