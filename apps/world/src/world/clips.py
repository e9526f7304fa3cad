"""A made data set in memory: uint8 videos and their captions, a few tens of kilobytes a clip."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from world.make import read_lines


@dataclass(frozen=True)
class Clips:
    """Videos of one size with their captions and mechanisms, in the order of the records."""

    videos: UInt8[np.ndarray, "n t h w 3"]
    captions: tuple[str, ...]
    mechanisms: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, indices: list[int]) -> "Clips":
        """Keep some clips, in the order given."""
        return Clips(
            videos=self.videos[indices],
            captions=tuple(self.captions[i] for i in indices),
            mechanisms=tuple(self.mechanisms[i] for i in indices),
        )


def read_clips(folder: Path) -> Clips:
    """Read every clip of a data set made by `world make`.

    Raises:
        ValueError: if the folder holds no records.
    """
    from trainers import video

    path = folder / "records.jsonl"
    records = read_lines(path) if path.exists() else []
    if not records:
        raise ValueError(f"{folder}: expected a data set with records.jsonl, got none; make it with `world make --out`")
    root = folder.resolve()
    paths = [(root / record["file"]).resolve() for record in records]
    outside = [path for path in paths if not path.is_relative_to(root)]
    if outside:
        raise ValueError(
            f"{folder}: expected clips inside the folder, got {outside[0]}; records must name relative paths"
        )
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as readers:  # each file is decoded by one thread
        videos = np.stack([decoded.frames for decoded in readers.map(video.read, paths)])
    return Clips(
        videos=videos,
        captions=tuple(record["captions"] for record in records),
        mechanisms=tuple(record["category"] for record in records),
    )


def hold_out(clips: Clips, count: int) -> tuple[Clips, Clips]:
    """Split off `count` clips, the last ones of each mechanism in turn, for validation."""
    by_mechanism: dict[str, list[int]] = {}
    for index, mechanism in enumerate(clips.mechanisms):
        by_mechanism.setdefault(mechanism, []).append(index)
    turns = zip(*(list(reversed(indices)) for indices in by_mechanism.values()), strict=False)
    held = [index for turn in turns for index in turn][:count]
    if len(held) >= len(clips):
        raise ValueError(f"expected more than {count} clips to hold {count} out, got {len(clips)}; make more clips")
    kept = set(held)
    return clips.take([i for i in range(len(clips)) if i not in kept]), clips.take(sorted(held))


def to_signed(videos: UInt8[np.ndarray, "n t h w 3"]) -> Float[Tensor, "n 3 t h w"]:
    """Turn bytes into the models' range [-1, 1], colour first."""
    return signed(torch.from_numpy(videos))


def signed(videos: UInt8[Tensor, "n t h w 3"]) -> Float[Tensor, "n 3 t h w"]:
    """Turn bytes into the models' range [-1, 1], colour first, on the device that they are on."""
    return videos.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_bytes(videos: Float[Tensor, "n 3 t h w"]) -> UInt8[np.ndarray, "n t h w 3"]:
    """Turn the models' range [-1, 1] into bytes, colour last."""
    return ((videos.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()


def psnr(
    got: UInt8[np.ndarray, "n t h w 3"],
    wanted: UInt8[np.ndarray, "n t h w 3"],
) -> Float[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of each clip in dB; an exact copy counts as 99."""
    error = np.square(got.astype(np.float64) - wanted).mean(axis=(1, 2, 3, 4))
    return np.minimum(99.0, 10 * np.log10(255.0**2 / np.maximum(error, 1e-12)))
