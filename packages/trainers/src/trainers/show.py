"""What a run shows: one bar with an honest estimate on a terminal, a plain line now and then elsewhere, tables of
groups.

The estimate comes from the last steps' rate, not from the mean since the start, which carries the slow first steps for
ever. Everything goes to stderr, so that a command's stdout stays its result.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

__all__ = ["Bar", "bar", "count", "table", "track", "watch"]

T = TypeVar("T")
PLAIN_EVERY_S = 20.0


class Bar:
    """Progress towards `total`; `update(done, text)` may be called as often as you like."""

    def __init__(self, label: str, total: float | int | None, *, quiet: bool = False) -> None:
        self.label, self.total, self.quiet = label, total, quiet
        self._tty = not quiet and sys.stderr.isatty()
        self._recent: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)], maxlen=50)
        self._drawn = time.monotonic()
        self._rich: Progress | None = None
        if self._tty:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
            self._rich = Progress(*columns, console=Console(stderr=True), transient=False, auto_refresh=False)
            self._rich.start()
            self._task = self._rich.add_task(label, total=total, note="")

    def update(self, done: float | int, text: str = "") -> None:
        """Say that `done` of `total` is reached; `text` is what else to show (losses)."""
        if self.quiet:
            return
        now = time.monotonic()
        if now - self._drawn < (0.1 if self._tty else PLAIN_EVERY_S) and done != self.total:
            return
        self._recent.append((now, done))
        self._drawn = now
        if self._rich is not None:
            self._rich.update(self._task, total=self.total, completed=done, note=f"{self._left()} {text}")
            self._rich.refresh()
        else:
            of = f"/{self.total:g}" if self.total is not None else ""
            print(f"{self.label}: {done:g}{of} {self._left()} {text}".rstrip(), file=sys.stderr, flush=True)

    def seconds_left(self) -> float | None:
        """Return the estimate from the recent rate, None when there is nothing to go by."""
        (t0, a), (t1, b) = self._recent[0], self._recent[-1]
        if self.total is None or b <= a:
            return None
        return max(0.0, (self.total - b) * (t1 - t0) / (b - a))

    def close(self) -> None:
        """Stop drawing."""
        if self._rich is not None:
            self._rich.stop()

    def _left(self) -> str:
        seconds = self.seconds_left()
        if seconds is None:
            return ""
        return f"{seconds:.0f} s left" if seconds < 100 else f"{seconds / 60:.1f} min left"


@contextmanager
def bar(label: str, total: float | int | None, *, quiet: bool = False) -> Iterator[Bar]:
    """Show progress while the block runs.

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


@contextmanager
def watch(label: str, *, quiet: bool = False) -> Iterator[Callable[[float, float], None]]:
    """Show progress of something that says how far it is by `watch(done, total)`.

    >>> with watch("evaluate", quiet=True) as progress:
    ...     progress(1, 3)
    """
    with bar(label, None, quiet=quiet) as shown:

        def progress(done: float | int, total: float | int) -> None:
            shown.total = total
            shown.update(done)

        yield progress


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
