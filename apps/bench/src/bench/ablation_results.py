"""What an ablation's evaluations say together: a `Result` with a system a row, and the table of a paper."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.table import Column, Table

from bench import results
from bench.ablation_table import Ablations, Job
from bench.compare import differences, figure, law
from bench.results import Item, PromptSet, Result, System
from physworld.evaluation import Evaluation

BASE = "base"
METRICS = {"pass": "passes", "score": "scores"}


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
