"""Work the queue within a budget: what fits is run, cheapest first; a stopped run goes on where it was.

    benchmarks/gpu/run.sh [--budget MINUTES] [--rows 9,10] [--out DIR] [--wheels DIR] [--dry-run]

DIR/results.jsonl   one JSON line a measurement: row, command, figures, machine, commit, code, date, seconds, exit
DIR/log.txt         what the commands said

The lines of a command are appended in one write when it has ended, whatever ended it: the file is whole at any time. A
row is done when each of its commands ended well with the code that is here now, in DIR or in benchmarks/gpu/results; it
is not run again unless another row takes a product of it that is gone. A row that failed waits behind those not tried.

Standard library alone, Python 3.11 or newer; the commands run in the environment of --wheels, or in this one.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import rows
from rows import ROOT, Row

RESULTS = Path(__file__).resolve().with_name("results")
PATIENCE = 3.0  # a command is stopped after so many times its minutes, which are estimates
TOY_MINUTES = 10.0
GRACE_S = 20.0  # from the polite signal to the other one
STOPS = (signal.SIGINT, signal.SIGTERM)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The measurements of a file; a last line that a crash cut off is none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add lines in one write that is on the disk when this returns."""
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.truncate(end - len(file.read().rpartition(b"\n")[2]))  # what a crash cut off
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def figures_of(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines that a command printed."""
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


@dataclass
class Work:
    """One call: where things lie, how long it may take, and what came of each row."""

    out: Path
    runs: Path
    python: Path
    facts: dict[str, Any]
    stamp: dict[str, str]  # commit and code
    deadline: float  # of time.monotonic()
    toy: bool
    told: dict[int, str] = field(default_factory=dict)  # row: what came of it

    @property
    def minutes_left(self) -> float:
        return (self.deadline - time.monotonic()) / 60

    def known(self) -> list[dict[str, Any]]:
        """Measurements of the code that is here now."""
        files = [self.out / "results.jsonl", *([] if self.toy else sorted(RESULTS.glob("*.jsonl")))]
        return [
            line for file in files for line in lines_of(file)
            if line["code"] == self.stamp["code"] and line["toy"] == self.toy
        ]  # fmt: skip

    def left_to_do(self, row: Row) -> list[str]:
        """The commands of a row that have not ended well."""
        ended = {line["command"] for line in self.known() if line["row"] == row.id and line["exit"] == 0}
        return [command for command in row.commands if command not in ended]

    def half_made(self, queue: Sequence[Row]) -> set[int]:
        """Rows of which a command was stopped or failed, and has not ended well since: what they make may be half."""
        lines = lines_of(self.out / "results.jsonl")
        last = {(line["row"], line["command"]): line["exit"] for line in lines if line["toy"] == self.toy}
        done = {number for number, told in self.told.items() if told.startswith("done")}
        return {row.id for row in queue if any(last.get((row.id, command)) for command in row.commands)} - done

    def run(self, row: Row) -> None:
        """Run what is left of a row, or all of it when a product is gone; note what came of it."""
        gone = [item for item in row.makes if not rows.under(item, self.runs).exists()]
        for command in row.commands if gone else self.left_to_do(row):
            code = self.run_command(row, command)
            if code:
                self.told[row.id] = f"failed: exit {code}, see {self.out / 'log.txt'}"
                return
        self.told[row.id] = "done"

    def run_command(self, row: Row, command: str) -> int:
        """Run one command to its end or its limit, and file what it measured."""
        limit = 60 * (TOY_MINUTES if self.toy else max(2.0, PATIENCE * row.minutes))
        limit = max(1.0, min(limit, self.deadline - time.monotonic()))
        print(f"row {row.id}: {command}", flush=True)
        words = rows.placed(command.replace("uv run ", ""), self.runs)
        said, began, date = self.out / ".said", time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        started = time.time()
        with said.open("w+") as stdout, (self.out / "log.txt").open("a") as log:
            log.write(f"\n==== row {row.id}, {date}: {words}\n")
            log.flush()
            child = subprocess.Popen(
                ["bash", "-o", "pipefail", "-c", words],
                cwd=ROOT,
                stdout=stdout,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment(),
                start_new_session=True,
            )
            try:
                code, ended = child.wait(limit), ""
                code = 128 - code if code < 0 else code  # as a shell says that a signal ended it
            except subprocess.TimeoutExpired:
                code, ended = _stop(child, 124), f"stopped after {limit:.0f} s"
            except KeyboardInterrupt:
                code, ended = _stop(child, 130), "interrupted"
            stdout.seek(0)
            text = stdout.read()
            complaint = (self.out / "log.txt").read_text(encoding="utf-8", errors="replace")[-600:]
            log.write(text)
        seconds = time.monotonic() - began
        found = list(figures_of(text))
        for item in row.read:
            path = rows.under(item, self.runs)
            if path.is_file() and path.stat().st_mtime >= started - 1:
                found.append(json.loads(path.read_text(encoding="utf-8")))
        about = {"date": date, "seconds": round(seconds, 2), "exit": code, "toy": self.toy}
        if code:
            about["error"] = ended or complaint
        append(
            self.out / "results.jsonl",
            [
                {"row": row.id, "command": command, "figures": f, "machine": self.facts, **self.stamp, **about}
                for f in found or [{}]
            ],
        )
        said.unlink()
        print(f"row {row.id}: exit {code} after {seconds:.0f} s, {len(found)} figures {ended}".rstrip(), flush=True)
        if code == 130:
            raise KeyboardInterrupt
        return code

    def environment(self) -> dict[str, str]:
        """That of a command: the interpreter's programs come first."""
        own = {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "VIRTUAL_ENV": str(self.python.parent.parent),
        }
        if self.toy or not rows.reaches(rows.HUB):
            own["HF_HUB_OFFLINE"] = "1"  # else every load tries, and waits
        return os.environ | own | ({"OMP_NUM_THREADS": "1"} if self.toy else {})

    def work(self, queue: Sequence[Row], chosen: Sequence[int]) -> None:
        """Run what can be run and fits, until nothing more does."""
        tried = {line["row"] for line in self.known()}
        for row in queue:
            if row.id in chosen and not self.left_to_do(row):
                self.told[row.id] = "done before"
            elif missing := row.needs.missing(self.facts["gpu_gib"]):
                self.told[row.id] = f"skipped, missing: {'; '.join(missing)}"
        for row in reversed(queue):  # a data set of 100,000 clips is not made for nobody
            takers = [other for other in queue if {*row.makes} & {*other.inputs} and other.id != row.id]
            if takers and all(self.told.get(other.id, "").startswith("skipped") for other in takers):
                self.told.setdefault(row.id, f"skipped, no row that takes {row.makes[0]} can be run")
        while True:
            chains, half = [], self.half_made(queue)
            for row in queue:
                if row.id not in chosen or row.id in self.told:
                    continue
                chain = [*rows.before(row, queue, self.runs, half), row]
                stuck = [r for r in chain[:-1] if not self.told.get(r.id, "done").startswith("done")]
                if stuck:
                    self.told[row.id] = f"skipped, it takes {', '.join(stuck[0].makes)} of row {stuck[0].id}"
                    continue
                chains.append((row.id in tried, sum(r.minutes for r in chain), row.id, chain))
            fitting = [chain for chain in sorted(chains, key=lambda c: c[:3]) if chain[1] <= self.minutes_left]
            if not fitting:
                break
            first = fitting[0][3][0]
            self.run(first)
            gone = [item for item in first.makes if not rows.under(item, self.runs).exists()]
            if self.told[first.id] == "done" and gone:
                self.told[first.id] = f"failed: it left no {gone[0]}"
        for _, minutes, number, _ in sorted(chains):
            self.told[number] = f"left: {minutes:g} minutes with what it takes"

    def report(self, chosen: Sequence[int]) -> None:
        """Say what came of each row and what to do next."""
        print()
        for number in sorted({*self.told, *chosen}):
            if number in chosen or not self.told[number].startswith("skipped"):
                print(f"row {number}: {self.told.get(number, 'left')}")
        if self.toy:
            return
        kept = RESULTS.relative_to(ROOT)
        print(f"\nFigures: {self.out / 'results.jsonl'}. Next: copy it to {kept}/NAME.jsonl, run `uv run python")
        print("benchmarks/tables.py`, and commit what it wrote. The same command goes on with what is left.")


def _stop(child: subprocess.Popen[bytes], code: int) -> int:
    """End a command and all that it started: politely, so that a run may write where it is, then at once."""
    for number in STOPS:  # a second one would leave the command running and its figures unwritten
        signal.signal(number, signal.SIG_IGN)
    os.killpg(child.pid, signal.SIGTERM)
    patience = time.monotonic() + GRACE_S
    try:
        while time.monotonic() < patience:  # not of the shell alone, which goes first
            child.poll()
            os.killpg(child.pid, 0)
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
    for number in STOPS:
        signal.signal(number, _interrupt)
    return code


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None, *, queue: Path = rows.QUEUE) -> int:
    """Set up, work, report; the exit status is 1 if a row failed, 130 when it was stopped."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="MINUTES", help="of all (none: no limit)")
    parser.add_argument("--rows", default="", help="numbers with commas between (none: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder of results.jsonl and log.txt")
    parser.add_argument("--wheels", type=Path, help="folder of wheels.py (none: this Python has all)")
    parser.add_argument("--commit", help="of the sources, where they lie without their git history")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on a CPU, everything under --out")
    given = parser.parse_args(arguments)
    try:
        listed = rows.load(queue)
        chosen = [int(word) for word in given.rows.split(",") if word] or [row.id for row in listed]
        if unknown := set(chosen) - {row.id for row in listed}:
            raise ValueError(f"expected rows of the queue, got {sorted(unknown)}")
        if given.dry_run:
            listed = [row.as_toy() for row in listed if row.toy]
            chosen = [number for number in chosen if number in {row.id for row in listed}]
        python = machine.set_up(given.wheels) if given.wheels else Path(sys.executable)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = given.out.resolve()
    runs = out / "runs" if given.dry_run else ROOT / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    facts = machine.facts(python)
    stamp = {"commit": given.commit or machine.commit(), "code": machine.code()}
    print(
        f"{facts['gpu'] or 'no GPU'}, Python {facts['python']}, torch {facts['torch']}, code {stamp['code']}",
        flush=True,
    )
    work = Work(out, runs, python, facts, stamp, began + 60 * given.budget, given.dry_run)
    before = {number: signal.signal(number, _interrupt) for number in STOPS}
    try:
        work.work(listed, chosen)
    except KeyboardInterrupt:
        work.report(chosen)
        print("stopped; the same command goes on")
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    work.report(chosen)
    return int(any(told.startswith("failed") for told in work.told.values()))


if __name__ == "__main__":
    sys.exit(main())
