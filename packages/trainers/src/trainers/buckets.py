"""Buckets: the sizes and lengths that clips of any shape are cut to, and an order whose batches hold one of them.

Clips are not squeezed into one shape, nor padded: each goes to the size that crops least of its picture and to the
longest length that it fills, and a batch holds clips of one bucket. `BucketOrder` is to `Order` what a deck of several
suits is to one of a single suit: a pure function of (seed, data digest, world size, batch size), resumable from three
integers, with the same bucket on every process at every step.

Each bucket has its own endless stream of permutations, cut into batches; batch k of a bucket of n samples holds the
samples k B to (k + 1) B - 1 of its stream (B: samples of a step over all processes) and belongs to the epoch in which
it begins, floor(k B / n). Within an epoch the batches of all buckets come in random order. So every batch is full, and
between two showings of a sample every other sample of its bucket is shown.
"""

import math
import warnings
from typing import Any

import torch
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor

from .config import Config
from .decode import Header
from .guards import TrainingWarning
from .order import Deal, derive_seed
from .video import ClipSpec, even_times, room

__all__ = ["BucketOrder", "Buckets", "sizes_of"]


def sizes_of(pixels: int, *, multiple: int = 16, max_aspect: float | int = 2.0) -> tuple[tuple[int, int], ...]:
    """Return the sizes (height, width) of about `pixels`, both divisible by `multiple`, from tall to wide.

    For every width there is the height that comes nearest to `pixels`; none is longer than `max_aspect` times its
    shorter side.

    >>> sizes_of(64 * 64, multiple=16)
    ((80, 48), (64, 64), (48, 80))
    """
    if multiple < 1 or pixels < multiple**2 or max_aspect < 1:
        raise ValueError(
            f"expected pixels >= multiple squared and max_aspect >= 1, got {pixels}, {multiple}, {max_aspect}"
        )
    found: dict[int, tuple[int, int]] = {}
    for n in range(1, math.isqrt(round(pixels * max_aspect)) // multiple + 1):
        width, height = n * multiple, max(1, round(pixels / (n * multiple) / multiple)) * multiple
        other = math.prod(found.get(height, (0, 0)))
        if max(width, height) <= max_aspect * min(width, height) and abs(height * width - pixels) < abs(other - pixels):
            found[height] = (height, width)
    return tuple(found[height] for height in sorted(found, reverse=True))


class Buckets(Config):
    """The table: every size (height, width) at every length in frames, all at one rate.

    `multiple` is what a model's sizes must be divisible by (its autoencoder's stride times its patch: 16 for Wan 2.1
    and CogVideoX, 32 for Wan 2.2 5B), `time_stride` n its rule of frames, n k + 1.

    >>> table = Buckets(sizes=((480, 832), (832, 480)), frames=(17, 81), fps=16)
    >>> table.specs[table.nearest(Header(width=1080, height=1920, frames=150, fps=30))]
    ClipSpec(frames=17, fps=16.0, height=832, width=480, time_stride=4)
    """

    sizes: tuple[tuple[int, int], ...] = Field(min_length=1)
    frames: tuple[int, ...] = Field(min_length=1)
    fps: float = Field(gt=0)
    multiple: int = Field(default=16, ge=1)
    time_stride: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _sound(self) -> "Buckets":
        for size in self.sizes:
            if min(size) < 1 or any(side % self.multiple for side in size):
                near = tuple(max(1, round(side / self.multiple)) * self.multiple for side in size)
                raise ValueError(f"expected sizes divisible by {self.multiple}, got {size}; use {near}")
        if len(set(self.sizes)) < len(self.sizes) or len(set(self.frames)) < len(self.frames):
            raise ValueError(f"expected different sizes and lengths, got {self.sizes} and {self.frames}")
        _ = self.specs  # a ClipSpec checks its frames
        return self

    @property
    def specs(self) -> tuple[ClipSpec, ...]:
        """One a bucket: what `nearest` returns an index into."""
        return tuple(
            ClipSpec(frames, self.fps, height, width, self.time_stride)
            for height, width in self.sizes
            for frames in self.frames
        )

    def nearest(self, header: Header) -> int:
        """Return the bucket of a clip: of the sizes, the one that crops the smallest share of its picture (then the
        larger one); of the lengths, the longest that it fills. ValueError when it fills none.
        """
        times_s = even_times(header.frames, header.fps)
        fit = [
            (-_cropped(header, spec), spec.height * spec.width, spec.frames, index)
            for index, spec in enumerate(self.specs)
            if room(times_s, spec)
        ]
        if not fit:
            shortest = min(self.frames)
            raise ValueError(
                f"expected at least {shortest} frames at {self.fps:g} fps ({(shortest - 1) / self.fps:.2f} s), got "
                f"{header.duration_s:.2f} s at {header.fps:.4g} fps: add a shorter bucket or leave the file out"
            )
        return max(fit)[-1]


def _cropped(header: Header, spec: ClipSpec) -> float:
    """The share of the picture that is cut away; rounded, so that sizes of one aspect are equally near."""
    aspect = header.width / header.height * spec.height / spec.width
    return round(1 - min(aspect, 1 / aspect), 6)


class BucketOrder:
    """Deals out the indices of samples whose buckets are known, a whole batch of one bucket at a time.

    >>> order = BucketOrder(torch.tensor([0, 1, 1, 0, 1, 1]), batch_size=2, seed=0)
    >>> [sorted(order.take(2).tolist()) for _ in range(3)]
    [[1, 2], [0, 3], [4, 5]]
    >>> order.state()
    {'seed': 0, 'epoch': 1, 'index': 0}
    """

    def __init__(
        self,
        bucket: Int64[Tensor, " n"],
        *,
        batch_size: int,
        seed: int,
        digest: str = "",
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        index: int = 0,
    ) -> None:
        if not len(bucket):
            raise ValueError("expected at least one sample, got an empty data set")
        assert 0 <= rank < world_size, (rank, world_size)
        self.seed, self.digest, self.rank, self.world_size = seed, digest, rank, world_size
        self.batch_size, self.step = batch_size, batch_size * world_size
        self.members = [torch.nonzero(bucket == b).flatten() for b in torch.unique(bucket)]
        if index % self.step:
            raise ValueError(
                f"the order was left at sample {index} of epoch {epoch}, which batches of {self.step} do not reach: "
                f"put batch_size and the number of processes back"
            )
        if small := [len(members) for members in self.members if len(members) < self.step]:
            text = (
                f"{len(small)} of {len(self.members)} buckets hold fewer samples than one step takes ({min(small)} "
                f"of {self.step}): these come several times in one batch, once in several epochs; use fewer buckets"
            )
            warnings.warn(text, TrainingWarning, stacklevel=3)
        self._kept: dict[tuple[int, int], Tensor] = {}
        self.epoch, self.index = epoch, index
        self._schedule = self._scheduled(epoch)
        self._settle()

    def deal(self, count: int) -> Deal:
        """Return this rank's next batch, all of one bucket, and move on by as much for every rank."""
        if count != self.batch_size:
            raise ValueError(f"expected batches of {self.batch_size}, got {count}: buckets are cut into whole batches")
        bucket, batch = self._schedule[self.index // self.step]
        first = batch * self.step + self.rank * count
        positions = torch.arange(first, first + count)
        size = len(self.members[bucket])
        epochs = positions // size
        order = torch.cat([self._permuted(bucket, int(e))[positions[epochs == e] % size] for e in epochs.unique()])
        self.index += self.step
        self._settle()
        return Deal(self.members[bucket][order], epochs)

    def take(self, count: int) -> Int64[Tensor, " count"]:
        """Return the indices that `deal` does."""
        return self.deal(count).indices

    def state(self) -> dict[str, int]:
        """Return the three integers that an order of the same samples and batches continues from."""
        return {"seed": self.seed, "epoch": self.epoch, "index": self.index}

    def _settle(self) -> None:
        """Go on to the next epoch in which a batch begins."""
        while self.index >= len(self._schedule) * self.step:
            self.epoch, self.index = self.epoch + 1, 0
            self._schedule = self._scheduled(self.epoch)

    def _scheduled(self, epoch: int) -> list[tuple[int, int]]:
        """(bucket, batch of its stream) of every step of an epoch."""
        first, end = (
            [-(-e * len(members) // self.step) for members in self.members] for e in (epoch, epoch + 1)
        )  # batches that begin before
        counts = torch.tensor([b - a for a, b in zip(first, end, strict=True)])
        buckets = torch.repeat_interleave(torch.arange(len(self.members)), counts)
        buckets = buckets[self._random(len(buckets), "schedule", epoch)].tolist()
        steps = []
        for bucket in buckets:
            steps.append((bucket, first[bucket]))
            first[bucket] += 1
        return steps

    def _permuted(self, bucket: int, epoch: int) -> Tensor:
        """Which member of a bucket comes when in its own epoch."""
        key = (bucket, epoch)
        if key not in self._kept:
            self._kept = {(b, e): order for (b, e), order in self._kept.items() if b != bucket or e >= epoch - 1}
            self._kept[key] = self._random(len(self.members[bucket]), "order", bucket, epoch)
        return self._kept[key]

    def _random(self, size: int, *what: Any) -> Tensor:
        seed = derive_seed("buckets", self.seed, self.digest, self.step, *what)
        return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
