"""How many clips a second the simulated world makes: each mechanism alone, and the eight together on worker processes.

    OMP_NUM_THREADS=1 uv run python benchmarks/physworld_speed.py [--clips 32] [--repeats 5] [--processes 2] [--scale 1]

A clip is 17 frames with its exact fields, not yet encoded as a file. Per mechanism: one process, median and range over
the repeats, each with fresh seeds. The whole: equal numbers of all eight on `--processes` workers, in chunks as a data
set is made. Set OMP_NUM_THREADS=1: teams of threads on few cores wait for one another.
"""

import argparse
import json
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from physworld import MECHANISMS, simulate_many

CHUNK = 16


def make(job: tuple[str, int, int, int]) -> int:
    """Simulate one chunk in a worker and count it (the clips stay there: sending them is not simulating)."""
    mechanism, first, count, scale = job
    return len(simulate_many(mechanism, range(first, first + count), scale=scale))


def summary(rates: list[float]) -> dict[str, float]:
    """Median and range of clips a second."""
    return {"median": round(statistics.median(rates), 1), "low": round(min(rates), 1), "high": round(max(rates), 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32, help="clips of a mechanism in one measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()

    about = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "numpy": np.__version__}
    about |= {"clips": args.clips, "repeats": args.repeats, "scale": args.scale}
    lines: list[dict[str, object]] = []

    def report(mechanism: str, processes: int, rates: dict[str, float]) -> None:
        lines.append({**about, "mechanism": mechanism, "processes": processes, "clips_a_second": rates})
        print(json.dumps(lines[-1]), flush=True)

    each: dict[str, dict[str, float]] = {}
    for mechanism in MECHANISMS:
        make((mechanism, 0, 2, args.scale))  # imports, FFT plans
        rates = []
        for repeat in range(args.repeats):
            started = time.perf_counter()
            made = make((mechanism, 1000 * (repeat + 1), args.clips, args.scale))
            rates.append(made / (time.perf_counter() - started))
        each[mechanism] = summary(rates)
        report(mechanism, 1, each[mechanism])

    whole = []
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(make, [(m, 0, 2, args.scale) for m in MECHANISMS for _ in range(args.processes)]))
        for repeat in range(args.repeats):
            first = 100_000 * (repeat + 1)
            jobs = [
                (mechanism, first + start, min(CHUNK, args.clips - start), args.scale)
                for start in range(0, args.clips, CHUNK)
                for mechanism in sorted(MECHANISMS, key=lambda name: each[name]["median"])  # the slow ones first
            ]
            started = time.perf_counter()
            made = sum(pool.map(make, jobs))
            whole.append(made / (time.perf_counter() - started))
    report("all eight", args.processes, summary(whole))
    if args.out:
        part = args.out.with_name(args.out.name + ".part")
        part.write_text(json.dumps(lines, indent=1) + "\n")
        part.replace(args.out)


if __name__ == "__main__":
    main()
