"""The clips that a report shows: one card a prompt, one panel a system, videos that a browser plays.

Cards hold the first items of each group, not the best. What a browser cannot play (lossless RGB, another codec) or what
is large is encoded once more, and a tiny picture is enlarged by pixel copies: at 32 pixels an interpolation's blur
would be read as the model's.
"""

import base64
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.evidence import motion
from bench.results import Item, Result, System, video_path
from trainers import video

VISIBLE = 192
"""Least side of a shown video in pixels (our choice)."""
LARGEST = 480
"""Longer side above which a shown video is encoded smaller (our choice)."""
LARGEST_BYTES = 2_000_000
TINY = 128
PICTURE_TYPES = (".png",)
FILM_TYPES = (".mp4", ".webm")

WORDS = {
    "relerr": "relative error",
    "err": "error",
    "resid": "residual",
    "rms": "deviation",
    "px": "(px)",
    "traj": "path",
    "mom": "momentum",
    "rest": "restitution",
    "perm": "permanence",
    "maxprinc": "new extremes",
    "cv": "changes",
    "dir": "direction",
    "ok": "as told",
    "valid": "readable",
    "off": "off",
    "manifold": "colours",
}
"""Short names of measures in words."""


@dataclass(frozen=True)
class Panel:
    """One video of a card: under its system's name, or one that stands beside a system's (the real clip, masks).

    Its place in the page's data, its score, and the gates that it fails (none: no gates).
    """

    key: str
    name: str
    system: System | None
    width: int
    height: int
    tiny: bool
    figure: str
    failed: tuple[str, ...] | None


@dataclass(frozen=True)
class Picture:
    """A picture beside a clip, as base64."""

    name: str
    data: str


@dataclass(frozen=True)
class Card:
    """One prompt's clips side by side and all their figures."""

    id: str
    group: str
    prompt: str
    panels: tuple[Panel, ...]
    figures: list[tuple[str, list[str]]]
    pictures: tuple[Picture, ...]


def readable(name: str) -> str:
    """Write a measure's name for people.

    >>> readable("traj_rms_px")
    'path deviation (px)'
    """
    return " ".join(WORDS.get(part, part) for part in name.split("_"))


