"""What a run will need, said before it starts: memory for each GPU, disk, hours, and the largest batch that fits.

An app describes its run in numbers (`Job`): sizes of what is frozen and trained, the work of a step of each kind of
stage (counted by a dry run at the real size, `dryrun`), what the cache will hold. This module knows no model.

Seconds come from the makers' figures of a GPU at a share of their peaks that is said with them (`EFFICIENCY`), or from
what `time` measured (`Measured`). A measurement of the same kind on the same device, size and batch is used as it is;
any other is scaled by the ratio of the two estimates from figures, and the plan says so. Not counted: traffic between
GPUs, reading the cache, a CPU's optimizer under offload, evaluation and saving.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .dryrun import Work
from .footprint import Footprint, Trained, footprint
from .gpus import GPU, find, named

__all__ = ["EFFICIENCY", "Artefact", "Job", "Kind", "Measured", "Plan", "Row", "make", "read_measured"]

EFFICIENCY = 0.4
"""Share of the peak of products that a training step reaches: our choice, to be replaced by a measurement."""
BANDWIDTH_EFFICIENCY = 0.7
"""Share of the memory's peak that element-wise kernels reach: our choice."""
GB = 1e9
GIB = 2**30


@dataclass(frozen=True)
class Kind:
    """A kind of step: how many there are, and the work of one micro-batch by its size (two sizes or more).

    `checkpointed`: the same under gradient checkpointing, where a recipe can switch it.
    """

    name: str
    steps: int
    works: Mapping[int, Work]
    checkpointed: Mapping[int, Work] = field(default_factory=dict)

    def at(self, batch: int) -> Work:
        """The work of a micro-batch: as counted, or on the line through the smallest and largest that were."""
        return _line(self.works, batch)


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
                raise ValueError(f"expected the work of {kind.name!r} at two micro-batches or more, got {list(kind.works)}")

    @property
    def steps(self) -> int:
        return sum(kind.steps for kind in self.kinds)

    def fullest(self, batch: int) -> Kind:
        """The kind whose step takes the most memory."""
        return max(self.kinds, key=lambda kind: kind.at(batch).peak)


@dataclass(frozen=True)
class Measured:
    """One kind in one line of `time`."""

    kind: str
    device: str
    shape: str
    batch: int
    seconds: float
    work: Work
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Row:
    """What a plan says of one GPU. `seconds` are of one micro-batch by kind; `basis` says where they come from."""

    gpu: str
    footprint: Footprint
    usable: int
    fits: bool
    largest_batch: int
    seconds: Mapping[str, float]
    basis: Mapping[str, str]
    hours: float
    cache_hours: float | None


@dataclass(frozen=True)
class Plan:
    """A job on named GPUs under one engine."""

    job: Job
    engine: str
    processes: int
    efficiency: float
    rows: tuple[Row, ...]

    @property
    def effective_batch(self) -> int:
        return self.job.batch * self.job.accumulate * self.processes

    @property
    def cache_bytes(self) -> int:
        return sum(a.bytes_each * a.items for a in self.job.artefacts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(asdict(self))) | {
            "effective_batch": self.effective_batch,
            "cache_bytes": self.cache_bytes,
            "tokens_a_step": self.job.tokens * self.effective_batch,
        }


def make(
    job: Job,
    gpus: Sequence[GPU],
    *,
    engine: str = "one",
    processes: int = 1,
    efficiency: float = EFFICIENCY,
    measured: Sequence[Measured] = (),
) -> Plan:
    """Plan a job for each of the GPUs."""
    if not 0 < efficiency <= 1:
        raise ValueError(f"expected an efficiency in (0, 1], got {efficiency}")
    rows = tuple(_row(job, gpu, engine, processes, efficiency, measured) for gpu in gpus)
    return Plan(job, engine, processes, efficiency, rows)


