"""A stage of training as data: which groups move, under which loss, on which data, for how long, and what is handed
over.

A run is a list of stages. The loss is a function: `loss(batch, progress) -> {term: scalar}`; the trainer sums the
terms, steps and remembers. A term whose name starts with `log/` is written to the log and not summed.

Steps are optimizer steps (an accumulated batch is one step), counted from 0 within the stage; `global_step` counts over
the run. Everything a loss draws should come from `progress.generator` (a CPU generator) or from torch's global
generator: both are pure functions of (seed, stage, step, rank), which is what makes resuming exact. Numpy's global
generator is not seeded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn

from .config import did_you_mean
from .ramps import STRICT, Part, Ramp, RecursiveRamp

__all__ = ["EMA", "Length", "Loss", "MapStyle", "Matrices", "Optim", "Progress", "Ramp", "Stage", "check"]


@checked_dataclass(frozen=True, config=STRICT)
class Length(Part):
    """How long a stage lasts: exactly one of steps, epochs, or minutes of training.

    Minutes count the seconds spent in training steps (not in saving), and survive a resume; where they end depends on
    the machine, so a stage by minutes is repeatable only to the schedule, not bit for bit.

    >>> Length(epochs=2).in_steps(samples=10, per_step=4)
    5
    """

    steps: int | None = Field(default=None, ge=0)
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)

    def __post_init__(self) -> None:
        given = {"steps": self.steps, "epochs": self.epochs, "minutes": self.minutes}
        if sum(value is not None for value in given.values()) != 1:
            raise ValueError(f"expected exactly one of steps, epochs, minutes, got {given}")

    def in_steps(self, *, samples: int, per_step: int) -> int | None:
        """Return the number of optimizer steps, None when the length is in minutes."""
        return self.steps if self.epochs is None else math.ceil(self.epochs * samples / per_step)


@checked_dataclass(frozen=True, config=STRICT)
class Matrices(Part):
    """Muon for the hidden matrices of a stage, beside AdamW for the rest.

    `names` are patterns (`fnmatch`) over `group/parameter`; their two-dimensional parameters go to Muon, which gives
    every direction of a matrix an equal step. Embeddings, heads, vectors and kernels belong to AdamW. The step is
    scaled to AdamW's usual size, so `lr` may be read on AdamW's scale.

    References: Muon (Jordan et al., 2024); Muon is Scalable for LLM Training (Liu et al., 2025), Section 2.2.
    """

    names: tuple[str, ...]
    lr: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)


@checked_dataclass(frozen=True, config=STRICT)
class Optim(Part):
    """AdamW and its schedule, and Muon for the matrices that `muon` names (None: for none). `clip` bounds the gradient
    norm of a whole optimizer step over all groups (None: no bound).

    `schedule`: "constant"; "cosine" from `lr` down to `lr * final`; "hold_cosine" stays at `lr` for the share `hold` of
    the stage and then falls as a cosine. The first `warmup_steps` rise linearly.

    `kind="adamw8bit"`: the moments of tensors of 4,096 elements or more in 8 bits (torchao; one process, or DDP).
    """

    kind: Literal["adamw", "adamw8bit"] = "adamw"
    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    schedule: Literal["constant", "cosine", "hold_cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    hold: float = Field(default=0.7, ge=0, lt=1)
    final: float = Field(default=0.0, ge=0, le=1)
    muon: Matrices | None = None

    def factor(self, step: int, fraction: float) -> float:
        """Return what multiplies `lr` at a step, the stage being spent by `fraction` in [0, 1].

        >>> Optim(schedule="cosine").factor(50, 0.5)
        0.5
        """
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        start = {"constant": 1.0, "cosine": 0.0, "hold_cosine": self.hold}[self.schedule]
        fall = max(0.0, fraction - start) / (1 - start) if start < 1 else 0.0
        return rise * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fall)))


@checked_dataclass(frozen=True, config=STRICT)
class EMA(Part):
    """An exponential moving average of the stage's weights, begun from the weights at the stage's start.

    The decay at step n is min(decay, (1 + n) / (10 + n)), so that a short stage is not an average of its beginning.
    With `apply`, the weights become the average when the stage ends.
    """

    decay: float = Field(ge=0, lt=1)
    apply: bool = False

    def at(self, step: int) -> float:
        """Return the decay after optimizer step `step`."""
        return min(self.decay, (1 + step) / (10 + step))


@dataclass(frozen=True)
class Progress:
    """Where training stands, as a loss sees it.

    `steps` is None when the stage's length is in minutes; `fraction` in [0, 1] is the share of the stage that is spent.
    `alphas` are the values of recursive ramps, which depend on more than the step; one that is not there is read as if
    nothing had been reset.
    """

    stage: str
    step: int
    global_step: int
    steps: int | None
    fraction: float
    generator: torch.Generator
    ramps: Mapping[str, Ramp | RecursiveRamp] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def ramp(self, name: str) -> float:
        """Return the value of one of the stage's ramps at this step."""
        if name not in self.ramps:
            raise ValueError(f"stage {self.stage!r} has no ramp {name!r}; {did_you_mean(name, self.ramps)}")
        return self.alphas[name] if name in self.alphas else self.ramps[name].at(self.step)


