"""One view, measured in one pass over its files and kept under the hash of all that it came from.

A view needs take 1, take 2 and the generated video, each decoded frame by frame at a quarter of the real size. What two
takes share, and the masks of take 1, are kept under the hashes of the takes: the next model costs one real clip less
to decode and no real masks. Since keys are contents, nothing can be stale: other bytes have another key.

This module is what worker processes import: no torch here.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from bench.physics_iq.masks import blended, frames_of, lossy, motion_masks
from bench.physics_iq.overlap import Comparison, Overlap
from trainers import write_bytes, write_text

__all__ = ["Measured", "Setting", "clip", "measure", "size_of"]

DEFINITION = 1
"""Raise it when a mask or a comparison comes to mean something else: it is part of every key."""
Masks = Literal["exact", "mp4v"]
Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


@dataclass(frozen=True)
class Setting:
    """How clips are read: `frames` at `fps`, the real ones blended from `filmed` frames (None: as they are)."""

    fps: float | int
    frames: int
    filmed: int | None
    masks: Masks = "exact"


@dataclass(frozen=True)
class Measured:
    """A view's comparisons with take 1: of the generated video, of take 2, and of take 1's first frame held still."""

    generated: Comparison
    takes: Comparison
    still: Comparison
    hashes: dict[str, str]


@dataclass(frozen=True)
class _Reference:
    size: tuple[int, int]  # (w, h) of comparison
    takes: Comparison
    still: Comparison
    masks: UInt8[np.ndarray, "t bytes"]

    def mask(self, t: int) -> Mask:
        width, height = self.size
        return np.unpackbits(self.masks[t], count=width * height).astype(bool).reshape(height, width)


def measure(take_1: Path, take_2: Path, generated: Path, setting: Setting, cache_dir: Path) -> Measured:
    """Measure a view, or read what was measured of the same bytes under the same setting."""
    cv2.setNumThreads(1)
    hashes = {"take_1": _digest(take_1), "take_2": _digest(take_2), "generated": _digest(generated)}
    real = cache_dir / f"takes-{_key(setting, hashes['take_1'], hashes['take_2'])}.npz"
    mine = cache_dir / f"view-{_key(setting, *hashes.values())}.json"
    if (known := _read_view(mine)) is not None:
        return known
    reference = _read_takes(real)
    if reference is not None:
        seen = _against(reference, take_1, generated, setting)
    else:
        seen, reference = _afresh(take_1, take_2, generated, setting)
        _write_takes(real, reference)
    result = Measured(seen, reference.takes, reference.still, hashes)
    write_text(mine, json.dumps(asdict(result)))
    return result


def _afresh(take_1: Path, take_2: Path, generated: Path, setting: Setting) -> tuple[Comparison, _Reference]:
    """All three files in step."""
    size = size_of(take_1)
    mine, takes, still = Overlap(), Overlap(), Overlap()
    packed: list[np.ndarray] = []
    first, empty = None, np.zeros(size[::-1], bool)
    streams = (
        clip(take_1, size, setting, filmed=setting.filmed),
        clip(take_2, size, setting, filmed=setting.filmed),
        clip(generated, size, setting, filmed=None),
    )
    for (one, moves_1), (two, moves_2), (made, moves) in zip(*streams, strict=True):
        first = one if first is None else first
        packed.append(np.packbits(moves_1))
        mine.add(one, moves_1, made, moves)
        takes.add(one, moves_1, two, moves_2)
        still.add(one, moves_1, first, empty)
    return mine.result(), _Reference(size, takes.result(), still.result(), np.stack(packed))


def _against(reference: _Reference, take_1: Path, generated: Path, setting: Setting) -> Comparison:
    mine = Overlap()
    real = _frames(take_1, setting, filmed=setting.filmed)
    made = clip(generated, reference.size, setting, filmed=None)
    for t, (one, (picture, moves)) in enumerate(zip(real, made, strict=True)):
        mine.add(_small(one, reference.size), reference.mask(t), picture, moves)
    return mine.result()


def clip(path: Path, size: tuple[int, int], setting: Setting, *, filmed: int | None) -> Iterator[tuple[Picture, Mask]]:
    """Pictures and masks of a file, both at the size of comparison; masks are made at the file's own size."""
    if setting.masks == "mp4v":  # decodes twice, so that no more than a frame is held either way
        masks = lossy(motion_masks(_frames(path, setting, filmed=filmed)), fps=setting.fps)
        for frame, mask in zip(_frames(path, setting, filmed=filmed), masks, strict=True):
            yield _small(frame, size), _small(mask, size) > 127
        return
    held: list[Picture] = []  # never more than the frame whose mask is being made

    def passing() -> Iterator[Picture]:
        for frame in _frames(path, setting, filmed=filmed):
            held.append(_small(frame, size))
            yield frame

    for mask in motion_masks(passing()):
        yield held.pop(), _small(mask, size) > 127


def _small(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(picture, size).astype(np.uint8, copy=False)


def _frames(path: Path, setting: Setting, *, filmed: int | None) -> Iterator[Picture]:
    if filmed is None:
        return frames_of(path, setting.frames)
    return blended(frames_of(path, filmed), have=filmed, want=setting.frames)


def size_of(take_1: Path) -> tuple[int, int]:
    """A quarter of the real picture's width and height."""
    height, width = next(frames_of(take_1, 1)).shape[:2]
    return width // 4, height // 4


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(setting: Setting, *digests: str) -> str:
    whole = json.dumps([DEFINITION, cv2.__version__, asdict(setting), digests])
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def _write_takes(path: Path, reference: _Reference) -> None:
    told = json.dumps({"size": reference.size, "takes": asdict(reference.takes), "still": asdict(reference.still)})
    whole = io.BytesIO()
    np.savez_compressed(whole, masks=reference.masks, told=np.frombuffer(told.encode(), np.uint8))
    write_bytes(path, whole.getvalue())


def _read_takes(path: Path) -> _Reference | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            told = json.loads(kept["told"].tobytes())
            width, height = told["size"]
            return _Reference((width, height), _comparison(told["takes"]), _comparison(told["still"]), kept["masks"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _read_view(path: Path) -> Measured | None:
    """What is kept; None where there is nothing, or where it was cut off."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        generated, takes, still = (_comparison(kept[name]) for name in ("generated", "takes", "still"))
        return Measured(generated, takes, still, kept["hashes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _comparison(kept: dict[str, Any]) -> Comparison:
    return Comparison(kept["spatial"], kept["weighted"], tuple(kept["spatiotemporal"]), tuple(kept["mse"]))
