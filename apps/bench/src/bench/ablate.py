"""Run an ablation table through an app's own command line, and print it like a paper's.

A table is a YAML file beside an app's recipes (`recipes/ablations.yaml`, or any file with `app:`):

    app: pila                 # whose command line; left out in the file that the app itself ships
    config: tiny              # recipe of every row, its name or file (left out: the app's `tiny`)
    rows:
      - name: plain adapter   # one row; a row without sets is the whole method, and is added where there is none
        set: [adapter=plain]  # what it changes, as `--set` takes it
        what: The same network under the flow-matching loss alone.
        when: training        # or `sampling`: the whole method's weights under these sets; anything else is a need
                              # (such as "language model") of a row that only runs when asked for by name
        stage: student        # for an app that trains one model after another (`train --stage teacher`, then
                              # `train --stage student --teacher BUNDLE`): which one the row changes; it is measured
                              # by the last one in any case
        needs: a row's name   # of an earlier stage, which this one learns from; left out: the first row there

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
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import yaml
from pydantic import Field, ValidationError
from rich.table import Column, Table

from bench import results
from bench.compare import differences, figure, law
from bench.generate import slug
from bench.results import Item, PromptSet, Result, Strict, System
from physworld.evaluation import Evaluation
from trainers import show
from trainers.commands import errors

SHIPPED = Path("recipes") / "ablations.yaml"
WHOLE = "whole method"
BASE = "base"
TAIL = 1500
"""Characters of a failed command's output that are shown."""
SAMPLING, TRAINING = "sampling", "training"
METRICS = {"pass": "passes", "score": "scores"}


class Row(Strict):
    """One row of the table."""

    name: str
    set: tuple[str, ...] = ()
    what: str
    when: str = TRAINING
    stage: str = ""
    needs: str = ""


class Ablations(Strict):
    """The table: whose command line, which recipe, which rows."""

    app: str = ""
    config: str | None = None
    rows: tuple[Row, ...] = Field(min_length=1)

    @property
    def stages(self) -> list[str]:
        """Stages of the rows, the earliest first; the last is the one that is measured."""
        return list(dict.fromkeys(row.stage for row in self.rows))

    @property
    def whole(self) -> Row:
        """The row without sets of the last stage: the whole method."""
        return next(row for row in self.rows if not row.set and row.stage == self.stages[-1])

    @property
    def measured(self) -> list[Row]:
        """Rows that are measured, the whole method first; an earlier stage without sets belongs to the whole method."""
        return [self.whole, *(row for row in self.rows if row.set)]


@dataclass(frozen=True)
class Training:
    """One start of `APP train`: its folder, overrides, stage, and the folder of what it learns from."""

    folder: Path
    sets: tuple[str, ...]
    stage: str = ""
    flag: str = ""
    after: Path | None = None


@dataclass(frozen=True)
class Job:
    """One row under one training seed: its folders and what is overridden."""

    table: Ablations
    row: Row
    seed: int
    out: Path
    config: str | None
    sets: tuple[str, ...]
    clips: int
    split: str

    @property
    def trainings(self) -> list[Training]:
        """What has to be trained, in order; the last one is measured. A sampling row uses the whole method's weights.

        A changed earlier stage is followed by the whole method's last one under the same changes.
        """
        row = self.table.whole if self.row.when == SAMPLING else self.row
        first, last = self.table.stages[0], self.table.stages[-1]
        if first == last:
            return [Training(self._folder(row.name), row.set, row.stage)]
        if row.stage == last:
            rows = [r for r in self.table.rows if r.stage == first]
            taught = next(r for r in rows if row.needs in ("", r.name))
            before = Training(self._folder(taught.name), taught.set, first)
            own = self._folder(row.name)
        else:
            before = Training(self._folder(row.name), row.set, first)
            own = self._folder(f"{row.name} {last}")
        return [before, Training(own, row.set, last, f"--{first}", before.folder)]

    def _folder(self, name: str) -> Path:
        return self.out / "runs" / f"{slug(name)}-seed{self.seed}"

    @property
    def evaluation(self) -> Path:
        """File of the evaluation."""
        return self.out / "evaluations" / f"{slug(self.row.name)}-seed{self.seed}-{self.split}-{self.clips}.json"


