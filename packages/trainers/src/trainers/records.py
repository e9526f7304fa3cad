"""Records: which clips there are, what they show, and which were left out and why.

Read from a folder of videos (captions from `NAME.txt` beside each, or from a table in it such as `captions.json` or
`metadata.csv`), or from a table: a JSON list, JSON `{"data": [...]}`, JSONL, CSV, parquet (see `tables`). A table of
captions need not name every video of its folder; what another table does not name is no clip. Known columns: {path |
file | video_path | video | file_name, caption | captions | ..., id, labels, source, ...}; a WISA-80K training record
{file, captions, physical_annotation: {phys_law, q0..q4, ...}}; a WISA test record {en_caption, phys_law, q0..q4, ...}
with `file` or `video_path` added. What the annotation says is kept raw: which label it means is the business of whoever
trains.

Paths are relative to the folder of the file that names them (or to `root`) and may not leave it, by `..`, by an
absolute path or by a link. A record that cannot be used is skipped and listed; only when nothing is left is that an
error.
"""

import json
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from .config import Config
from .tables import SUFFIXES, Skipped, rows

__all__ = [
    "VIDEOS",
    "Filters",
    "Record",
    "Skipped",
    "caption_in",
    "count_records",
    "inside",
    "list_skipped",
    "number",
    "path_in",
    "raw_records",
    "read_records",
    "table_in",
]

VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v")
_PATH_KEYS = ("path", "file", "video_path", "video", "file_name")
_CAPTION_KEYS = ("caption", "captions", "en_caption", "text", "prompt")
_ANNOTATION_KEYS = (
    "phys_law",
    "q0",
    "q1",
    "q2",
    "q3",
    "q4",
    "n0",
    "n1",
    "n2",
    "quantify_n0",
    "quantify_n1",
    "quantify_n2",
)
_LISTS = tuple(f"{stem}{suffix}" for stem in ("annotations", "captions", "records", "metadata") for suffix in SUFFIXES)
_SHORT = reprlib.Repr()  # a hostile value may be as large, or as deep, as its file
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlevel = 80, 80, 3


@dataclass(frozen=True)
class Record:
    """One clip. `annotation` holds phys_law, q0..q4 and the like as they came; `labels` the record's own labels, if it
    names any; `extra` every other key. `source` is the film that it was cut from: what the record says under that name,
    else its path as it is written."""

    path: Path
    caption: str
    annotation: dict[str, Any]
    labels: tuple[str, ...]
    id: str
    extra: dict[str, Any] = field(default_factory=dict)
    source: str = ""


class Filters(Config):
    """Bounds on what a record says of its clip, both included; all off. An upper bound of None is no bound.

    WISA-80K's own loader keeps clips of 3 s and more, 720 to 3000 px wide, with at most one box of text:
    `Filters(duration_s=(3, None), width_px=(720, 3000), text_boxes=1)`. A record that does not state the quantity
    passes.
    """

    duration_s: tuple[float, float | None] | None = None
    width_px: tuple[int, int | None] | None = None
    text_boxes: int | None = Field(default=None, ge=0)

    def refuse(self, raw: Mapping[str, Any]) -> str | None:
        """Return why a raw record is left out, None when it stays."""
        boxes = None if self.text_boxes is None else (0, self.text_boxes)
        for key, bound in (("duration", self.duration_s), ("width", self.width_px), ("text_bbox_num", boxes)):
            if bound is None or raw.get(key) is None:
                continue
            low, high = bound[0], math.inf if bound[1] is None else bound[1]
            value = number(raw, key)
            if value is None or not low <= value <= high:
                return f"{key} is {_SHORT.repr(raw[key])}, wanted {low:g} to {high:g}"
        return None


def number(raw: Mapping[str, Any], key: str) -> float | None:
    """Return what a record says under `key` as a number, from text too (a CSV holds nothing else); None where it is
    none.

    >>> number({"width": "1280"}, "width"), number({"width": True}, "width"), number({}, "width")
    (1280.0, None, None)
    """
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def read_records(
    source: str | Path, *, root: str | Path | None = None, filters: Filters | None = None
) -> tuple[list[Record], list[Skipped]]:
    """Read every record of a folder or of a table (JSON, JSONL, CSV, parquet); ValueError when none can be used.

    The clips themselves are not opened (see `video.read`), only looked for.
    """
    source = Path(source)
    raws = raw_records(source)
    home = Path(root or (source if source.is_dir() else source.parent))
    records: dict[str, Record] = {}
    skipped = []
    home = home.resolve()
    filters = filters or Filters()
    for index, raw in enumerate(raws):
        if isinstance(raw, Skipped):
            skipped.append(raw)
            continue
        try:
            record = _record(raw, home, filters)
            if record.id in records:
                raise ValueError(f"another record has the same id {_SHORT.repr(record.id)}")
            records[record.id] = record
        except (ValueError, RecursionError) as error:
            named = next((raw[key] for key in _PATH_KEYS if raw.get(key)), None) if isinstance(raw, dict) else None
            what = f"record {index}" if named is None else named if isinstance(named, str) else _SHORT.repr(named)
            skipped.append(Skipped(what[:300], str(error)[:500]))
    if not records and not skipped:
        raise ValueError(f"{source} holds no clips: expected {', '.join(VIDEOS)} files, or records that name them")
    if not records:
        first = "; ".join(f"{item.path}: {item.why}" for item in skipped[:3])
        raise ValueError(f"none of the {len(skipped)} records of {source} can be used ({first})")
    return list(records.values()), skipped


