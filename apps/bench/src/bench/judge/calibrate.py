"""How far to believe a judge: its ratings beside people's, on the same videos.

    kappa = (p_o - p_e) / (1 - p_e)      agreement beyond what the two frequencies give by chance

For SA and PC: exact agreement, agreement within one, kappa of "at least 4" (what Joint is made of), quadratically
weighted kappa of the five ratings, Spearman's rank correlation, and the bias, mean(judge - people), overall and by
people's rating. For rules: agreement and kappa of violated, followed, cannot be determined. An answer that cannot be
read is in no figure but its own count. Intervals are bootstrapped over videos; below 8 there is none.

References: Cohen (1960), Cohen (1968, weighted); labels of VideoPhy-2 (Bansal et al., 2025).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from jaxtyping import Bool, Int, Real

from bench.judge.questions import SCALES, Question
from bench.judge.run import Answers, Asked
from bench.official import tables, videophy2
from bench.results import Item, Metric, Strict

LEAST = 8
RESAMPLES = 2000
LEVEL = 0.95

Table = Real[np.ndarray, "*r k k"]
"""Counts: people's rating in rows, the judge's in columns."""
Rule = Callable[[Table], Any]
"""A figure of each table: an array of shape *r, or a number of numpy's."""


class Task(Strict):
    """One task's agreement. `table[i][j]` counts videos (rules) that people gave scale[i] and the judge scale[j];
    `bias` is by people's rating, with the number of videos it rests on."""

    scale: tuple[int, ...]
    n: int
    unread: int
    failed: int
    figures: dict[str, Metric]
    bias: dict[str, tuple[float | None, int]]
    table: tuple[tuple[int, ...], ...]


class Calibration(Strict):
    """A judge beside people."""

    judge: str
    settings: dict[str, Any]
    labels: str
    videos: int
    missing: int
    tasks: dict[str, Task]
    models: dict[str, dict[str, Metric]]

    def record(self) -> dict[str, Any]:
        """What a result by this judge says of it: kappa and Spearman, task by task."""
        return {
            task: {name: found.figures[name].value for name in ("kappa", "spearman") if name in found.figures}
            for task, found in self.tasks.items()
        }


@dataclass(frozen=True)
class Labelled:
    """A question, what people said, and whose video it is."""

    asked: Asked
    label: int
    model: str


def labelled(labels: Path, videos: Path, tasks: Sequence[str]) -> tuple[list[Labelled], list[str]]:
    """Match people's labels with videos in a folder; return the questions, and the labels without a video.

    A video is `<model_name>/<name>` or `<last folder of its URL>/<name>`, or `<name>` where no other label has it.
    """
    systems = videophy2.people(labels)
    rows = [(system.name, item) for system in systems for item in system.items]
    names = [_name(item) for _, item in rows]
    found, missing = [], []
    for (model, item), name in zip(rows, names, strict=True):
        places = [f"{model}/{name[-1]}", "/".join(name), *([name[-1]] if _alone(name[-1], names) else [])]
        path = next((p for p in (tables.inside(videos, place) for place in places) if p.is_file()), None)
        if path is None:
            missing.append(places[0])
        else:
            found += _questions(model, item, path, tasks)
    if not found:
        raise ValueError(f"expected videos of {labels} in {videos} (such as {missing[0]}), got none")
    return found, missing


def _name(item: Item) -> tuple[str, ...]:
    """Last folder and name of a video's URL."""
    parts = PurePosixPath(unquote(urlsplit(str(item.details["video_url"])).path)).parts[-2:]
    return tuple(part for part in parts if part not in ("/", "..", "."))  # a URL that hides slashes stays one name


def _alone(name: str, names: Sequence[tuple[str, ...]]) -> bool:
    return sum(other[-1] == name for other in names) == 1


def _questions(model: str, item: Item, path: Path, tasks: Sequence[str]) -> Iterator[Labelled]:
    name = f"{model}/{path.name}"
    about = {"sa": item.prompt, "pc": ""}
    for task in ("sa", "pc"):
        rating = item.values.get(task)
        if task in tasks and rating is not None:
            yield Labelled(Asked(name, path, Question(task, about[task])), int(rating), model)
    rules = item.details.get("rules", {})
    if "rule" in tasks and isinstance(rules, dict):
        codes = {words: code for code, words in videophy2.RULES.items()}
        for rule, words in rules.items():
            yield Labelled(Asked(name, path, Question("rule", rule)), codes[str(words)], model)


def calibrate(
    questions: Sequence[Labelled], answers: Answers, *, judge: str, settings: dict[str, Any], labels: Path, missing: int
) -> Calibration:
    """Compare a judge's answers with people's labels."""
    read = {answer.asked: answer.rating for answer in answers.answers}
    tasks: dict[str, Task] = {}
    for task in dict.fromkeys(q.asked.question.task for q in questions):
        tasks[task] = _task(task, [q for q in questions if q.asked.question.task == task], read)
    by_model: defaultdict[str, dict[str, Metric]] = defaultdict(dict)
    for model in dict.fromkeys(q.model for q in questions):
        for task in (task for task in tasks if task != "rule"):
            mine = [q for q in questions if q.model == model and q.asked.question.task == task]
            by_model[model][f"{task}_bias"] = _with_interval(_bias, _counts(np.array(SCALES[task]), mine, read))
    return Calibration(
        judge=judge,
        settings=settings,
        labels=labels.name,
        videos=len({q.asked.video for q in questions}),
        missing=missing,
        tasks=tasks,
        models=dict(by_model),
    )


