"""What a cache job says of itself: `reports/NAME-RANK.jsonl` grows by a line for every item made, left out or hashed,
and `reports/NAME-RANK.json`, the summary, appears by rename when the job ends.

The lines remember the hashes of files, too. A file of the same path, size and time of change is taken for the same, so
that a job that goes on does not read all that it has read before.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .artefact import Producer, plain
from .cache_shard import explained, placed
from .records import Skipped

__all__ = ["Hashed", "Outcome", "Report", "Reporter", "hashes"]

LISTED = 10
"""Failures that an error names."""


@dataclass(frozen=True)
class Outcome:
    """What became of an item: "made", "there" (it was in the store) or "failed", and then why."""

    id: str
    key: str
    status: Literal["made", "there", "failed"]
    why: str = ""


@dataclass(frozen=True)
class Hashed:
    """The SHA-256 of a file, and what the file was like when it was taken."""

    path: str
    size: int
    mtime_ns: int
    content: str


def hashes(root: Path) -> dict[str, Hashed]:
    """Return the hashes that the reports under `root` remember, by path; the last of each."""
    known = {}
    for report in sorted(root.glob("reports/*.jsonl")):
        for line in report.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if file := json.loads(line or "{}").get("file"):
                    known[file["path"]] = Hashed(**file)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # cut by a kill
    return known


@dataclass(frozen=True)
class Report:
    """What a job did with its share of the items; `batch` is what was left of the batch after memory ran out."""

    rank: int
    world: int
    items: int
    made: int
    there: int
    failed: tuple[Skipped, ...]
    batch: int
    seconds: float
    path: Path


class Reporter:
    """Writes the lines and the summary under `root/reports`."""

    def __init__(self, root: Path, name: str, *, rank: int, world: int, items: int) -> None:
        self.root, self.path = root, root / "reports" / f"{name}-{rank:05d}.json"
        self.rank, self.world, self.items = rank, world, items
        self.failed: list[Skipped] = []
        self._counts: Counter[str] = Counter()
        self._started = time.monotonic()
        with explained(root):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._begun = False

    def add(self, outcome: Outcome, file_hashed: Hashed | None) -> None:
        """Take in what became of an item, and the hash of its file if it was taken anew."""
        self._counts[outcome.status] += 1
        if outcome.status == "failed":
            self.failed.append(Skipped(outcome.id, outcome.why))
        if outcome.status != "there" or file_hashed:
            line = asdict(outcome) | ({"file": asdict(file_hashed)} if file_hashed else {})
            with explained(self.root), self.path.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
                if not self._begun and file.tell():
                    file.write("\n")  # a kill may have cut the last line: what follows begins on a new one
                file.write(json.dumps(line) + "\n")
            self._begun = True

    def close(self, *, batch: int, producers: Mapping[str, Producer], specs: set[str]) -> Report:
        """Write the summary and return it. `producers` and the spec, if all items had one, go along, for `stale`."""
        seconds = round(time.monotonic() - self._started, 3)
        report = Report(
            rank=self.rank,
            world=self.world,
            items=self.items,
            made=self._counts["made"],
            there=self._counts["there"],
            failed=tuple(sorted(self.failed, key=lambda item: item.path)),
            batch=batch,
            seconds=seconds,
            path=self.path,
        )
        tree = {key: value for key, value in asdict(report).items() if key != "path"}
        spec = json.loads(next(iter(specs))) if len(specs) == 1 else None
        tree |= {"producers": {name: plain(producer) for name, producer in producers.items()}, "spec": spec}
        with placed(self.path.parent, self.path.name) as part:
            part.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        return report

    def none_left(self) -> str | None:
        """Say why nothing could be used, when nothing could."""
        if len(self.failed) < self.items or not self.items:
            return None
        why = "".join(f"\n  {item.path}: {item.why}" for item in self.failed[:LISTED])
        more = f"\n  and {len(self.failed) - LISTED} more" if len(self.failed) > LISTED else ""
        return f"none of the {self.items} items can be used, see {self.path}:{why}{more}"
