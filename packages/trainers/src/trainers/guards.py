"""Guards against failing silently: a loss that is no number, frozen weights that moved, a group that gets no
gradient."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["FrozenChanged", "NonFiniteLoss", "TrainingWarning", "ZeroGradient", "bytes_of", "digest", "finite"]


class TrainingWarning(UserWarning):
    """Something that training survives and that you should look at."""


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


class FrozenChanged(RuntimeError):
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
