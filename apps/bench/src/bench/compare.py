"""Compare any runs: results of one benchmark, or folders of videos in the simulated world's format.

Pairs are made by prompt (group and id of an item): what makes a prompt hard is shared and cancels. A prompt's figure is
the mean over its noise seeds, so that n counts prompts and not films. Intervals come from resampling prompts and
training runs (`physworld.paired`); a share has Wilson's. The differences by group are corrected together for being many
(Holm), those over everything likewise.

Two prompt sets or two raters are never compared: the same name stands for different numbers there.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from bench import results
from bench.results import Comparison, Item, Metric, PromptSet, Rater, Result, System, video_path
from physworld import captions, code, paired
from physworld.metrics import Thresholds, measure

CONTROL = "plain"
"""The system of this name is compared with every other one, as the first is."""
RECORDS = "records.jsonl"
SHARES = ("pass", "joint")
"""Metrics that are 0 or 1 an item."""
COPIED = 2
"""Videos a group and system that are copied beside a comparison, to be shown."""

Tables = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
"""`tables[system][metric][group]` is (training runs, prompts)."""


def pairs(systems: Sequence[str]) -> list[tuple[str, str]]:
    """List what is compared with what: every system with the first one (the base), and with the plain control.

    >>> pairs(["base", "plain", "PILA"])
    [('PILA', 'base'), ('plain', 'base'), ('PILA', 'plain')]
    """
    against = [name for name in dict.fromkeys((systems[0], CONTROL)) if name in systems]
    return [(a, b) for b in against for a in reversed(systems) if a not in against[: against.index(b) + 1]]


def differences(tables: Tables, against: Sequence[tuple[str, str]] | None = None) -> Iterator[Comparison]:
    """Compare systems by group and over all groups, with p values corrected for being many.

    Two families a metric: all pairs by group, and all pairs over all groups.
    """
    for metric in next(iter(tables.values())):
        found = [
            (group, one)
            for a, b in (pairs(list(tables)) if against is None else against)
            for group, one in paired.by_mechanism(a, b, tables[a][metric], tables[b][metric]).items()
        ]
        corrected: dict[int, tuple[float, int]] = {}
        for whole in (True, False):
            family = {i: one.p for i, (g, one) in enumerate(found) if (g == "all") == whole and one.p is not None}
            values = paired.holm(list(family.values()))
            corrected |= {i: (p, len(family)) for i, p in zip(family, values, strict=True)}
        for index, (group, one) in enumerate(found):
            p, family = corrected.get(index, (None, None))
            over = "prompts and training runs" if max(one.runs) > 1 else "prompts"
            yield Comparison(
                a=one.a,
                b=one.b,
                metric=metric,
                group="" if group == "all" else group,
                mean=one.mean,
                n=one.n,
                low=one.low,
                high=one.high,
                p=one.p,
                p_corrected=p,
                family=family,
                method=f"95 % bootstrap over {over}" if one.low is not None else "",
            )


def figure(name: str, strata: Sequence[np.ndarray]) -> Metric:
    """Give mean and interval of a metric over strata of (runs, prompts) that weigh the same."""
    mean = float(np.mean([s.mean() for s in strata]))
    n = sum(s.shape[1] for s in strata)
    if min(s.shape[1] for s in strata) < paired.LEAST:
        return Metric(value=mean, n=n)
    if name in SHARES:
        low, high = wilson(mean, n)
        return Metric(value=mean, n=n, low=low, high=high, interval="Wilson, over prompts")
    one = paired.paired(name, "", list(strata), [np.zeros_like(s[:1]) for s in strata])
    over = "prompts and training runs" if len(strata[0]) > 1 else "prompts"
    return Metric(value=mean, n=n, low=one.low, high=one.high, interval=f"bootstrap over {over}")


def wilson(share: float, n: int, level: float = paired.LEVEL) -> tuple[float, float]:
    """Give Wilson's interval of a share in n clips, which has a width also at 0 and 1.

    >>> tuple(round(x, 3) for x in wilson(0.0, 16))
    (0.0, 0.194)
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def compare(paths: Sequence[Path], *, out: Path | None = None, workers: int = 2) -> Result:
    """Compare runs on the prompts that all of them have; with `out`, write the result there with some videos.

    Raises:
        ValueError: if a path holds neither a result nor videos with records, if prompt sets or raters differ, or if no
            prompt is in all runs.
    """
    runs = {path: read(path, workers=workers) for path in dict.fromkeys(paths)}
    first, *others = runs.values()
    for other in others:
        agree(first, other)
    chosen = _systems(runs)
    if len(chosen) < 2:
        raise ValueError(f"expected at least two systems to compare, got {', '.join(chosen) or 'none'}")
    metrics = _metrics(chosen)
    common = set.intersection(*(_complete(system) for _, system in chosen.values()))
    if not common:
        raise ValueError(f"expected prompts that all of {', '.join(chosen)} have, got none: pair them by id")
    tables = {name: _tables(system, metrics, common) for name, (_, system) in chosen.items()}
    left = max(len({(i.group, i.id) for i in s.items}) for _, s in chosen.values()) - len(common)
    measured = []
    for name, (folder, system) in chosen.items():
        groups = tables[name][metrics[0]]
        fields = {
            "name": name,
            "metrics": {m: figure(m, list(by.values())) for m, by in tables[name].items()},
            "groups": {g: {m: figure(m, [by[g]]) for m, by in tables[name].items()} for g in groups},
            "items": tuple(_copied(folder, name, system, common, out)),
        }
        measured.append(system.model_copy(update=fields))
    found = Result(
        benchmark=first.benchmark,
        title=f"{' against '.join(chosen)}" if len(chosen) == 2 else f"{len(chosen)} systems compared",
        prompt_set=first.prompt_set.model_copy(update={"count": len(common)}),
        rater=first.rater,
        systems=tuple(measured),
        comparisons=tuple(differences(tables)),
        settings={"group": first.settings.get("group", "group"), "runs": [path.name for path in runs]},
        versions=results.versions(),
        notes=(f"{left} prompts that not all systems have are left out.",) if left else (),
    )
    if out is not None:
        results.write(found, out)
    return found


