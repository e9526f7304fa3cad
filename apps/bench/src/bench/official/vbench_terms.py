"""Dimensions of VBench that need no judge: what frames, a flow, or one small network for image quality say.

    temporal_flickering = (255 - mean |x_{i+1} - x_i|) / 255          of neighbouring frames, 0..1, higher is calmer
    dynamic_degree      = moving or not, from a flow between frames about 1/8 s apart
    imaging_quality     = MUSIQ-SPAQ of every frame, 0..100 a video, 0..1 as a dimension

What surprises: a frozen video has a flickering score of 1, and officially only videos that pass a filter for static
scenes are scored. A video is moving if at least round(n/4) of its n - 1 pairs have a mean over the fastest 5 % of the
pixels above 6 px at a shorter side of 256.

References: VBench (Huang et al., 2024); github.com/Vchitect/VBench at 45e79ec (Apache-2.0); MUSIQ (Ke et al., 2021).
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

LONGER_SIDE = 512
CHUNK = 16


def temporal_flickering(frames: UInt8[np.ndarray, "t h w 3"]) -> float:
    """Return 1 for frozen frames, 0 for black and white in turn.

    >>> frozen = np.full((3, 4, 4, 3), 7, np.uint8)
    >>> temporal_flickering(frozen)
    1.0
    """
    if len(frames) < 2:
        raise ValueError(f"expected two frames or more, got {len(frames)}")
    steps = [np.abs(b.astype(np.float32) - a.astype(np.float32)).mean() for a, b in pairwise(frames)]
    return (255.0 - float(np.mean(steps))) / 255.0


def dynamic_degree(flows: Float[np.ndarray, "n h w 2"]) -> bool:
    """Tell whether a video moves, from the flow (pixels) between frames taken every max(1, round(fps / 8))."""
    pairs, height, width, _ = flows.shape
    fastest = int(height * width * 0.05)
    if not pairs or not fastest:
        raise ValueError(f"expected flows of 20 pixels or more between two frames or more, got {flows.shape}")
    speeds = np.sort(np.linalg.norm(flows, axis=-1).reshape(pairs, -1))[:, -fastest:].mean(1)
    return bool((speeds > 6.0 * min(height, width) / 256).sum() >= round(4 * (pairs + 1) / 16))


def measure(dimension: str, device: str, flows: Path | None = None) -> Callable[[Path], float]:
    """Return what gives a video's result in a dimension."""
    if dimension == "temporal_flickering":
        return lambda path: temporal_flickering(_frames(path))
    if dimension == "dynamic_degree":
        if flows is None or not flows.is_dir():
            raise ValueError(
                "dynamic_degree wants a flow: --flows DIR with <video's name>.npy, (pairs, h, w, 2) in pixels"
            )
        return lambda path: float(dynamic_degree(_flow(flows / f"{path.stem}.npy")))
    if dimension == "imaging_quality":
        model = _musiq(device)
        return lambda path: fmean(_qualities(model, _frames(path), device))
    raise ValueError(f"expected temporal_flickering, dynamic_degree or imaging_quality, got {dimension!r}")


def total(dimension: str, results: Sequence[float]) -> float:
    """Return the dimension's score from those of the videos."""
    return fmean(results) / (100 if dimension == "imaging_quality" else 1)


def _frames(path: Path) -> UInt8[np.ndarray, "t h w 3"]:
    from trainers import video

    return video.read(path).frames


def _flow(path: Path) -> Float[np.ndarray, "n h w 2"]:
    if not path.is_file():
        raise ValueError(f"expected a flow in {path}, got none")
    try:
        flows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"expected an array in {path}, got {error}") from None
    if flows.ndim != 4 or flows.shape[-1] != 2:
        raise ValueError(f"expected (pairs, h, w, 2) in {path}, got {flows.shape}")
    return flows.astype(float)


def _musiq(device: str) -> Any:
    try:
        pyiqa = import_module("pyiqa")  # asked for by name: no dependency, since it pins many libraries
    except ImportError:
        raise ValueError("imaging_quality needs the library pyiqa: pip install pyiqa") from None
    return pyiqa.create_metric("musiq-spaq", device=device)  # its weights are those that VBench names


def _qualities(model: Any, frames: UInt8[np.ndarray, "t h w 3"], device: str) -> Iterator[float]:
    """MUSIQ of each frame, its longer side at most 512, resized without antialiasing and rounded, as officially."""
    import torch

    height, width = frames.shape[1:3]
    scale = LONGER_SIDE / max(height, width)
    for start in range(0, len(frames), CHUNK):
        part = torch.from_numpy(frames[start : start + CHUNK]).permute(0, 3, 1, 2).to(device, torch.float32)
        if scale < 1:
            size = (int(scale * height), int(scale * width))
            part = torch.nn.functional.interpolate(part, size, mode="bilinear", align_corners=False).round()
        with torch.inference_mode():
            yield from (float(score) for score in model(part / 255.0).flatten())
