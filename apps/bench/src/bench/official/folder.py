"""A folder of videos against a list of prompts: which video is whose, and everything that is wrong.

A video is called by its prompt's number (`0012.mp4`) or caption (spaces as underscores, with or without the full
stop), and where a prompt has several, `_0`, `_1` or `-0`, `-1` follow: these names cover what the authors of VideoPhy,
VBench and PhyGenBench use. Every video is decoded to its end. Nothing is renamed, moved or written.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.official import tables
from bench.official.prompts import Prompt, PromptList

SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif")
RATE_TOLERANCE = 0.005
"""29.97 and 30 differ by .1 %, 24 and 25 by 4 %; our choice."""


@dataclass(frozen=True)
class Film:
    """What a video is once it is decoded."""

    width: int
    height: int
    frames: int
    fps: float | int


@dataclass(frozen=True)
class Clip:
    """A video, whose it is, and which of its prompt's videos (0, 1, ...)."""

    path: Path
    prompt: Prompt
    sample: int
    film: Film | None = None


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what it is about."""

    kind: str
    name: str
    text: str


@dataclass(frozen=True)
class Wanted:
    """What every video should be; where nothing is said, what most of them are, unless they need not be `alike`."""

    samples: int = 1
    fps: float | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    alike: bool = True


def check(
    folder: Path,
    prompts: PromptList,
    wanted: Wanted,
    *,
    manifest: Path | None = None,
    seen: Callable[[], object] = lambda: None,
) -> tuple[list[Clip], list[Problem]]:
    """Match and decode the videos of a folder; return the sound ones in the order of the prompts, and the problems.

    `manifest` is a csv with columns videopath and caption, for videos under other names. `seen` is called for each
    video that has been decoded.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder of videos, got {folder}")
    matched, problems = _listed(folder, prompts, manifest) if manifest else _named(folder, prompts)
    clips: list[Clip] = []
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:  # decoding leaves Python's lock
        for clip, film in zip(matched, pool.map(lambda clip: _decoded(clip.path), matched), strict=True):
            seen()
            if isinstance(film, Film):
                clips.append(Clip(clip.path, clip.prompt, clip.sample, film))
            else:
                problems.append(Problem("unreadable", clip.path.name, film))
    clips, odd = _uniform(clips, wanted) if wanted.alike else (clips, [])
    clips, miscounted = _counted(clips, prompts, wanted.samples)
    return clips, problems + odd + miscounted


