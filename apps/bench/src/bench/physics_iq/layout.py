"""The official folders: which videos belong together, and what is wrong with them. Nothing is renamed or written.

Real: `NNNN_testing-videos_{fps}FPS_{view}_take-{1,2}_{scenario}.mp4`, in the folder named or below it where the
download puts them (`split-videos/testing/{fps}FPS`). Generated: `NNNN_{anything}.mp4`, NNNN that of take 1. Fewer
scenarios than the 66 are a subset, which is scored as such; a scenario of which views are missing is not.

What surprises: models of 4n + 1 frames give 81 frames for 5 s at 16 fps. Up to three frames more than wanted are left
out with a note (the official script refuses them); more than that is taken for a clip that still has its condition.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from trainers import show, video

__all__ = ["Problem", "Survey", "View", "categories", "official_name", "survey"]

FILMED_FPS = 30
SECONDS = 5.0
SURPLUS = 3  # frames: what 4n + 1 may give too many; our choice
RATE = 5e-4  # relative: tells 29.97 fps from 30
ASPECT = 0.03  # relative: above it a note says that pictures are squashed; our choice
REAL = re.compile(r"(\d{4})_testing-videos_(\d+)FPS_(perspective-[a-z]+)_take-([12])_([^_]+)\.mp4")
MADE = re.compile(r"(\d{4})_.+\.mp4")
BELOW = ("", "split-videos/testing", "split-videos/testing-videos", "testing", "testing-videos")


Shot = Mapping[tuple[str, str, str], tuple[str, Path]]
"""Number and file of each real video, by scenario, view and take."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, or with a folder."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class View:
    """One side of one scenario: both real takes and the generated video, of number `number`."""

    number: str
    scenario: str
    view: str
    category: str
    take_1: Path
    take_2: Path
    generated: Path


@dataclass(frozen=True)
class Survey:
    """What can be scored, and what is in the way.

    `frames` of each generated clip are compared; `filmed` is None where the real ones have the wanted rate, else how
    many of their frames at 30 fps are blended into as many.
    """

    views: tuple[View, ...]
    fps: float | int
    frames: int
    filmed: int | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def scenarios(self) -> int:
        """How many scenarios the views are of."""
        return len({view.scenario for view in self.views})


@dataclass(frozen=True)
class _File:
    path: Path
    times_s: np.ndarray
    height: int
    width: int

    @property
    def fps(self) -> float:
        return float((len(self.times_s) - 1) / (self.times_s[-1] - self.times_s[0])) if len(self.times_s) > 1 else 0.0


@cache
def categories() -> Mapping[str, str]:
    """Category of each official scenario, in the official order."""
    with files("bench.physics_iq").joinpath("scenarios.csv").open(encoding="utf-8") as file:
        return {row["scenario"]: row["category"] for row in csv.DictReader(file)}


def official_name(view: View) -> str:
    """The name that the official script gives a generated video: `{number}_{view}_{scenario}.mp4`."""
    return f"{view.number}_{view.view}_{view.scenario}.mp4"


def survey(
    real: Path, generated: Path, *, fps: float | int | None = None, seconds: float | int = SECONDS, quiet: bool = False
) -> Survey:
    """Look through both folders and list all that keeps them from being scored.

    `fps` None: the rate of the generated videos. ValueError only where there is nothing to look at.
    """
    if not generated.is_dir():
        raise ValueError(f"expected a folder of generated videos, got {generated}")
    problems: list[Problem] = []
    made = _numbered(generated, problems)
    if not made:
        raise ValueError(f"expected videos named NNNN_ANYTHING.mp4 in {generated}, found none")
    opened = _open(made.values(), problems, quiet=quiet, label="generated videos")
    if fps is None:
        if not opened:
            raise ValueError(f"{generated} holds no readable video: {problems[0]}")
        fps = Counter(round(file.fps, 3) for file in opened.values()).most_common(1)[0][0]
        fps = round(fps) if abs(fps - round(fps)) < 1e-3 else fps
    frames = round(seconds * fps)
    if frames < 2 or abs(frames - seconds * fps) > 1e-6:
        raise ValueError(f"expected a whole number of frames, two or more, got {seconds:g} s at {fps:g} fps")
    shot, filmed, folder = _real(real, fps, seconds)
    views, wanted = _together(shot, made, problems, folder)
    notes = _check_made(opened, fps, frames, problems)
    takes = [path for view in views for path in (view.take_1, view.take_2)]
    filmed_at, needed = (fps, frames) if filmed is None else (FILMED_FPS, filmed)
    known = _open(takes, problems, quiet=quiet, label="real videos")
    notes += _check_real(views, known, opened, filmed_at, needed, problems)
    if filmed is not None:
        notes.append(f"real videos at {fps:g} fps are blended from {FILMED_FPS} fps in memory")
    missing = len(categories()) - len(wanted)
    if missing and wanted <= set(categories()):
        notes.append(f"{len(wanted)} of the {len(categories())} scenarios: a subset, no number for the board")
    return Survey(tuple(views), fps, frames, filmed, tuple(problems), tuple(notes))


def _numbered(folder: Path, problems: list[Problem]) -> dict[str, Path]:
    """Generated videos by number."""
    made: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = MADE.fullmatch(path.name)
        if not match:
            problems.append(Problem(path.name, "expected only videos named NNNN_ANYTHING.mp4: move it elsewhere"))
        elif match[1] in made:
            problems.append(Problem(path.name, f"number {match[1]} is {made[match[1]].name} already"))
        else:
            made[match[1]] = path
    return made