def agree(one: Result, other: Result) -> None:
    """Refuse what must not be compared: other prompts, another rater or another version of it."""
    for what, a, b in (
        ("benchmark", one.benchmark, other.benchmark),
        ("prompt set", (one.prompt_set.name, one.prompt_set.style), (other.prompt_set.name, other.prompt_set.style)),
        ("rater", (one.rater.name, one.rater.kind), (other.rater.name, other.rater.kind)),
        ("version of the rater", one.rater.version, other.rater.version),
        ("settings of the rater", one.rater.settings, other.rater.settings),
    ):
        if a != b:
            raise ValueError(f"expected runs with the same {what}, got {a!r} and {b!r}: these are two experiments")


def read(path: Path, *, workers: int = 2) -> Result:
    """Read a result, or measure a folder of videos of the simulated world (`records.jsonl` beside them)."""
    if path.is_dir() and not (path / results.FILE).is_file() and (path / RECORDS).is_file():
        return measured(path, workers=workers)
    return results.read(path)


def measured(folder: Path, *, workers: int = 2) -> Result:
    """Measure a folder of videos by the laws of their captions; a video that cannot be read is left out and named.

    `records.jsonl` holds a line a video: `file` (inside the folder), `captions`, and where there is one `id`. Nothing
    is renamed or written.
    """
    records = _records(folder)
    with ProcessPoolExecutor(workers) if workers > 1 else _Here() as pool:
        found = list(pool.map(_measure, [folder] * len(records), records, chunksize=16))
    items = [one for one in found if isinstance(one, Item)]
    if not items:
        raise ValueError(f"expected videos of the simulated world in {folder}; the first one: {found[0]}")
    notes = [f"{folder.name}: left out: {one}" for one in found if isinstance(one, str)]
    splits = sorted({str(record.get("split", "")) for record in records} - {""})
    system = System(name=folder.name, kind="folder of videos", items=tuple(items))
    tables = _tables(system, ("pass", "score"), {(i.group, i.id) for i in items})
    return Result(
        benchmark="world",
        title=folder.name,
        prompt_set=PromptSet(
            name=f"world {'+'.join(splits)}".strip(), count=len(items), digest=results.digest([i.prompt for i in items])
        ),
        rater=law(),
        systems=(
            system.model_copy(
                update={
                    "metrics": {m: figure(m, list(by.values())) for m, by in tables.items()},
                    "groups": {g: {m: figure(m, [by[g]]) for m, by in tables.items()} for g in tables["pass"]},
                }
            ),
        ),
        settings={"group": "mechanism"},
        versions=results.versions(),
        notes=tuple(notes),
    )


def law() -> Rater:
    """Name the rater of the simulated world: the code that fits the laws, and what its thresholds are from."""
    fitted = {"thresholds": Thresholds.load().fitted_on}
    return Rater(name="physworld", kind="law", version=code("metrics.py"), settings=dict(fitted))


class _Here:
    """A pool of this process alone."""

    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def map(self, function: Any, *columns: Any, chunksize: int) -> Any:
        return map(function, *columns)


