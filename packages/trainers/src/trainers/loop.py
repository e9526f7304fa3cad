"""`fit`: runs a list of stages over named groups of weights, and resumes them bit for bit.

It knows no model: what is trained are `groups` (name -> module), what is minimised is the sum of what a stage's loss returns.
Groups that a stage does not name are frozen, in eval mode, and checked by hash to be bit-equal at its end. All that a step draws
(order of samples, torch's generator, `progress.generator`) is a pure function of (seed, stage, step), so a run that was killed
anywhere and resumed ends with the same weights as one that was not; only a stage whose length is in minutes may end elsewhere.

Files under `out`: `checkpoints/step-XXXXXXXX/` (see `checkpoint`) and `log.jsonl` (one line every `log_every` steps: mean of each
term since the line before, gradient norm, learning rate, seconds a step).
"""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, guards, show
from .config import did_you_mean
from .data import collate
from .order import Order, derive_seed
from .stage import Progress, Stage

__all__ = ["FitResult", "Guards", "StageRecord", "fit"]


@dataclass(frozen=True)
class Guards:
    """What is watched: `frozen` hashes every group that a stage does not train (and `watch`); a trained group whose gradient is
    exactly zero for `zero_gradient_steps` steps is warned about (0: never)."""

    frozen: bool = True
    zero_gradient_steps: int = 20


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage did: for the history in a bundle."""

    name: str
    steps: int
    seconds: float
    groups: dict[str, float | int]
    losses: dict[str, float]


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns. `seconds` are trained seconds over all sessions, `losses` the last means of the last stage's terms,
    `ema` the last stage's average as {group: state dict} (empty without one)."""

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
    save_minutes: float | int = 10.0,
    keep: int = 2,
    log: Callable[[dict[str, Any]], None] | None = None,
    log_every: int = 10,
    watch: Mapping[str, nn.Module] | None = None,
    guard: Guards | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train `groups` through `stages`; they hold the result in place.

    A checkpoint is written every `save_every` steps, every `save_minutes`, and at each stage's end; the newest `keep` stay.
    With `resume`, the newest whole checkpoint under `out` is continued (or the run begins, when there is none). `watch` names
    frozen modules outside the groups (a backbone) whose weights are checked not to move. `log` gets every line of the log.
    """
    run = _Run(
        stages,
        groups,
        Path(out),
        seed,
        save_every,
        save_minutes,
        keep,
        log,
        log_every,
        watch or {},
        guard or Guards(),
        quiet,
    )
    run.begin(resume)
    flags = {p: p.requires_grad for group in groups.values() for p in group.parameters()}
    modes = [(module, module.training) for group in groups.values() for module in group.modules()]
    cpu_rng = torch.get_rng_state()
    try:
        while run.stage_index < len(stages):
            run.train_stage()
    finally:
        torch.set_rng_state(cpu_rng)
        for p, flag in flags.items():
            p.requires_grad_(flag)
            p.grad = None
        for module, mode in modes:
            module.training = mode
    return FitResult(
        run.out, run.last_good, run.global_step, run.seconds, tuple(run.history), run.losses, _split(run.average)
    )


class _Run:
    """The state of one call of `fit`; every field that training changes is in the checkpoint."""

    def __init__(
        self,
        stages: Sequence[Stage],
        groups: Mapping[str, nn.Module],
        out: Path,
        seed: int,
        save_every: int,
        save_minutes: float | int,
        keep: int,
        log: Callable[[dict[str, Any]], None] | None,
        log_every: int,
        watch: Mapping[str, nn.Module],
        guard: Guards,
        quiet: bool,
    ) -> None:
        _check(stages, groups)
        self.stages, self.groups, self.out, self.seed = list(stages), dict(groups), out, seed
        self.save_every, self.save_minutes, self.keep = save_every, save_minutes, keep
        self.log, self.log_every, self.watch, self.guard, self.quiet = log, log_every, watch, guard, quiet
        self.names = [name for name in groups if any(name in stage.groups for stage in stages)]
        self.stage_index = self.step = self.global_step = 0
        self.stage_seconds = self.seconds = 0.0
        self.order_state: dict[str, int] | None = None
        self.moments: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.history: list[StageRecord] = []
        self.losses: dict[str, float] = {}
        self.last_good: Path | None = None
        self.last_saved = time.monotonic()

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    # ---- begin, save, restore

    def begin(self, resume: bool) -> None:
        found = checkpoint.latest(self.checkpoints)
        if found is not None and not resume:
            raise ValueError(f"{self.out} already holds a run ({found.name}): resume it, or choose another folder")
        self.out.mkdir(parents=True, exist_ok=True)
        if found is not None:
            self.restore(checkpoint.load(found))
        _cut_log(self.out / "log.jsonl", self.global_step if found is not None else 0)

    def describe(self) -> dict[str, Any]:
        return {"seed": self.seed, "world_size": 1, "stages": [describe(stage, self.groups) for stage in self.stages]}

    def save(self, order: Order, optimizer: torch.optim.Optimizer) -> None:
        self.moments = _moments(self.trained(), optimizer)
        state = {
            "stage": self.stage_index,
            "stage_name": self.stages[self.stage_index].name,
            "step": self.step,
            "global_step": self.global_step,
            "order": order.state(),
            "stage_seconds": self.stage_seconds,
            "seconds": self.seconds,
            "history": [asdict(record) for record in self.history],
            "losses": self.losses,
            "run": self.describe(),
        }
        weights = {f"{g}/{k}": v for g in self.names for k, v in _tensors(self.groups[g]).items()}
        tensors = {"weights": weights, "optimizer": self.moments, "ema": self.average}
        self.last_good = checkpoint.save(self.checkpoints, self.global_step, state, tensors, keep=self.keep)
        self.last_saved = time.monotonic()

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        state = saved.state
        changes = checkpoint.diff(state["run"], json.loads(json.dumps(self.describe())), done=state["stage"])
        if refused := [str(change) for change in changes if change.verdict == "refused"]:
            raise ValueError(
                f"{saved.path} was made by another run, which this one cannot continue:\n  " + "\n  ".join(refused)
                + "\nput these back, or start afresh in another folder"
            )  # fmt: skip
        if warned := [str(change) for change in changes if change.verdict == "warned"]:
            warnings.warn(f"resuming with changes: {'; '.join(warned)}", guards.TrainingWarning, stacklevel=4)
        for name in self.names:
            prefix = f"{name}/"
            part = {k.removeprefix(prefix): v for k, v in saved.tensors["weights"].items() if k.startswith(prefix)}
            if part:  # a group that only a later, new stage trains is not in the checkpoint: it keeps its weights
                self.groups[name].load_state_dict(part)
        self.stage_index, self.step, self.global_step = state["stage"], state["step"], state["global_step"]
        self.stage_seconds, self.seconds, self.losses = state["stage_seconds"], state["seconds"], state["losses"]
        self.order_state = state["order"]
        self.history = [StageRecord(**record) for record in state["history"]]
        self.moments, self.average = saved.tensors["optimizer"], saved.tensors["ema"]
        self.last_good = saved.path

    # ---- one stage

    def trained(self) -> dict[str, nn.Parameter]:
        """The stage's parameters by `group/name`."""
        return {
            f"{g}/{k}": p for g in self.stages[self.stage_index].groups for k, p in self.groups[g].named_parameters()
        }

    def train_stage(self) -> None:
        stage = self.stages[self.stage_index]
        resumed = self.order_state is not None
        per_step = stage.batch_size * stage.accumulate
        steps = stage.length.in_steps(samples=len(stage.data), per_step=per_step)
        for name, group in self.groups.items():
            group.train(name in stage.groups)
            group.requires_grad_(name in stage.groups)
        frozen = {name: group for name, group in self.groups.items() if name not in stage.groups} | dict(self.watch)
        hashes = guards.digest(frozen) if self.guard.frozen else {}
        optimizer = self.build_optimizer(stage, self.moments if resumed or stage.handover == "keep" else {})
        parameters = self.trained()
        if not resumed:
            self.average = _copy({f"{g}/{k}": v for g in stage.groups for k, v in _tensors(self.groups[g]).items()}) if stage.ema else {}  # fmt: skip # noqa: E501
        device = next(iter(parameters.values())).device
        self.average = {key: value.to(device) for key, value in self.average.items()}
        order = Order(
            len(stage.data),
            digest=_digest(stage),
            **(self.order_state or {"seed": derive_seed(self.seed, self.stage_index)}),
        )
        self.announce(stage, steps, per_step)
        zero = guards.ZeroGradient(self.guard.zero_gradient_steps)
        minutes = stage.length.minutes
        lines = _Lines(self)
        with show.bar(stage.name, steps if steps is not None else round(60 * (minutes or 0)), quiet=self.quiet) as bar:
            while self.step < steps if steps is not None else self.stage_seconds < 60 * (minutes or 0):
                started = time.perf_counter()
                fraction = self.step / steps if steps else min(1.0, self.stage_seconds / (60 * (minutes or 1)))
                progress = Progress(
                    stage.name, self.step, self.global_step, steps, fraction, self.seeded(), ramps=stage.ramps
                )
                terms, norm = self.train_step(stage, order, optimizer, parameters, progress, zero, device)
                seconds = time.perf_counter() - started
                self.step, self.global_step = self.step + 1, self.global_step + 1
                self.stage_seconds, self.seconds = self.stage_seconds + seconds, self.seconds + seconds
                lines.add(terms, norm, optimizer.param_groups[0]["lr"], seconds)
                bar.update(self.step if steps is not None else min(self.stage_seconds, 60 * (minutes or 0)), lines.text)
                at_end = self.step == steps if steps is not None else self.stage_seconds >= 60 * (minutes or 0)
                due = (
                    self.global_step % self.save_every == 0
                    or time.monotonic() - self.last_saved > 60 * self.save_minutes
                )
                if due and not at_end:
                    lines.flush()
                    self.save(order, optimizer)
        lines.flush()
        if self.guard.frozen:
            moved = [name for name, value in guards.digest(frozen).items() if value != hashes[name]]
            if moved:
                raise guards.FrozenChanged(
                    f"stage {stage.name!r} does not train {moved}, yet their weights or buffers changed: "
                    f"does the loss write into them?"
                )
        if stage.ema is not None and stage.ema.apply:
            self.write_average(stage)
        if self.step and not (resumed and self.finished_before(stage)):
            self.save(order, optimizer)
        self.moments = _moments(parameters, optimizer)
        self.history.append(
            StageRecord(stage.name, self.step, round(self.stage_seconds, 3), dict(stage.groups), dict(self.losses))
        )
        self.stage_index, self.step, self.stage_seconds, self.order_state = self.stage_index + 1, 0, 0.0, None

    def finished_before(self, stage: Stage) -> bool:
        """Whether the checkpoint we resumed from was already this stage's end (then it need not be written again)."""
        return self.last_good is not None and self.last_good.name == f"step-{self.global_step:08d}"

    def train_step(
        self,
        stage: Stage,
        order: Order,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        progress: Progress,
        zero: guards.ZeroGradient,
        device: torch.device,
    ) -> tuple[dict[str, float], float]:
        """One optimizer step; returns the mean of each term over the accumulated batches, and the gradient norm."""
        for group in optimizer.param_groups:
            active = progress.step >= stage.unfreeze.get(group["name"], 0)
            group["lr"] = (
                stage.optim.lr * stage.groups[group["name"]] * stage.optim.factor(progress.step, progress.fraction)
            )
            for p in group["params"]:
                p.requires_grad_(active)
                p.grad = None
        means: dict[str, float] = {}
        samples: list[int] = []
        for _ in range(stage.accumulate):
            indices = order.take(stage.batch_size)
            samples += indices.tolist()
            terms = dict(stage.loss(_batch(stage, indices, device), progress))
            summed = [term for name, term in terms.items() if not name.startswith("log/")]
            assert summed, f"the loss of stage {stage.name!r} returned no term"
            values = torch.stack([term.detach().float().reshape(()) for term in terms.values()]).tolist()  # one sync
            named = dict(zip(terms, values, strict=True))
            if bad := guards.finite({k: v for k, v in named.items() if not k.startswith("log/")}):
                raise self.non_finite(f"loss term {bad!r}", named[bad], stage, samples)
            (sum(summed[1:], start=summed[0]) / stage.accumulate).backward()
            for name, value in named.items():
                means[name] = means.get(name, 0.0) + value / stage.accumulate
        if zero.patience:
            self.look_for_zero(stage, optimizer, zero, progress)
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if bad := guards.finite({"norm": float(norm)}):
            raise self.non_finite(f"the gradient's {bad}", float(norm), stage, samples)
        if stage.optim.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters.values(), stage.optim.clip, norm)
        optimizer.step()
        if stage.ema is not None:
            self.update_average(stage, stage.ema.at(progress.step))
        return means, float(norm)

    def seeded(self) -> torch.Generator:
        """Seed torch's generators for this step, and return the loss's own."""
        torch.default_generator.manual_seed(derive_seed("torch", self.seed, self.stage_index, self.step, 0))
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(derive_seed("torch", self.seed, self.stage_index, self.step, 0))
        return torch.Generator().manual_seed(derive_seed("loss", self.seed, self.stage_index, self.step, 0))

    def non_finite(self, term: str, value: float, stage: Stage, samples: list[int]) -> guards.NonFiniteLoss:
        return guards.NonFiniteLoss(
            term, value, stage=stage.name, step=self.step, samples=samples, last_good=self.last_good
        )

    def look_for_zero(
        self, stage: Stage, optimizer: torch.optim.Optimizer, zero: guards.ZeroGradient, progress: Progress
    ) -> None:
        for group in optimizer.param_groups:
            name = group["name"]
            if progress.step >= stage.unfreeze.get(name, 0) and zero.look(name, group["params"]):
                text = (
                    f"group {name!r} got no gradient in {zero.patience} steps of stage {stage.name!r}: is it connected?"
                )
                warnings.warn(text, guards.TrainingWarning, stacklevel=2)

    # ---- optimizer and average

    def build_optimizer(self, stage: Stage, moments: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        optim = stage.optim
        params = [{"name": name, "params": list(self.groups[name].parameters())} for name in stage.groups]
        optimizer = torch.optim.AdamW(
            params, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )
        parameters = self.trained()
        for key, value in moments.items():
            name, _, part = key.rpartition("#")
            if name in parameters:
                optimizer.state[parameters[name]][part] = value.to(parameters[name].device, copy=True)
        return optimizer

    @torch.no_grad()
    def update_average(self, stage: Stage, decay: float) -> None:
        current = {f"{g}/{k}": v for g in stage.groups for k, v in _tensors(self.groups[g]).items()}
        real = [key for key, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[key] for key in real], [current[key] for key in real], 1 - decay)
        for key in current.keys() - set(real):
            self.average[key].copy_(current[key])

    def write_average(self, stage: Stage) -> None:
        average = _split(self.average)
        for name in stage.groups:
            self.groups[name].load_state_dict(average[name])

    def announce(self, stage: Stage, steps: int | None, per_step: int) -> None:
        length = f"{steps} steps" if steps is not None else f"{stage.length.minutes:g} minutes"
        rows = [
            (
                name,
                show.count(sum(p.numel() for p in group.parameters())),
                f"{stage.optim.lr * stage.groups[name]:g}" if name in stage.groups else "frozen",
                stage.unfreeze.get(name, ""),
            )  # fmt: skip # noqa: E501
            for name, group in self.groups.items()
        ]
        title = (
            f"stage {stage.name}: {length}, batch {stage.batch_size} x {stage.accumulate} accumulated = {per_step}, "
            f"{len(stage.data)} samples"
        )
        show.table(title, ("group", "parameters", "learning rate", "from step"), rows, quiet=self.quiet)


