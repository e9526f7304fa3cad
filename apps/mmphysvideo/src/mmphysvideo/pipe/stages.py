"""The stages of one file: shots, then for each clip filters, evidence, perception, checks, render; each written once.

A stage's result is a file that appears whole, with a key made of the file's content, the settings of this stage and the
key of the stage before. A run that is killed finds what is done and makes the rest; a changed setting makes anew what
depends on it and nothing else. Every clip ends in one of three ways, with a reason: kept, dropped (by a rule, for
good), failed (something did not answer; tried again by the next run).
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from mmphysvideo.perception import Perception, Space, Tracks
from mmphysvideo.pipe import filters, shots
from mmphysvideo.pipe.consistency import checked
from mmphysvideo.pipe.evidence import Evidence, NoEvidence, supported
from mmphysvideo.pipe.experts import Crew, observe, testimony
from mmphysvideo.pipe.rules import Rules
from mmphysvideo.pipe.seen import Seen
from mmphysvideo.pipe.settings import Settings
from mmphysvideo.pipe.sheet import strip
from mmphysvideo.pseudo import encode
from trainers import video
from trainers.atomic import write_bytes, write_text

__all__ = ["ITEMS", "Source", "Watch", "process", "slug"]

SCHEMA = 1
"""Raised when what a stage writes changes its meaning."""
ITEMS = "items"
CLIPS = "clips"
Watch = Callable[[str, str], None]
"""Called with (clip, stage) when a stage has been made and is on disk."""


@dataclass(frozen=True)
class Source:
    """One video file: its id (its path in the pool), where it lies, and what its record says of it."""

    id: str
    path: Path
    caption: str = ""
    noted: Mapping[str, Any] = field(default_factory=dict)


def slug(id_: str) -> str:
    """A file name for an id: readable, safe, and of no other id.

    >>> slug("a/../b c.mp4")
    'b_c-f49bcee3'
    """
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", Path(id_).stem).strip("_")[:40] or "clip"
    return f"{stem}-{hashlib.sha256(id_.encode()).hexdigest()[:8]}"


def process(source: Source, out: Path, settings: Settings, crew: Crew, watch: Watch | None = None) -> dict[str, Any]:
    """Take one file through all stages; returns what became of it, which also lies under `items` (`there`: it did)."""
    name = slug(source.id)
    place = out / ITEMS / f"{name}.json"
    outcome: dict[str, Any] = {"id": source.id, "clips": [], "why": ""}
    try:
        with source.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        key = _digest(content, settings.model_dump(mode="json"), crew.names, source.caption)
        if (known := _read(place)) is not None and known.get("key") == key and not _failed(known):
            return known | {"there": True}
        outcome |= {"key": key, "content": content}
        work = _Work(source, name, out, settings, crew, watch or (lambda _clip, _stage: None))
        outcome["clips"] = work.clips(content)
        if not outcome["clips"]:
            outcome["why"] = f"no shot has {settings.cut.least_frames} frames at {settings.cut.fps:g} fps"
    except (ValueError, OSError) as error:
        outcome |= {"why": " ".join(str(error).split())[:500], "failed": True}
    write_text(place, json.dumps(outcome, indent=1))
    return outcome


def _failed(outcome: Mapping[str, Any]) -> bool:
    return bool(outcome.get("failed")) or any(clip["status"] == "failed" for clip in outcome["clips"])


@dataclass
class _Work:
    source: Source
    name: str
    out: Path
    settings: Settings
    crew: Crew
    watch: Watch

    def clips(self, content: str) -> list[dict[str, Any]]:
        s, path = self.settings, self.source.path
        key = _digest(SCHEMA, content, s.cut.model_dump(mode="json"))

        def found() -> list[Any]:
            header = video.probe(path)
            size = header.height, header.width
            return [vars(c) for shot in shots.shots_of(path, s.cut) for c in shots.clips_of(shot, size, s.cut)]

        listed = self._stage(self.name, "shots", key, found)
        return [_Clip(self, f"{self.name}/{k:03d}", shots.Clip(**c)).outcome(key, c) for k, c in enumerate(listed)]

    def _stage(self, clip: str, stage: str, key: str, make: Callable[[], Any]) -> Any:
        """The result of a stage: read when it is there with this key, made and written otherwise."""
        path = self.out / CLIPS / clip / f"{stage}.json"
        if (known := _read(path)) is not None and known.get("key") == key:
            return known["value"]
        value = make()
        write_text(path, json.dumps({"key": key, "value": value}, indent=1))
        self.watch(clip, stage)
        return value


@dataclass
class _Clip:
    work: _Work
    name: str
    cut: shots.Clip

    @cached_property
    def seen(self) -> Seen:
        decoded = shots.load(self.work.source.path, self.cut)
        return Seen(self.name, decoded.frames, decoded.times_s, self.work.settings.subjects)

    def outcome(self, key: str, cut: dict[str, Any]) -> dict[str, Any]:
        """Take the clip through its stages."""
        s, crew, work = self.work.settings, self.work.crew, self.work
        told: dict[str, Any] = {"clip": self.name, "file": work.source.id, "start_s": cut["start_s"], "fps": cut["fps"]}

        key = _digest(key, cut, s.bounds.model_dump(mode="json"))
        passed = work._stage(self.name, "filters", key, self._filtered)
        told["measures"] = passed["measures"]
        if passed["why"]:
            return self._end(told, key, "dropped", "filters", passed["why"])

        key = _digest(key, s.witness.model_dump(mode="json"), crew.names["witness"], s.subjects)
        try:
            heard = work._stage(self.name, "evidence", key, self._heard)
        except NoEvidence as error:
            return told | {"status": "failed", "stage": "evidence", "why": str(error)}
        told |= {k: heard[k] for k in ("witness", "instead", "struck")}
        if heard["why"]:
            return self._end(told, key, "dropped", "evidence", heard["why"])

        key = _digest(
            key, s.experts.model_dump(mode="json"), [crew.names[k] for k in ("segmenter", "tracker", "depth")]
        )
        work._stage(self.name, "perception", key, lambda: self._perceived(heard))

        key = _digest(key, s.checks.model_dump(mode="json"))
        agreed = work._stage(self.name, "checks", key, self._checked)
        told["checks"] = agreed["checks"]
        if agreed["why"]:
            return self._end(told, key, "dropped", "checks", agreed["why"])

        key = _digest(key, s.modality, s.seed, work.source.caption, "a caption wins over the rules")
        told |= work._stage(self.name, "render", key, lambda: self._rendered(heard))
        return told | {"status": "kept", "stage": "render", "why": ""}

    def _end(self, told: dict[str, Any], key: str, status: str, stage: str, why: str) -> dict[str, Any]:
        self.work._stage(self.name, "strip", key, lambda: self._strip(None))
        return told | {"status": status, "stage": stage, "why": why}

    def _filtered(self) -> dict[str, Any]:
        measures = filters.measure(self.seen.frames)
        return {"measures": vars(measures), "why": filters.refuse(measures, self.work.settings.bounds)}

    def _heard(self) -> dict[str, Any]:
        s = self.work.settings
        evidence, by, instead = testimony(self.seen, self.work.crew, fallback=s.witness.fallback)
        kept, struck, why = supported(evidence, self.seen.frames, most=s.subjects)
        evidence = evidence.model_copy(update={"subjects": kept})
        said = {"evidence": evidence.model_dump(mode="json"), "witness": by, "instead": instead}
        return said | {"struck": [list(one) for one in struck], "why": why}

    def _perceived(self, heard: dict[str, Any]) -> dict[str, Any]:
        subjects = Evidence.model_validate(heard["evidence"]).subjects
        perception = observe(self.seen, subjects, self.work.crew)
        tensors = {
            "masks": perception.masks,
            "position": perception.tracks.position,
            "visible": perception.tracks.visible,
            "subject": perception.tracks.subject,
        }
        if perception.space.focal_px is not None:
            tensors["points"] = perception.points
        write_bytes(
            self._file("perception.safetensors"), save({k: np.ascontiguousarray(v) for k, v in tensors.items()})
        )
        return {"space": vars(perception.space), "subjects": list(perception.subjects)}

    @cached_property
    def _perception(self) -> Perception:
        about = json.loads(self._file("perception.json").read_text())["value"]
        t = load_file(self._file("perception.safetensors"))
        space = about["space"]
        bounds = Space(tuple(space["low"]), tuple(space["high"]), space["focal_px"])
        tracks = Tracks(t["position"], t["visible"], t["subject"])
        points = t.get("points")
        if points is None:
            from mmphysvideo.perception import planar_points

            points = planar_points(*t["masks"].shape)
        return Perception(t["masks"], points, tracks, bounds, tuple(about["subjects"]))

    def _checked(self) -> dict[str, Any]:
        _, found, why = checked(self._perception, self.work.settings.checks)
        return {"checks": found, "why": why}

    def _rendered(self, heard: dict[str, Any]) -> dict[str, Any]:
        s, evidence = self.work.settings, Evidence.model_validate(heard["evidence"])
        kept, _, _ = checked(self._perception, s.checks)
        seed = int.from_bytes(hashlib.sha256(f"{s.seed} {self.name}".encode()).digest()[:4], "big")
        pseudo = encode(kept, s.modality, seed=seed)
        seen = self.seen
        video.write(self._file("rgb.mp4"), seen.frames, self.cut.fps, times_s=seen.times_s)
        video.write(self._file("perception.mp4"), pseudo.frames, self.cut.fps, lossless=True, times_s=seen.times_s)
        write_bytes(self._file("strip.png"), strip(seen.frames, kept, pseudo))
        # rules write poorer captions than a person, a model sees this clip and not the whole film
        said = (self.work.source.caption, evidence.caption)
        caption = next(filter(None, said if heard["witness"] == Rules.name else said[::-1]), ", ".join(kept.subjects))
        names = [s.model_dump(mode="json") for s in evidence.subjects if s.name in kept.subjects]
        return {
            "path": f"{CLIPS}/{self.name}/rgb.mp4",
            "perception": f"{CLIPS}/{self.name}/perception.mp4",
            "tensors": f"{CLIPS}/{self.name}/perception.safetensors",
            "coding": pseudo.about,
            "caption": caption,
            "source_caption": self.work.source.caption,
            "process": evidence.process,
            "camera_motion": evidence.camera_motion,
            "subjects": names,
            "frames": len(seen.frames),
            "height": seen.frames.shape[1],
            "width": seen.frames.shape[2],
        }

    def _strip(self, _: None) -> None:
        write_bytes(self._file("strip.png"), strip(self.seen.frames, None, None))

    def _file(self, name: str) -> Path:
        return self.work.out / CLIPS / self.name / name


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _read(path: Path) -> dict[str, Any] | None:
    """A stage's file; None where there is none, or none that can be read (it is then made again)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
