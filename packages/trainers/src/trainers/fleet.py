"""One job on one to eight GPUs of each kind: what fits, and how long it takes.

What the run sees is held constant: its steps, and the clips of a step. A recipe is the run of one process, so that a
step has batch x accumulate clips; N GPUs share them out. Each takes micro-batches of the recipe's size, or the largest
smaller one that fits and divides its share. Where no engine is said, it is the first of `PREFERRED` that fits.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from .gpus import GPU
from .job import Job
from .plan import Measured, Row, make

__all__ = ["COUNTS", "PREFERRED", "USUAL", "Cell", "cells"]

COUNTS = (1, 2, 4, 8)
USUAL = ("RTX-4090", "A100-80GB", "H100", "H200")
PREFERRED = ("zero2", "zero2-offload")
"""Engines after one process, or DDP: each holds less than the one before it."""


@dataclass(frozen=True)
class Cell:
    """A job on so many GPUs of a kind; `clips` of a step are the recipe's unless the GPUs do not divide them."""

    gpus: int
    engine: str
    batch: int
    accumulate: int
    row: Row

    @property
    def clips(self) -> int:
        return self.gpus * self.batch * self.accumulate

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(asdict(self))) | {"clips": self.clips}


def cells(
    job: Job,
    gpus: Sequence[GPU],
    *,
    counts: Sequence[int] = COUNTS,
    engine: str = "",
    efficiency: float | None = None,
    measured: Sequence[Measured] = (),
) -> tuple[Cell, ...]:
    """Plan a job on every number of every GPU; one that does not fit is given under its last engine."""
    return tuple(_cell(job, gpu, n, engine, efficiency, measured) for gpu in gpus for n in counts)


def _cell(job: Job, gpu: GPU, n: int, engine: str, efficiency: float | None, measured: Sequence[Measured]) -> Cell:
    share = ceil(job.batch * job.accumulate / n)
    found = None
    for name in _engines(engine, n):
        largest = make(job, [gpu], engine=name, processes=n, measured=measured).rows[0].largest_batch
        batch = max(b for b in range(1, share + 1) if share % b == 0 and (b == 1 or b <= min(job.batch, largest)))
        own = replace(job, batch=batch, accumulate=share // batch)
        row = make(own, [gpu], engine=name, processes=n, efficiency=efficiency, measured=measured).rows[0]
        found = Cell(n, name, batch, share // batch, row)
        if row.fits:
            break
    assert found is not None
    return found


def _engines(said: str, n: int) -> tuple[str, ...]:
    """One process is no DDP: "one" and "ddp" stand for each other where a table asks for both."""
    alone = "one" if n == 1 else "ddp"
    if said:
        return (alone if said in ("one", "ddp") else said,)
    return (alone, *PREFERRED)
