"""`log.jsonl`: one JSON object a line, the mean of every term since the line before.

A term of the loss that a step did not have counts as 0 there, as it does in the loss. A `log/` term is averaged over
the steps that had it as a number; where none had, it is null: NaN is not JSON.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import checkpoint
from .atomic import write_text

__all__ = ["Log", "read"]


class Log:
    """Collects steps and appends lines; on a resume, lines of steps that will be made again are dropped.

    A line holds stage, step, global_step (steps finished), terms, gradient_norm, lr, seconds (a step) and ramps; of
    recursive ramps also `recursive` (average of the norm, eta, resets), and `held_out` where that was evaluated.
    `means` are the terms of the last line, on a resume too. Without a path nothing is written: the first process of
    several does.
    """

    def __init__(
        self, path: Path | None, *, also: Sequence[Callable[[dict[str, Any]], None]] = (), from_step: int = 0
    ) -> None:
        self.path, self.also = path, tuple(also)
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}  # of log/ terms, which need not come every step
        self._count = 0
        self._last: dict[str, Any] = {}
        kept = _cut(path, from_step) if path else []
        self.means: dict[str, float] = _numbers(kept[-1]["terms"]) if kept else {}

    def add(self, terms: Mapping[str, float], *, gradient_norm: float, seconds: float, **where: Any) -> None:
        """Take in one step; `where` is copied into the line as it stands at its last step."""
        for name, value in (*terms.items(), ("gradient_norm", gradient_norm), ("seconds", seconds)):
            number = math.isfinite(value)
            self._sums[name] = self._sums.get(name, 0.0) + (value if number else 0.0)
            self._counts[name] = self._counts.get(name, 0) + number
        self._count, self._last = self._count + 1, where

    def flush(self, **extra: Any) -> None:
        """Write the line of the steps since the last one, if there were any, with what else belongs into it."""
        if not self._count:
            return
        means = {name: self._mean(name) for name in self._sums}
        rest = {name: means.pop(name) for name in ("gradient_norm", "seconds")}
        line = {**self._last, "terms": means, **rest, **extra}
        if self.path is not None:
            with checkpoint.explained(f"write {self.path}"), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            for send in self.also:
                send(line)
        self.means, self._sums, self._counts, self._count = _numbers(means), {}, {}, 0

    def _mean(self, name: str) -> float | None:
        count = self._counts[name] if name.startswith("log/") else self._count
        return self._sums[name] / count if count else None


def _numbers(terms: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in terms.items() if value is not None}


def read(path: Path, *, to_step: float | int = math.inf) -> list[dict[str, Any]]:
    """Return the lines of a log up to a global step; a line that is cut short, or still being written, is left out."""
    if not path.exists():
        return []
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            if line["global_step"] <= to_step and isinstance(line["terms"], dict):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def _cut(path: Path, from_step: int) -> list[dict[str, Any]]:
    """Drop the lines of later steps, and a line that a kill cut short; return those that stay."""
    if not path.exists():
        return []
    kept = read(path, to_step=from_step)
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept
