"""What a run shows: one bar with an honest estimate on a terminal, a plain line now and then elsewhere, tables of
groups.

The estimate is the rate of what was worked on in the second half of the time so far, held against what is left. What
was there already (a resumed cache, kept parts) counts as done and not as work; the first piece of work, which compiles
and loads, is not measured; several pieces that are done at one moment (a batch) are one. So there is no estimate before
the third piece. Everything goes to stderr, so that a command's stdout stays its result.
"""

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

__all__ = ["Bar", "bar", "count", "duration", "table", "track"]

T = TypeVar("T")
PLAIN_EVERY_S, PLAIN_LATEST_S = 20.0, 600.0
"""Plain lines come this often at first and at most this seldom; in between, after another fiftieth of the time."""
AT_ONCE = 0.05
"""Pieces that end within this share of the time since the piece before are one batch."""
MEASURED_S = 1.0
"""An estimate needs so much measured time."""

_live: Progress | None = None  # of all bars that are open: a terminal has one place for them


class Bar:
    """Progress towards `total`; `update` may be called as often as you like, best when a piece of work is whole."""

    def __init__(self, label: str, total: float | int | None, *, quiet: bool = False) -> None:
        global _live
        self.label, self.total, self.quiet = label, total, quiet
        self.done: float | int = 0
        self.skipped: float | int = 0
        self._text = ""
        self._began = self._drawn = time.monotonic()
        self._recent: deque[tuple[float, float]] = deque()  # when, and the work until then; without the latest batch
        self._latest: tuple[float, float, float] | None = None  # of the latest batch: first end, last end, work
        self._live: Progress | None = None
        self._outer = False
        if not quiet and sys.stderr.isatty():
            if _live is None:
                columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), _Note())
                _live = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
                _live.start()
                self._outer = True
            self._live = _live
            self._task = _live.add_task(label, total=total, bar=self)

    def skip(self, number: float | int = 1) -> None:
        """Say that so much of what the next update counts as done was there already, and cost nothing."""
        self.skipped += number

    def update(self, done: float | int, text: str = "") -> None:
        """Say that `done` of `total` is reached; `text` is what else to show (losses)."""
        self.done = done
        if self.quiet:
            return
        now = time.monotonic()
        self._reach(now, done - self.skipped)
        self._text = text
        if self._live is not None:
            self._live.update(self._task, total=self.total, completed=done)
            return
        wait = min(max(PLAIN_EVERY_S, (now - self._began) / 50), PLAIN_LATEST_S)
        if now - self._drawn >= wait or done == self.total:
            self._drawn = now
            print(f"{self.label}: {self.note(now)}", file=sys.stderr, flush=True)

    def note(self, now: float) -> str:
        """Write what stands behind the bar: the count, the time left, and the text."""
        of = "" if self.total is None else f"/{self.total:g}"
        left = self.seconds_left()
        since = now - self._recent[-1][0] if self._recent else 0.0
        said = "" if left is None else f"{duration(max(0.0, left - since))} left"
        return " ".join(part for part in (f"{self.done:g}{of}", said, self._text) if part)

    def __call__(self, done: float | int, total: float | int) -> None:
        """Say how far it is and how far it goes, as those who know neither before do."""
        self.total = total
        self.update(done)

    def seconds_each(self) -> float | None:
        """Return what a unit of work took lately, None when there is nothing to go by."""
        if len(self._recent) < 2:
            return None
        (t0, a), (t1, b) = self._recent[0], self._recent[-1]
        return (t1 - t0) / (b - a) if b > a and t1 - t0 >= MEASURED_S else None

    def seconds_left(self) -> float | None:
        """Return the estimate as of the last measured piece, None when there is nothing to go by."""
        if self.total is not None and self.done >= self.total:
            return 0.0
        each = self.seconds_each()
        if self.total is None or each is None:
            return None
        return max(0.0, (self.total - self.skipped - self._recent[-1][1]) * each)

    def close(self) -> None:
        """Stop drawing."""
        global _live
        if self._live is None:
            return
        if self._outer:
            self._live.stop()  # draws once more
            _live = None
        else:
            self._live.remove_task(self._task)
        self._live = None

    def _reach(self, now: float, work: float | int) -> None:
        """Note when so much work was done."""
        if work <= 0 or (self._latest is not None and work <= self._latest[2]):
            return
        if self._latest is not None:
            first, last, reached = self._latest
            before = self._recent[-1][0] if self._recent else self._began
            if now - first <= AT_ONCE * (first - before):
                self._latest = (first, now, work)
                return
            self._measured(last, reached)
        self._latest = (now, now, work)

    def _measured(self, when: float, work: float | int) -> None:
        """Add a whole batch to what the rate comes from, and forget the first half of the time."""
        recent = self._recent
        if not recent:
            self._began = when  # what came before it was loading and compiling
        if len(recent) > 2 and when - recent[-2][0] < 0.01 * (when - self._began):
            recent.pop()  # so that few are kept
        recent.append((when, work))
        while len(recent) > 2 and recent[1][0] - self._began <= (when - self._began) / 2:
            recent.popleft()


class _Note(ProgressColumn):
    """Behind a bar, now: what is left runs down between two pieces of work. It is cut where the line ends."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))

    def render(self, task: Task) -> Text:
        return Text(task.fields["bar"].note(time.monotonic()))


def duration(seconds: float | int) -> str:
    """Write a duration for people.

    >>> duration(42.3), duration(190), duration(40 * 3600)
    ('42 s', '3.2 min', '40.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def bar(label: str, total: float | int | None = None, *, quiet: bool = False) -> Iterator[Bar]:
    """Show progress while the block runs; what calls `watch(done, total)` can be given the bar.

    >>> with bar("cache", 3, quiet=True) as progress:
    ...     progress.update(1)
    """
    shown = Bar(label, total, quiet=quiet)
    try:
        yield shown
    finally:
        shown.close()


def track(items: Iterable[T], label: str, total: int | None = None, *, quiet: bool = False) -> Iterator[T]:
    """Iterate over `items` under a bar.

    >>> list(track([1, 2], "items", quiet=True))
    [1, 2]
    """
    if total is None and isinstance(items, Sequence):
        total = len(items)
    with bar(label, total, quiet=quiet) as shown:
        for done, item in enumerate(items):
            yield item
            shown.update(done + 1)


def count(number: int) -> str:
    """Write a number of parameters for people.

    >>> count(950), count(48_123), count(1_300_000_000)
    ('950', '48.1 k', '1.3 B')
    """
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], *, quiet: bool = False) -> None:
    """Print a table to stderr."""
    if quiet:
        return
    shown = Table(title=title, title_justify="left")
    for column in header:
        shown.add_column(column)
    for row in rows:
        shown.add_row(*map(str, row))
    Console(stderr=True).print(shown)
