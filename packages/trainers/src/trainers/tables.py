"""The raw rows of a table of clips: JSON, JSONL, CSV or TSV, parquet; one after the other, in bounded memory.

A row that cannot be read is a `Skipped` in its place; only a file that is no table at all is an error. A JSON map
without `data` is {file: caption or record}. A CSV has a header; cells that hold a JSON list or object are read as such,
and an empty cell says nothing. From parquet, columns of bytes (pictures, embedded videos) are not read.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

__all__ = ["SUFFIXES", "Skipped", "rows"]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
LINE = 2**24
"""Characters of a line, at most. A record is a thousand times shorter; our choice."""
BATCH = 512
"""Rows of a parquet file in memory at a time."""


@dataclass(frozen=True)
class Skipped:
    """A clip that was left out."""

    path: str
    why: str


def rows(path: Path) -> Iterator[Any]:
    """Yield every row as it came, `Skipped` where it cannot be read; ValueError when the file is not what its suffix
    says."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        if path.suffix in (".jsonl", ".ndjson"):
            yield from _jsonl(file)
        elif path.suffix in (".csv", ".tsv"):
            yield from _csv(file, path, "\t" if path.suffix == ".tsv" else ",")
        else:
            yield from _json(file, path)


def _json(file: TextIO, path: Path) -> Iterator[Any]:
    try:
        tree = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if isinstance(tree, dict) and isinstance(tree.get("data"), list):
        tree = tree["data"]
    elif isinstance(tree, dict) and all("." in key for key in tree):  # names of files, where a record has columns
        tree = [
            {"path": key, **(value if isinstance(value, dict) else {"caption": value})} for key, value in tree.items()
        ]
    if not isinstance(tree, (list, dict)):
        raise ValueError(f"{path}: expected a list of records, got {type(tree).__name__}")
    yield from tree if isinstance(tree, list) else [tree]


def _jsonl(file: TextIO) -> Iterator[Any]:
    number = 0
    while line := file.readline(LINE):  # not splitlines: U+2028 may stand in a JSON string
        number += 1
        if len(line) == LINE and not line.endswith("\n"):
            while (rest := file.readline(LINE)) and not rest.endswith("\n"):
                pass
            yield Skipped(f"line {number}", f"it is longer than {LINE} characters: no record is")
        elif line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Skipped(f"line {number}", f"it is not valid JSON: {error}")


def _csv(file: TextIO, path: Path, delimiter: str) -> Iterator[Any]:
    def lines() -> Iterator[str]:
        while line := file.readline(LINE):
            if len(line) == LINE and not line.endswith("\n"):
                raise ValueError(f"{path} has a line of more than {LINE} characters: it is no table of clips")
            yield line

    reader = csv.reader(lines(), delimiter=delimiter)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # a field above csv's own limit of 128 KiB, say
            if header is None:
                raise ValueError(f"{path} has no header that can be read: {error}") from None
            yield Skipped(f"line {reader.line_num}", str(error))
            continue
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if len(set(header)) < len(header):
                raise ValueError(f"{path}: expected a header of different names, got {str(header)[:300]}")
        elif len(cells) > len(header):
            yield Skipped(f"line {reader.line_num}", f"it has {len(cells)} cells under {len(header)} names")
        else:
            yield {key: _cell(cell) for key, cell in zip(header, cells, strict=False) if cell.strip()}


def _cell(cell: str) -> Any:
    if cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell  # a caption may begin with a bracket
    return cell


def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path} needs pyarrow: pip install 'phystrainers[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            columns = [field.name for field in file.schema_arrow if "binary" not in str(field.type)]
            for batch in file.iter_batches(batch_size=BATCH, columns=columns):
                for row in batch.to_pylist():
                    yield {key: value for key, value in row.items() if value is not None}
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} is not a parquet file that can be read: {why}") from None
