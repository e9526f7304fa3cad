"""Samples made while training goes on: a function of yours is given an empty folder now and then.

What it writes appears as `samples/step-XXXXXXXX` under the run's folder when it is done, by rename. It may fail without
harm to the run, which then warns and goes on.
"""

import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import rng
from .engine import Engine
from .guards import TrainingWarning

__all__ = ["Moment", "Sampling"]


@dataclass(frozen=True)
class Moment:
    """When samples are made, and by whom: share prompts out as `prompts[rank::world_size]`.

    `generator` (on the CPU) is the same at every moment, so that pictures may be compared over time.
    """

    stage: str
    step: int
    global_step: int
    rank: int
    world_size: int
    generator: torch.Generator


@dataclass(frozen=True)
class Sampling:
    """Calls `write(folder, moment)` every `every` steps, or every `minutes` of training, and at each stage's end.

    Every process calls it at once, with the groups in eval mode, without gradient; no random number of the run is
    touched.
    """

    write: Callable[[Path, Moment], None]
    every: int | None = None
    minutes: float | int | None = None

    def __post_init__(self) -> None:
        given = {"every": self.every, "minutes": self.minutes}
        if sum(value is not None for value in given.values()) != 1 or not (self.every or self.minutes or 0) > 0:
            raise ValueError(f"expected exactly one of every (steps) and minutes, more than 0, got {given}")

    def due(self, step: int, before_s: float, after_s: float) -> bool:
        """Whether samples are due after a step of the stage, which took the trained time from `before_s` to `after_s`.

        >>> sampling = Sampling(lambda folder, moment: None, minutes=2)
        >>> sampling.due(7, 119.0, 121.0), sampling.due(8, 121.0, 123.0)
        (True, False)
        """
        if self.every is not None:
            return step % self.every == 0
        period = 60 * (self.minutes or 0)
        return after_s // period > before_s // period

    def make(
        self, groups: Mapping[str, nn.Module], engine: Engine, out: Path, *, stage: str, step: int, global_step: int
    ) -> None:
        """Have the samples written. Every process calls it at once."""
        folder = out / "samples" / f"step-{global_step:08d}"
        part = folder.with_name(f".writing-{folder.name}")
        if engine.main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        engine.barrier()
        whole = True
        try:
            with rng.isolated(groups.values()):
                generator = rng.generator_of("samples", engine.rank)
                self.write(part, Moment(stage, step, global_step, engine.rank, engine.world_size, generator))
        except Exception as error:
            whole = False
            text = f"no samples of step {global_step}: {type(error).__name__}: {error}; training goes on"
            warnings.warn(text, TrainingWarning, stacklevel=2)
        engine.barrier()
        if engine.main:
            shutil.rmtree(folder, ignore_errors=True)
            if whole and any(part.iterdir()):
                part.replace(folder)
            shutil.rmtree(part, ignore_errors=True)
