"""Clips before they are encoded: simulated ones, or files with captions and annotations.

Sources: `world`, simulated clips drawn when the cache lacks them; a folder of videos with captions; a JSON or JSONL of
records, plain or annotated as WISA-80K is. Only simulated clips know the truth about their fields.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

import physworld
from physexperts import Labels, from_wisa
from prophy.config import Recipe
from prophy.labels import labels_of
from trainers import video
from trainers.cache_job import Item
from trainers.data import Record, Skipped, read_records

__all__ = ["Clip", "Loaded", "Refused", "Source", "clips_of", "spec_of"]


@dataclass(frozen=True)
class Loaded:
    """The pixels of a clip with their times, and of a simulated one what is true and what it is labelled with."""

    frames: UInt8[np.ndarray, "t h w 3"]
    times_s: Float[np.ndarray, " t"]
    truth: physworld.Clip | None = None
    mechanisms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    """What gets a clip into the cache, its labels and annotation."""

    item: Item
    labels: Labels
    annotation: dict[str, Any] | None = None
    film: str = ""  # that it was cut from; none of a simulated clip

    @property
    def id(self) -> str:
        return self.item.id

    @property
    def caption(self) -> str:
        return str(self.item.noted["caption"])


@dataclass(frozen=True)
class Source:
    """Clips, which were left out, and what was dropped of clips that stay."""

    clips: list[Clip]
    skipped: list[Skipped]
    notes: list[Skipped]


class Refused(Exception):
    """A clip that is too short, where that shall stop the run (`data.short=error`)."""


def clips_of(recipe: Recipe) -> Source:
    """Open the source of a recipe; ValueError where there is none, and for an unknown category that shall stop."""
    d = recipe.data
    if d.source != "world":
        return _listed(recipe)
    scale = physworld.scale_of(d.frames, d.height, d.width)
    return Source([_simulated(clip, recipe) for clip in physworld.spread(d.clips, split=d.split, scale=scale)], [], [])


def spec_of(recipe: Recipe) -> video.ClipSpec:
    """What a clip is cut to."""
    d = recipe.data
    return video.ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width)


def _simulated(clip: physworld.Planned, recipe: Recipe) -> Clip:
    labels = from_wisa({**clip.annotation, "labels": list(clip.labels)})
    size = {"height": recipe.data.height, "frames": recipe.data.frames}
    item = Item(
        clip.name, clip.content.encode(), partial(_drawn, clip, labels.mechanisms), size, {"caption": clip.caption}
    )
    return Clip(item, labels, clip.annotation)


def _drawn(clip: physworld.Planned, mechanisms: tuple[str, ...]) -> Loaded:
    made = clip.draw()
    return Loaded(made.video, made.times_s, made, mechanisms)


def _listed(recipe: Recipe) -> Source:
    d = recipe.data
    spec = spec_of(recipe)
    try:
        records, skipped = read_records(d.source, root=d.root)
    except ValueError as error:
        if "there is no file" not in str(error):
            raise
        raise ValueError(f"{error}; set data.root to the folder that the paths are relative to") from None
    notes: list[Skipped] = []
    clips: list[Clip] = []
    for record in records:
        labels = _labels(record, recipe)
        notes += [Skipped(record.id, f"category {name!r} is unknown and was dropped") for name in labels.unknown]
        noted = {"caption": record.caption, "labels": list(labels.mechanisms)}
        item = Item(record.id, record.path, _cut(record.path, spec, strict=d.short == "error"), spec, noted)
        clips.append(Clip(item, labels, record.annotation or None, record.source))
    return Source(clips, list(skipped), notes)


def _labels(record: Record, recipe: Recipe) -> Labels:
    try:
        return labels_of(record, fallback=recipe.data.fallback, on_unknown=recipe.data.on_unknown)
    except ValueError as error:
        raise ValueError(f"{record.id}: {error} (correct it, or list and drop it with data.on_unknown=list)") from None


def _cut(path: Path, spec: video.ClipSpec, *, strict: bool) -> Callable[[], Loaded]:
    def load() -> Loaded:
        try:
            found = video.load(path, spec)
        except video.VideoError:
            raise
        except ValueError:
            whole = video.read(path)
            said = (
                f"expected {spec.frames} frames at {spec.fps:g} fps ({(spec.frames - 1) / spec.fps:.2f} s), got "
                f"{len(whole.frames)} at {whole.fps:.4g} fps ({whole.times_s[-1]:.2f} s): lower data.frames or "
                "data.fps (to the file's own rate at most), or leave it out"
            )
            raise Refused(f"{path.name}: {said}") if strict else ValueError(said) from None
        return Loaded(found.frames, found.times_s)

    return load
