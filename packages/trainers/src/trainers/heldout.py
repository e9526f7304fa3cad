"""The loss on clips that training never sees: always the same clips and the same noise, at fixed levels of noise.

A training loss jumps with the noise level that a step draws; this curve is smooth, and two runs may be compared by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import rng
from .data import take
from .engine import Engine
from .stage import MapStyle

__all__ = ["HeldOut"]


@dataclass(frozen=True)
class HeldOut:
    """Evaluates `loss(batch, level, generator) -> {term: scalar}` every `every` steps and at each stage's end.

    `level` is one of `levels` quantiles of the noise, i / (levels + 1): .1, .2, ... .9, which the loss maps to its
    sigma; everything it draws comes from `generator`, on the CPU. `clips` samples spread evenly over `data` are shared
    out over the processes in batches of `batch_size`; the result does not depend on how many there are.

    The groups are in eval mode and no random number of the run is touched, so training is bit-equal without it. The
    means stand in the log's line as `held_out: {term: {level: value}}`. Nine levels are customary, the rest is our
    choice.
    """

    loss: Callable[[dict[str, Any], float, torch.Generator], Mapping[str, Tensor]]
    data: MapStyle
    clips: int = 16
    batch_size: int = 4
    every: int = 500
    levels: int = 9

    def __post_init__(self) -> None:
        wrong = {
            key: getattr(self, key) for key in ("clips", "batch_size", "every", "levels") if getattr(self, key) < 1
        }
        if wrong:
            raise ValueError(f"expected numbers of at least 1, got {wrong}")
        if len(self.data) < self.clips:
            raise ValueError(f"expected at least {self.clips} held-out samples (clips), got {len(self.data)}")

    def evaluate(self, groups: Mapping[str, nn.Module], engine: Engine, device: torch.device) -> dict[str, Any]:
        """Return {term: {level: mean over the clips}}. Every process asks at once."""
        indices = torch.arange(self.clips) * len(self.data) // self.clips
        batches = list(enumerate(indices.split(self.batch_size)))
        levels = [i / (self.levels + 1) for i in range(1, self.levels + 1)]
        sums: dict[str, Tensor] = {}
        with rng.isolated(groups.values()):
            # Every process makes as many calls as the first: where weights are in pieces, a forward needs all of them.
            for turn in range(-(-len(batches) // engine.world_size)):
                mine = turn * engine.world_size + engine.rank
                number, chosen = batches[mine % len(batches)]
                batch = take(self.data, chosen, device)
                share = len(chosen) / self.clips if mine < len(batches) else 0.0
                for j, level in enumerate(levels):
                    found = self.loss(dict(batch), level, rng.generator_of("held out", number, j))
                    for name, value in found.items():
                        row = sums.setdefault(name, torch.zeros(self.levels, dtype=torch.float64))
                        row[j] += share * float(value)
        # the mean over the processes times their number is the sum of their shares
        means = {name: engine.mean(row) * engine.world_size for name, row in sorted(sums.items())}
        return {
            name: {f"{level:.4g}": value for level, value in zip(levels, row.tolist(), strict=True)}
            for name, row in means.items()
        }
