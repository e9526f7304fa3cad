"""Records: which clips there are, what they show, and which were left out and why.

Read from a folder of videos (captions from `NAME.txt` beside each, or from a `captions.json` or `annotations.json` in
it), or from a JSON list, JSON `{"data": [...]}` or JSONL of objects. Known objects: {path | file | video_path | video,
caption | captions, ...}; a WISA-80K training record {file, captions, physical_annotation: {phys_law, q0..q4, ...}}; a
WISA test record {en_caption, phys_law, q0..q4, ...} with `file` or `video_path` added. What the annotation says is kept
raw: which label it means is the business of whoever trains.

Paths are relative to the folder of the file that names them (or to `root`) and may not leave it, by `..`, by an
absolute path or by a link. A record that cannot be used is skipped and listed; only when nothing is left is that an
error.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from .config import Config

__all__ = ["Filters", "Record", "Skipped", "read_records"]

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
_LISTS = ("annotations.json", "annotations.jsonl", "captions.json", "records.json", "records.jsonl")


@dataclass(frozen=True)
class Record:
    """One clip. `annotation` holds phys_law, q0..q4 and the like as they came; `labels` the record's own labels, if it
    names any; `extra` every other key."""

    path: Path
    caption: str
    annotation: dict[str, Any]
    labels: tuple[str, ...]
    id: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A clip that was left out."""

    path: str
    why: str


class Filters(Config):
    """Bounds on what a record says of its clip; all off. WISA's own loader uses 3..10 s, 720..3000 px and at most 1
    text box.

    A record that does not state the quantity passes.
    """

    duration_s: tuple[float, float] | None = None
    width_px: tuple[int, int] | None = None
    text_boxes: int | None = Field(default=None, ge=0)

    def refuse(self, raw: dict[str, Any]) -> str | None:
        """Return why a raw record is left out, None when it stays."""
        bounds = (("duration", self.duration_s), ("width", self.width_px), ("text_bbox_num", self.text_boxes))
        for key, bound in bounds:
            value = raw.get(key)
            if bound is None or value is None:
                continue
            low, high = bound if isinstance(bound, tuple) else (0, bound)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                return f"{key} is {value!r}, wanted {low} to {high}"
        return None


def read_records(
    source: str | Path, *, root: str | Path | None = None, filters: Filters | None = None
) -> tuple[list[Record], list[Skipped]]:
    """Read every record of a folder or of a JSON or JSONL file; ValueError when none can be used.

    The clips themselves are not opened (see `video.read`), only looked for.
    """
    source = Path(source)
    if source.is_dir():
        home, raws = Path(root or source), list(_folder(source))
    elif source.is_file():
        home, raws = Path(root or source.parent), list(_listed(source))
    else:
        raise ValueError(f"expected a folder of videos or a JSON or JSONL file at {source}, found nothing")
    if not raws:
        raise ValueError(f"{source} holds no clips: expected {', '.join(VIDEOS)} files, or records that name them")
    records: dict[str, Record] = {}
    skipped = []
    for number, raw in enumerate(raws):
        if isinstance(raw, Skipped):
            skipped.append(raw)
            continue
        try:
            record = _record(raw, home, filters or Filters())
            if record.id in records:
                raise ValueError(f"another record has the same id {record.id!r}")
            records[record.id] = record
        except ValueError as error:
            named = next((raw[key] for key in _PATH_KEYS if key in raw), None) if isinstance(raw, dict) else None
            skipped.append(Skipped(str(named if named is not None else f"record {number}")[:300], str(error)))
    if not records:
        first = "; ".join(f"{item.path}: {item.why}" for item in skipped[:3])
        raise ValueError(f"none of the {len(skipped)} records of {source} can be used ({first})")
    return list(records.values()), skipped


def _folder(folder: Path) -> Iterator[Any]:
    """The raw records of a folder; `Skipped` where the text beside a clip links out of it."""
    for name in _LISTS:
        if (folder / name).is_file():
            yield from _listed(_inside(folder, name))
            return
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEOS and not path.name.startswith("."):
            text = path.with_suffix(".txt")
            raw: dict[str, Any] = {"path": path.relative_to(folder).as_posix()}
            try:
                if text.is_file():
                    inside = _inside(folder, text.relative_to(folder).as_posix())
                    raw["caption"] = inside.read_text(encoding="utf-8", errors="replace").strip()
                yield raw
            except ValueError as error:
                yield Skipped(text.relative_to(folder).as_posix(), str(error))


def _listed(path: Path) -> Iterable[Any]:
    """The raw records of a JSON or JSONL file; a map without `data` is {file: caption or record}."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if isinstance(tree, dict) and isinstance(tree.get("data"), list):
        return tree["data"]
    if isinstance(tree, dict) and not any(key in tree for key in _PATH_KEYS):
        return [
            {"path": key, **(value if isinstance(value, dict) else {"caption": value})} for key, value in tree.items()
        ]
    if isinstance(tree, (list, dict)):
        return tree if isinstance(tree, list) else [tree]
    raise ValueError(f"{path}: expected a list of records, got {type(tree).__name__}")


def _record(raw: Any, home: Path, filters: Filters) -> Record:
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, got {type(raw).__name__}")
    raw = dict(raw)
    name = _first(raw, _PATH_KEYS)
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"expected the clip's path under one of {', '.join(_PATH_KEYS)}, got {name!r}")
    path = _inside(home, name)
    if why := filters.refuse(raw):
        raise ValueError(why)
    captions = _first(raw, _CAPTION_KEYS)
    caption = captions[0] if isinstance(captions, list) and captions else captions
    if caption is None or (isinstance(caption, float) and math.isnan(caption)):
        raise ValueError(f"it has no caption: add one under {_CAPTION_KEYS[0]!r}, or a {path.stem}.txt beside the clip")
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"expected a caption that is text, got {caption!r}")
    annotation = raw.pop("physical_annotation", None)
    if annotation is None:
        annotation = {key: raw.pop(key) for key in _ANNOTATION_KEYS if key in raw}
    if not isinstance(annotation, dict):
        raise ValueError(f"expected physical_annotation to be an object, got {type(annotation).__name__}")
    labels = raw.pop("labels", raw.pop("label", ()))
    labels = (labels,) if isinstance(labels, str) else labels
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"expected labels that are text, got {labels!r}")
    id_ = raw.pop("id", raw.pop("video_id", None))
    labels = tuple(label.strip() for label in labels)
    return Record(path, caption.strip(), annotation, labels, str(name if id_ is None else id_), raw)


def _first(raw: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Take the first of `keys` that is there; the others stay where they are."""
    return next((raw.pop(key) for key in keys if key in raw), None)


def _inside(home: Path, name: str) -> Path:
    home = home.resolve()
    try:
        path = (home / name).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
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
