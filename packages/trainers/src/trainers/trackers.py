"""The log's lines sent to TensorBoard, Trackio or Weights & Biases as well, through accelerate's trackers.

TensorBoard's files lie in `tensorboard/` under the run's folder; the other two file the run under the folder's name and
read their own environment variables.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config import did_you_mean

__all__ = ["KNOWN", "Trackers", "scalars"]

KNOWN = ("tensorboard", "trackio", "wandb")


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of the log under names with slashes.

    >>> scalars({"step": 3, "terms": {"flow": 0.5, "log/x": None}, "held_out": {"flow": {"0.1": 0.2}}, "lr": 1e-3})
    {'terms/flow': 0.5, 'held_out/flow/0.1': 0.2, 'lr': 0.001}
    """
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{name}": number for name, number in scalars(value).items()}
        elif isinstance(value, (int, float)) and key not in ("step", "global_step"):
            found[key] = float(value)
    return found


class Trackers:
    """Trackers of one run, in the process that writes its log."""

    def __init__(self, names: Sequence[str], out: Path) -> None:
        for name in names:
            if name not in KNOWN:
                raise ValueError(
                    f"expected trackers out of {', '.join(KNOWN)}, got {name!r}; {did_you_mean(name, KNOWN)}"
                )
            if any(importlib.util.find_spec(package) is None for package in ("accelerate", name)):
                raise ValueError(f"the tracker {name!r} is not installed: pip install 'phystrainers[{name}]'")
        self.names, self.out = tuple(names), out
        self._open: list[Any] = []

    @contextmanager
    def open(self, *, from_step: int) -> Iterator[None]:
        """Have the trackers take lines while the block runs; what they hold of later steps is made again."""
        try:
            for name in self.names:
                from accelerate import PartialState
                from accelerate.tracking import LOGGER_TYPE_TO_CLASS

                PartialState()  # which trackers ask who is the first process
                made: Any = LOGGER_TYPE_TO_CLASS[name]
                local: Any = {"logging_dir": self.out, "purge_step": from_step + 1}
                tracker = made(name, **local) if name == "tensorboard" else made(self.out.name)
                tracker.start()
                self._open.append(tracker)
            yield
        finally:
            for tracker in self._open:
                tracker.finish()
            self._open = []

    def write(self, line: Mapping[str, Any]) -> None:
        """Take in a line of the log."""
        for tracker in self._open:
            tracker.log(scalars(line), step=line["global_step"])