def read(recipe: str) -> Ablations:
    """Read a table: the file of an app by its name, or any file.

    ValueError says what is wrong with it, or where it was looked for.
    """
    path = Path(recipe)
    home = None
    if not path.is_file():
        spec = find_spec(recipe) if recipe.isidentifier() else None
        places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
        home = next((place for place in places if (place / SHIPPED).is_file()), None)
        if home is None:
            raise ValueError(f"expected a file of ablations, or an app that ships {SHIPPED}, got {recipe!r}")
        path = home / SHIPPED
    try:
        table = Ablations.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML in {path}, got {error}") from None
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, m['loc'])) or 'file'}: {m['msg']}" for m in error.errors()[:5])
        raise ValueError(f"{path} is no table of ablations: {said}") from None
    names = [row.name for row in table.rows]
    if len({slug(name) for name in names}) < len(names):
        raise ValueError(f"expected rows with names of their own in {path}, got {', '.join(names)}")
    app = table.app or (path.resolve().parents[1].name if path.parent.name == SHIPPED.parts[0] else "")
    if not app.isidentifier() or find_spec(app) is None or find_spec(f"{app}.cli") is None:
        raise ValueError(f"expected `app:` in {path} with the name of an installed app, got {app!r}")
    last = table.stages[-1]
    if not any(not row.set and row.stage == last for row in table.rows):
        whole = Row(name=WHOLE, what="All parts, as the recipe has them.", stage=last)
        table = table.model_copy(update={"rows": (*table.rows, whole)})
    if strange := {row.needs for row in table.rows} - {"", *names}:
        raise ValueError(f"expected rows that others need in {path}, got none called {', '.join(sorted(strange))}")
    return table.model_copy(update={"app": app})


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
        try:
            for group in (first, later):
                for job, error in zip(group, pool.map(partial(_carry_out, leaving=leaving), group), strict=True):
                    done += 1
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


def choose(table: Ablations, rows: Sequence[str] | None) -> list[Row]:
    """Choose rows by name, and the whole method always; without names, all that need nothing further."""
    known = [row.name for row in table.measured]
    if strange := set(rows or ()) - set(known):
        raise ValueError(f"expected rows among {', '.join(known)}; got {', '.join(sorted(strange))}")
    if rows:
        return [row for row in table.measured if row.name in rows or row == table.whole]
    return [row for row in table.measured if row.when in (TRAINING, SAMPLING)]


def assemble(table: Ablations, jobs: Sequence[Job]) -> Result:
    """Put the evaluations together: the base, then a system a row, compared with the base and with the whole method."""
    evaluations = {job: Evaluation.load(job.evaluation) for job in jobs}
    one = next(iter(evaluations.values()))
    for job, other in evaluations.items():
        asked = [(e.clips, e.split, e.seed, e.scale, e.mechanisms, e.world) for e in (one, other)]
        if asked[0] != asked[1]:
            raise ValueError(f"expected evaluations of the same clips, {job.evaluation} is of others: delete it")
    rows = list(dict.fromkeys(job.row for job in jobs))
    tables: dict[str, dict[str, dict[str, np.ndarray]]] = {BASE: {m: one.table(BASE, w) for m, w in METRICS.items()}}
    systems = [_system(BASE, tables[BASE], one, (), "The frozen backbone, without an adapter.", ())]
    for row in rows:
        mine = [(job, evaluations[job], _method(evaluations[job])) for job in jobs if job.row == row]
        tables[row.name] = {
            m: {g: np.concatenate([e.table(method, w)[g] for _, e, method in mine]) for g in one.mechanisms}
            for m, w in METRICS.items()
        }
        runs = tuple((e, method) for _, e, method in mine)
        seeds = tuple(job.seed for job, _, _ in mine)
        systems.append(_system(row.name, tables[row.name], one, runs, row.what, seeds, sets=row.set))
    whole = table.whole.name
    against = [(row.name, b) for b in (BASE, whole) for row in rows if row.name != b]
    return Result(
        benchmark="world",
        title=f"Ablations of {table.app}",
        prompt_set=PromptSet(name=f"world {one.split}", count=one.clips * len(one.mechanisms)),
        rater=law(),
        systems=tuple(systems),
        comparisons=tuple(differences(tables, against)),
        settings={
            "group": "mechanism",
            "app": table.app,
            "recipe": jobs[0].config or "tiny",
            "overrides of every row": list(jobs[0].sets),
            "clips a mechanism": one.clips,
            "training seeds": [*dict.fromkeys(job.seed for job in jobs)],
            "rows": {row.name: row.what for row in rows},
        },
        versions=results.versions(table.app),
        notes=tuple(f"{row.name}: {row.what}" for row in rows),
    )


