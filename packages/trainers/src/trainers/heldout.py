"""The loss on clips that training never sees: always the same clips and the same noise, at fixed levels of noise.

A training loss jumps with the noise level that a step draws; this curve is smooth, and two runs may be compared by it.
`HeldOut` follows it while a run trains, `each_clip` takes it clip by clip, so that two models can be compared in pairs:
the same clip with the same noise through both. Of somebody's own films `kept_back` says which ones are left for that.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import rng, show
from .atomic import write_text
from .data import take
from .engine import Engine
from .stage import MapStyle

__all__ = ["Compared", "HeldOut", "HeldOutLoss", "compare", "each_clip", "kept_back", "parted"]

T = TypeVar("T")

HeldOutLoss = Callable[[dict[str, Any], float, torch.Generator], Mapping[str, Tensor]]
"""`loss(batch, level, generator) -> {term: scalar}` at a quantile of the noise; it draws from the generator alone."""


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

    loss: HeldOutLoss
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


def kept_back(films: Sequence[str], share: float) -> list[bool]:
    """Say which clips are kept back from training, by the name of the film that each was cut from.

    A film is kept back when a hash of its name falls into `share`, so that all clips of a film go the same way, their
    order says nothing. Where none falls in, that with the least hash is; one at least is left to train on. What
    surprises: with that film taken away, or named from another folder, another one is kept back in its place.

    >>> kept_back(["a.mp4", "b.mp4", "c.mp4", "a.mp4"], 0.4)
    [False, False, True, False]
    """
    if not 0 <= share < 1:
        raise ValueError(f"expected a share in [0, 1) to keep back, got {share}")
    places = {film: int.from_bytes(hashlib.sha256(film.encode()).digest()[:6]) / 2**48 for film in films}
    if len(places) < 2 or share == 0:
        return [False] * len(films)
    low, *_, high = sorted(places.values())
    bound = min(max(share, low + 2**-49), high)
    return [places[film] < bound for film in films]


def parted(items: Sequence[T], held: Sequence[bool]) -> tuple[list[T], list[T]]:
    """Part items into those to train on and those that are held out.

    >>> parted("abc", [False, True, False])
    (['a', 'c'], ['b'])
    """
    return (
        [x for x, out in zip(items, held, strict=True) if not out],
        [x for x, out in zip(items, held, strict=True) if out],
    )


def each_clip(
    loss: HeldOutLoss, data: MapStyle, *, device: str | torch.device = "cpu", levels: int = 9, quiet: bool = False
) -> dict[str, Tensor]:
    """Return {term: (clips,)}: of each clip alone the mean of a loss over `levels` levels of noise, spread as those of
    `HeldOut`. The noise is a function of clip and level, the same for every loss.
    """
    rows: dict[str, list[float]] = {}
    with rng.isolated(()), show.bar("held-out loss", len(data), quiet=quiet) as bar:
        for clip in range(len(data)):
            batch = take(data, torch.tensor([clip]), torch.device(device))
            sums: dict[str, float] = {}
            for j in range(1, levels + 1):
                found = loss(dict(batch), j / (levels + 1), rng.generator_of("each clip", clip, j))
                for name, value in found.items():
                    sums[name] = sums.get(name, 0.0) + float(value) / levels
            for name, value in sums.items():
                rows.setdefault(name, []).append(value)
            bar.update(clip + 1)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


def compare(
    methods: Mapping[str, Sequence[HeldOutLoss]], data: MapStyle, clips: Sequence[str], **how: Any
) -> "Compared":
    """Take the losses of methods on held-out clips (`how` as in `each_clip`); each has a run or several, and each run
    gives {"base": scalar, "trained": scalar}, both of one noised clip.
    """
    losses: dict[str, list[Tensor]] = {"base": []}
    for name, runs in methods.items():
        for run in runs:
            found = each_clip(run, data, **how)
            losses["base"] = losses["base"] or [found["base"]]
            losses.setdefault(name, []).append(found["trained"])
    return Compared(tuple(clips), losses)


@dataclass(frozen=True)
class Compared:
    """Losses of the same clips and noise under several methods; the first one, the base, is what others stand beside.

    `losses[method]` holds a run of the method each, with a loss a clip. `paired(a, b, [values_a], [values_b])` is who
    makes the interval of a difference (`physworld.paired.paired`); the values are percent of the base's mean loss.
    """

    clips: tuple[str, ...]
    losses: Mapping[str, Sequence[Tensor]]

    def difference(self, method: str, paired: Callable[..., Any]) -> Any:
        """The difference of a method and the base."""
        base = next(iter(self.losses))
        whole = torch.stack(list(self.losses[base])).mean() / 100
        of = [[(run / whole).tolist() for run in self.losses[name]] for name in (method, base)]
        return paired(method, base, [of[0]], [of[1]])

    def rows(self, paired: Callable[..., Any]) -> list[tuple[str, ...]]:
        """Write the figures as rows of text: a header, the base, and every method."""
        base, *others = self.losses
        rows = [("model", "held-out loss", f"- {base}, % of its loss [95 %]", "clips")]
        for name in (base, *others):
            said = "" if name == base else str(self.difference(name, paired))
            rows.append((name, f"{torch.stack(list(self.losses[name])).mean():.4f}", said, str(len(self.clips))))
        return rows

    def save(self, path: Path, paired: Callable[..., Any], about: Mapping[str, Any]) -> Path:
        """Write everything as JSON, clip by clip, by rename."""
        _, *others = self.losses
        tree = {
            "about": dict(about),
            "clips": list(self.clips),
            "losses": {name: [run.tolist() for run in runs] for name, runs in self.losses.items()},
            "difference_percent": {name: vars(self.difference(name, paired)) for name in others},
        }
        return write_text(path, json.dumps(tree, indent=1) + "\n")
