"""A short training run started through another app's command line, so that a report can show the loop turning.

`bench` never imports another app: it knows a command, a folder, and the log that `trainers.fit` writes there.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = {"observe.steps": 5, "recover.steps": 3, "couple.steps": 30}
"""3 ranges x 5 + 5 phases x 3 + 30 = 60 steps of PILA's three stages."""
SETTINGS = {**STEPS, "data.clips": 64, "batch": 16}
TAIL = 2000
"""Characters of a failed command's output that are shown."""


@dataclass(frozen=True)
class LiveRun:
    """What a short run showed: the command, its steps and seconds, and per stage the steps and summed losses."""

    command: str
    steps: int
    seconds: float
    stages: tuple[tuple[str, tuple[int, ...], tuple[float, ...]], ...]


def pila_command(out: Path, backbone: str, seed: int) -> list[str]:
    """Give the command that trains 60 steps of PILA."""
    settings = {**SETTINGS, "backbone": backbone, "seed": seed}
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    return [
        sys.executable,
        "-m",
        "pila.cli",
        "train",
        "--out",
        str(out),
        "--cache",
        str(out / "cache"),
        "--quiet",
        *flags,
    ]


def run(
    command: Sequence[str],
    out: Path,
    *,
    shown: str,
    watch: Callable[[int, str, float], None] | None = None,
    timeout_s: float = 600.0,  # a loaded machine may take minutes to import
) -> LiveRun:
    """Run a training command, following its log; `watch(step, stage, loss)` is called for each new line.

    Raises:
        ValueError: if the command fails or takes too long, with the end of what it said.
    """
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out.mkdir(parents=True, exist_ok=True)
    with (out / "output.txt").open("wb") as said:
        process = subprocess.Popen(list(command), stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            seen = 0
            while process.poll() is None:
                lines = read_log(out / "log.jsonl")
                for line in lines[seen:]:
                    if watch is not None:
                        watch(line["global_step"], line["stage"], _loss(line))
                seen = len(lines)
                if time.monotonic() - began > timeout_s:
                    raise ValueError(f"expected `{shown}` to end within {timeout_s:.0f} s; {_tail(out)}")
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    lines = read_log(out / "log.jsonl")
    if process.returncode or not lines:
        raise ValueError(f"expected `{shown}` to train, got exit status {process.returncode}; {_tail(out)}")
    stages = tuple(
        (
            name,
            tuple(line["global_step"] for line in lines if line["stage"] == name),
            tuple(_loss(line) for line in lines if line["stage"] == name),
        )
        for name in dict.fromkeys(line["stage"] for line in lines)
    )
    return LiveRun(shown, lines[-1]["global_step"], time.monotonic() - began, stages)


def read_log(path: Path) -> list[dict]:
    """Read a training log; a last line that is still being written is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def curves(lines: Sequence[dict]) -> list[dict]:
    """Give the charts of a training log: the loss of each stage, its terms, gradient norm and learning rate.

    A chart is {title, across, log, lines: [{name, x, y}]}; a stage has its own line, since each minimises something
    else. Values that are no numbers are gaps.
    """
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    terms = dict.fromkeys(name for line in lines for name in line["terms"])

    def drawn(title: str, value: Callable[[dict], Any], *, log: bool = False) -> dict | None:
        found = []
        for stage in stages:
            mine = [line for line in lines if line["stage"] == stage]
            y = [_number(value(line)) for line in mine]
            if any(v is not None for v in y):
                found.append({"name": stage, "x": [line["global_step"] for line in mine], "y": y})
        return {"title": title, "across": "step", "log": log, "lines": found} if found else None

    charts = [drawn("loss", _loss, log=True)]
    charts += [drawn(term, lambda line, term=term: line["terms"].get(term), log=True) for term in terms]
    charts += [
        drawn("gradient norm", lambda line: line.get("gradient_norm"), log=True),
        drawn("learning rate", lambda line: line.get("lr")),
        drawn("seconds a step", lambda line: line.get("seconds")),
    ]
    return [chart for chart in charts if chart is not None]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _loss(line: dict) -> float:
    terms = line["terms"].items()
    return float(sum(value for name, value in terms if not name.startswith("log/") and value is not None))


def _tail(out: Path) -> str:
    text = (out / "output.txt").read_text(encoding="utf-8", errors="replace").strip()
    return f"it said: ...{text[-TAIL:]}" if text else "it said nothing"
