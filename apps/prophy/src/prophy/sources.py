"""Clips before they are encoded: simulated ones, or files with captions and annotations.

Sources: `world`, simulated clips made on the fly; a folder of videos with captions; a JSON or JSONL of records, plain
or annotated as WISA-80K is. Only simulated clips know the truth about their fields.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

import physworld
from physexperts import MECHANISMS, Labels, from_wisa
from prophy.config import Data, Recipe
from prophy.labels import labels_of
from trainers import video
from trainers.data import Skipped, read_records

__all__ = ["Clip", "Source", "clips_of", "world_scale"]

CHUNK = 64
"""Clips that are simulated at once."""


@dataclass(frozen=True)
class Clip:
    """What names a clip's content, its caption and labels, and how to get its pixels and (simulated) its truth."""

    id: str
    content: str
    caption: str
    labels: Labels
    frames: Callable[[], UInt8[np.ndarray, "t h w 3"]]
    truth: Callable[[], physworld.Clip] | None = None
    annotation: dict[str, Any] | None = None


@dataclass(frozen=True)
class Source:
    """Clips, how many they are, which were left out, and what was dropped of clips that stay."""

    clips: Iterator[Clip]
    total: int
    skipped: list[Skipped]
    notes: list[Skipped]


def clips_of(recipe: Recipe, known: Callable[[str], dict[str, Any] | None]) -> Source:
    """Open the source of a recipe; `known(content)` gives what was noted of a simulated clip that needs no pixels."""
    if recipe.data.source == "world":
        world_scale(recipe.data)
        return Source(_simulated(recipe.data, known), recipe.data.clips, [], [])
    return _listed(recipe)


def world_scale(d: Data) -> int:
    """How many times larger than its smallest the simulated world is drawn; ValueError for sizes that it does not make.

    >>> world_scale(Data(height=64, width=64))
    2
    """
    if d.height != d.width or d.height % physworld.SIZE or d.frames != physworld.FRAMES:
        raise ValueError(
            f"expected {physworld.FRAMES} square frames of {physworld.SIZE}, {2 * physworld.SIZE}, ... px of the "
            f"world, got {d.frames} of {d.height} x {d.width}; set data.frames, data.height and data.width"
        )
    return d.height // physworld.SIZE


def _simulated(d: Data, known: Callable[[str], dict[str, Any] | None]) -> Iterator[Clip]:
    code, scale = _world_code(), world_scale(d)
    each, rest = divmod(d.clips, len(MECHANISMS))
    for index, mechanism in enumerate(MECHANISMS):
        seeds_of = range(each + (index < rest))
        for start in range(0, len(seeds_of), CHUNK):
            seeds = seeds_of[start : start + CHUNK]
            content = {seed: json.dumps([code, mechanism, seed, d.split, scale]) for seed in seeds}
            noted = {seed: known(content[seed]) for seed in seeds}
            missing = [seed for seed in seeds if noted[seed] is None]
            made = {c.seed: c for c in physworld.simulate_many(mechanism, missing, split=d.split, scale=scale)}
            for seed in seeds:
                name, meta = f"{d.split}-{mechanism}-{seed:06d}", noted[seed]
                if meta is not None:
                    labels = from_wisa({**meta["annotation"], "labels": meta["labels"]})
                    yield Clip(name, content[seed], meta["caption"], labels, _never, annotation=meta["annotation"])
                    continue
                clip = made[seed]
                annotation = clip.record()["physical_annotation"]
                yield Clip(
                    name,
                    content[seed],
                    clip.caption,
                    from_wisa({**annotation, "labels": list(clip.labels)}),
                    partial(getattr, clip, "video"),
                    partial(_itself, clip),
                    annotation,
                )


def _itself(clip: physworld.Clip) -> physworld.Clip:
    return clip


def _never() -> np.ndarray:
    raise AssertionError("a clip that is in the cache has no need of its pixels")


def _listed(recipe: Recipe) -> Source:
    d = recipe.data
    spec = video.ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width)
    try:
        records, skipped = read_records(d.source, root=d.root)
    except ValueError as error:
        if "there is no file" not in str(error):
            raise
        raise ValueError(f"{error}; set data.root to the folder that the paths are relative to") from None
    notes: list[Skipped] = []
    clips: list[Clip] = []
    for record in records:
        try:
            labels = labels_of(record, fallback=d.fallback, on_unknown=d.on_unknown)
        except ValueError as error:
            raise ValueError(
                f"{record.id}: {error} (correct it, or list and drop it with data.on_unknown=list)"
            ) from None
        notes += [Skipped(record.id, f"category {name!r} is unknown and was dropped") for name in labels.unknown]
        with record.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        frames = partial(_frames, record.path, spec)
        clips.append(Clip(record.id, content, record.caption, labels, frames, annotation=record.annotation or None))
    return Source(iter(clips), len(clips), list(skipped), notes)


def _frames(path: Path, spec: video.ClipSpec) -> UInt8[np.ndarray, "t h w 3"]:
    try:
        return video.load(path, spec).frames
    except video.VideoError:
        raise
    except ValueError:
        whole = video.read(path)
        raise ValueError(
            f"expected {spec.frames} frames at {spec.fps:g} fps ({(spec.frames - 1) / spec.fps:.2f} s), got "
            f"{len(whole.frames)} at {whole.fps:.4g} fps ({whole.times_s[-1]:.2f} s): lower data.frames or data.fps "
            "(to the file's own rate at most), or leave it out"
        ) from None


def _world_code() -> str:
    """Name the code that makes the world: other code, other clips."""
    sha = hashlib.sha256()
    for file in sorted(Path(str(physworld.__file__)).parent.glob("*.py")):
        sha.update(file.read_bytes())
    return sha.hexdigest()


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Cut a sequence into parts of `size`."""
    return (items[i : i + size] for i in range(0, len(items), size))
