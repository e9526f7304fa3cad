"""The state of a run: what a checkpoint holds of it, and how it comes back.

Counters, the order of samples, the optimizer's moments, averages, recursive ramps and the history of finished stages;
random numbers need no state, since every step's are a function of where it stands (see `rng`).
"""

import json
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, guards, weights
from .engine import Engine
from .feed import Feed
from .order import derive_seed
from .ramps import Recursion, RecursiveRamp
from .stage import Stage

__all__ = ["Run", "StageRecord", "divide"]


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage did: for the history in a bundle. `losses` are the means of its last logged steps."""

    name: str
    steps: int
    seconds: float
    groups: dict[str, float | int]
    losses: dict[str, float]


class Run:
    """One call of `fit`. `enter` begins a stage, or goes on with it after a resume; `leave` ends it."""

    feed: Feed
    average: weights.Average | None
    recursions: dict[str, Recursion]

    def __init__(
        self,
        stages: Sequence[Stage],
        groups: Mapping[str, nn.Module],
        out: Path,
        *,
        seed: int,
        keep: int,
        watch: Mapping[str, nn.Module],
        guard: guards.Guards,
        engine: Engine,
    ) -> None:
        self.engine, self.guard = engine, guard
        self.stages, self.groups, self.out, self.seed, self.keep = list(stages), dict(groups), out, seed, keep
        self.watch = dict(watch)
        self.kept = {name: group for name, group in groups.items() if any(name in stage.groups for stage in stages)}
        self.checkpoints = out / "checkpoints"
        self.stage_index = self.step = self.global_step = 0
        self.stage_seconds = self.seconds = self.seconds_before = 0.0  # before: at the step before
        self.moments: dict[str, Tensor] = {}
        self.averaged: dict[str, Tensor] = {}  # of the stage before, or restored
        self.history: list[StageRecord] = []
        self.last_good: Path | None = None
        self.restored: dict[str, Any] | None = None  # between a restore and the stage that it leads into
        self.engaged = False  # whether the engine has weights and moments

    @property
    def stage(self) -> Stage:
        """The stage under way."""
        return self.stages[self.stage_index]

    @property
    def device(self) -> torch.device:
        """Where the groups of the stage under way are, and batches go."""
        return next(next(self.groups[name] for name in self.stage.groups).parameters()).device

    def begin(self, resume: bool) -> None:
        """Look for a checkpoint and continue it; refuse a folder that cannot be written before anything is trained."""
        untrained = {name: group for name, group in self.groups.items() if name not in self.kept}
        self.outside = guards.digest({**untrained, **self.watch}) if self.guard.frozen != "off" else {}
        self.about = self.describe()  # now: an engine may take weights apart
        found = checkpoint.latest(self.checkpoints)
        if found is not None and not resume:
            raise ValueError(f"{self.out} already holds a run ({found.name}): resume it, or choose another folder")
        self.engine.barrier()  # every process has looked before the first one writes
        with checkpoint.explained(f"write into {self.out}"):
            self.out.mkdir(parents=True, exist_ok=True)
            if self.engine.main:
                self.checkpoints.mkdir(exist_ok=True)
                Path(tempfile.mkdtemp(dir=self.checkpoints, prefix=".writing-")).rmdir()
        if found is not None:
            self.restore(checkpoint.load(found))

    def describe(self) -> dict[str, Any]:
        """Return what a resume compares."""
        stages = [checkpoint.describe(stage, self.groups) for stage in self.stages]
        return {"seed": self.seed, "world_size": self.engine.world_size, "frozen": self.outside, "stages": stages}

    def enter(self) -> bool:
        """Set up order, average and ramps of the stage under way; return whether it was begun before a resume."""
        stage, saved = self.stage, self.restored
        trained = {name: self.groups[name] for name in stage.groups}
        if saved is None and stage.handover == "reset":
            self.moments = {}
        self.moments = divide(self.moments, stage.groups)[0]
        self.average = None
        if stage.ema is not None:
            self.average = weights.Average(stage.ema, trained, self.averaged if saved and self.averaged else None)
        self.feed = Feed(
            stage.data,
            batch_size=stage.batch_size,
            digest=checkpoint.digest_of(stage),
            rank=self.engine.rank,
            world_size=self.engine.world_size,
            **(saved["order"] if saved else {"seed": derive_seed(self.seed, self.stage_index)}),
        )
        self.recursions = {
            name: Recursion(ramp) for name, ramp in stage.ramps.items() if isinstance(ramp, RecursiveRamp)
        }
        for name, state in (saved or {}).get("ramps", {}).items():
            if name in self.recursions:
                self.recursions[name].restore(state)
        self.restored = None
        return saved is not None

    def leave(self, losses: Mapping[str, float]) -> None:
        """Note a finished stage and go on to the next."""
        self.feed.close()
        self.averaged = self.average.named if self.average else {}
        seconds = round(self.stage_seconds, 3)
        self.history.append(StageRecord(self.stage.name, self.step, seconds, dict(self.stage.groups), dict(losses)))
        self.stage_index, self.step, self.stage_seconds = self.stage_index + 1, 0, 0.0

    def save(self, *, ended: bool = False) -> None:
        """Write a checkpoint; `ended`: the stage is over and its weights may be their average."""
        averaged = ended and self.average is not None and self.average.ema.apply
        # Asked of every process, since whole tensors may have to be put together; an ended stage's groups are whole.
        kept = weights.tensors(self.kept) | (self.engine.weights() if self.engaged else {})
        moments = self.moments | (self.engine.moments() if self.engaged else {})
        state = {
            "stage": self.stage_index,
            "stage_name": self.stage.name,
            "step": self.step,
            "global_step": self.global_step,
            "order": self.feed.state(),
            "ramps": {name: recursion.state() for name, recursion in self.recursions.items()},
            "stage_seconds": self.stage_seconds,
            "seconds": self.seconds,
            "averaged": averaged,
            "history": [asdict(record) for record in self.history],
            "run": self.about,
        }
        files = {
            "weights": kept,
            "optimizer": moments,
            "ema": self.engine.joined(self.average.named) if self.average else {},
        }
        if self.engine.main:
            checkpoint.save(self.checkpoints, self.global_step, state, files, keep=self.keep)
        self.engine.barrier()
        self.last_good = self.checkpoints / checkpoint.name_of(self.global_step)

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint, after a look at what has changed since."""
        state = saved.state
        changes = checkpoint.diff(state["run"], json.loads(json.dumps(self.about)), done=state["stage"])
        if refused := [f"\n  {change}" for change in changes if change.verdict == "refused"]:
            raise ValueError(
                f"{saved.path} was made by another run, which this one cannot continue:{''.join(refused)}\n"
                f"put these back, or start afresh in another folder"
            )
        warned = [str(change) for change in changes if change.verdict == "warned"]
        if state.get("averaged") and any(change.key == f"stages.{state['stage']}.length" for change in changes):
            warned.append("the finished stage has another length: it goes on from the average that was written")
        if warned:
            warnings.warn(f"resuming with changes: {'; '.join(warned)}", guards.TrainingWarning, stacklevel=4)
        for name, part in weights.split(saved.tensors["weights"]).items():
            if name in self.groups:
                self.groups[name].load_state_dict(part)
        self.stage_index, self.step, self.global_step = state["stage"], state["step"], state["global_step"]
        self.stage_seconds, self.seconds, self.restored = state["stage_seconds"], state["seconds"], state
        self.history = [StageRecord(**record) for record in state["history"]]
        self.moments, self.averaged = saved.tensors["optimizer"], saved.tensors["ema"]
        self.last_good = saved.path


def divide(moments: Mapping[str, Tensor], names: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split moments into those of the named groups and the others'."""
    wanted = set(names)
    chosen = {key: value for key, value in moments.items() if key.partition("/")[0] in wanted}
    return chosen, {key: value for key, value in moments.items() if key not in chosen}