class _Lines:
    """Collects the terms of the steps since the last line of the log."""

    def __init__(self, run: _Run) -> None:
        self.run, self.text = run, ""
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, terms: Mapping[str, float], norm: float, lr: float, seconds: float) -> None:
        for name, value in (*terms.items(), ("gradient_norm", norm), ("seconds", seconds)):
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count, self._lr = self._count + 1, lr
        if self.run.step % self.run.log_every == 0:
            self.flush()

    def flush(self) -> None:
        if not self._count:
            return
        means = {name: value / self._count for name, value in self._sums.items()}
        run, stage = self.run, self.run.stages[self.run.stage_index]
        norm, seconds = means.pop("gradient_norm"), means.pop("seconds")
        run.losses = means
        line = {
            "stage": stage.name,
            "step": run.step,
            "global_step": run.global_step,
            "terms": means,
            "gradient_norm": norm,
            "lr": self._lr,
            "seconds": seconds,
            "ramps": {name: ramp.at(run.step - 1) for name, ramp in stage.ramps.items()},
        }
        with (run.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if run.log is not None:
            run.log(line)
        self.text = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self._sums, self._count = {}, 0


def describe(stage: Stage, groups: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return what a checkpoint remembers of a stage, to be compared at a resume (see `checkpoint.diff`)."""
    return {
        "name": stage.name,
        "groups": dict(stage.groups),
        "parameters": {g: {k: list(v.shape) for k, v in _tensors(groups[g]).items()} for g in stage.groups},
        "data": _digest(stage),
        "samples": len(stage.data),
        "batch_size": stage.batch_size,
        "accumulate": stage.accumulate,
        "length": asdict(stage.length),
        "optim": asdict(stage.optim),
        "ramps": {name: asdict(ramp) for name, ramp in stage.ramps.items()},
        "unfreeze": dict(stage.unfreeze),
        "ema": asdict(stage.ema) if stage.ema else None,
        "handover": stage.handover,
    }


def _check(stages: Sequence[Stage], groups: Mapping[str, nn.Module]) -> None:
    if not stages:
        raise ValueError("expected at least one stage, got none")
    names = [stage.name for stage in stages]
    if len(set(names)) != len(names):
        raise ValueError(f"expected stages with different names, got {names}")
    owner: dict[nn.Parameter, str] = {}
    for name, group in groups.items():
        if "/" in name or "#" in name:
            raise ValueError(f"expected a group name without '/' and '#', got {name!r}")
        for p in group.parameters():
            if owner.setdefault(p, name) != name:
                raise ValueError(f"groups {owner[p]!r} and {name!r} share a parameter: groups may not overlap")
    for stage in stages:
        for name in stage.groups:
            if name not in groups:
                raise ValueError(
                    f"stage {stage.name!r} trains group {name!r}, which is not there; {did_you_mean(name, groups)}"
                )
            if not any(True for _ in groups[name].parameters()):
                raise ValueError(f"stage {stage.name!r} trains group {name!r}, which has no parameters")
        if len(stage.data) < 1:
            raise ValueError(f"stage {stage.name!r}: the data set is empty")


def _batch(stage: Stage, indices: Tensor, device: torch.device) -> dict[str, Any]:
    get_batch = getattr(stage.data, "get_batch", None)
    batch = get_batch(indices) if get_batch is not None else collate([stage.data[i] for i in indices.tolist()])
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _digest(stage: Stage) -> str:
    return str(getattr(stage.data, "digest", ""))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in tensors.items()}


def _moments(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by `group/parameter#moment`."""
    state = optimizer.state
    return {f"{key}#{part}": value for key, p in parameters.items() for part, value in state.get(p, {}).items()}


def _split(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{group/key: tensor} -> {group: {key: tensor}}."""
    result: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, _, key = name.partition("/")
        result.setdefault(group, {})[key] = value
    return result


def _cut_log(path: Path, global_step: int) -> None:
    """Drop lines of steps that will be made again (and a last line that a kill cut short)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["global_step"] <= global_step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    part = path.with_suffix(".tmp")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)
