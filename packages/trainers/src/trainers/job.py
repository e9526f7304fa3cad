"""A run described in numbers by the app that will do it: what `plan` plans with.

Sizes of what is frozen and what is trained, the work of one micro-batch of each kind of step, what the cache will hold.
`DryRun.step` counts the work at the real size; two micro-batches (`SIZES`) are enough, since all that grows grows with
the batch. What every app's description has alike is here: `Clips` is what is asked of a recipe's data.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from .data import count_records
from .dryrun import Work
from .footprint import Trained

__all__ = ["SIZES", "Artefact", "Clips", "Job", "Kind", "clips_of", "described", "encoded"]

SIZES = (1, 2)
"""Micro-batches that are counted; others lie on the line through them."""


@runtime_checkable
class Clips(Protocol):
    """The part of a recipe that says what clips there are: `clips` of the simulated world, or those of `source`."""

    @property
    def source(self) -> str: ...
    @property
    def root(self) -> str | None: ...
    @property
    def clips(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


@dataclass(frozen=True)
class Kind:
    """A kind of step: how many there are, and the work of one micro-batch by its size (two sizes or more).

    `checkpointed`: the same under gradient checkpointing, where a recipe can switch it.
    """

    name: str
    steps: int
    works: Mapping[int, Work]
    checkpointed: Mapping[int, Work] = field(default_factory=dict)

    def at(self, batch: int, *, checkpointed: bool = False) -> Work:
        """The work of a micro-batch: as counted, or on the line through the smallest and largest that were."""
        return _line(self.checkpointed if checkpointed else self.works, batch)


@dataclass(frozen=True)
class Artefact:
    """What the cache holds once for each of `items` clips (or captions), and the work of making one."""

    name: str
    bytes_each: int
    items: int
    work: Work | None = None
    note: str = ""


@dataclass(frozen=True)
class Job:
    """A run in numbers. `frozen` are bytes on every GPU while it trains; `shape` is what the works were counted at."""

    name: str
    shape: str
    tokens: int
    batch: int
    accumulate: int
    frozen: Mapping[str, int]
    trained: Trained
    kinds: tuple[Kind, ...]
    artefacts: tuple[Artefact, ...] = ()
    making: Mapping[str, int] = field(default_factory=dict)  # frozen bytes on the GPU that fills the cache
    reported: str = ""  # what a paper says of its own run

    def __post_init__(self) -> None:
        if not self.kinds or self.batch < 1 or self.accumulate < 1:
            raise ValueError(f"expected kinds of steps, batch and accumulate >= 1, got {self}")
        for kind in self.kinds:
            if len(kind.works) < 2:
                raise ValueError(
                    f"expected the work of {kind.name!r} at two micro-batches or more, got {list(kind.works)}"
                )

    @property
    def steps(self) -> int:
        return sum(kind.steps for kind in self.kinds)

    def fullest(self, batch: int) -> Kind:
        """The kind whose step takes the most memory."""
        return max(self.kinds, key=lambda kind: kind.at(batch).peak)


def clips_of(data: Clips) -> int:
    """How many clips a recipe's data hold; one where they are not here."""
    return data.clips if data.source == "world" else count_records(data.source, root=data.root)


def described(data: Clips, spec: Any, dtype: str, *beside: str) -> str:
    """The size that work is counted at, in words; `spec` is the backbone's, `beside` says what it does not."""
    latent = " x ".join(map(str, spec.latent.shape(data.frames, data.height, data.width)))
    size = ", ".join((f"{data.frames} x {data.height} x {data.width} -> latent {latent}", *beside))
    return f"{size}, {dtype}"


def encoded(data: Clips, spec: Any, clips: int) -> "tuple[Artefact, Artefact]":
    """What every cache holds of `clips` clips: latents in float32, and text without its padding, counted whole."""
    latents = Artefact("latents", 4 * math.prod(spec.latent.shape(data.frames, data.height, data.width)), clips)
    return latents, Artefact("text", 4 * spec.text_length * spec.text_dim, clips, note="at most")


def _line(works: Mapping[int, Work], batch: int) -> Work:
    if batch in works:
        return works[batch]
    low, high = min(works), max(works)
    a, b = works[low], works[high]

    def at(x: int, y: int) -> int:
        return max(0, round(x + (y - x) * (batch - low) / (high - low)))

    kinds = {**a.flops, **b.flops}
    return Work(
        at(a.kept, b.kept),
        at(a.peak, b.peak),
        {kind: at(a.flops.get(kind, 0), b.flops.get(kind, 0)) for kind in kinds},
        at(a.traffic, b.traffic),
    )
