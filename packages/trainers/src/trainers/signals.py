"""Signals that ask a run for a checkpoint: SIGUSR1 for one and on, SIGTERM for one and out (what Slurm, Kubernetes and
spot machines send before they take a machine away).

A handler only leaves a note; the loop looks at it between two steps, since a checkpoint in the middle of one would be
half old, half new.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Asked", "Stopped", "caught"]


class Stopped(SystemExit):
    """SIGTERM ended the run after a checkpoint; the process leaves with 143, as one that the signal killed."""

    def __init__(self, text: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.text = text

    def __str__(self) -> str:
        return self.text


@dataclass
class Asked:
    """What signals have asked for so far."""

    save: bool = False
    stop: bool = False

    def taken(self) -> bool:
        """Return whether a checkpoint was asked for, and take the note down; one left in between is not lost."""
        if asked := self.save:
            self.save = False
        return asked


@contextmanager
def caught() -> Iterator[Asked]:
    """Note both signals while the block runs, then put the old handlers back. Python allows it in the main thread
    alone: elsewhere nothing is caught.
    """
    asked = Asked()
    before: dict[Any, Any] = {}

    def note(number: int, frame: Any) -> None:
        asked.save = True
        asked.stop = asked.stop or number == signal.SIGTERM

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGUSR1, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
