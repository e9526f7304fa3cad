"""Measure steps: wall and CPU seconds, and the most memory, of anything that can be called.

The first calls warm up (allocators, autotuning, a compiled graph) and are not counted; what is left is one figure with
its spread. On a GPU the memory is what torch reserved (tensors and what the allocator loses between them), on a CPU
the growth of the process's resident memory (Linux; elsewhere there is none).
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .dryrun import Work
from .ramps import Ramp
from .stage import Progress

__all__ = ["Timing", "at_end", "machine", "measure", "steps"]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median with the smallest and largest, and the CPU's mean; `peak_bytes` as above."""

    wall_s: float
    wall_s_range: tuple[float, float]
    cpu_s: float
    peak_bytes: int | None
    calls: int


def measure(call: Callable[[int], Any], *, calls: int, warmup: int = 1, device: str = "cpu") -> Timing:
    """Time `call(i)` for i = warmup, warmup + 1, ... after as many calls that do not count."""
    if calls < 1 or warmup < 0:
        raise ValueError(f"expected one call to time or more, and no negative warm-up, got {calls}, {warmup}")
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    floor = None if cuda else _reset_resident()
    for i in range(warmup):
        call(i)
    wall, cpu = [], _now(cuda)[1]
    for i in range(warmup, warmup + calls):
        before, _ = _now(cuda)
        call(i)
        wall.append(_now(cuda)[0] - before)
    cpu = (_now(cuda)[1] - cpu) / calls
    peak = torch.cuda.max_memory_reserved(device) if cuda else None
    if floor is not None and (most := _resident("VmHWM")) is not None:
        peak = max(0, most - floor)
    return Timing(
        wall_s=round(statistics.median(wall), 5),
        wall_s_range=(round(min(wall), 5), round(max(wall), 5)),
        cpu_s=round(cpu, 5),
        peak_bytes=peak,
        calls=calls,
    )


def steps(
    kinds: Mapping[str, Callable[[Progress], Mapping[str, Tensor]]],
    parameters: Iterable[nn.Parameter],
    *,
    calls: int,
    device: str = "cpu",
    ramps: Sequence[str] = (),
    frozen: Sequence[str] = ("frozen",),
    work: Mapping[str, Work] | None = None,
) -> dict[str, Any]:
    """Time a step of every kind: its loss, a backward, AdamW; of `frozen` kinds the forward alone.

    Returns what `plan.read_measured` reads as `seconds_a_step`: by kind a `Timing`, with the work it did where that is
    known.
    """
    optimizer = torch.optim.AdamW(list(parameters), lr=1e-4, fused=True)
    figures: dict[str, Any] = {}
    for name, loss in kinds.items():

        def step(i: int, name: str = name, loss: Callable[[Progress], Mapping[str, Tensor]] = loss) -> None:
            terms = [term for key, term in loss(at_end(name, i, ramps)).items() if not key.startswith("log/")]
            if name not in frozen:
                sum(terms[1:], start=terms[0]).backward()
                optimizer.step()
                optimizer.zero_grad()

        figures[name] = asdict(measure(step, calls=calls, device=device))
        if work is not None and name in work:
            figures[name]["work"] = asdict(work[name])
    return figures


def at_end(stage: str, step: int, ramps: Sequence[str] = ()) -> Progress:
    """The progress of a step whose ramps are all at 1, their end, and whose random numbers are those of the step."""
    full = {name: Ramp(1.0, 1.0) for name in ramps}
    return Progress(stage, step, step, None, 0.0, torch.Generator().manual_seed(step), ramps=full)


def machine(device: str = "cpu") -> dict[str, Any]:
    """Say where figures come from: the device by torch's name for it, threads, memory, versions."""
    cuda = device.startswith("cuda")
    found: dict[str, Any] = {
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if cuda:
        found["device_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return found


def _now(cuda: bool) -> tuple[float, float]:
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _reset_resident() -> int | None:
    """Forget the peak of the resident memory; return what it is now, None where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(what: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(what):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None
