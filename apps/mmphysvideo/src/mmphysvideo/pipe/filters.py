"""Filters on a clip's pixels: does it move, is it sharp, bright enough, in contrast, and not frozen.

What is not measured, because nothing without weights does it well: text in the picture, watermarks, beauty. The
manifest says so (`NOT_MEASURED`); WISA's `text_bbox_num` is read from records where they have it.
"""

from dataclasses import asdict, dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from mmphysvideo.pipe.background import LEAST_CHANGE, largest, noise_of
from mmphysvideo.pipe.settings import Bounds

__all__ = ["NOT_MEASURED", "Measures", "measure", "refuse"]

NOT_MEASURED = ("text", "watermarks", "aesthetics")


@dataclass(frozen=True)
class Measures:
    """`motion`: share of pixels that differ between neighbouring frames, the largest over time; `sharpness`: 99.5th
    percentile of the gradient per pixel over the range of grey; `brightness`: mean grey, 0 to 255; `contrast`: range of
    grey; `frozen`: share of frames equal to the one before."""

    motion: float
    sharpness: float
    brightness: float
    contrast: float
    frozen: float


def measure(frames: UInt8[np.ndarray, "t h w 3"]) -> Measures:
    """Measure a clip."""
    exact = frames.astype(np.float32)
    least = max(4 * noise_of(exact), LEAST_CHANGE)
    changed = largest(np.abs(np.diff(exact, axis=0))) > least
    motion = float(changed.mean((1, 2)).max()) if len(changed) else 0.0
    frozen = float((np.diff(exact, axis=0) == 0).all((1, 2, 3)).mean()) if len(changed) else 1.0
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in frames[:: max(1, len(frames) // 8)]]
    contrast = float(np.median([np.percentile(g, 99.5) - np.percentile(g, 0.5) for g in grey]))
    steep = [
        np.percentile(np.hypot(cv2.Sobel(g, cv2.CV_32F, 1, 0), cv2.Sobel(g, cv2.CV_32F, 0, 1)), 99.5) for g in grey
    ]
    sharpness = float(np.median(steep)) / 8 / max(contrast, 1.0)  # Sobel's weights sum to 8 a unit step
    return Measures(motion, sharpness, float(np.mean(grey)), contrast, frozen)


def refuse(measures: Measures, bounds: Bounds) -> str:
    """Say why a clip is dropped, with the measure and its bound; "" when it stays."""
    low, high = bounds.brightness
    ranges = {
        "motion": (bounds.least_motion, bounds.most_motion),
        "sharpness": (bounds.least_sharpness, np.inf),
        "brightness": (low, high),
        "contrast": (bounds.least_contrast, np.inf),
        "frozen": (0.0, bounds.most_frozen),
    }
    for name, value in asdict(measures).items():
        least, most = ranges[name]
        if not least <= value <= most:
            return f"{name} is {value:.4g}, wanted {least:g} to {most:g}"
    return ""
