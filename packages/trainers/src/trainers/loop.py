"""`fit`: runs a list of stages over named groups of weights, and resumes them bit for bit.

It knows no model: what is trained are `groups` (name -> module), what is minimised is the sum of what a stage's loss
returns. Groups that a stage does not name are frozen, in eval mode, and checked by hash to be bit-equal at its end. All
that a step draws (order of samples, torch's generator, `progress.generator`) is a pure function of (seed, stage, step),
so a run that was killed anywhere and resumed ends with the same weights as one that was not; only a stage whose length
is in minutes may end elsewhere.

Files under `out`: `checkpoints/step-XXXXXXXX/` (see `checkpoint`) and `log.jsonl` (see `log`).
"""

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, guards, show, signals, weights
from .data import take
from .engine import Engine, launched
from .log import Log
from .order import Order, derive_seed
from .stage import Progress, Stage, check

__all__ = ["FitResult", "Guards", "StageRecord", "fit"]


@dataclass(frozen=True)
class Guards:
    """What is watched in the loop, besides NaN and infinity, which always stop.

    `frozen`: every group that a stage does not train, and `watch`, must be bit-equal at the stage's end, and at a
    resume to what they were when the checkpoint was made. A trained group whose gradient is exactly zero for
    `zero_gradient_steps` steps is warned about (0: never).
    """

    frozen: bool = True
    zero_gradient_steps: int = 20


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage did: for the history in a bundle. `losses` are the means of its last logged steps."""

    name: str
    steps: int
    seconds: float
    groups: dict[str, float | int]
    losses: dict[str, float]


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    `seconds` are trained seconds over all sessions, `losses` the last means of the last stage's terms, `ema` the last
    stage's average as {group: state dict} (empty without one).
    """

    out: Path
    checkpoint: Path | None
    global_step: int
    seconds: float
    history: tuple[StageRecord, ...]
    losses: dict[str, float]
    ema: dict[str, dict[str, Tensor]]


