"""VideoPhy's own raters, run out of process: their code, their environment, their weights.

VideoCon-Physics and VideoPhy-2-AutoEval are mPLUG-Owl-video networks that want an old transformers; their checkpoints
are pickles. Neither comes into this process: a `Rater` names an interpreter, a clone of
github.com/Hritikbansal/videophy and a folder with the checkpoint, and starts the clone's script with the tables that
`bench to-official` writes.

    PYTHON CLONE/videocon/training/pipeline_video/entailment_inference.py --input_csv X --output_csv Y --checkpoint DIR
    PYTHON CLONE/VIDEOPHY2/inference.py --input_csv X --output_csv Y --checkpoint DIR --task sa|pc|rule

What surprises: VideoPhy's script appends row by row, so that a run that was stopped goes on with the rows it lacks;
VideoPhy-2's writes once at its end, so that a task is done or not. Some copies of the latter stop after 20 rows: a
table that comes back short is an error.
"""

import csv
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from bench.official import tables, videophy, videophy2
from trainers import write_text

SCRIPTS = {
    "videophy": Path("videocon/training/pipeline_video/entailment_inference.py"),
    "videophy2": Path("VIDEOPHY2/inference.py"),
}
TABLES = {"videophy": videophy.TASKS, "videophy2": videophy2.TASKS}
WEIGHTS = ("*.bin", "*.safetensors", "*.pt")
LOG_TAIL = 12
ELSEWHERE = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Of our environment, not of the rater's."""


@dataclass(frozen=True)
class Rater:
    """One of the two raters on this machine."""

    benchmark: str
    python: Path
    clone: Path
    checkpoint: Path
    timeout_s: float = 86_400.0

    def __post_init__(self) -> None:
        if self.benchmark not in SCRIPTS:
            raise ValueError(f"expected the benchmark {' or '.join(SCRIPTS)}, got {self.benchmark!r}")
        if not os.access(self.python, os.X_OK) or self.python.is_dir():
            raise ValueError(f"expected the interpreter of the rater's environment (ENV/bin/python), got {self.python}")
        if not self.script.is_file():
            raise ValueError(
                f"expected a clone of github.com/Hritikbansal/videophy, got {self.clone} without its script"
            )
        if not any(next(self.checkpoint.glob(kind), None) for kind in WEIGHTS):
            raise ValueError(
                f"expected a folder with the rater's weights, got {self.checkpoint}: clone huggingface.co/videophysics/"
                f"{'videocon_physics' if self.benchmark == 'videophy' else 'videophy_2_auto'} with git lfs"
            )

    @property
    def script(self) -> Path:
        """The clone's script."""
        return self.clone.resolve() / SCRIPTS[self.benchmark]

    def run(self, task: str, table: Path, out: Path) -> Path:
        """Score a table and return the rater's output; what is there already is not scored again.

        Raises:
            ValueError: if the script fails, takes longer than `timeout_s`, or leaves rows out; with the end of its log.
        """
        wanted = _asked(table)
        if out.is_file() and _lacking(wanted, _done(out, self.benchmark)) == []:
            return out
        out.parent.mkdir(parents=True, exist_ok=True)
        part, todo = out.with_name(f".{out.stem}.part.csv"), out.with_name(f".{out.stem}.todo.csv")
        if self.benchmark == "videophy":
            done = _kept(part)
            left = [row for row in wanted if row["videopath"] not in done]
            write_text(todo, tables.rater_table(tuple(wanted[0]), [tuple(row.values()) for row in left]))
        else:
            part.unlink(missing_ok=True)
            left, todo = wanted, table
        if left:
            self._start(task, todo, part, out.with_suffix(".log"))
        if lacking := _lacking(wanted, _done(part, self.benchmark)):
            raise ValueError(
                f"expected scores for {len(wanted)} rows of {table}, got {len(wanted) - len(lacking)}: none for "
                f"{lacking[0]}. See {out.with_suffix('.log')}; some copies of inference.py stop after 20 rows"
            )
        part.replace(out)
        out.with_name(f".{out.stem}.todo.csv").unlink(missing_ok=True)
        return out

    def _start(self, task: str, table: Path, out: Path, log: Path) -> None:
        command = [str(self.python.absolute()), str(self.script)]
        command += ["--input_csv", str(table.resolve()), "--output_csv", str(out.resolve())]
        command += ["--checkpoint", str(self.checkpoint.resolve())]
        command += ["--task", task] if self.benchmark == "videophy2" else []
        environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                cwd=self.script.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                raise ValueError(f"the rater took longer than {self.timeout_s:g} s; see {log}") from None
            finally:
                if process.poll() is None:  # its loaders are processes of their own
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if status:
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - 20_000))
                tail = file.read().decode(errors="replace").splitlines()[-LOG_TAIL:]
            raise ValueError(f"the rater stopped with status {status}; the end of {log}:\n" + "\n".join(tail))


def _asked(table: Path) -> list[dict[str, str]]:
    rows = tables.records(table, "videopath")
    if not rows:
        raise ValueError(f"expected rows in {table}, got none")
    return rows


def _key(row: dict[str, str]) -> tuple[str, str]:
    return row["videopath"], row.get("rule", "")


def _done(path: Path, benchmark: str) -> set[tuple[str, str]]:
    """Which rows an output has."""
    if not path.is_file():
        return set()
    if benchmark == "videophy":
        return {(row[0], "") for row in tables.rows(path)}
    return {_key(row) for row in tables.records(path, "videopath", "score")}


def _lacking(wanted: Sequence[dict[str, str]], done: set[tuple[str, str]]) -> list[str]:
    return [row["videopath"] for row in wanted if _key(row) not in done]


def _kept(part: Path) -> set[str]:
    """Which videos a stopped run has scored; a row that was cut off is taken out of its file."""
    if not part.is_file():
        return set()
    rows = [row for row in csv.reader(StringIO(tables.text(part), newline="")) if len(row) == 3 and _number(row[2])]
    out = StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    write_text(part, out.getvalue())
    return {row[0] for row in rows}


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
