"""What a run will need, said before it starts: memory for each GPU, disk, hours, and the largest batch that fits.

An app describes its run in numbers (`job.Job`); this module knows no model. Memory is what a dry run counted, with an
allowance for what the allocator loses between tensors: `FRAGMENTATION`, or what `time` measured on a GPU.

Seconds come from the makers' figures of a GPU at a share of their peaks that is said with them (`GPU.share`), or from
what `time` measured (`Measured`). A measurement of the same kind on the same device, size and batch is used as it is;
any other is scaled by the ratio of the two estimates from figures, and the plan says so. What GPUs exchange in a step,
and a CPU's optimizer under offload, come on top as if nothing ran beside them. Not counted: reading the cache,
evaluation and saving. How far plans were from known runs: docs/plan.md.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .dryrun import Work
from .footprint import FRAGMENTATION, Footprint, exchanged, footprint
from .gpus import GPU, find
from .job import Job

__all__ = ["Measured", "Plan", "Row", "largest_batch", "make", "read_measured", "seconds_of"]

BANDWIDTH_EFFICIENCY = 0.7
"""Share of the peak that element-wise kernels reach of the memory, and exchanges of a link: our choice."""
HOST_LINK = 32.0
"""10^9 bytes a second between a GPU and the host: PCIe 4.0 with 16 lanes."""
HOST_STEP_S = 0.25
"""Seconds that a host's CPUs take for AdamW's step of 10^9 parameters, 28 bytes each at about 110 GB/s: our choice."""


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
    """What a plan says of one GPU. `seconds` are of one micro-batch by kind (`basis`: where they come from), `exchange`
    those of a step in which GPUs and host exchange.
    """

    gpu: str
    footprint: Footprint
    usable: int
    fits: bool
    largest_batch: int
    seconds: Mapping[str, float]
    basis: Mapping[str, str]
    exchange: float
    hours: float
    cache_hours: float | None


@dataclass(frozen=True)
class Plan:
    """A job on named GPUs under one engine. `efficiency` is None where each GPU has its own share; `loss` is the
    allocator's, relative to the tensors it holds.
    """

    job: Job
    engine: str
    processes: int
    efficiency: float | None
    loss: float
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
    efficiency: float | None = None,
    measured: Sequence[Measured] = (),
) -> Plan:
    """Plan a job for each of the GPUs; `efficiency` is the share of the peak for all of them (none: each its own)."""
    if efficiency is not None and not 0 < efficiency <= 1:
        raise ValueError(f"expected an efficiency in (0, 1], got {efficiency}")
    loss = _loss(job, measured)
    rows = tuple(_row(job, gpu, engine, processes, efficiency, loss, measured) for gpu in gpus)
    return Plan(job, engine, processes, efficiency, loss, rows)


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
        raise ValueError(
            f"{path} is no output of `time` (one JSON object a line): {error!r}; run `time` again"
        ) from None
    if not found:
        raise ValueError(f"{path} holds no measured steps: fill it with the output of `time`")
    return found


def largest_batch(job: Job, gpu: GPU, *, engine: str = "one", processes: int = 1, loss: float = FRAGMENTATION) -> int:
    """The largest micro-batch whose fullest step fits; 0 when not even one clip does."""

    def fits(batch: int) -> bool:
        return _fullest(job, batch, engine, processes, loss).total <= gpu.usable

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
    efficiency: float | None = None,
    measured: Sequence[Measured] = (),
) -> tuple[float, str]:
    """Seconds of one micro-batch on a GPU, and what they rest on."""
    figures = _estimate(work, gpu, efficiency)
    usable = [(m, device) for m in measured if m.kind == kind and (device := find(m.device)) is not None]
    if not usable:
        return figures, f"figures at {efficiency or gpu.share:.0%} of the peak"

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


def _estimate(work: Work, gpu: GPU, efficiency: float | None) -> float:
    return gpu.seconds(
        work.flops, work.traffic, efficiency=efficiency or gpu.share, share_of_bandwidth=BANDWIDTH_EFFICIENCY
    )


def _fullest(job: Job, batch: int, engine: str, processes: int, loss: float) -> Footprint:
    work = job.fullest(batch).at(batch)
    return footprint(job.trained, work, frozen=job.frozen, engine=engine, processes=processes, loss=loss)


def _exchange(job: Job, gpu: GPU, engine: str, processes: int) -> float:
    """Seconds of a step in which GPUs and host exchange, as if nothing ran beside it."""
    sent, to_host = exchanged(job.trained, engine=engine, processes=processes, accumulate=job.accumulate)
    seconds = sent / (gpu.link * 1e9) + to_host / (HOST_LINK * 1e9)
    steps = HOST_STEP_S * job.trained.parameters / 1e9 if to_host else 0.0
    return seconds / BANDWIDTH_EFFICIENCY + steps


def _loss(job: Job, measured: Sequence[Measured]) -> float:
    """What the allocator lost where a step of this job was measured on a GPU: the most, relative to the tensors."""
    lost = [
        m.peak_bytes / footprint(job.trained, m.work, frozen=job.frozen, loss=0.0).total - 1
        for m in measured
        if m.peak_bytes is not None and m.shape == job.shape and find(m.device) is not None
    ]
    return max(0.0, *lost) if lost else FRAGMENTATION


def _row(
    job: Job, gpu: GPU, engine: str, processes: int, efficiency: float | None, loss: float, measured: Sequence[Measured]
) -> Row:
    held = _fullest(job, job.batch, engine, processes, loss)
    exchange = _exchange(job, gpu, engine, processes)
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
        hours += kind.steps * (job.accumulate * seconds[kind.name] + exchange) / 3600
    making = [a.items * _estimate(a.work, gpu, efficiency) for a in job.artefacts if a.work is not None]
    return Row(
        gpu=gpu.name,
        footprint=held,
        usable=gpu.usable,
        fits=held.total <= gpu.usable,
        largest_batch=largest_batch(job, gpu, engine=engine, processes=processes, loss=loss),
        seconds=seconds,
        basis=basis,
        exchange=exchange,
        hours=hours,
        cache_hours=sum(making) / processes / 3600 if making else None,
    )
