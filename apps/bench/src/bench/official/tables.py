"""Files that came from elsewhere, read within bounds, and csv files that a spreadsheet cannot be made to run.

A cell that begins with = + - @, a tab or a return is a formula to a spreadsheet. In a table that people open it gets
an apostrophe in front, which spreadsheets read as "this is text"; in a table that a rater reads, where the text has to
stay as it is, it is refused.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from trainers import write_text

MOST_BYTES = 256 * 2**20
"""A file above this is no table of a benchmark (VBench-2's largest result has 4 MB); our choice."""
MOST_CELL = 2**20
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def text(path: Path) -> str:
    """Read a UTF-8 file of at most `MOST_BYTES`."""
    if not path.is_file():
        raise ValueError(f"expected a file, got {path} which {'is a folder' if path.is_dir() else 'is not there'}")
    if path.stat().st_size > MOST_BYTES:
        size = path.stat().st_size / 2**20
        raise ValueError(f"expected a file of at most {MOST_BYTES // 2**20} MiB, got {path} with {size:.0f} MiB")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {path}, got {error}") from None


def rows(path: Path) -> list[list[str]]:
    """Read a csv file without taking its first row for a header; empty lines are left out."""
    content = text(path)
    if "\0" in content:
        raise ValueError(f"expected a csv file, got {path} with zero bytes in it")
    limit = csv.field_size_limit(MOST_CELL)
    try:
        return [row for row in csv.reader(StringIO(content, newline=""), strict=True) if row]
    except csv.Error as error:
        raise ValueError(f"expected a csv file, got {path}: {error} (was it cut off?)") from None
    finally:
        csv.field_size_limit(limit)


def records(path: Path, *columns: str) -> list[dict[str, str]]:
    """Read a csv file with a header that has at least these columns."""
    header, *body = rows(path) or [[]]
    if missing := [name for name in columns if name not in header]:
        found = ", ".join(repr(name) for name in header[:8]) or "nothing"
        raise ValueError(f"expected the columns {', '.join(columns)} in {path}, got {found}: {missing[0]} is missing")
    if len(set(header)) < len(header):
        raise ValueError(f"expected every column of {path} once, got {', '.join(header)}")
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise ValueError(
                f"expected {len(header)} columns in row {number} of {path}, got {len(row)}: was it cut off?"
            )
    return [dict(zip(header, row, strict=True)) for row in body]


def content(path: Path) -> Any:
    """Read JSON."""
    return parsed(text(path), path)


def parsed(words: str, path: Path | str) -> Any:
    """Parse JSON that came from `path`."""
    try:
        return json.loads(words)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"expected JSON in {path}, got {error}") from None


def lines(path: Path) -> list[Any]:
    """Read JSON lines."""
    return [parsed(line, f"{path}, line {n}") for n, line in enumerate(text(path).split("\n"), 1) if line.strip()]


def harmless(cell: Any) -> Any:
    """Put an apostrophe before what a spreadsheet would run.

    >>> harmless("=1+1"), harmless("a=1"), harmless(-0.5)
    ("'=1+1", 'a=1', -0.5)
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def table(header: Sequence[str], body: Iterable[Sequence[Any]]) -> str:
    """Write a table for people as csv."""
    return _csv([header, *([harmless(cell) for cell in row] for row in body)])


def rater_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Write a table for a rater as csv, cell by cell as it is; ValueError where a spreadsheet would run one."""
    body = list(body)
    for row in body:
        for name, cell in zip(header, row, strict=True):
            if cell.startswith(FORMULA):
                raise ValueError(
                    f"expected a {name} that no spreadsheet takes for a formula, got {cell[:60]!r}: "
                    f"let it begin with a letter, a figure or a quotation mark"
                )
    return _csv([header, *body])


def _csv(body: Iterable[Sequence[Any]]) -> str:
    out = StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(body)
    return out.getvalue()


def put(path: Path, words: str) -> Path:
    """Write a text file that appears whole; the same text again is fine, another is refused."""
    if path.exists():
        if path.is_file() and path.stat().st_size < MOST_BYTES and path.read_bytes() == words.encode():
            return path
        raise ValueError(f"{path} exists and says something else: choose another --out, nothing is overwritten")
    return write_text(path, words)


def inside(folder: Path, name: str) -> Path:
    """Give the path of a file that a table names; ValueError where it leads out of `folder`.

    >>> inside(Path("videos"), "../secret.mp4")
    Traceback (most recent call last):
    ValueError: expected a path inside videos, got '../secret.mp4'
    """
    path = folder / name
    if not name or "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"expected a path inside {folder}, got {name!r}")
    return path
