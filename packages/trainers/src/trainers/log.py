"""`log.jsonl`: one JSON object a line, the mean of every term since the line before."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Log"]


class Log:
    """Collects steps and appends lines; on a resume, lines of steps that will be made again are dropped.

    A line holds stage, step, global_step (steps finished), terms, gradient_norm, lr, seconds (a step) and ramps.
    """

    def __init__(
        self, path: Path, *, every: int, also: Callable[[dict[str, Any]], None] | None, from_step: int
    ) -> None:
        self.path, self.every, self.also = path, every, also
        self.means: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._count = 0
        self._last: dict[str, Any] = {}
        _cut(path, from_step)

    def add(self, terms: Mapping[str, float], *, gradient_norm: float, seconds: float, **where: Any) -> None:
        """Take in one step; `where` is copied into the line as it stands at its last step."""
        for name, value in (*terms.items(), ("gradient_norm", gradient_norm), ("seconds", seconds)):
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count, self._last = self._count + 1, where
        if where["step"] % self.every == 0:
            self.flush()

    def flush(self) -> None:
        """Write the line of the steps since the last one, if there were any."""
        if not self._count:
            return
        means = {name: value / self._count for name, value in self._sums.items()}
        rest = {name: means.pop(name) for name in ("gradient_norm", "seconds")}
        line = {**self._last, "terms": means, **rest}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.also is not None:
            self.also(line)
        self.means, self._sums, self._count = means, {}, 0


def _cut(path: Path, from_step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["global_step"] <= from_step:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # a last line that a kill cut short
            continue
    part = path.with_suffix(".tmp")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)
