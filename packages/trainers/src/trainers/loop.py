"""`fit`: runs a list of stages over named groups of weights, and resumes them bit for bit.

It knows no model: what is trained are `groups` (name -> module), what is minimised is the sum of what a stage's loss
returns. Groups that a stage does not name are frozen, in eval mode, and checked by hash to be bit-equal at its end. All
that a step draws (order of samples, torch's generator, `progress.generator`) is a pure function of (seed, stage, step),
so a run that was killed anywhere and resumed ends with the same weights as one that was not; only a stage whose length
is in minutes may end elsewhere.

Files under `out`: `checkpoints/step-XXXXXXXX/` (see `checkpoint`), `log.jsonl` (see `log`), `samples/` (see `sampling`)
and what trackers write.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, guards, rng, show, signals, weights
from .engine import Engine, launched
from .guards import Guards
from .heldout import HeldOut
from .log import Log
from .recompute import recomputed
from .run import Run, StageRecord, divide
from .sampling import Sampling
from .stage import Progress, Stage, check
from .step import Made, Step
from .trackers import Trackers

__all__ = ["FitResult", "Guards", "StageRecord", "fit"]


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    `seconds` are trained seconds over all starts, `losses` the last means of the last stage's terms, `ema` the last
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
    trackers: Sequence[str] = (),
    held_out: HeldOut | None = None,
    sampling: Sampling | None = None,
    watch: Mapping[str, nn.Module] | None = None,
    guard: Guards | None = None,
    engine: Engine | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train `groups` through `stages`; they hold the result in place.

    A checkpoint is written every `save_every` steps, every `save_minutes`, and at each stage's end; the newest `keep`
    stay. With `resume`, the newest whole checkpoint under `out` is continued (or the run begins, when there is none).
    `watch` names frozen modules outside the groups (a backbone) whose weights are checked not to move; `guard` says
    what else is watched. `log` gets every line of the log as well, on the process that writes it, and so do `trackers`:
    "tensorboard", "trackio", "wandb". `held_out` and `sampling` look at the model and do not touch the run.

    `engine` takes the steps; without one, whatever `torchrun` or `accelerate launch` asked for (`engine.launched`). On
    SIGUSR1 a checkpoint is written after the step under way (or the next one, where it comes between two steps); on
    SIGTERM, too, and then `Stopped` ends the run, which `resume` continues.

    Raises:
        ValueError: for stages, groups or a folder that do not fit together.
        NonFiniteLoss, GuardStop: as `guard` says.
        OSError: when a file cannot be written; the last checkpoint stays.
    """
    check(stages, groups)
    if save_every < 1 or keep < 1 or log_every < 1:
        raise ValueError(f"expected save_every, keep and log_every >= 1, got {save_every}, {keep}, {log_every}")
    guard, engine = guard or Guards(), engine or launched()
    if guard.non_finite == "warn" and not engine.spares:
        raise ValueError(f"expected Guards(non_finite='stop') under {engine.name}, which cannot leave a step out")
    run = Run(stages, groups, Path(out), seed=seed, keep=keep, watch=watch or {}, guard=guard, engine=engine)
    tracked = Trackers(trackers if engine.main else (), run.out)
    with engine.speaking():
        run.begin(resume)
    with (
        engine.speaking(),
        tracked.open(from_step=run.global_step),
        _as_found(groups),
        signals.caught() as asked,
    ):
        path = run.out / "log.jsonl" if engine.main else None
        lines = Log(path, also=[*([log] if log else []), tracked.write], from_step=run.global_step)
        loop = _Loop(run, lines, asked, held_out, sampling, quiet=quiet or not engine.main)
        loop.log_every, loop.save_every, loop.save_minutes = log_every, save_every, save_minutes
        while run.stage_index < len(stages):
            loop.train_stage()
    ema = weights.split(run.averaged)
    return FitResult(run.out, run.last_good, run.global_step, run.seconds, tuple(run.history), lines.means, ema)


