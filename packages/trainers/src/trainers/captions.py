"""Captions for clips that have none: what a model says of a few of their frames, kept in a table that people can edit.

The table is `captions.json` in the folder of the clips (`read_records` finds it there) or lies where one says: a list
of records, those that the source has and the new ones, each new one with `caption_by`, the name of who wrote it. A
caption that is there is never written over, so that a changed one stays, and a run that was stopped goes on: the table
appears anew, by rename, every few seconds. A clip that cannot be read, or of which nothing is said, is listed and asked
for again by the next run.

A caption should tell what training sees of a clip, which is its beginning: `seconds` bounds what is looked at.
"""

import json
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from . import show, video
from .atomic import write_text
from .decode import choose
from .records import caption_in, inside, path_in, raw_records, table_in
from .tables import Skipped

__all__ = ["BY", "FILE", "NAMES", "Captioned", "fill", "from_name"]

FILE = "captions.json"
BY = "caption_by"
NAMES = "file name"
"""Who wrote a caption that is a file's name."""
LONG_SIDE = 448
"""Pixels of a picture's longer side that a model is shown: our choice."""
LONGEST = 1000
"""Characters of a caption."""
GIVE_UP = 3
"""Clips in a row without an answer, after which no more are asked about: our choice."""
KEEP_S = 10.0
"""A kill loses no more seconds of captions than this."""

Say = Callable[[Path, UInt8[np.ndarray, "n h w 3"]], str]
"""Says what the frames of a clip show; a ValueError leaves the clip without."""


@dataclass(frozen=True)
class Captioned:
    """What became of a source: how many clips had a caption, got one, and did not; and where the table lies."""

    there: int
    made: int
    skipped: tuple[Skipped, ...]
    path: Path


def fill(
    source: str | Path,
    say: Say,
    by: str,
    *,
    root: str | Path | None = None,
    out: str | Path | None = None,
    frames: int = 8,
    seconds: float | None = None,
    quiet: bool = False,
) -> Captioned:
    """Let `say` write the captions that the clips of a folder or of a table lack; `by` names it.

    `frames` pictures are shown, spread evenly over the clip's first `seconds` (none: over all of it); with 0 none is
    read, for a `say` that looks at the path alone. `root` as in `read_records`. ValueError for a source without clips,
    and for a table of which nobody says where the filled one shall lie (`out`).
    """
    source, listed = Path(source), set[str]()
    home = Path(root or (source if source.is_dir() else source.parent)).resolve()
    table = table_in(source) if source.is_dir() else source
    if table is not None and table.stem == "captions" and source.is_dir():
        listed = {str(path_in(raw)) for raw in raw_records(table) if isinstance(raw, dict)}
    elif table is not None and out is None:
        raise ValueError(f"expected --out FILE.json for the captions of {table}: that table is not written over")
    place = Path(out) if out is not None else source / FILE
    if place.suffix != ".json":
        raise ValueError(f"expected the name of a .json file for the captions, got {place}")
    earlier = _earlier(place) if out is not None else {}
    whole = out is not None  # a table elsewhere says all, also what texts beside the clips say
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for raw in raw_records(source):
        if isinstance(raw, Skipped):
            skipped.append(raw)
        elif isinstance(raw, dict) and isinstance(path_in(raw), str):
            rows.append(earlier.get(path_in(raw), raw) if _lacks(raw) else raw)
        else:
            skipped.append(Skipped("a record", "it does not name its clip: give it a path"))
    if not rows:
        raise ValueError(f"{source} holds no clips: expected videos, or records that name them")
    lacking = [index for index, row in enumerate(rows) if _lacks(row)]
    made, silent, kept = 0, 0, -KEEP_S  # the first caption is written at once: a folder may be read-only
    try:
        with show.bar("caption", len(lacking), quiet=quiet) as bar:
            for done, index in enumerate(lacking, 1):
                row, name = rows[index], str(path_in(rows[index]))
                try:
                    path = inside(home, name)
                    pictures = _seen(path, frames, seconds)
                except ValueError as error:
                    skipped.append(Skipped(name, str(error)))
                    continue
                try:
                    said = _checked(say(path, pictures))
                except ValueError as error:
                    skipped.append(Skipped(name, str(error)))
                    silent += 1
                    if silent == GIVE_UP:
                        raise ValueError(f"{by} captions none of {silent} clips in a row; the last: {error}") from None
                    continue
                rows[index] = {**{k: v for k, v in row.items() if v not in ("", None)}, "caption": said, BY: by}
                made, silent = made + 1, 0
                bar.update(done)
                if time.monotonic() - kept > KEEP_S:
                    _write(place, rows, whole, listed)
                    kept = time.monotonic()
    finally:
        if made:
            _write(place, rows, whole, listed)
    return Captioned(len(rows) - len(lacking), made, tuple(skipped), place)


def from_name(path: Path, _: Any = None) -> str:
    """Read a file's name as a caption: its words, without separators and numbers.

    >>> from_name(Path("clips/hands_push-blocks 03.mp4"))
    'hands push blocks'
    """
    words = "".join(letter if letter.isalpha() or letter == "'" else " " for letter in path.stem).split()
    if not words:
        raise ValueError("its name has no words")
    return " ".join(words)


def _checked(said: str) -> str:
    text = " ".join(said.split())
    if not 0 < len(text) <= LONGEST:
        raise ValueError(f"expected a caption of 1 to {LONGEST} characters, got {len(text)}")
    return text


def _lacks(raw: dict[str, Any]) -> bool:
    said = caption_in(raw)
    return said is None or (isinstance(said, str) and not said.strip())


def _earlier(place: Path) -> dict[str, dict[str, Any]]:
    """What an earlier run wrote into a table that is not the source itself."""
    if not place.is_file():
        return {}
    found = (row for row in raw_records(place) if isinstance(row, dict) and isinstance(path_in(row), str))
    return {path_in(row): row for row in found if not _lacks(row)}


def _write(place: Path, rows: Sequence[dict[str, Any]], whole: bool, listed: Set[str]) -> None:
    """Write a table: all rows of a table, of a folder those that its own table has and those that were made; a
    `NAME.txt` stays what it is.
    """
    kept = [row for row in rows if whole or BY in row or path_in(row) in listed]
    write_text(place, json.dumps(kept, indent=1, ensure_ascii=False, default=str) + "\n")  # parquet has dates


def _seen(path: Path, frames: int, seconds: float | None) -> UInt8[np.ndarray, "n h w 3"]:
    """Pictures spread evenly over a clip's beginning."""
    if frames < 1:
        return np.zeros((0, 1, 1, 3), np.uint8)

    def picked(times_s: Float64[np.ndarray, " t"]) -> np.ndarray:
        last = len(times_s) if seconds is None else int(np.searchsorted(times_s, seconds + 1e-6))
        return np.unique(np.linspace(0, max(last, 1) - 1, frames).round().astype(int))

    return choose(path, picked, each=_shrunk).frames


def _shrunk(frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t _ _ 3"]:
    height, width = frames.shape[1:3]
    scale = LONG_SIDE / max(height, width)
    if scale >= 1:
        return frames
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pictures = torch.nn.functional.interpolate(video.from_bytes(frames)[0:3].movedim(1, 0), size, mode="area")
    return video.to_bytes(pictures.movedim(0, 1))
