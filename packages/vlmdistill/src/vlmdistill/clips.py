"""Clips with true times, and the few frames of one that a vision-language model sees.

A clip is frames uint8 (f, y, x, 3) with the time of each in seconds. Qwen's models read about two frames a second and
merge each two into one cell of time, whose time is the mean of theirs. Frames are chosen by time, not by index, so that
clips with uneven times are read evenly, and the times that are passed on are those of the frames that were chosen.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

__all__ = ["Clip", "sample"]


@dataclass(frozen=True)
class Clip:
    """Frames with the time of each; ValueError for none, other types, or times that do not increase.

    >>> Clip.at(torch.zeros(3, 8, 8, 3, dtype=torch.uint8), fps=4.0).times_s.tolist()
    [0.0, 0.25, 0.5]
    """

    frames: UInt8[Tensor, "f y x 3"]
    times_s: Float[Tensor, " f"]

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != torch.uint8:
            raise ValueError(
                f"expected frames as uint8 (f, y, x, 3), got {self.frames.dtype} {tuple(self.frames.shape)}"
            )
        if len(self.frames) == 0 or 0 in self.frames.shape:
            raise ValueError(
                f"expected at least one frame with pixels, got {tuple(self.frames.shape)}: no video tokens"
            )
        if self.times_s.shape != self.frames.shape[:1]:
            raise ValueError(f"expected {len(self.frames)} times, one a frame, got {tuple(self.times_s.shape)}")
        if not bool(torch.isfinite(self.times_s).all()) or bool((self.times_s.diff() <= 0).any()):
            raise ValueError(f"expected finite and strictly increasing times, got {self.times_s.tolist()}")

    @classmethod
    def at(cls, frames: UInt8[Tensor, "f y x 3"], fps: float) -> "Clip":
        """Give frames the times of a constant rate."""
        if not fps > 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        return cls(frames, torch.arange(len(frames)) / fps)


def sample(
    times_s: Float[Tensor, " f"], *, fps: float = 2.0, least: int = 4, most: int = 768, group: int = 2
) -> Int[Tensor, " n"]:
    """Choose frames near a rate, evenly in time from the first to the last, n a multiple of `group`.

    At least `least` frames where the clip has them (Qwen's limits), and no frame twice, but that a clip of fewer frames
    than one group repeats its last.

    >>> sample(torch.arange(17) / 8.0).tolist()  # 2.1 s: four frames
    [0, 5, 11, 16]
    >>> sample(torch.tensor([0.0])).tolist()
    [0, 0]
    """
    f = len(times_s)
    if f < group:
        return torch.arange(group).clamp(max=f - 1)
    duration = float(times_s[-1] - times_s[0]) * f / (f - 1)  # the last frame lasts as long as the others do
    n = min(max(round(duration * fps), least), most, f) // group * group
    wanted = torch.linspace(float(times_s[0]), float(times_s[-1]), n, dtype=torch.float64)
    chosen = (times_s.double()[None] - wanted[:, None]).abs().argmin(1).tolist()
    for i in range(n):  # uneven times may call one frame twice: take the next one, and leave enough for the rest
        chosen[i] = min(max(chosen[i], chosen[i - 1] + 1 if i else 0), f - n + i)
    return torch.tensor(chosen)