def printed(out: Path) -> Table:
    """Print the table of a folder: a row a system, shares, scores and the difference to the whole method."""
    result = results.read(out)
    whole = next((c.b for c in reversed(result.comparisons) if c.b != BASE), BASE)
    by_pair = {(c.a, c.b): c for c in result.comparisons if c.metric == "score" and not c.group}
    table = Table(
        Column("row", no_wrap=True),
        "obeys its law",
        "score",
        f"score - {BASE}",
        f"score - {whole}",
        title=f"{result.title} ({result.prompt_set.name}, {result.settings['clips a mechanism']} a mechanism)",
        caption="* p below .05 after Holm's correction over all pairs",
    )
    for system in result.systems:
        cells = [system.metrics[m].value for m in METRICS]
        gains = [by_pair.get((system.name, b)) for b in (BASE, whole)]
        said = [
            ""
            if c is None or c.mean is None
            else _signed(c.mean)
            + ("" if c.low is None or c.high is None else f" [{_signed(c.low)}, {_signed(c.high)}]")
            + (" *" if c.p_corrected is not None and c.p_corrected < 0.05 else "")
            for c in gains
        ]
        numbers = [f"{v:.3f}" if v is not None else "–" for v in cells]
        table.add_row(system.name, *numbers, *said, style="bold" if system.name == whole else None)
    return table


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # no -0.000


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
    out.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.tmp")
    part.write_text(yaml.safe_dump(content), encoding="utf-8")
    part.replace(path)


def _method(evaluation: Evaluation) -> str:
    """Name the adapter of an evaluation: what is not the base."""
    names = [name for name in evaluation.methods if name != BASE]
    if len(names) != 1:
        raise ValueError(f"expected an evaluation of {BASE} and one adapter, got {', '.join(evaluation.methods)}")
    return names[0]


def _system(
    name: str,
    table: dict[str, dict[str, np.ndarray]],
    one: Evaluation,
    runs: Sequence[tuple[Evaluation, str]],
    what: str,
    seeds: Sequence[int],
    *,
    sets: Sequence[str] = (),
) -> System:
    groups = {g: {m: figure(m, [by[g]]) for m, by in table.items()} for g in one.mechanisms}
    return System(
        name=name,
        kind="frozen backbone" if name == BASE else "adapter",
        training_seeds=tuple(seeds),
        metrics={m: figure(m, list(by.values())) for m, by in table.items()},
        groups=groups,
        items=tuple(_items(one, runs or ((one, BASE),))),
        details={"what": what, "set": list(sets)},
    )


def _items(one: Evaluation, runs: Sequence[tuple[Evaluation, str]]) -> Iterator[Item]:
    for index, (evaluation, method) in enumerate(runs):
        for run_ in evaluation.methods[method]:
            for mechanism in one.mechanisms:
                scored = run_.scored[mechanism]
                for clip, score in enumerate(scored.scores):
                    yield Item(
                        id=f"{one.split}-{mechanism}-{clip:06d}",
                        group=mechanism,
                        run=index,
                        values={"score": score, "pass": float(scored.passes[clip])},
                    )
