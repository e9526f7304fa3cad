"""What a judge sees of a video: frames at even distances from the first to the last, as JPEG or as arrays.

Sixteen frames with a longer side of 448 px are our choice (VideoPhy's rater sees 32 at 224 x 224, their aspect not
kept).
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Look:
    """How many frames a judge gets, and how large they are at most."""

    frames: int = 16
    side: int = 448
    quality: int = 90

    def __post_init__(self) -> None:
        if not (1 <= self.frames <= 256 and 16 <= self.side <= 4096 and 1 <= self.quality <= 100):
            raise ValueError(f"expected 1 to 256 frames, a side of 16 to 4096 px and a quality of 1 to 100, got {self}")


def chosen(path: Path, look: Look) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Decode the frames that a judge sees; a video with fewer gives all it has."""
    from trainers.decode import choose

    def smaller(frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t _ _ 3"]:
        return np.stack([_resized(frame, look.side) for frame in frames])

    decoded = choose(path, lambda times_s: picked(len(times_s), look.frames), each=smaller)
    return list(decoded.frames)


def picked(frames: int, wanted: int) -> np.ndarray:
    """Return which frames of a video are looked at.

    >>> picked(9, 3), picked(2, 3)
    (array([0, 4, 8]), array([0, 1]))
    """
    return np.unique(np.linspace(0, frames - 1, min(wanted, frames)).round().astype(int))


def _resized(frame: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "_ _ 3"]:
    import cv2

    scale = side / max(frame.shape[:2])
    if scale >= 1:
        return frame
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def as_urls(frames: Sequence[UInt8[np.ndarray, "h w 3"]], quality: int) -> list[str]:
    """Write frames as JPEG in data URLs."""
    import cv2

    urls = []
    for frame in frames:
        done, data = cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done
        urls.append("data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode())
    return urls


def fingerprint(path: Path) -> str:
    """Name a video by its bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