class _Loop:
    """Takes a run through its stages."""

    log_every: int
    save_every: int
    save_minutes: float | int

    def __init__(
        self,
        run: Run,
        log: Log,
        asked: signals.Asked,
        held_out: HeldOut | None,
        sampling: Sampling | None,
        *,
        quiet: bool,
    ) -> None:
        self.run, self.engine, self.log, self.asked, self.quiet = run, run.engine, log, asked, quiet
        self.held_out, self.sampling = held_out, sampling
        self.saved_at, self.late, self.leaving, self.stopped = time.monotonic(), False, False, False

    def train_stage(self) -> None:
        """Train the stage under way to its end."""
        run, stage = self.run, self.run.stage
        frozen = {name: group for name, group in run.groups.items() if name not in stage.groups} | run.watch
        for name, group in run.groups.items():
            group.train(name in stage.groups).requires_grad_(name in stage.groups)
        before = guards.digest(frozen) if run.guard.frozen != "off" else {}
        restored_at = run.global_step if run.enter() else -1
        trained = {name: run.groups[name] for name in stage.groups}
        try:
            with recomputed(trained, stage.recompute):
                self.run_steps(stage)
            self.check_frozen(stage, frozen, before)
        except (guards.NonFiniteLoss, guards.GuardStop):
            self.log.flush()
            raise
        if run.average is not None and run.average.ema.apply:
            run.average.write()
        if run.step and run.global_step != restored_at:  # else this very end is what we resumed from
            self.log.flush(**self.look(ended=True))
            self.save(ended=True)
        if run.stage_index + 1 < len(run.stages):
            self.leave_if_asked()
        run.leave(self.log.means)

    def run_steps(self, stage: Stage) -> None:
        """Make the steps of a stage."""
        run = self.run
        per_step = stage.batch_size * stage.accumulate * self.engine.world_size
        steps = stage.length.in_steps(samples=len(stage.data), per_step=per_step)
        budget = steps if steps is not None else 60 * (stage.length.minutes or 0)
        self.announce(stage, steps, per_step)
        step, moving, text = Step(run), [], ""
        one = len(run.stages) == 1
        label = stage.name if one else f"{stage.name} ({run.stage_index + 1} of {len(run.stages)})"
        with show.bar(label, round(budget), quiet=self.quiet) as bar:
            bar.skip(run.step if steps is not None else run.stage_seconds)  # of a start before
            while (spent := run.step if steps is not None else run.stage_seconds) < budget:
                if self.due():
                    self.log.flush()
                    self.save()
                    self.leave_if_asked()
                now = [name for name in stage.groups if run.step >= stage.unfreeze.get(name, 0)]
                if now != moving:
                    self.engage(stage, now)
                    moving = now
                started = time.perf_counter()
                generator = rng.reseed(run.seed, run.stage_index, run.step, self.engine.rank)
                alphas = {name: recursion.alpha for name, recursion in run.recursions.items()}
                progress = Progress(
                    stage.name, run.step, run.global_step, steps, spent / budget, generator, stage.ramps, alphas
                )
                made = step.make(progress)
                self.engine.level(run.groups[name] for name in stage.groups)
                if run.average is not None and not made.skipped:
                    run.average.update(run.step)
                self.advance(time.perf_counter() - started, made, progress)
                spent = run.step if steps is not None else run.stage_seconds
                if spent < budget:  # the stage's end looks after its average is written
                    seen = self.look()
                    if seen or run.step % self.log_every == 0:
                        self.log.flush(**seen)
                if run.step % 10 == 1:
                    text = "  ".join(f"{name} {value:.4g}" for name, value in made.terms.items())
                bar.update(min(budget, spent), f"{self.ahead(bar)}{text}")
        self.disengage()

    def ahead(self, bar: show.Bar) -> str:
        """Write how long the whole run will take from here, where stages follow: this one by its bar, the others by
        what a sample costs there beside one here (`Stage.cost`; nothing, where that is not known).
        """
        run, here = self.run, self.run.stage
        left, each, following = bar.seconds_left(), bar.seconds_each(), run.stages[run.stage_index + 1 :]
        if left is None or each is None or not following:
            return ""
        if here.length.minutes is not None:  # the bar counts seconds
            each = run.stage_seconds / run.step
        for stage in following:
            per_step = stage.batch_size * stage.accumulate
            steps = stage.length.in_steps(samples=len(stage.data), per_step=per_step * self.engine.world_size)
            if steps is None:
                left += 60 * (stage.length.minutes or 0)
            elif stage.cost is None or here.cost is None:
                return ""
            else:
                left += steps * each * stage.cost * per_step / (here.cost * here.batch_size * here.accumulate)
        return f"({show.duration(left)} for all) "

    def advance(self, elapsed: float, made: Made, progress: Progress) -> None:
        """Count and log a step, and do as its guards say: the same in every process."""
        run, seconds = self.run, self.agree(elapsed, made)
        run.step, run.global_step = run.step + 1, run.global_step + 1
        run.stage_seconds, run.seconds, run.seconds_before = (
            run.stage_seconds + seconds,
            run.seconds + seconds,
            run.seconds,
        )
        recursive = {
            name: {"average": recursion.average, "eta": recursion.eta, "resets": recursion.resets}
            for name, recursion in run.recursions.items()
        }
        self.log.add(
            made.terms,
            gradient_norm=made.norm,
            seconds=seconds,
            stage=progress.stage,
            step=run.step,
            global_step=run.global_step,
            lr=made.lr,
            ramps={name: progress.ramp(name) for name in progress.ramps},
            **({"recursive": recursive} if recursive else {}),
        )
        for action, text in made.complaints:
            if action == "warn":
                warnings.warn(text, guards.TrainingWarning, stacklevel=2)
        if self.stopped:
            reasons = "; ".join(text for action, text in made.complaints if action == "stop")
            raise guards.GuardStop(
                f"{reasons or 'a guard in another process'}: stopped at step {progress.step} of stage "
                f"{progress.stage!r}; the last good checkpoint is {run.last_good or 'none'}"
            )

    def agree(self, seconds: float, made: Made) -> float:
        """Return a step's seconds, and note what the next one shall do first: the same in every process.

        A signal that comes while the processes talk is in nobody's words yet: what handlers write is only read here,
        and taken down only where it was read, so that the next step hears of it.
        """
        late = time.monotonic() - self.saved_at > 60 * self.save_minutes
        stop = any(action == "stop" for action, _ in made.complaints)
        said = torch.tensor([seconds, self.asked.taken() or late, self.asked.stop, stop], dtype=torch.float64)
        mean, late, leave, stop = self.engine.mean(said).tolist()
        self.late, self.leaving, self.stopped = late > 0, leave > 0, stop > 0
        return mean

    def look(self, *, ended: bool = False) -> dict[str, Any]:
        """Evaluate what is held out and make samples, where either is due; return what belongs into the log's line."""
        run, seen = self.run, {}
        if self.held_out is None and self.sampling is None:
            return seen
        with self.engine.whole() if run.engaged else nullcontext():
            if self.held_out is not None and (ended or run.step % self.held_out.every == 0):
                seen = {"held_out": self.held_out.evaluate(run.groups, self.engine, run.device)}
            if self.sampling is not None and (ended or self.sampling.due(run.step, run.seconds_before, run.seconds)):
                where = {"stage": run.stage.name, "step": run.step, "global_step": run.global_step}
                self.sampling.make(run.groups, self.engine, run.out, **where)
        return seen

    # ---- what surrounds a step

    def engage(self, stage: Stage, moving: Sequence[str]) -> None:
        """Hand the groups that move from this step on to the engine."""
        run = self.run
        self.disengage()
        if not moving:
            raise ValueError(f"stage {stage.name!r}: no group moves at step {run.step}, see unfreeze")
        for name in stage.groups:
            run.groups[name].requires_grad_(name in moving)
        trained = {name: run.groups[name] for name in moving}
        taken, run.moments = divide(run.moments, moving)
        self.engine.begin(
            trained, stage.optim, taken, loss=stage.loss, batch_size=stage.batch_size, accumulate=stage.accumulate
        )
        run.engaged = True
        if run.average is not None:
            self.engine.check_average()
            run.average.follow({name: run.groups[name] for name in stage.groups})
            run.average.named = self.engine.apart(run.average.named)

    def disengage(self) -> None:
        """Take the groups, the optimizer's moments and the average back from the engine."""
        run = self.run
        if run.engaged:
            run.moments = run.moments | self.engine.moments()
            if run.average is not None:
                run.average.named = self.engine.joined(run.average.named)
            self.engine.end()
            if run.average is not None:  # the weights may lie elsewhere now
                run.average.follow({name: run.groups[name] for name in run.stage.groups})
        run.engaged = False

    def due(self) -> bool:
        """Whether a checkpoint should be written before the next step (a stage's end writes its own)."""
        run = self.run
        if run.step == 0 or (run.last_good and run.last_good.name == checkpoint.name_of(run.global_step)):
            return False
        return self.late or self.leaving or run.global_step % self.save_every == 0

    def save(self, *, ended: bool = False) -> None:
        """Write a checkpoint."""
        self.run.save(ended=ended)
        self.saved_at = time.monotonic()

    def leave_if_asked(self) -> None:
        """End the run after a checkpoint where SIGTERM asked for it and every process knows."""
        self.late = False
        if self.leaving:
            run = self.run
            raise signals.Stopped(f"stopped by SIGTERM after step {run.global_step}: resume from {run.last_good}")

    def check_frozen(self, stage: Stage, frozen: Mapping[str, nn.Module], before: Mapping[str, str]) -> None:
        """Compare what the stage did not train with what it was."""
        action = self.run.guard.frozen
        after = guards.digest(frozen) if action != "off" else {}
        if moved := [name for name, value in after.items() if value != before[name]]:
            text = (
                f"stage {stage.name!r} does not train {moved}, yet their weights or buffers changed: does the loss "
                f"write into them?"
            )
            if action == "stop":
                raise guards.FrozenChanged(text)
            warnings.warn(text, guards.TrainingWarning, stacklevel=2)

    def announce(self, stage: Stage, steps: int | None, per_step: int) -> None:
        """Show what the stage is about to do."""
        length = f"{steps} steps" if steps is not None else f"{stage.length.minutes:g} minutes"
        world = self.engine.world_size
        processes = f"{world} process" if world == 1 else f"{world} processes"
        if world > 1:
            processes += f" ({self.engine.name})"
        batch = f"batch {stage.batch_size} x {stage.accumulate} accumulated x {processes} = {per_step}"
        rows = []
        for name, group in self.run.groups.items():
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