def names_of(folder: Path) -> list[Path]:
    """List the videos of a folder by name; hidden files and what is no video are passed over."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def owner(stem: str, prompts: PromptList) -> tuple[Prompt, int] | None:
    """Tell whose video a name means, and which of its videos.

    >>> from bench.official.prompts import load
    >>> prompt, sample = owner("Honey_diffusing_into_warm_milk_1", load("videophy"))
    >>> prompt.caption, sample
    ('Honey diffusing into warm milk.', 1)
    """
    stem = unicodedata.normalize("NFC", stem)
    if prompt := prompts.by_name.get(stem):
        return prompt, 0
    parts = re.fullmatch(r"(.+)[-_]([0-9]{1,4})", stem)
    if parts and (prompt := prompts.by_name.get(parts[1])):
        return prompt, int(parts[2])
    return None


def _named(folder: Path, prompts: PromptList) -> tuple[list[Clip], list[Problem]]:
    clips, problems = [], []
    for path in names_of(folder):
        found = owner(path.stem, prompts)
        if found is None:
            problems.append(Problem("extra", path.name, f"belongs to no prompt of {prompts.name}"))
        else:
            clips.append(Clip(path, *found))
    return _ordered(clips), problems


def _listed(folder: Path, prompts: PromptList, manifest: Path) -> tuple[list[Clip], list[Problem]]:
    clips: list[Clip] = []
    problems: list[Problem] = []
    times: Counter[str] = Counter()
    for row in tables.records(manifest, "videopath", "caption"):
        path, prompt = tables.inside(folder, row["videopath"]), prompts.by_caption.get(row["caption"])
        if prompt is None:
            problems.append(Problem("extra", row["videopath"], f"its caption is not in {prompts.name}"))
        elif not path.is_file():
            problems.append(Problem("missing", row["videopath"], "is listed and not there"))
        else:
            clips.append(Clip(path, prompt, times[prompt.caption]))
            times[prompt.caption] += 1
    listed = {clip.path.resolve() for clip in clips}
    problems += [
        Problem("extra", p.name, f"is not in {manifest.name}") for p in names_of(folder) if p.resolve() not in listed
    ]
    return _ordered(clips), problems


def _ordered(clips: Iterable[Clip]) -> list[Clip]:
    return sorted(clips, key=lambda clip: (clip.prompt.number, clip.sample, clip.path.name))


def _decoded(path: Path) -> Film | str:
    """Decode a video to its end, keeping no picture; a sentence where that fails."""
    from trainers import video
    from trainers.decode import choose

    shapes: set[tuple[int, ...]] = set()

    def corner(frames: np.ndarray) -> np.ndarray:
        shapes.add(frames.shape[1:3])
        return frames[:, :1, :1]

    try:
        decoded = choose(path, lambda times_s: np.arange(len(times_s)), each=corner)
    except video.VideoError as error:
        return str(error).removeprefix(f"{path} ").split("; replace")[0].split(": replace")[0]
    if len(shapes) > 1:
        return "changes its picture size midway"
    height, width = shapes.pop()
    return Film(width, height, len(decoded.frames), decoded.fps)


def _uniform(clips: Sequence[Clip], wanted: Wanted) -> tuple[list[Clip], list[Problem]]:
    """Take out videos whose size, rate or length is not that asked for, or not that of most of them."""
    if not clips:
        return [], []
    films = [clip.film for clip in clips if clip.film]
    size = wanted.size or Counter((f.width, f.height) for f in films).most_common(1)[0][0]
    fps = wanted.fps or Counter(round(f.fps, 2) for f in films).most_common(1)[0][0]
    frames = wanted.frames or Counter(f.frames for f in films).most_common(1)[0][0]
    whose = ["as asked" if asked else "as most" for asked in (wanted.size, wanted.fps, wanted.frames)]
    kept, problems = [], []
    for clip in clips:
        film = clip.film
        assert film is not None
        wrong: list[tuple[str, str]] = []
        if (film.width, film.height) != size:
            wrong.append(("size", f"expected {size[0]}x{size[1]} {whose[0]}, got {film.width}x{film.height}"))
        if abs(film.fps - fps) > RATE_TOLERANCE * fps:
            wrong.append(("rate", f"expected {fps:g} fps {whose[1]}, got {film.fps:.4g}"))
        if film.frames != frames:
            wrong.append(("length", f"expected {frames} frames {whose[2]}, got {film.frames}"))
        problems += [Problem(kind, clip.path.name, what) for kind, what in wrong]
        if not wrong:
            kept.append(clip)
    return kept, problems


def _counted(clips: Sequence[Clip], prompts: PromptList, samples: int) -> tuple[list[Clip], list[Problem]]:
    """Keep `samples` videos of each prompt, and name prompts with fewer and videos beyond them."""
    have: defaultdict[int, list[Clip]] = defaultdict(list)
    for clip in clips:
        have[clip.prompt.number].append(clip)
    kept, problems = [], []
    for prompt in prompts.prompts:
        mine = have[prompt.number]
        if len(mine) < samples:
            lack = "no sound video" if not mine else f"{len(mine)} sound videos of {samples}"
            problems.append(Problem("missing", prompt.id, f"{lack} for {prompt.caption!r}"))
        kept += mine[:samples]
        problems += [
            Problem("extra", clip.path.name, f"is one more than the {samples} of prompt {prompt.id}")
            for clip in mine[samples:]
        ]
    return kept, problems


def written(problems: Sequence[Problem]) -> str:
    """Write problems as a csv for people."""
    return tables.table(("problem", "name", "what"), [(p.kind, p.name, p.text) for p in problems])
