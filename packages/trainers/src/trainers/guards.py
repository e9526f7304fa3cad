"""Guards against failing silently: a loss that is no number, frozen weights that moved, a group that gets no gradient,
a term that drowns the others, a router that has collapsed."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn

from .config import did_you_mean
from .ramps import STRICT, Part

__all__ = [
    "Action",
    "FrozenChanged",
    "GuardStop",
    "Guards",
    "NonFiniteLoss",
    "Terms",
    "TrainingWarning",
    "ZeroGradient",
    "bytes_of",
    "digest",
    "finite",
]

Action = Literal["off", "warn", "stop"]


@checked_dataclass(frozen=True, config=STRICT)
class Guards(Part):
    """What is watched in the loop, and whether it is left alone, warned about, or stops the run (`GuardStop`).

    - `non_finite`: a term of the loss or the gradient is NaN or infinite. "stop" before anything is updated; "warn"
      leaves the step out and goes on (buffers that the forward wrote stay).
    - `frozen`: a group that a stage does not train, or `watch`, is not bit-equal at the stage's end. (A resume compares
      them with what they were when the checkpoint was made, unless this is "off".)
    - `zero_gradient`: a trained group whose gradient is exactly zero for `zero_gradient_steps` steps (0: never).
    - `balance`: a term exceeds `ratio` times the term `reference` (the flow loss), both as moving averages. A stage
      whose loss has no such term is not watched; None watches none.
    - `router`: a figure that the loss reports in its log tells of a collapse, as a moving average: `log/router_entropy`
      (of a row's scores, in units of log E) below `router_entropy`, `log/router_load` (share of the busiest expert)
      above `router_load`, `log/router_dead` (share of experts that were never selected) above `router_dead`. A name may
      go on after a slash: `log/router_load/semantic`.

    Moving averages are over about `window` steps and speak once a stage, after as many steps. Thresholds but the
    ratio of 100 are our choice.
    """

    non_finite: Literal["warn", "stop"] = "stop"
    frozen: Action = "stop"
    zero_gradient: Action = "warn"
    zero_gradient_steps: int = Field(default=20, ge=0)
    balance: Action = "warn"
    reference: str | None = None
    ratio: float = Field(default=100.0, gt=1)
    router: Action = "warn"
    router_entropy: float = Field(default=0.05, ge=0, le=1)
    router_load: float = Field(default=0.95, ge=0, le=1)
    router_dead: float = Field(default=0.5, ge=0, le=1)
    window: int = Field(default=20, ge=1)

    @field_validator("frozen", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return {True: "stop", False: "off"}[value] if isinstance(value, bool) else value


class TrainingWarning(UserWarning):
    """Something that training survives and that you should look at."""


class GuardStop(RuntimeError):
    """A guard that was told to stop the run did."""


class NonFiniteLoss(ArithmeticError):
    """A term of the loss, or the gradient, is NaN or infinite. The weights are those of before the step."""

    def __init__(
        self, term: str, value: float, *, stage: str, step: int, samples: Sequence[int], last_good: Path | None
    ):
        self.term, self.value, self.stage, self.step, self.samples, self.last_good = (
            term,
            value,
            stage,
            step,
            samples,
            last_good,
        )
        kept = f"the last good checkpoint is {last_good}" if last_good else "no checkpoint was written before it"
        super().__init__(
            f"{term} is {value} at step {step} of stage {stage!r} (samples {list(samples)}); nothing was updated or "
            f"overwritten, {kept}. Look at these samples, or lower the learning rate and resume."
        )


class FrozenChanged(GuardStop):
    """Weights that a stage does not train are not bit-equal to what they were at its start."""


def finite(value: float) -> bool:
    """Return whether a number is neither NaN nor infinite."""
    return math.isfinite(value)


@torch.no_grad()
def digest(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return a hash of every parameter and buffer of each module, by bits (NaN equals NaN, 0.0 differs from -0.0)."""
    return {
        name: _digest(v for v in module.state_dict().values() if isinstance(v, Tensor))
        for name, module in modules.items()
    }


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, in memory order of a contiguous copy."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


def _digest(tensors: Iterable[Tensor]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        hasher.update(bytes_of(tensor))
    return hasher.hexdigest()


class ZeroGradient:
    """Watches each group until its gradient has been non-zero once; `patience` steps without are reported.

    Zero in the first steps is normal (behind a layer that starts at zero), for ever it is a part that is not connected.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._waited: dict[str, int] = {}
        self._settled: set[str] = set()

    def look(self, group: str, connected: Callable[[str], bool]) -> bool:
        """Return True on the step at which the group's patience runs out; `connected` tells whether a group's gradient
        is not zero.
        """
        if group in self._settled:
            return False
        if connected(group):
            self._settled.add(group)
            return False
        self._waited[group] = self._waited.get(group, 0) + 1
        if self._waited[group] < self.patience:
            return False
        self._settled.add(group)
        return True


class Terms:
    """Watches the terms of a stage's loss: their balance, and what it tells of routers."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self._average: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self._said: set[str] = set()

    def look(self, terms: Mapping[str, float]) -> list[tuple[Action, str]]:
        """Take in one step; return what there is to say, each once."""
        g = self.guards
        found: list[tuple[Action, str]] = []
        if not self._seen and g.reference and g.balance != "off" and g.reference not in terms:
            hint = did_you_mean(g.reference, [name for name in terms if not name.startswith("log/")])
            if hint.startswith("did"):  # else a stage without it
                found.append(("warn", f"no term {g.reference!r} to hold the others against; {hint}"))
        for name, value in terms.items():
            if name.startswith("log/") and not name.startswith("log/router_"):
                continue
            seen = self._seen[name] = self._seen.get(name, 0) + 1
            share = max(1 / seen, 2 / (g.window + 1))
            old = self._average.get(name, 0.0)
            self._average[name] = average = old + share * (value - old)
            if seen < g.window or name in self._said:
                continue
            action, text = self._router(name, average) if name.startswith("log/") else self._balance(name, average)
            if action != "off" and text:
                self._said.add(name)
                found.append((action, text))
        return found

    def _balance(self, name: str, average: float) -> tuple[Action, str]:
        g = self.guards
        reference = self._average.get(g.reference) if g.reference else None
        if reference is None or abs(average) <= g.ratio * abs(reference):
            return g.balance, ""
        text = (
            f"loss term {name!r} is {average:.3g}, more than {g.ratio:g} x {g.reference!r} ({reference:.3g}): it "
            f"decides every step alone; lower its weight, or ramp it up"
        )
        return g.balance, text

    def _router(self, name: str, average: float) -> tuple[Action, str]:
        g = self.guards
        figure = name.removeprefix("log/").partition("/")[0]
        if figure == "router_entropy" and average < g.router_entropy:
            return g.router, f"{name} is {average:.3g}, below {g.router_entropy:g}: the router no longer explores"
        limit = {"router_load": g.router_load, "router_dead": g.router_dead}.get(figure, math.inf)
        if average > limit:
            return g.router, f"{name} is {average:.3g}, above {limit:g}: the router has collapsed onto few experts"
        return g.router, ""