def count_records(source: str | Path, *, root: str | Path | None = None) -> int:
    """Count the records of a source that can be read; 1 where there is none on this machine, for plans."""
    return len(read_records(source, root=root)[0]) if Path(source).exists() else 1


def list_skipped(path: str | Path, skipped: Iterable[Skipped]) -> None:
    """Add what was left out to a report, a JSON line each; what it already says is not said again.

    Several processes may share a report: a line is written at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    said = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    with path.open("a", encoding="utf-8") as file:
        for item in skipped:
            if (line := json.dumps(asdict(item))) not in said:
                file.write(f"{line}\n")
                file.flush()
                said.add(line)


def raw_records(source: Path) -> Iterator[Any]:
    """The rows of a folder or of a table as they came, with a caption or without; ValueError where neither is there."""
    if source.is_dir():
        return _folder(source)
    if source.is_file():
        return rows(source)
    raise ValueError(f"expected a folder of videos or a {', '.join(SUFFIXES)} file at {source}, found nothing")


def path_in(raw: Mapping[str, Any]) -> Any:
    """What a raw record names as its clip, None where it names none."""
    return next((raw[key] for key in _PATH_KEYS if raw.get(key) is not None), None)


def caption_in(raw: Mapping[str, Any]) -> Any:
    """What a raw record says of its clip, None where it says nothing."""
    said = next((raw[key] for key in _CAPTION_KEYS if raw.get(key) is not None), None)
    said = said[0] if isinstance(said, list) and said else said
    return None if isinstance(said, float) and math.isnan(said) else said


def table_in(folder: Path) -> Path | None:
    """The table that a folder's clips are read from, None where it holds none."""
    name = next((name for name in _LISTS if (folder / name).is_file()), None)
    return None if name is None else inside(folder.resolve(), name)


def _folder(folder: Path) -> Iterator[Any]:
    """The raw records of a folder; `Skipped` where the text beside a clip links out of it."""
    named: set[str] = set()
    if (table := table_in(folder)) is not None:
        for raw in rows(table):
            named.add(str(path_in(raw)) if isinstance(raw, dict) else "")
            yield raw
        if table.stem != "captions":
            return
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in VIDEOS and not path.name.startswith(".") and name not in named:
            text = path.with_suffix(".txt")
            raw: dict[str, Any] = {"path": name}
            try:
                if text.is_file():
                    beside = inside(folder.resolve(), text.relative_to(folder).as_posix())
                    raw["caption"] = beside.read_text(encoding="utf-8", errors="replace").strip()
                yield raw
            except ValueError as error:
                yield Skipped(text.relative_to(folder).as_posix(), str(error))


def _record(raw: Any, home: Path, filters: Filters) -> Record:
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, got {type(raw).__name__}")
    raw = dict(raw)
    name = _first(raw, _PATH_KEYS)
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"expected the clip's path under one of {', '.join(_PATH_KEYS)}, got {_SHORT.repr(name)}")
    path = inside(home, name)
    if why := filters.refuse(raw):
        raise ValueError(why)
    caption = caption_in(raw)
    _first(raw, _CAPTION_KEYS)
    if caption is None:
        raise ValueError(
            f"it has no caption: add one under {_CAPTION_KEYS[0]!r}, or a {path.stem}.txt beside the clip, or let a"
            " model write it (`mmphysvideo caption`)"
        )
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"expected a caption that is text, got {_SHORT.repr(caption)}")
    annotation = raw.pop("physical_annotation", None)
    if annotation is None:
        annotation = {key: raw.pop(key) for key in _ANNOTATION_KEYS if key in raw}
    if not isinstance(annotation, dict):
        raise ValueError(f"expected physical_annotation to be an object, got {type(annotation).__name__}")
    labels = raw.pop("labels", raw.pop("label", ()))
    labels = (labels,) if isinstance(labels, str) else labels
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"expected labels that are text, got {_SHORT.repr(labels)}")
    id_ = raw.pop("id", raw.pop("video_id", None))
    if id_ is not None and not isinstance(id_, (str, int)):
        raise ValueError(f"expected an id that is text or a whole number, got {_SHORT.repr(id_)}")
    labels = tuple(label.strip() for label in labels)
    film = raw.get("source")
    film = film if isinstance(film, str) and film else name
    return Record(path, caption.strip(), annotation, labels, str(name if id_ is None else id_), raw, film)


def _first(raw: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Take the first of `keys` that says something; the others stay where they are."""
    return next((raw.pop(key) for key in keys if raw.get(key) is not None), None)


def inside(home: Path, name: str) -> Path:
    """The file `name` in the resolved folder `home`; ValueError when it leads elsewhere or is none."""
    try:
        path = (home / name).resolve()
    except (OSError, RuntimeError, UnicodeError) as error:  # a loop of links, a name too long, or no name at all
        raise ValueError(f"its path cannot be followed: {error}") from None
    if not path.is_relative_to(home):
        raise ValueError(
            f"it lies outside the data folder {home}: move it in, or pass the folder that holds it as root"
        )
    try:
        there = path.is_file()
    except OSError as error:
        raise ValueError(f"its path cannot be followed: {error.strerror}") from None
    if not there:
        raise ValueError(f"there is no file {path}")
    return path