def number(value: float | None) -> str:
    """Write any figure.

    >>> number(0.12345), number(12345.6), number(None)
    ('0.123', '12346', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) < 1e-9:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def cards(folder: Path, result: Result, *, each: int, key: str, videos: dict[str, Any]) -> tuple[list[Card], int]:
    """Choose `each` prompts a group that have videos; put these into `videos` and say how many prompts are left out."""
    systems = sorted(result.systems, key=lambda s: ("system", "floor", "real", "control").index(s.role))
    found: dict[tuple[str, str], dict[str, Item]] = {}
    for system in systems:
        for item in system.items:
            if item.video is not None:
                found.setdefault((item.group, item.id), {}).setdefault(system.name, item)
    chosen, left, counts = [], 0, dict[str, int]()
    for (group, id_), by_system in found.items():
        counts[group] = counts.get(group, 0) + 1
        if counts[group] > each:
            left += 1
            continue
        panels, items = [], []
        for system in systems:
            path = video_path(folder, by_system[system.name]) if system.name in by_system else None
            if path is None:
                continue
            item = by_system[system.name]
            name = f"{key}-{len(videos)}"
            competes = system.role in ("system", "real")  # the others are seldom looked at: no flow is worked out
            videos[name] = playable(path, flow=competes) | {
                k: item.details[k] for k in ("tracks", "series") if k in item.details
            }
            panels.append(_panel(name, system, item, videos[name]))
            items.append(item)
        if panels:
            panels += _beside(folder, [(p.name, i) for p, i in zip(panels, items, strict=True)], key, videos)
            prompt = next((item.prompt for item in items if item.prompt), "")
            pictures = [
                p for panel, item in zip(panels, items, strict=False) for p in _pictures(folder, panel.name, item)
            ]
            chosen.append(Card(id_, group, prompt, tuple(panels), _figures(items), tuple(pictures)))
    return chosen, left


def playable(path: Path, *, flow: bool = True) -> dict[str, Any]:
    """Give a video as base64 of an mp4 that every browser plays, with frames, rate, size and (`flow`) coarse motion.

    ValueError for what does not decode.
    """
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        plays = stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
    decoded = video.read(path)
    frames, fps = decoded.frames, float(decoded.fps)
    height, width = frames.shape[1:3]
    fits = VISIBLE <= max(height, width) <= LARGEST and path.stat().st_size <= LARGEST_BYTES
    as_it_is = plays and fits and path.suffix.lower() == ".mp4"
    content = path.read_bytes() if as_it_is else _encoded(frames, fps)
    moved = np.round(1000 * motion(frames)).astype(int).tolist() if flow and len(frames) > 1 else []
    return {
        "mp4": base64.b64encode(content).decode(),
        "frames": len(frames),
        "fps": round(fps, 4),
        "width": width,
        "height": height,
        "motion": moved,
    }


def _encoded(frames: np.ndarray, fps: float) -> bytes:
    import cv2

    height, width = frames.shape[1:3]
    if max(height, width) > LARGEST:
        factor = LARGEST / max(height, width)
        size = (max(2, round(width * factor)), max(2, round(height * factor)))
        frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    scale = max(1, -(-VISIBLE // max(frames.shape[1:3])))
    with tempfile.TemporaryDirectory() as folder:
        return video.write(Path(folder) / "clip.mp4", frames, fps, scale=scale, crf=18).read_bytes()


def _panel(key: str, system: System, item: Item, shown: Mapping[str, Any]) -> Panel:
    score = next((item.values[name] for name in ("score", "verified", "sa", "value") if name in item.values), None)
    failed = item.details.get("failed")
    side = max(shown["width"], shown["height"])
    return Panel(
        key=key,
        name=system.name,
        system=system,
        width=shown["width"],
        height=shown["height"],
        tiny=bool(item.details.get("tiny", side <= TINY)),
        figure="" if score is None else number(score),
        failed=tuple(readable(str(gate)) for gate in failed) if isinstance(failed, list) else None,
    )


def _figures(items: Sequence[Item]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for item in items for name in item.values)
    return [(readable(name), [number(item.values.get(name)) for item in items]) for name in names]


def _beside(folder: Path, shown: Sequence[tuple[str, Item]], key: str, videos: dict[str, Any]) -> list[Panel]:
    """Give panels of the videos beside those of systems; the same one of several systems (a real clip) once."""
    panels, known = [], dict[str, list[bytes]]()
    films = [
        (system, name, path)
        for system, item in shown
        for name, place in item.pictures.items()
        if (path := video_path(folder, item.model_copy(update={"video": place}))) is not None
        and path.suffix.lower() in FILM_TYPES
    ]
    for (system, name, path), content in zip(films, contents := [p.read_bytes() for *_, p in films], strict=True):
        if content in known.setdefault(name, []):
            continue
        known[name].append(content)
        several = len({c for (_, n, _), c in zip(films, contents, strict=True) if n == name}) > 1
        film = f"{key}-{len(videos)}"
        videos[film] = playable(path, flow=False)
        width, height = videos[film]["width"], videos[film]["height"]
        called = f"{name}: {system}" if several else name
        panels.append(Panel(film, called, None, width, height, max(width, height) <= TINY, "", None))
    return panels


def _pictures(folder: Path, system: str, item: Item) -> list[Picture]:
    found = []
    for name, place in item.pictures.items():
        path = video_path(folder, item.model_copy(update={"video": place}))
        if path is not None and path.suffix.lower() in PICTURE_TYPES:
            found.append(Picture(f"{system}: {name}", base64.b64encode(path.read_bytes()).decode()))
    return found
