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
from jaxtyping import Float, Int

from bench.judge.questions import SCALES, Question
from bench.judge.run import Answers, Asked
from bench.official import tables, videophy2
from bench.results import Item, Metric, Strict

LEAST = 8
RESAMPLES = 1000
LEVEL = 0.95


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
            by_model[model][f"{task}_bias"] = _with_interval(_bias, *_pairs(mine, read))
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
    scale = list(SCALES[task])
    people, judge, videos = _pairs(questions, read)
    rules: dict[str, Callable[[Int[np.ndarray, " n"], Int[np.ndarray, " n"]], float | None]] = {
        "agreement": lambda a, b: float((a == b).mean())
    }
    if task == "rule":
        rules["kappa"] = lambda a, b: kappa(a, b)
    else:
        rules |= {
            "within_one": lambda a, b: float((abs(a - b) <= 1).mean()),
            "kappa": lambda a, b: kappa(a >= videophy2.GOOD, b >= videophy2.GOOD),
            "weighted_kappa": lambda a, b: kappa(a, b, quadratic=True),
            "spearman": spearman,
            "bias": _bias,
        }
    figures = {name: _with_interval(rule, people, judge, videos) for name, rule in rules.items()}
    bias: dict[str, tuple[float | None, int]] = {}
    for rating in scale if task != "rule" else ():
        mine = judge[people == rating]
        bias[str(rating)] = (float((mine - rating).mean()) if len(mine) else None, len(mine))
    table = tuple(tuple(int(((people == i) & (judge == j)).sum()) for j in scale) for i in scale)
    unread = sum(q.asked in read and read[q.asked] is None for q in questions)
    failed = sum(q.asked not in read for q in questions)
    return Task(
        scale=tuple(scale), n=len(people), unread=unread, failed=failed, figures=figures, bias=bias, table=table
    )


def _pairs(questions: Sequence[Labelled], read: dict[Asked, int | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What people and the judge said where both said something, and the number of the video."""
    pairs = [(q.label, rating, q.asked.id) for q in questions if (rating := read.get(q.asked)) is not None]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for _, _, name in pairs))}
    rows = np.array([(label, rating, numbers[name]) for label, rating, name in pairs], dtype=int).reshape(-1, 3)
    return rows[:, 0], rows[:, 1], rows[:, 2]


def _bias(people: Int[np.ndarray, " n"], judge: Int[np.ndarray, " n"]) -> float:
    return float((judge - people).mean())


def kappa(a: Int[np.ndarray, " n"] | Any, b: Int[np.ndarray, " n"] | Any, *, quadratic: bool = False) -> float | None:
    """Return Cohen's kappa of two raters, 1 - sum w_ij o_ij / sum w_ij e_ij; none where both use one rating only.

    >>> kappa(np.array([1, 1, 0, 0]), np.array([1, 1, 0, 1]))
    0.5
    """
    ratings, (first, second) = _indices(a, b)
    seen = np.zeros((len(ratings), len(ratings)))
    np.add.at(seen, (first, second), 1 / len(first))
    expected = np.outer(seen.sum(1), seen.sum(0))
    weights = (ratings[:, None] - ratings[None, :]) ** 2 if quadratic else ratings[:, None] != ratings[None, :]
    chance = float((weights * expected).sum())
    return None if chance == 0 else 1 - float((weights * seen).sum()) / chance


def _indices(a: Any, b: Any) -> tuple[Float[np.ndarray, " k"], tuple[np.ndarray, np.ndarray]]:
    ratings, both = np.unique(np.concatenate([a, b]).astype(float), return_inverse=True)
    return ratings, (both[: len(a)], both[len(a) :])


def spearman(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> float | None:
    """Return Spearman's rank correlation; none where either rater is constant."""
    from scipy.stats import spearmanr

    return None if len(set(a)) < 2 or len(set(b)) < 2 else float(spearmanr(a, b)[0])  # pyright: ignore


def _with_interval(
    rule: Callable[..., float | None],
    people: Int[np.ndarray, " n"],
    judge: Int[np.ndarray, " n"],
    videos: Int[np.ndarray, " n"],
) -> Metric:
    """A figure and its percentile interval over videos drawn with replacement."""
    count = int(videos.max()) + 1 if len(videos) else 0
    value = rule(people, judge) if count else None
    if count < LEAST or value is None:
        return Metric(value=value, n=len(people))
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(videos == video) for video in range(count)]
    drawn = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([members[video] for video in rng.integers(count, size=count)])
        if (again := rule(people[chosen], judge[chosen])) is not None:
            drawn.append(again)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Metric(
        value=value, n=len(people), low=float(low), high=float(high), level=LEVEL, interval="bootstrap over videos"
    )