def read_measured(path: str | Path) -> list[Measured]:
    """Read the lines that `time` wrote, one JSON object each; ValueError for a file that holds none."""
    path = Path(path)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [
            Measured(
                kind=kind,
                device=str(line["device_name"]),
                shape=str(line["shape"]),
                batch=int(line["batch"]),
                seconds=float(figures["wall_s"]),
                work=Work(**figures["work"]),
                peak_bytes=figures.get("peak_bytes"),
            )
            for line in lines
            for kind, figures in line["seconds_a_step"].items()
            if "work" in figures
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a file of `time`'s lines at {path}, which cannot be read: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no output of `time` (one JSON object a line): {error!r}; run `time` again") from None
    if not found:
        raise ValueError(f"{path} holds no measured steps: fill it with the output of `time`")
    return found


def largest_batch(job: Job, gpu: GPU, *, engine: str, processes: int) -> int:
    """The largest micro-batch whose fullest step fits; 0 when not even one clip does."""

    def fits(batch: int) -> bool:
        return _fullest(job, batch, engine, processes).total <= gpu.usable

    if not fits(1):
        return 0
    high = 1
    while high < 2**20 and fits(2 * high):
        high *= 2
    low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def seconds_of(
    kind: str,
    work: Work,
    gpu: GPU,
    *,
    shape: str,
    batch: int,
    efficiency: float = EFFICIENCY,
    measured: Sequence[Measured] = (),
) -> tuple[float, str]:
    """Seconds of one micro-batch on a GPU, and what they rest on."""
    figures = _estimate(work, gpu, efficiency)
    usable = [(m, device) for m in measured if m.kind == kind and (device := find(m.device)) is not None]
    if not usable:
        return figures, f"figures at {efficiency:.0%} of the peak"

    def distance(entry: tuple[Measured, GPU]) -> tuple[bool, bool, int]:
        m, device = entry
        return device != gpu, m.shape != shape, abs(m.batch - batch)

    nearest, device = min(usable, key=distance)
    other = [
        what
        for what, differs in (
            (f"device ({device.name})", device != gpu),
            (f"size ({nearest.shape})", nearest.shape != shape),
            (f"batch ({nearest.batch})", nearest.batch != batch),
        )
        if differs
    ]
    if not other:
        return nearest.seconds, "measured"
    scale = figures / _estimate(nearest.work, device, efficiency)
    return nearest.seconds * scale, f"extrapolated from another {', '.join(other)} by the work"


def _estimate(work: Work, gpu: GPU, efficiency: float) -> float:
    return gpu.seconds(work.flops, work.traffic, efficiency=efficiency, share_of_bandwidth=BANDWIDTH_EFFICIENCY)


def _fullest(job: Job, batch: int, engine: str, processes: int) -> Footprint:
    work = job.fullest(batch).at(batch)
    return footprint(job.trained, work, frozen=job.frozen, engine=engine, processes=processes)


def _row(
    job: Job, gpu: GPU, engine: str, processes: int, efficiency: float, measured: Sequence[Measured]
) -> Row:
    held = _fullest(job, job.batch, engine, processes)
    seconds, basis, hours = {}, {}, 0.0
    for kind in job.kinds:
        seconds[kind.name], basis[kind.name] = seconds_of(
            kind.name,
            kind.at(job.batch),
            gpu,
            shape=job.shape,
            batch=job.batch,
            efficiency=efficiency,
            measured=measured,
        )
        hours += kind.steps * job.accumulate * seconds[kind.name] / 3600
    making = [a.items * _estimate(a.work, gpu, efficiency) for a in job.artefacts if a.work is not None]
    return Row(
        gpu=gpu.name,
        footprint=held,
        usable=gpu.usable,
        fits=held.total <= gpu.usable,
        largest_batch=largest_batch(job, gpu, engine=engine, processes=processes),
        seconds=seconds,
        basis=basis,
        hours=hours,
        cache_hours=sum(making) / processes / 3600 if making else None,
    )


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
