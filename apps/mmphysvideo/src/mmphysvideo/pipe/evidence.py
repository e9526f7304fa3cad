"""The chain of visual evidence: who takes part in which process, in which frames that can be seen, and where.

A witness (a vision-language model, or the rules on pixels) fills `Evidence`. What it claims without evidence is struck
out: a subject needs frames that exist, a box with an area, a reason, and pixels in that box that change. A clip whose
witness names no process or has no subject left is dropped. Boxes are (left, top, right, bottom), each 0 to 1, in the
first evidence frame.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mmphysvideo.pipe.background import LEAST_CHANGE, largest

__all__ = ["CAMERA", "Evidence", "NoEvidence", "Subject", "Witness", "supported"]

CAMERA = ("static", "pan", "tilt", "zoom", "moving", "unknown")
CHANGED = 0.01
"""Share of a box's pixels that must change over the clip: our choice."""

Text = Field(min_length=1, max_length=400)


class NoEvidence(RuntimeError):
    """A witness that could not be reached, or said nothing that can be used; the message says what came instead."""


class Subject(BaseModel):
    """One visible thing that moves, deforms or causes it."""

    model_config = ConfigDict(extra="ignore")

    id: int
    name: str = Field(min_length=1, max_length=80)
    role: Literal["agent", "patient", "other"] = "other"
    evidence_frames: list[int]
    box: tuple[float, float, float, float]
    why: str = Field(default="", max_length=400)

    @field_validator("box")
    @classmethod
    def _inside(cls, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        left, top, right, bottom = box
        if not (-0.05 <= left < right <= 1.05 and -0.05 <= top < bottom <= 1.05):
            raise ValueError(f"expected left < right and top < bottom, each 0 to 1, got {list(box)}")
        low, high = np.clip(box, 0, 1)[:2], np.clip(box, 0, 1)[2:]
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


class Evidence(BaseModel):
    """What a witness says of a clip."""

    model_config = ConfigDict(extra="ignore")

    clip: str = ""
    process: list[str] = Field(max_length=12)
    subjects: list[Subject] = Field(max_length=24)
    camera_motion: Literal["static", "pan", "tilt", "zoom", "moving", "unknown"] = "unknown"
    keep: bool
    caption: str = Field(default="", max_length=2000)

    @field_validator("process")
    @classmethod
    def _named(cls, process: list[str]) -> list[str]:
        return [text for one in process if (text := " ".join(one.split())[:80])]


@runtime_checkable
class Witness(Protocol):
    """Whoever testifies: `name` stands in the manifest; NoEvidence when nothing usable comes."""

    @property
    def name(self) -> str: ...
    def testify(self, clip: Any) -> Evidence: ...


def supported(
    evidence: Evidence, frames: UInt8[np.ndarray, "t h w 3"], *, most: int
) -> tuple[list[Subject], list[tuple[str, str]], str]:
    """Strike out what has no evidence: the subjects that stay (at most `most`), (name, why) of the others, and why the
    clip is dropped ("" when it is not)."""
    kept: list[Subject] = []
    struck: list[tuple[str, str]] = []
    for subject in evidence.subjects:
        why = _unsupported(subject, frames)
        if not why and any(subject.id == other.id for other in kept):
            why = f"its id {subject.id} is another subject's"
        if not why and len(kept) == most:
            why = f"there are {most} subjects before it"
        if why:
            struck.append((subject.name, why))
        else:
            kept.append(subject)
    if not evidence.keep:
        return kept, struck, f"the witness would not keep it: {evidence.caption or 'no reason given'}"[:300]
    if not evidence.process:
        return kept, struck, "no physical process is named"
    if not kept:
        said = "; ".join(f"{name}: {why}" for name, why in struck[:3])
        return kept, struck, f"no subject has evidence ({said})" if said else "no subject is named"
    return kept, struck, ""


def _unsupported(subject: Subject, frames: UInt8[np.ndarray, "t h w 3"]) -> str:
    t, h, w, _ = frames.shape
    cited = [k for k in subject.evidence_frames if 0 <= k < t]
    if not cited:
        return f"it cites no frame of 0 to {t - 1}: {subject.evidence_frames[:8]}"
    if not subject.why.strip():
        return "no reason is given"
    ys, xs = pixels_of(subject.box, h, w)
    part = frames[:, ys, xs].astype(np.float32)
    others = part[_beside(cited, t)]
    span = largest(others.max(0) - others.min(0))
    if (span > LEAST_CHANGE).mean() < CHANGED:
        return f"nothing changes in its box around frames {cited[:8]}"
    return ""


def pixels_of(box: Sequence[float], height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns of a box, at least one each."""
    left, top, right, bottom = box
    y0, x0 = min(int(top * height), height - 1), min(int(left * width), width - 1)
    return slice(y0, max(y0 + 1, round(bottom * height))), slice(x0, max(x0 + 1, round(right * width)))


def _beside(cited: Sequence[int], frames: int) -> list[int]:
    """The cited frames and a few on either side: evidence of change needs more than one."""
    reach = max(2, frames // 8)
    return sorted({k for c in cited for k in range(max(0, c - reach), min(frames, c + reach + 1))})