@runtime_checkable
class MapStyle(Protocol):
    """A data set: a length, and items that are dicts of tensors (or numbers, or text).

    Optional extras: `digest: str` names the content, so that a resume on other data is refused; `get_batch(indices:
    LongTensor) -> dict` returns a whole batch at once; items by epoch, an order of its own, loading ahead: see `feed`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Loss = Callable[[dict[str, Any], Progress], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Stage:
    """One stage. `groups` maps a group's name to what multiplies the learning rate; every other group is frozen.

    `unfreeze={group: step}`: the group gets no update before that step. `handover`: "keep" carries over the optimizer's
    state of the groups that the stage before also trained, "reset" starts it afresh. `recompute` are patterns over
    `group/module`: modules that are computed again in the backward instead of keeping their activations. `cost` is what
    a sample takes beside a sample of the other stages (none: not known); an estimate of the whole run goes by it.
    """

    name: str
    groups: Mapping[str, float | int]
    loss: Loss
    data: MapStyle
    batch_size: int
    length: Length
    optim: Optim = field(default_factory=Optim)
    accumulate: int = 1
    ramps: Mapping[str, Ramp | RecursiveRamp] = field(default_factory=dict)
    unfreeze: Mapping[str, int] = field(default_factory=dict)
    ema: EMA | None = None
    handover: Literal["keep", "reset"] = "reset"
    recompute: Sequence[str] = ()
    cost: float | int | None = None

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError(f"stage {self.name!r} trains nothing: name at least one group")
        if self.batch_size < 1 or self.accumulate < 1:
            raise ValueError(
                f"stage {self.name!r}: expected batch_size, accumulate >= 1, got {self.batch_size}, {self.accumulate}"
            )
        if self.cost is not None and not self.cost > 0:
            raise ValueError(f"stage {self.name!r}: expected cost > 0, got {self.cost}")
        if self.handover not in ("keep", "reset"):
            raise ValueError(f"stage {self.name!r}: expected handover 'keep' or 'reset', got {self.handover!r}")
        for group in self.unfreeze:
            if group not in self.groups:
                hint = did_you_mean(group, self.groups)
                raise ValueError(f"stage {self.name!r} unfreezes {group!r}, which is not one of its groups; {hint}")
        for name, ramp in self.ramps.items():
            if isinstance(ramp, RecursiveRamp) and ramp.group not in self.groups:
                hint = did_you_mean(ramp.group, self.groups)
                raise ValueError(
                    f"stage {self.name!r}: ramp {name!r} measures the gradient on group {ramp.group!r}, which the "
                    f"stage does not train; {hint}"
                )


def check(stages: Sequence[Stage], groups: Mapping[str, nn.Module]) -> None:
    """Raise ValueError for stages and groups that do not fit together."""
    names = [stage.name for stage in stages]
    if not stages or len(set(names)) != len(names):
        raise ValueError(f"expected one or more stages with different names, got {names}")
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
                hint = did_you_mean(name, groups)
                raise ValueError(f"stage {stage.name!r} trains group {name!r}, which is not there; {hint}")
            if not any(True for _ in groups[name].parameters()):
                raise ValueError(f"stage {stage.name!r} trains group {name!r}, which has no parameters")
        if len(stage.data) < 1:
            raise ValueError(f"stage {stage.name!r}: the data set is empty")