def fit(
    stages: Sequence[Stage],
    groups: Mapping[str, nn.Module],
    *,
    out: str | Path,
    seed: int = 0,
    resume: bool = False,
    save_every: int = 500,
    save_minutes: float | int = 10,
    keep: int = 2,
    log: Callable[[dict[str, Any]], None] | None = None,
    log_every: int = 10,
    watch: Mapping[str, nn.Module] | None = None,
    guard: Guards | None = None,
    engine: Engine | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train `groups` through `stages`; they hold the result in place.

    A checkpoint is written every `save_every` steps, every `save_minutes`, and at each stage's end; the newest `keep`
    stay. With `resume`, the newest whole checkpoint under `out` is continued (or the run begins, when there is none).
    `watch` names frozen modules outside the groups (a backbone) whose weights are checked not to move. `log` gets every
    line of the log as well, on the process that writes it.

    `engine` takes the steps; without one, whatever `torchrun` or `accelerate launch` asked for (`engine.launched`). On
    SIGUSR1 a checkpoint is written after the step under way; on SIGTERM, too, and then `Stopped` ends the run, which
    `resume` continues.
    """
    check(stages, groups)
    if save_every < 1 or keep < 1 or log_every < 1:
        raise ValueError(f"expected save_every, keep and log_every >= 1, got {save_every}, {keep}, {log_every}")
    run = _Run(
        stages,
        groups,
        Path(out),
        seed=seed,
        keep=keep,
        watch=watch or {},
        guard=guard or Guards(),
        engine=engine or launched(),
        quiet=quiet,
    )
    run.begin(resume, save_every=save_every, save_minutes=save_minutes, log=log, log_every=log_every)
    with _as_found(groups), signals.caught() as run.asked:
        while run.stage_index < len(stages):
            run.train_stage()
    ema = weights.split(run.average)
    return FitResult(run.out, run.last_good, run.global_step, run.seconds, tuple(run.history), run.log.means, ema)


class _Run:
    """One call of `fit`: its counters and tensors are what a checkpoint holds."""

    log: Log
    asked: signals.Asked

    def __init__(
        self,
        stages: Sequence[Stage],
        groups: Mapping[str, nn.Module],
        out: Path,
        *,
        seed: int,
        keep: int,
        watch: Mapping[str, nn.Module],
        guard: Guards,
        engine: Engine,
        quiet: bool,
    ) -> None:
        self.engine = engine
        self.stages, self.groups, self.out, self.seed, self.keep = list(stages), dict(groups), out, seed, keep
        self.watch, self.guard, self.quiet = dict(watch), guard, quiet or not engine.main
        self.kept = {name: group for name, group in groups.items() if any(name in stage.groups for stage in stages)}
        self.stage_index = self.step = self.global_step = 0
        self.stage_seconds = self.seconds = 0.0
        self.order_state: dict[str, int] | None = None  # set between a restore and the stage that it leads into
        self.moments: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.history: list[StageRecord] = []
        self.last_good: Path | None = None
        self.engaged = self.late = False

    @property
    def stage(self) -> Stage:
        return self.stages[self.stage_index]

    # ---- begin, save, restore

    def begin(
        self,
        resume: bool,
        *,
        save_every: int,
        save_minutes: float | int,
        log: Callable[[dict[str, Any]], None] | None,
        log_every: int,
    ) -> None:
        self.save_every, self.save_minutes, self.saved_at = save_every, save_minutes, time.monotonic()
        untrained = {name: group for name, group in self.groups.items() if name not in self.kept}
        self.outside = guards.digest({**untrained, **self.watch}) if self.guard.frozen else {}
        self.about = self.describe()  # now: an engine may take weights apart
        self.checkpoints = self.out / "checkpoints"
        found = checkpoint.latest(self.checkpoints)
        if found is not None and not resume:
            raise ValueError(f"{self.out} already holds a run ({found.name}): resume it, or choose another folder")
        self.engine.barrier()  # every process has looked before the first one writes
        self.out.mkdir(parents=True, exist_ok=True)
        if found is not None:
            self.restore(checkpoint.load(found))
        path = self.out / "log.jsonl" if self.engine.main else None
        self.log = Log(path, every=log_every, also=log, from_step=self.global_step)

    def describe(self) -> dict[str, Any]:
        stages = [checkpoint.describe(stage, self.groups) for stage in self.stages]
        return {"seed": self.seed, "world_size": self.engine.world_size, "frozen": self.outside, "stages": stages}

    def save(self, order: Order, average: weights.Average | None, *, ended: bool = False) -> None:
        """Write a checkpoint; `ended`: the stage is over and its weights may be their average."""
        averaged = ended and average is not None and average.ema.apply
        # Asked of every process, since whole tensors may have to be put together; an ended stage's groups are whole.
        kept = weights.tensors(self.kept) | (self.engine.weights() if self.engaged else {})
        moments = self.moments | (self.engine.moments() if self.engaged else {})
        state = {
            "stage": self.stage_index,
            "stage_name": self.stage.name,
            "step": self.step,
            "global_step": self.global_step,
            "order": order.state(),
            "stage_seconds": self.stage_seconds,
            "seconds": self.seconds,
            "averaged": averaged,
            "history": [asdict(record) for record in self.history],
            "run": self.about,
        }
        files = {
            "weights": kept,
            "optimizer": moments,
            "ema": average.named if average else {},
        }
        if self.engine.main:
            checkpoint.save(self.checkpoints, self.global_step, state, files, keep=self.keep)
        self.engine.barrier()
        self.last_good = self.checkpoints / checkpoint.name_of(self.global_step)
        self.saved_at = time.monotonic()

    def restore(self, saved: checkpoint.Checkpoint) -> None:
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
        self.stage_seconds, self.seconds, self.order_state = state["stage_seconds"], state["seconds"], state["order"]
        self.history = [StageRecord(**record) for record in state["history"]]
        self.moments, self.average = saved.tensors["optimizer"], saved.tensors["ema"]
        self.last_good = saved.path

    # ---- one stage

    def train_stage(self) -> None:
        stage, resumed = self.stage, self.order_state is not None
        trained = {name: self.groups[name] for name in stage.groups}
        frozen = {name: group for name, group in self.groups.items() if name not in stage.groups} | self.watch
        for name, group in self.groups.items():
            group.train(name in trained).requires_grad_(name in trained)
        before = guards.digest(frozen) if self.guard.frozen else {}
        keep = resumed or stage.handover == "keep"
        self.moments = _divide(self.moments, stage.groups)[0] if keep else {}
        average = (
            weights.Average(stage.ema, trained, self.average if resumed and self.average else None)
            if stage.ema
            else None
        )
        order_state = self.order_state or {"seed": derive_seed(self.seed, self.stage_index)}
        order = Order(
            len(stage.data),
            digest=checkpoint.digest_of(stage),
            rank=self.engine.rank,
            world_size=self.engine.world_size,
            **order_state,
        )
        restored_at, self.order_state = self.global_step if resumed else -1, None

        self.run_steps(stage, order, average)

        self.log.flush()
        self.check_frozen(stage, frozen, before)
        if average is not None and stage.ema is not None and stage.ema.apply:
            average.write()
        if self.step and self.global_step != restored_at:  # else this very end is what we resumed from
            self.save(order, average, ended=True)
        if self.stage_index + 1 < len(self.stages):
            self.leave_if_asked()
        self.average = average.named if average else {}
        seconds = round(self.stage_seconds, 3)
        self.history.append(StageRecord(stage.name, self.step, seconds, dict(stage.groups), dict(self.log.means)))
        self.stage_index, self.step, self.stage_seconds = self.stage_index + 1, 0, 0.0

    def run_steps(self, stage: Stage, order: Order, average: weights.Average | None) -> None:
        per_step = stage.batch_size * stage.accumulate * self.engine.world_size
        steps = stage.length.in_steps(samples=len(stage.data), per_step=per_step)
        budget = steps if steps is not None else 60 * (stage.length.minutes or 0)
        zero = guards.ZeroGradient(self.guard.zero_gradient_steps)
        self.announce(stage, steps, per_step)
        moving: list[str] = []
        text = ""
        with show.bar(stage.name, round(budget), quiet=self.quiet) as bar:
            while (spent := self.step if steps is not None else self.stage_seconds) < budget:
                if self.due():
                    self.log.flush()
                    self.save(order, average)
                    self.leave_if_asked()
                now = [name for name in stage.groups if self.step >= stage.unfreeze.get(name, 0)]
                if now != moving:
                    self.engage(stage, now, average)
                    moving = now
                started = time.perf_counter()
                progress = Progress(
                    stage.name, self.step, self.global_step, steps, spent / budget, self.seeded(), ramps=stage.ramps
                )
                terms, norm, lr = self.train_step(stage, order, progress, zero)
                if average is not None:
                    average.update(self.step)
                seconds = self.agree(time.perf_counter() - started)
                self.step, self.global_step = self.step + 1, self.global_step + 1
                self.stage_seconds, self.seconds = self.stage_seconds + seconds, self.seconds + seconds
                self.log.add(
                    terms,
                    gradient_norm=norm,
                    seconds=seconds,
                    stage=stage.name,
                    step=self.step,
                    global_step=self.global_step,
                    lr=lr,
                    ramps={name: ramp.at(progress.step) for name, ramp in stage.ramps.items()},
                )
                if self.step % 10 == 1:
                    text = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
                bar.update(min(budget, self.step if steps is not None else self.stage_seconds), text)
        self.disengage()

    def engage(self, stage: Stage, moving: Sequence[str], average: weights.Average | None) -> None:
        """Hand the groups that move from this step on to the engine."""
        self.disengage()
        if not moving:
            raise ValueError(f"stage {stage.name!r}: no group moves at step {self.step}, see unfreeze")
        for name in stage.groups:
            self.groups[name].requires_grad_(name in moving)
        trained = {name: self.groups[name] for name in moving}
        taken, self.moments = _divide(self.moments, moving)
        self.engine.begin(
            trained, stage.optim, taken, loss=stage.loss, batch_size=stage.batch_size, accumulate=stage.accumulate
        )
        self.engaged = True
        if average is not None:
            self.engine.check_average()
            average.follow({name: self.groups[name] for name in stage.groups})

    def disengage(self) -> None:
        """Take the groups and the optimizer's moments back from the engine."""
        if self.engaged:
            self.moments = self.moments | self.engine.moments()
            self.engine.end()
        self.engaged = False

    def agree(self, seconds: float) -> float:
        """Return a step's seconds, and note what the next one shall do first: the same in every process."""
        late = time.monotonic() - self.saved_at > 60 * self.save_minutes
        said = torch.tensor([seconds, late, self.asked.save, self.asked.stop], dtype=torch.float64)
        mean, late, save, stop = self.engine.mean(said).tolist()
        self.late, self.asked.save, self.asked.stop = bool(late or save), save > 0, stop > 0
        return mean

    def due(self) -> bool:
        """Whether a checkpoint should be written before the next step (a stage's end writes its own)."""
        if self.step == 0 or (self.last_good and self.last_good.name == checkpoint.name_of(self.global_step)):
            return False
        return self.late or self.global_step % self.save_every == 0

    def leave_if_asked(self) -> None:
        """End the run after a checkpoint where SIGTERM asked for it."""
        self.late = self.asked.save = False
        if self.asked.stop:
            raise signals.Stopped(f"stopped by SIGTERM after step {self.global_step}: resume from {self.last_good}")

    def train_step(
        self, stage: Stage, order: Order, progress: Progress, zero: guards.ZeroGradient
    ) -> tuple[dict[str, float], float, float]:
        """Make one optimizer step; return the mean of each term over the accumulated batches (and the processes), the
        gradient norm, and the learning rate of the stage's first group.
        """
        factor = stage.optim.factor(progress.step, progress.fraction)
        device = next(self.groups[name] for name in stage.groups).parameters().__next__().device
        samples: list[int] = []
        means: dict[str, float] = {}
        self.engine.forget()
        for micro in range(stage.accumulate):
            indices, last = order.take(stage.batch_size), micro == stage.accumulate - 1
            samples += indices.tolist()
            terms = self.engine.forward(take(stage.data, indices, device), progress, last=last)
            summed = {name: term for name, term in terms.items() if not name.startswith("log/")}
            if not summed:
                raise ValueError(f"the loss of stage {stage.name!r} returned no term, got {sorted(terms)}")
            for name, value in self.values(summed, terms).items():
                if name in summed and not guards.finite(value):
                    raise self.non_finite(f"loss term {name!r}", value, samples)
                means[name] = means.get(name, 0.0) + value / stage.accumulate
            total = torch.stack([term.reshape(()) for term in summed.values()]).sum() / stage.accumulate
            self.engine.backward(total, last=last)
        self.warn_zero(zero, stage)
        norm = self.engine.step({name: value * factor for name, value in stage.groups.items()}, stage.optim.clip)
        if not guards.finite(norm):
            raise self.non_finite("the norm of the gradient", norm, samples)
        return means, norm, stage.optim.lr * next(iter(stage.groups.values())) * factor

    def values(self, summed: Mapping[str, Tensor], terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the terms as numbers, with one wait for the device; what is summed as its mean over the processes."""
        every = {**summed, **terms}  # what is summed comes first
        here = torch.stack([term.detach().float().reshape(()) for term in every.values()])
        here[: len(summed)] = self.engine.mean(here[: len(summed)])
        return dict(zip(every, here.tolist(), strict=True))

    # ---- what surrounds a step

    def seeded(self) -> torch.Generator:
        """Seed torch's generators for this step, and return the loss's own."""
        where = (self.seed, self.stage_index, self.step, self.engine.rank)
        seed = derive_seed("torch", *where)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        return torch.Generator().manual_seed(derive_seed("loss", *where))

    def non_finite(self, term: str, value: float, samples: list[int]) -> guards.NonFiniteLoss:
        return guards.NonFiniteLoss(
            term, value, stage=self.stage.name, step=self.step, samples=samples, last_good=self.last_good
        )

    def warn_zero(self, zero: guards.ZeroGradient, stage: Stage) -> None:
        for name in self.engine.trained if zero.patience else ():
            if zero.look(name, self.engine.connected):
                text = f"group {name!r} got no gradient in {zero.patience} steps of {stage.name!r}: is it connected?"
                warnings.warn(text, guards.TrainingWarning, stacklevel=2)

    def check_frozen(self, stage: Stage, frozen: Mapping[str, nn.Module], before: Mapping[str, str]) -> None:
        after = guards.digest(frozen) if self.guard.frozen else {}
        if moved := [name for name, value in after.items() if value != before[name]]:
            raise guards.FrozenChanged(
                f"stage {stage.name!r} does not train {moved}, yet their weights or buffers changed: does the loss "
                f"write into them?"
            )

    def announce(self, stage: Stage, steps: int | None, per_step: int) -> None:
        length = f"{steps} steps" if steps is not None else f"{stage.length.minutes:g} minutes"
        batch = f"batch {stage.batch_size} x {stage.accumulate} accumulated x 1 process = {per_step}"
        rows = []
        for name, group in self.groups.items():
            size = show.count(sum(p.numel() for p in group.parameters()))
            lr = f"{stage.optim.lr * stage.groups[name]:g}" if name in stage.groups else "frozen"
            rows.append((name, size, lr, stage.unfreeze.get(name, "")))
        title = f"stage {stage.name}: {length}, {batch}, {len(stage.data)} samples"
        show.table(title, ("group", "parameters", "learning rate", "from step"), rows, quiet=self.quiet)


@contextmanager
def _as_found(groups: Mapping[str, nn.Module]) -> Iterator[None]:
    """Give torch's generator, and the groups' modes and flags, back as they were; gradients are freed."""
    flags = [(p, p.requires_grad) for group in groups.values() for p in group.parameters()]
    modes = [(module, module.training) for group in groups.values() for module in group.modules()]
    rng = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(rng)
        for p, flag in flags:
            p.requires_grad_(flag)
            p.grad = None
        for module, mode in modes:
            module.training = mode


def _divide(moments: Mapping[str, Tensor], names: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split moments into those of the named groups and the others'."""
    wanted = set(names)
    chosen = {key: value for key, value in moments.items() if key.partition("/")[0] in wanted}
    return chosen, {key: value for key, value in moments.items() if key not in chosen}
