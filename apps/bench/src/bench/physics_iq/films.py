"""Films of a view for people: the generated video, both takes, and where they move, small enough for a report.

They are made from the frames and masks that are scored, and lie in a folder named by what they came from: films of
other bytes have another name, so that none can be stale.
"""

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from bench import results
from bench.physics_iq.layout import View
from bench.physics_iq.measure import DEFINITION, Measured, Setting, clip, size_of
from trainers import show, video

__all__ = ["GENERATED", "LEGEND", "films"]

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]

LARGEST = 480
"""Longer side of a film in pixels (our choice)."""
REAL, MADE, BOTH = (230, 159, 0), (86, 180, 233), (255, 255, 255)
FOLDER = "physics-iq-films"
LEGEND = "orange where only take 1 moves, blue where only the generated video does, white where both do"
GENERATED, TAKE_1, TAKE_2, MOVES = "generated", "take 1", "take 2", "what moves"


def films(
    measured: Mapping[View, Measured], setting: Setting, *, beside: Path, each: int, quiet: bool = False
) -> dict[View, dict[str, str]]:
    """Write films of the first `each` views a category into a folder beside the file `beside`, unless they are there.

    Gives their paths by name, seen from `beside`. One view is held in memory, at no more than 480 px. The masks lie
    over a dark picture of take 1, see `LEGEND`.
    """
    counts: Counter[str] = Counter()
    chosen = []
    for view in measured:
        counts[view.category] += 1
        if counts[view.category] <= each:
            chosen.append(view)
    made = {}
    for view in show.track(chosen, "films for the report", quiet=quiet):
        key = results.digest([LARGEST, DEFINITION, cv2.__version__, asdict(setting), measured[view].hashes])
        folder = beside.with_name(FOLDER) / f"{view.number}-{key}"
        if not folder.is_dir():
            _write(view, setting, folder)
        made[view] = {name: f"{FOLDER}/{folder.name}/{_file(name)}" for name in (GENERATED, TAKE_1, TAKE_2, MOVES)}
    return made


def _write(view: View, setting: Setting, folder: Path) -> None:
    size = size_of(view.take_1)
    streams = (
        clip(view.generated, size, setting, filmed=None),
        clip(view.take_1, size, setting, filmed=setting.filmed),
        clip(view.take_2, size, setting, filmed=setting.filmed),
    )
    shown: dict[str, list[Picture]] = {name: [] for name in (GENERATED, TAKE_1, TAKE_2, MOVES)}
    for (made, moves), (one, moves_1), (two, _) in zip(*streams, strict=True):
        pictures = (made, one, two, _moving(one, moves_1, moves))
        for frames, picture in zip(shown.values(), pictures, strict=True):
            frames.append(_small(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)))
    part = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    for name, frames in shown.items():
        video.write(part / _file(name), np.stack(frames), setting.fps)
    part.rename(folder)


def _file(name: str) -> str:
    return f"{name.replace(' ', '-')}.mp4"


def _moving(one: Picture, real: Mask, made: Mask) -> Picture:
    """Where only take 1, only the generated video, or both move, over take 1 in dark grey; BGR."""
    drawn = cv2.cvtColor(cv2.cvtColor(one, cv2.COLOR_BGR2GRAY) // 3, cv2.COLOR_GRAY2BGR)
    for where, colour in ((real & ~made, REAL), (made & ~real, MADE), (real & made, BOTH)):
        drawn[where] = colour[::-1]
    return drawn.astype(np.uint8, copy=False)


def _small(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = min(1.0, LARGEST / max(height, width))
    wide, high = (max(2, 2 * round(side * factor / 2)) for side in (width, height))  # even, as yuv420p wants them
    return cv2.resize(picture, (wide, high), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
