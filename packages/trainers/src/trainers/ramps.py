"""Numbers that move during a stage: the linear `Ramp`, and the `RecursiveRamp` that starts again when a gradient grows.

A ramp is data; what a recursive one has lived through (`Recursion`) belongs to the run, is the same in every process,
and is part of a checkpoint. A loss reads both by name, `progress.ramp("physics")`.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from .config import refuse_unknown

__all__ = ["STRICT", "Part", "Ramp", "Recursion", "RecursiveRamp", "expected_resets"]

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class Part:
    """Gives the parts of a recipe the same answer to an unknown key that `Config` gives."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        return refuse_unknown(cls, data)


@checked_dataclass(frozen=True, config=STRICT)
class Ramp(Part):
    """A number that moves linearly from `start` (until step `from_step`) to `end` (from step `to_step` on).

    >>> [Ramp(0.0, 1.0, 10, 20).at(step) for step in (0, 10, 15, 20, 99)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """

    start: float
    end: float
    from_step: int = 0
    to_step: int = 0

    def __post_init__(self) -> None:
        if self.to_step < self.from_step:
            raise ValueError(f"expected to_step >= from_step, got {self.to_step} < {self.from_step}")

    def at(self, step: int) -> float:
        """Return the value at a step of the stage."""
        if step >= self.to_step:
            return self.end
        return self.start + (self.end - self.start) * max(0, step - self.from_step) / (self.to_step - self.from_step)


@checked_dataclass(frozen=True, kw_only=True, config=STRICT)
class RecursiveRamp(Part):
    """A weight alpha that rises from 0 to `end` over `steps`, and starts again when its loss pulls too hard.

    alpha = end * min(1, k / steps); k counts steps, and returns to 0 after a step at which the moving average of the
    gradient's norm exceeds eta (alpha stays 0 until it no longer does). The gradient is that of one *unweighted* term
    of the loss on one group of the stage: `term` names what the loss returns besides the weighted one, usually
    `log/physics` beside `physics = progress.ramp("physics") * log/physics`. It must not be detached, and the weighted
    term stays in the sum at weight 0, too. With accumulation and several processes the norm is that of the mean.

    `eta` None: `factor` times the median of the average over the first ramp, in which nothing is reset. The average has
    decay 1 - 2 / (window + 1). Measuring costs a backward of the term on that group every `measure_every` steps.

    The paper gives the rule; length, end, average and threshold are our choice.

    >>> RecursiveRamp(end=2.0, steps=4, term="log/physics", group="physics").at(1)
    0.5

    References: Phantom (2026), recursive loss-weight scheduling.
    """

    end: float = Field(gt=0)
    steps: int = Field(gt=0)
    term: str
    group: str
    eta: float | None = Field(default=None, gt=0)
    factor: float = Field(default=5.0, gt=0)
    window: int = Field(default=20, ge=1)
    measure_every: int = Field(default=1, ge=1)

    def at(self, step: int) -> float:
        """Return the value `step` steps after a start, without resets."""
        return self.end * min(1.0, step / self.steps)


@dataclass
class Recursion:
    """Where a recursive ramp stands: what a checkpoint keeps.

    `k` steps since the last start, `average` the moving average of the norm, `calibration` its values until eta is
    known, `resets` how often alpha fell back to 0.
    """

    ramp: RecursiveRamp
    k: int = 0
    eta: float | None = None
    average: float | None = None
    calibration: list[float] = field(default_factory=list)
    resets: int = 0

    def __post_init__(self) -> None:
        self.eta = self.ramp.eta if self.ramp.eta is not None else self.eta

    @property
    def alpha(self) -> float:
        """The weight at the step under way."""
        return self.ramp.at(self.k)

    def measures(self, step: int) -> bool:
        """Whether the norm is wanted at a step of the stage."""
        return step % self.ramp.measure_every == 0

    def advance(self, norm: float | None) -> None:
        """End a step, at which the norm was measured or not (None)."""
        if norm is not None and math.isfinite(norm):
            old = norm if self.average is None else self.average
            self.average = old + 2 / (self.ramp.window + 1) * (norm - old)
            if self.eta is None:
                self.calibration.append(self.average)
            elif self.average > self.eta:
                self.resets += self.k > 0
                self.k = 0
                return
        self.k += 1
        if self.eta is None and self.k >= self.ramp.steps and self.calibration:
            self.eta = self.ramp.factor * statistics.median(self.calibration)
            self.calibration = []

    def state(self) -> dict[str, Any]:
        """Return what `restore` continues from."""
        return {key: value for key, value in asdict(self).items() if key != "ramp"}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; an eta that the ramp was given meanwhile wins."""
        self.k, self.average, self.resets = state["k"], state["average"], state["resets"]
        self.calibration = list(state["calibration"])
        self.eta = self.ramp.eta if self.ramp.eta is not None else state["eta"]


def expected_resets(norms: Iterable[float], ramp: RecursiveRamp) -> float:
    """Return how many resets to expect in the time of one ramp, from norms recorded every `measure_every` steps.

    The record is played through the ramp; resets are counted over all its steps but those of a calibration.

    >>> steady = RecursiveRamp(end=1.0, steps=10, term="log/physics", group="physics")
    >>> expected_resets([1.0, 1.1, 0.9] * 20, steady)
    0.0

    Raises:
        ValueError: when more than one is expected, so that alpha would seldom reach its end; or the record is too
            short to tell.
    """
    recursion, judged = Recursion(ramp), 0
    for norm in norms:
        calibrated = recursion.eta is not None
        recursion.advance(norm)
        judged += calibrated
        for _ in range(ramp.measure_every - 1):
            recursion.advance(None)
    judged *= ramp.measure_every
    if judged < ramp.steps:
        raise ValueError(
            f"expected norms of at least one ramp ({ramp.steps} steps) after eta is known, got those of {judged} steps"
        )
    expected = recursion.resets * ramp.steps / judged
    if expected > 1:
        raise ValueError(
            f"expected at most one reset in the time of a ramp ({ramp.steps} steps), got {expected:.3g} with eta "
            f"{recursion.eta:.4g}: raise eta or factor, shorten the ramp, or lower the learning rate of {ramp.group!r}"
        )
    return expected