def _task(task: str, questions: Sequence[Labelled], read: dict[Asked, int | None]) -> Task:
    scale = np.array(SCALES[task])
    counts = _counts(scale, questions, read)
    table = counts.sum(0)
    off = abs(scale[:, None] - scale[None, :])
    rules: dict[str, Rule] = {"agreement": lambda t: _share(t, off == 0)}
    if task == "rule":
        rules["kappa"] = lambda t: kappa(t, (off > 0).astype(int))
    else:
        good = (scale >= videophy2.GOOD).astype(int)
        rules |= {
            "within_one": lambda t: _share(t, off <= 1),
            "kappa": lambda t: kappa(t, abs(good[:, None] - good[None, :])),
            "weighted_kappa": lambda t: kappa(t, off**2),
            "spearman": spearman,
            "bias": _bias,
        }
    bias: dict[str, tuple[float | None, int]] = {}
    for rating, row in zip(scale.tolist(), table.tolist(), strict=True) if task != "rule" else ():
        mean = sum(n * (judged - rating) for judged, n in zip(scale.tolist(), row, strict=True))
        bias[str(rating)] = (mean / sum(row) if sum(row) else None, sum(row))
    return Task(
        scale=tuple(scale.tolist()),
        n=int(table.sum()),
        unread=sum(q.asked in read and read[q.asked] is None for q in questions),
        failed=sum(q.asked not in read for q in questions),
        figures={name: _with_interval(rule, counts) for name, rule in rules.items()},
        bias=bias,
        table=tuple(tuple(row) for row in table.tolist()),
    )


def _counts(
    scale: Int[np.ndarray, " k"], questions: Sequence[Labelled], read: dict[Asked, int | None]
) -> Int[np.ndarray, "v k k"]:
    """Count people's ratings (rows) and the judge's (columns), a table a video, where both said something."""
    pairs = [(q.asked.id, q.label, rating) for q in questions if (rating := read.get(q.asked)) is not None]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _, _ in pairs))}
    counts = np.zeros((len(numbers), len(scale), len(scale)), int)
    for name, label, rating in pairs:
        counts[numbers[name], label - scale[0], rating - scale[0]] += 1
    return counts


def _share(table: Table, where: Bool[np.ndarray, "k k"]) -> Any:
    return (table * where).sum((-2, -1)) / table.sum((-2, -1))


def _bias(table: Table) -> Any:
    steps = np.arange(table.shape[-1])
    return (table * (steps[None, :] - steps[:, None])).sum((-2, -1)) / table.sum((-2, -1))


def kappa(table: Table, weights: Real[np.ndarray, "k k"]) -> Any:
    """Return Cohen's kappa, 1 - sum w_ij o_ij / sum w_ij e_ij, of tables of counts; nan where both use one rating only.

    `weights` say how bad it is that one says i and the other j: 0 or 1, or (i - j)^2.

    >>> float(kappa(np.array([[20, 5], [10, 25]]), 1 - np.eye(2)))
    0.5
    """
    seen = table / table.sum((-2, -1), keepdims=True)
    expected = seen.sum(-1, keepdims=True) * seen.sum(-2, keepdims=True)
    with np.errstate(invalid="ignore"):
        return 1 - (weights * seen).sum((-2, -1)) / (weights * expected).sum((-2, -1))


def spearman(table: Table) -> Any:
    """Return Spearman's rank correlation of tables of counts (ties share their mean rank); nan where one is constant.

    >>> float(spearman(np.diag([3, 2, 4])))
    1.0
    """
    rows, columns = table.sum(-1), table.sum(-2)
    x, y = (n.cumsum(-1) - n / 2 for n in (rows, columns))
    x = x - (x * rows).sum(-1, keepdims=True) / rows.sum(-1, keepdims=True)
    y = y - (y * columns).sum(-1, keepdims=True) / columns.sum(-1, keepdims=True)
    both = (table * x[..., :, None] * y[..., None, :]).sum((-2, -1))
    with np.errstate(invalid="ignore"):
        return both / np.sqrt((rows * x**2).sum(-1) * (columns * y**2).sum(-1))


def _with_interval(rule: Rule, counts: Int[np.ndarray, "v k k"]) -> Metric:
    """A figure and its percentile interval over videos drawn with replacement."""
    videos, n = len(counts), int(counts.sum())
    value = float(rule(counts.sum(0))) if videos else np.nan
    if not np.isfinite(value):
        return Metric(value=None, n=n)
    if videos < LEAST:
        return Metric(value=value, n=n)
    times = np.random.default_rng(0).multinomial(videos, np.full(videos, 1 / videos), size=RESAMPLES)
    drawn = rule(np.einsum("rv,vij->rij", times, counts))
    low, high = np.quantile(drawn[np.isfinite(drawn)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Metric(value=value, n=n, low=float(low), high=float(high), level=LEVEL, interval="bootstrap over videos")