def _records(folder: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate((folder / RECORDS).read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"expected JSON in line {number} of {folder / RECORDS}, got {error}") from None
        if not isinstance(record, dict) or not {"file", "captions"} <= record.keys():
            raise ValueError(f"expected file and captions in line {number} of {folder / RECORDS}")
        records.append(record)
    if not records:
        raise ValueError(f"expected a line a video in {folder / RECORDS}, got none")
    return records


def _measure(folder: Path, record: Mapping[str, Any]) -> Item | str:
    from trainers import video

    name = str(record["file"])
    expected = captions.parse(str(record["captions"]))
    if expected is None:
        return f"{name}: not a caption of this world: {record['captions']!r}"
    try:
        item = Item(
            id=str(record.get("id") or record.get("video_id") or Path(name).stem),
            group=expected.mechanism,
            prompt=str(record["captions"]),
            video=name,
        )
        path = video_path(folder, item)
        if path is None:
            return f"{name}: no such file"
        measures = measure(expected, video.read(path).frames)
    except (ValueError, OSError) as error:
        return f"{name}: {error}"
    thresholds = Thresholds.load()
    values = {
        "score": thresholds.score(expected.mechanism, measures),
        "pass": float(thresholds.passes(expected.mechanism, measures)),
        **measures,
    }
    failed: list[Any] = list(thresholds.why_not(expected.mechanism, measures))
    return item.model_copy(update={"values": values, "details": {"failed": failed, "tiny": True}})


def _systems(runs: Mapping[Path, Result]) -> dict[str, tuple[Path, System]]:
    """Give every competing system a name of its own; one that two runs measured alike counts once."""
    found: dict[str, tuple[Path, System]] = {}
    for path, result in runs.items():
        folder = path if path.is_dir() else path.parent
        for system in result.systems:
            if system.role != "system":
                continue
            name = system.name
            if name in found:
                if _same(found[name][1], system):
                    continue
                name = f"{system.name} ({path.stem})"
            if name in found:
                raise ValueError(f"expected runs with names of their own, got {name!r} twice")
            found[name] = (folder, system)
    return found


def _same(one: System, other: System) -> bool:
    values = [{(i.group, i.id, i.seed, i.run): i.values for i in system.items} for system in (one, other)]
    return values[0] == values[1]


def _metrics(chosen: Mapping[str, tuple[Path, System]]) -> list[str]:
    """Name what every item of every system has among the metrics of its system, and is a number."""
    systems = [system for _, system in chosen.values()]
    names = [name for name in systems[0].metrics if all(name in s.metrics for s in systems)]
    metrics = [n for n in names if all(s.items and all(i.values.get(n) is not None for i in s.items) for s in systems)]
    if not metrics:
        raise ValueError(f"expected a metric with a figure for every item of {', '.join(chosen)}, got none")
    return metrics


def _complete(system: System) -> set[tuple[str, str]]:
    """Give the prompts that every training run of a system has."""
    runs: dict[int, set[tuple[str, str]]] = {}
    for item in system.items:
        runs.setdefault(item.run or 0, set()).add((item.group, item.id))
    return set.intersection(*runs.values()) if runs else set()


def _tables(system: System, metrics: Sequence[str], common: set[tuple[str, str]]) -> dict[str, dict[str, np.ndarray]]:
    runs = sorted({i.run or 0 for i in system.items})
    prompts = sorted(common)
    values: dict[tuple[str, str, int], list[Item]] = {}
    for item in system.items:
        values.setdefault((item.group, item.id, item.run or 0), []).append(item)
    groups = list(dict.fromkeys(i.group for i in system.items if (i.group, i.id) in common))
    found: dict[str, dict[str, np.ndarray]] = {}
    for metric in metrics:
        found[metric] = {}
        for group in groups:
            rows = [
                [np.mean([i.values[metric] or 0.0 for i in values[g, id_, run]]) for g, id_ in prompts if g == group]
                for run in runs
            ]
            found[metric][group] = np.array(rows, float)
    return found


def _copied(folder: Path, name: str, system: System, common: set[tuple[str, str]], out: Path | None) -> Iterator[Item]:
    """Give the common items; the first videos of each group are copied to `out`, the others stay where they are."""
    from bench.generate import slug

    counts: dict[str, int] = {}
    for item in system.items:
        if (item.group, item.id) not in common:
            continue
        path = None if out is None else video_path(folder, item)
        place = None
        if out is not None and path is not None and counts.get(item.group, 0) < COPIED:
            counts[item.group] = counts.get(item.group, 0) + 1
            place = f"clips/{slug(name)}/{slug(item.group)}-{counts[item.group]}{path.suffix}"
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / place)
        yield item.model_copy(update={"video": place, "pictures": {}})
