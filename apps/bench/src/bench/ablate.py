"""Run a table of ablations (`bench.ablation_table`) through an app's own command line.

Every row is trained on the same seeds and evaluated on the same captions and noise, so that rows pair clip by clip.
What stands in OUT is not done again: a row that has a bundle is not trained, one that has an evaluation is not
evaluated, and a training that was stopped goes on from its checkpoint. A row that fails is named, and the others go on.

What surprises: a command outlives `bench` when that is killed. Each holds the lock of its folder as long as it runs, so
that the next start waits for it instead of training beside it in the same folder.
"""

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import yaml

from bench import results
from bench.ablation_results import assemble
from bench.ablation_table import SAMPLING, Ablations, Job, choose
from bench.results import Result
from trainers import show, write_text
from trainers.commands import errors

TAIL = 1500
"""Characters of a failed command's output that are shown."""


def run(
    table: Ablations,
    out: Path,
    *,
    config: str | None = None,
    sets: Sequence[str] = (),
    rows: Sequence[str] | None = None,
    clips: int = 64,
    split: str = "test",
    seeds: int = 1,
    workers: int = 1,
) -> Result:
    """Train and evaluate every row for every seed, and write the result.

    The whole method goes first, since sampling rows need its weights and it fills the cache that all share.

    Raises:
        ValueError: for a row that is not in the table, a folder of another table, or at the end if a row failed.
    """
    chosen = choose(table, rows)
    _agree(out, table, config, sets)
    jobs = [
        Job(table, row, seed, out, config or table.config, tuple(sets), clips, split)
        for row in chosen
        for seed in range(seeds)
    ]
    first, later = [j for j in jobs if j.row == table.whole], [j for j in jobs if j.row != table.whole]
    failed: dict[str, str] = {}
    with show.bar(f"ablations of {table.app} (runs)", len(jobs)) as bar, ThreadPoolExecutor(workers) as pool:
        done, leaving = 0, threading.Event()
        before = [job for job in jobs if job.evaluation.is_file()]
        try:
            for group in (first, later):
                for job, error in zip(group, pool.map(partial(_carry_out, leaving=leaving), group), strict=True):
                    done += 1
                    bar.skip(job in before)
                    bar.update(done, job.row.name)
                    if error:
                        failed[f"{job.row.name} (seed {job.seed})"] = error
        finally:
            leaving.set()  # the pool waits for its threads: none shall wait for a lock and then train
    complete = [row for row in chosen if all(j.evaluation.is_file() for j in jobs if j.row == row)]
    if not complete:
        raise ValueError("no row was measured; " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
    result = assemble(table, [j for j in jobs if j.row in complete])
    results.write(result, out)
    if failed:
        raise ValueError("; ".join(f"{name} failed: {why}" for name, why in failed.items()))
    return result


def _carry_out(job: Job, *, leaving: threading.Event) -> str:
    """Train and evaluate a row unless that is done; give what went wrong, or nothing."""
    trainings = job.trainings
    for one in trainings:
        with _alone(one.folder, leaving) as held:
            if (one.folder / "bundle" / "bundle.json").is_file():
                continue
            given = ["--config", job.config] if job.config is not None else []
            given += ["--stage", one.stage] if one.stage else []
            given += [one.flag, str(one.after / "bundle")] if one.after is not None else []
            given += ["--out", str(one.folder), "--cache", str(job.out / "cache"), "--quiet"]
            given += ["--resume"] if (one.folder / "checkpoints").is_dir() else []
            if error := _start(job.table.app, "train", given, (*job.sets, f"seed={job.seed}", *one.sets), held):
                return error
    with _alone(job.evaluation, leaving) as held:
        if job.evaluation.is_file():
            return ""
        given = ["--bundle", str(trainings[-1].folder / "bundle"), "--clips", str(job.clips), "--split", job.split]
        given += ["--keep", str(job.out / "parts"), "--out", str(job.evaluation), "--quiet"]
        return _start(job.table.app, "evaluate", given, job.row.set if job.row.when == SAMPLING else (), held)


@contextmanager
def _alone(path: Path, leaving: threading.Event) -> Iterator[int]:
    """Hold the lock of a folder or file, once nobody else does; a command that inherits it holds it on.
    InterruptedError where the run ends first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT)
    try:
        if not _locked(lock):
            errors.print(f"another command still works on {path}: waiting for its end", style="dim", markup=False)
            while not _locked(lock):
                if leaving.wait(1):
                    raise InterruptedError(f"left while another command works on {path}")
        yield lock
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(app: str, verb: str, given: Sequence[str], sets: Sequence[str], held: int) -> str:
    """Start a command of the app, which holds the lock `held` too; give the end of what it said if it failed."""
    flags = [flag for text in sets for flag in ("--set", text)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, "-m", f"{app}.cli", verb, *given, *flags]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, pass_fds=(held,))
    if ended.returncode == 0:
        return ""
    said = (ended.stderr.strip() or ended.stdout.strip() or "nothing")[-TAIL:]
    return f"`{app} {verb}` ended with {ended.returncode} and said: {said}"


def _agree(out: Path, table: Ablations, config: str | None, sets: Sequence[str]) -> None:
    """Refuse a folder that holds runs of another app, recipe or overrides."""
    path = out / "ablations.yaml"
    content = {"app": table.app, "config": config or table.config, "set": list(sets)}
    if path.is_file() and (known := yaml.safe_load(path.read_text(encoding="utf-8"))) != content:
        raise ValueError(f"expected the folder of {content}, got {out} with runs of {known}: take another --out")
    write_text(path, yaml.safe_dump(content))
