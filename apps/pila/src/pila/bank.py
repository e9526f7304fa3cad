"""The bank: ten physical fields packed into 32 channels, read and written by name.

Axes are (b, channel, t, y, x), y down, vectors (y, x). A vector fills its four channels as [y, x, y, x], a symmetric
tensor as [yy, xx, yx, yx], a scalar is repeated over its slot. Reading averages the copies, so that an expert which
changes one copy changes the field by its share. What surprises: the velocity slot holds a four-channel scaffold whose
readout is learned (`afe.Velocity`); that readout starts as the same average, and `read` here is what it is before
training.

References: PILA (Wang et al., 2026), Eq. 12 and its contract of 32 channels; the split of the widths is derived, the
order of components is ours.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from physfields.residuals import COMPONENTS

__all__ = ["CHANNELS", "COMPONENTS", "PHASES", "SLOTS", "channels_of", "pack", "read", "write"]

CHANNELS = 32

SLOTS: dict[str, slice] = {
    "displacement": slice(0, 4),
    "velocity": slice(4, 8),
    "pressure": slice(8, 10),
    "density": slice(10, 12),
    "temperature": slice(12, 14),
    "phase": slice(14, 16),
    "strain": slice(16, 20),
    "stress": slice(20, 24),
    "impulse": slice(24, 28),
    "wave": slice(28, 32),
}
"""Channels of each field, in the paper's order."""

_CORE = ("displacement", "velocity", "pressure", "density", "strain", "stress")
PHASES: dict[str, tuple[str, ...]] = {
    "core": _CORE,
    "phase": (*_CORE, "phase"),
    "temperature": (*_CORE, "phase", "temperature"),
    "impulse": (*_CORE, "phase", "temperature", "impulse"),
    "wave": (*_CORE, "phase", "temperature", "impulse", "wave"),
}
"""Slots that are active in each phase of recovery: core -> phi -> T -> J -> w."""


def write(slot: str, field: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b s t h w"]:
    """Repeat a field over the channels of its slot.

    >>> v = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1)
    >>> write("velocity", v).flatten().tolist()
    [1.0, 2.0, 1.0, 2.0]
    >>> write("strain", torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)).flatten().tolist()
    [1.0, 2.0, 3.0, 3.0]
    """
    width = SLOTS[slot].stop - SLOTS[slot].start
    assert field.shape[1] == COMPONENTS[slot], f"{slot} has {COMPONENTS[slot]} components, got {field.shape[1]}"
    if COMPONENTS[slot] == 3:
        return torch.cat([field, field[:, 2:]], 1)
    return field.repeat(1, width // COMPONENTS[slot], 1, 1, 1)


def read(bank: Float[Tensor, "b 32 t h w"], slot: str) -> Float[Tensor, "b c t h w"]:
    """Average the copies of a field: the inverse of `write`.

    >>> v = torch.randn(2, 2, 3, 4, 4)
    >>> bool((read(pack({"velocity": v}), "velocity") == v).all())
    True
    """
    copies = bank[:, SLOTS[slot]]
    if COMPONENTS[slot] == 3:
        return torch.cat([copies[:, :2], copies[:, 2:].mean(1, keepdim=True)], 1)
    return copies.unflatten(1, (-1, COMPONENTS[slot])).mean(1)


def pack(
    fields: Mapping[str, Float[Tensor, "b _ t h w"]], *, scaffold: Float[Tensor, "b 4 t h w"] | None = None
) -> Float[Tensor, "b 32 t h w"]:
    """Pack fields by name; a slot that is not given is exactly zero; `scaffold` is stored as the velocity slot as it
    is.
    """
    like = next(iter(fields.values()))
    empty = like.new_zeros(len(like), 1, *like.shape[2:])
    parts = []
    for slot, place in SLOTS.items():
        if slot == "velocity" and scaffold is not None:
            parts.append(scaffold)
        elif slot in fields:
            parts.append(write(slot, fields[slot]))
        else:
            parts.append(empty.expand(-1, place.stop - place.start, -1, -1, -1))
    return torch.cat(parts, 1)


def channels_of(slots: Iterable[str]) -> list[bool]:
    """Flag the channels of some slots.

    >>> sum(channels_of(["velocity", "wave"]))
    8
    """
    flags = [False] * CHANNELS
    for slot in slots:
        place = SLOTS[slot]
        flags[place] = [True] * (place.stop - place.start)
    return flags
