"""One optimizer step: batches are taken and accumulated, terms summed, gradients measured, and the engine steps."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import guards
from .config import did_you_mean
from .ramps import Recursion
from .run import Run
from .stage import Progress

__all__ = ["Made", "Step"]


@dataclass
class Made:
    """What a step has made: the mean of each term over its batches (and, where it is summed, over the processes), the
    norm of the gradient before clipping, the rate of the stage's first group, and what guards have to say.
    """

    terms: dict[str, float]
    norm: float
    lr: float
    skipped: bool = False
    complaints: list[tuple[guards.Action, str]] = field(default_factory=list)


class Step:
    """Makes the steps of the stage that a run has entered."""

    def __init__(self, run: Run) -> None:
        self.run, self.stage, self.engine, self.guard = run, run.stage, run.engine, run.guard
        self.device = run.device
        self.zero = guards.ZeroGradient(self.guard.zero_gradient_steps if self.guard.zero_gradient != "off" else 0)
        self.watched = guards.Terms(self.guard)

    def make(self, progress: Progress) -> Made:
        """Make one step; the weights are as before where it is not a number.

        Raises:
            NonFiniteLoss: as `Guards.non_finite` says.
            ValueError: for a loss without terms.
        """
        stage, samples = self.stage, []
        factor = stage.optim.factor(progress.step, progress.fraction)
        made = Made({}, 0.0, stage.optim.lr * next(iter(stage.groups.values())) * factor)
        measured: dict[str, list[Tensor]] = {}
        self.engine.forget()
        batches = [self.run.feed.next() for _ in range(stage.accumulate)]
        for micro, batch in enumerate(batches):
            last = micro == stage.accumulate - 1
            samples += batch.indices.tolist()
            terms = self.engine.forward(batch.get(self.device), progress, last=last)
            summed = {name: term for name, term in terms.items() if not name.startswith("log/")}
            if not summed:
                raise ValueError(f"the loss of stage {stage.name!r} returned no term, got {sorted(terms)}")
            for name, value in self._values(summed, terms).items():
                if name in summed and not guards.finite(value):
                    return self._skip(made, f"loss term {name!r}", value, samples)
                made.terms[name] = made.terms.get(name, 0.0) + value / stage.accumulate
            self._measure(measured, terms, progress.step)
            total = torch.stack([term.reshape(()) for term in summed.values()]).sum() / stage.accumulate
            self.engine.backward(total, last=last)
        if self.zero.patience:
            self._look_for_zeros(made)
        made.norm = self.engine.step({name: value * factor for name, value in stage.groups.items()}, stage.optim.clip)
        if not guards.finite(made.norm):
            return self._skip(made, "the norm of the gradient", made.norm, samples)
        for name, recursion in self.run.recursions.items():
            recursion.advance(self.engine.norm_of(measured[name]) if name in measured else None)
        made.complaints += self.watched.look(made.terms)
        return made

    def _values(self, summed: Mapping[str, Tensor], terms: Mapping[str, Tensor]) -> dict[str, float]:
        """The terms as numbers, with one wait for the device; what is summed as its mean over the processes."""
        every = {**summed, **terms}  # what is summed comes first
        here = torch.stack([term.detach().float().reshape(()) for term in every.values()])
        here[: len(summed)] = self.engine.mean(here[: len(summed)])
        return dict(zip(every, here.tolist(), strict=True))

    def _measure(self, measured: dict[str, list[Tensor]], terms: Mapping[str, Tensor], step: int) -> None:
        """Add the gradients that recursive ramps ask for; a group that does not move yet has none."""
        for name, recursion in self.run.recursions.items():
            if not recursion.measures(step) or recursion.ramp.group not in self.engine.trained:
                continue
            term = self._term(name, recursion, terms)
            parts = [part / self.stage.accumulate for part in self.engine.gradient(term, recursion.ramp.group)]
            before = measured.get(name)
            measured[name] = parts if before is None else list(torch._foreach_add(before, parts))

    def _term(self, name: str, recursion: Recursion, terms: Mapping[str, Tensor]) -> Tensor:
        wanted = recursion.ramp.term
        if wanted not in terms:
            raise ValueError(
                f"stage {self.stage.name!r}: ramp {name!r} measures the term {wanted!r}, which the loss did not "
                f"return; {did_you_mean(wanted, terms)}"
            )
        if not terms[wanted].requires_grad:
            raise ValueError(
                f"stage {self.stage.name!r}: ramp {name!r} measures the gradient of {wanted!r}, which has none: return "
                f"it without detach() and unweighted"
            )
        return terms[wanted]

    def _look_for_zeros(self, made: Made) -> None:
        for name in self.engine.trained:
            if self.zero.look(name, self.engine.connected):
                steps = f"{self.zero.patience} steps of {self.stage.name!r}"
                made.complaints.append(
                    (self.guard.zero_gradient, f"group {name!r} got no gradient in {steps}: is it connected?")
                )

    def _skip(self, made: Made, what: str, value: float, samples: list[int]) -> Made:
        error: Any = guards.NonFiniteLoss(
            what, value, stage=self.stage.name, step=self.run.step, samples=samples, last_good=self.run.last_good
        )
        if self.guard.non_finite == "stop":
            raise error
        warnings.warn(f"step left out: {error}", guards.TrainingWarning, stacklevel=3)
        self.engine.forget()
        for recursion in self.run.recursions.values():
            recursion.advance(None)
        return Made({}, float("nan"), made.lr, skipped=True)
