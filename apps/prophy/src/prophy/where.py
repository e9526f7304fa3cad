"""Where each mechanism of a simulated clip is, read from its exact fields: the teacher that needs no language model.

The intensity of a mechanism is a field's size at every frame and pixel; `contrast` sets it against a neutral map that
looks everywhere alike, as a language model's attention is set against that of a neutral question. What stands for a
mechanism is our choice:

    rigid_body         the bodies (where the velocity of a body is defined)
    elastic            |displacement| of a sheet, the body on a spring
    fluid              ink that moves: concentration x |velocity|
    compressible_flow  |velocity| of the gas
    phase_change       the solid: 1 - phase
    collision          the bodies, within some frames of an impact (|impulse| > 0)
    thermal            |temperature - mean|
    optical            |wave|
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float

from physworld import FPS, SIZE, Clip
from vlmdistill.targets import Contrast, contrast

__all__ = ["SOURCE", "intensity", "seen_in"]

SOURCE = "exact fields of the simulated world"
CELL = 4
"""Pixels (at scale 1) that one stored cell averages over, so that a cache of maps stays smaller than its latents."""


def intensity(clip: Clip, mechanism: str, *, contact_frames: int = 2) -> Float[np.ndarray, "t h w"]:
    """How strongly a mechanism acts at each frame and pixel, not negative.

    ValueError for a mechanism whose field the clip does not have.
    """
    size = {slot: np.linalg.norm(values.astype(np.float32), axis=-1) for slot, values in clip.fields.items()}
    needed = {
        "rigid_body": "velocity",
        "elastic": "displacement",
        "fluid": "density",
        "compressible_flow": "velocity",
        "phase_change": "phase",
        "collision": "impulse",
        "thermal": "temperature",
        "optical": "wave",
    }[mechanism]
    if needed not in size:
        raise ValueError(f"expected the field {needed!r} in a clip labelled {mechanism}, got {', '.join(size)}")
    there = clip.valid[needed].astype(np.float32)
    if mechanism == "rigid_body" or (mechanism == "elastic" and clip.scenario == "spring"):
        return there
    if mechanism == "collision":
        struck = size["impulse"].max((1, 2)) > 0
        near = [struck[max(0, t - contact_frames) : t + contact_frames + 1].any() for t in range(len(struck))]
        return there * np.array(near, np.float32)[:, None, None]
    if mechanism == "fluid":
        return np.clip(size["density"], 0, None) * size["velocity"]
    if mechanism == "phase_change":
        return 1 - size["phase"].clip(0, 1)
    if mechanism == "thermal":
        temperature = clip.fields["temperature"][..., 0].astype(np.float32)
        return np.abs(temperature - temperature.mean())
    return size[needed] * there


def seen_in(clip: Clip, mechanisms: Iterable[str], *, contact_frames: int = 2) -> Contrast:
    """The maps of a clip's mechanisms on cells of 4 px; one that acts nowhere (no impact in the clip) is left out."""
    side = CELL * clip.video.shape[1] // SIZE
    maps = {}
    for mechanism in mechanisms:
        strength = intensity(clip, mechanism, contact_frames=contact_frames)
        t, h, w = strength.shape
        cells = strength.reshape(t, h // side, side, w // side, side).mean((2, 4))
        if cells.max() > 0:
            maps[mechanism] = torch.from_numpy(np.ascontiguousarray(cells))
    frames, h, w = len(clip.video), clip.video.shape[1] // side, clip.video.shape[2] // side
    return contrast(maps, torch.ones(frames, h, w), torch.arange(frames) / FPS, {"source": SOURCE})