def _real(root: Path, fps: float | int, seconds: float | int) -> tuple[Shot, int | None, Path]:
    """Real videos by (scenario, view, take) with their numbers; how many frames are to be blended; their folder."""
    if not root.is_dir():
        raise ValueError(f"expected the folder of the real videos, got {root}")
    for rate in dict.fromkeys((int(fps), FILMED_FPS)):
        for folder in (root / below / part for below in BELOW for part in ("", f"{rate}FPS")):
            found = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                match = REAL.fullmatch(path.name)
                if match and int(match[2]) == rate:
                    found[match[5], match[3], match[4]] = (match[1], path)
            if found:
                return found, None if rate == fps else int(seconds * FILMED_FPS + 1e-9), folder
    raise ValueError(
        f"expected videos NNNN_testing-videos_{int(fps)}FPS_VIEW_take-N_SCENARIO.mp4 (or {FILMED_FPS}FPS) in {root} or "
        f"split-videos/testing below it, found none"
    )


def _together(
    shot: Shot,
    made: Mapping[str, Path],
    problems: list[Problem],
    folder: Path,
) -> tuple[list[View], set[str]]:
    """The views that are whole, and the scenarios that were meant."""
    by_number = {number: (scenario, view) for (scenario, view, take), (number, _) in shot.items() if take == "1"}
    for number, path in made.items():
        if number not in by_number:
            problems.append(Problem(path.name, f"no take 1 of number {number} in {folder}: not part of the benchmark"))
    wanted = {by_number[number][0] for number in made if number in by_number}
    sides = sorted({view for _, view, _ in shot})
    views = []
    for scenario, side in sorted((s, v) for s in wanted for v in sides):
        missing = [take for take in ("1", "2") if (scenario, side, take) not in shot]
        problems += [Problem(f"{side}_take-{take}_{scenario}", f"missing in {folder}") for take in missing]
        if missing:
            continue
        number, first = shot[scenario, side, "1"]
        if number not in made:
            problems.append(Problem(f"{number}_{side}_{scenario}.mp4", "missing: a scenario needs all its views"))
            continue
        category = categories().get(scenario, "none")
        views.append(View(number, scenario, side, category, first, shot[scenario, side, "2"][1], made[number]))
    return sorted(views, key=lambda view: view.number), wanted


def _open(paths: Iterable[Path], problems: list[Problem], *, quiet: bool, label: str) -> dict[Path, _File]:
    """Header, all packets and the first frame of each file."""
    known: dict[Path, _File] = {}
    for path in show.track(list(paths), f"look through {label}", quiet=quiet):
        times: list[np.ndarray] = []

        def first(times_s: np.ndarray, kept: list[np.ndarray] = times) -> np.ndarray:
            kept.append(times_s)
            return np.array([0])

        try:
            picture = video.choose(path, first, decoder="pyav").frames[0]
        except ValueError as error:
            problems.append(Problem(path.name, str(error).removeprefix(f"{path} ")))
            continue
        known[path] = _File(path, times[-1], *picture.shape[:2])
    return known


def _check_made(opened: Mapping[Path, _File], fps: float | int, frames: int, problems: list[Problem]) -> list[str]:
    size = Counter((file.width, file.height) for file in opened.values()).most_common(1)[0][0] if opened else (0, 0)
    longer: Counter[int] = Counter()
    for path, file in opened.items():
        have = len(file.times_s)
        if not _right_rate(file, fps):
            problems.append(Problem(path.name, f"expected {fps:g} fps, got {file.fps:.6g}"))
        elif have < frames:
            problems.append(Problem(path.name, f"expected {frames} frames, got {have}: it is cut short"))
        elif have > frames + SURPLUS:
            problems.append(Problem(path.name, f"expected {frames} frames, got {have}: leave out what was given"))
        elif have > frames:
            longer[have] += 1
        if (file.width, file.height) != size:
            problems.append(
                Problem(path.name, f"expected {size[0]} x {size[1]} as the others, got {file.width} x {file.height}")
            )
    return [
        f"{many} generated videos of {have} frames: the first {frames} count (the official script wants them cut)"
        for have, many in sorted(longer.items())
    ]


def _check_real(
    views: list[View],
    known: Mapping[Path, _File],
    opened: Mapping[Path, _File],
    fps: float | int,
    frames: int,
    problems: list[Problem],
) -> list[str]:
    squashed = 0
    for view in views:
        takes = [known[path] for path in (view.take_1, view.take_2) if path in known]
        for file in takes:
            if not _right_rate(file, fps):
                problems.append(Problem(file.path.name, f"expected {fps:g} fps, got {file.fps:.6g}"))
            if len(file.times_s) < frames:
                problems.append(
                    Problem(file.path.name, f"expected {frames} frames, got {len(file.times_s)}: it is cut short")
                )
            if min(file.height, file.width) < 4:
                problems.append(Problem(file.path.name, "expected at least 4 px on each side"))
        if len({(file.width, file.height) for file in takes}) > 1:
            problems.append(Problem(view.take_2.name, "its size is not that of take 1"))
        if takes and view.generated in opened:
            mine = opened[view.generated]
            squashed += abs(mine.width * takes[0].height / (mine.height * takes[0].width) - 1) > ASPECT
    return [f"{squashed} generated videos have another aspect than the real ones: squashed to fit"] if squashed else []


def _right_rate(file: _File, fps: float | int) -> bool:
    return abs(file.fps - fps) <= RATE * fps
