"""A judge's answers as a result, and as tables for people."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from bench.judge.calibrate import Calibration
from bench.judge.client import Judge
from bench.judge.frames import Look
from bench.judge.questions import Question
from bench.judge.run import Answers, Asked
from bench.official import tables, videophy2
from bench.official.folder import Clip
from bench.official.prompts import PromptList
from bench.official.videophy import distinct
from bench.results import Item, Metric, Rater, Result, System, versions


def questions(clips: Sequence[Clip], tasks: Sequence[str], rules: Path | None) -> list[Asked]:
    """Return what is asked about every video; `rules` is a table of videopath and rule."""
    listed: dict[str, list[str]] = {}
    if rules is not None:
        names = {clip.path.name for clip in clips}
        for row in tables.records(rules, "videopath", "rule"):
            name = Path(row["videopath"]).name
            if name not in names:
                raise ValueError(f"expected rules for videos that are there and sound, got one for {name!r}")
            listed.setdefault(name, []).append(row["rule"])
    return [asked for clip in clips for asked in _about(clip, tasks, listed.get(clip.path.name, ()))]


def _about(clip: Clip, tasks: Sequence[str], rules: Sequence[str]) -> Iterator[Asked]:
    for task in tasks:
        for about in {"sa": [clip.prompt.caption], "pc": [""], "rule": dict.fromkeys(rules)}[task]:
            yield Asked(clip.path.name, clip.path, Question(task, about))


def result(
    name: str,
    clips: Sequence[Clip],
    answers: Answers,
    prompts: PromptList,
    *,
    judge: Judge,
    look: Look,
    tasks: Sequence[str],
    notes: Sequence[str],
    calibration: Calibration | None,
) -> Result:
    """Put answers together as VideoPhy-2's metrics, under the judge's name."""
    said: dict[str, list[tuple[Question, str, int | None]]] = {}
    for answer in answers.answers:
        said.setdefault(answer.asked.id, []).append((answer.asked.question, answer.words, answer.rating))
    items = distinct([_item(clip, said.get(clip.path.name, []), tasks) for clip in clips])
    groups = sorted({item.group for item in items if item.group})
    metrics = videophy2.figures(items)
    asked = len(answers.answers) + len(answers.failed)
    unread = len(answers.unread)
    metrics["unread"] = Metric(value=unread / asked if asked else None, n=asked, unit="share of answers")
    remarks = list(notes)
    if unread:
        remarks.append(f"{unread} of {asked} answers hold no rating that can be read, and count nowhere")
    if answers.failed:
        remarks.append(f"{len(answers.failed)} of {asked} questions have no answer: the same command asks them again")
    if calibration is None:
        remarks.append("this judge has not been compared with people (bench judge calibrate): its figures rank nothing")
    return Result(
        benchmark="videophy2-judge",
        title=f"VideoPhy-2's questions, answered by {judge.name}",
        prompt_set=prompts.record,
        rater=Rater(name=judge.name, kind="judge", settings=_settings(judge, look, calibration)),
        systems=(
            System(
                name=name,
                metrics=metrics,
                groups={group: videophy2.figures([i for i in items if i.group == group]) for group in groups},
                items=items,
            ),
        ),
        versions=versions("openai", "transformers"),
        notes=tuple(remarks),
    )


def _settings(judge: Judge, look: Look, calibration: Calibration | None) -> dict[str, Any]:
    settings = {**judge.settings, "frames": look.frames, "side": look.side}
    return settings if calibration is None else settings | {"calibration": calibration.record()}


def _item(clip: Clip, said: Sequence[tuple[Question, str, int | None]], tasks: Sequence[str]) -> Item:
    values: dict[str, float | None] = {task: None for task in tasks if task != "rule"}
    values |= {question.task: rating for question, _, rating in said if question.task != "rule"}
    words: dict[str, Any] = {question.about or question.task: answer[:500] for question, answer, _ in said}
    rules: dict[str, Any] = {
        question.about: "unreadable" if rating is None else videophy2.RULES[rating]
        for question, _, rating in said
        if question.task == "rule"
    }
    details: dict[str, Any] = {"answers": words, **({"rules": rules} if rules else {})}
    prompt = clip.prompt
    return Item(
        id=prompt.id,
        group=prompt.group,
        prompt=prompt.caption,
        seed=clip.sample,
        values=dict(videophy2.with_good(values)),
        details=details,
    )


def shown(calibration: Calibration) -> list[Table]:
    """Draw a calibration: figures, then bias and counts by people's rating."""
    figures = Table(
        title=escape(f"{calibration.judge} beside people, {calibration.videos} videos"), title_justify="left"
    )
    for column in ("task", "figure", "value", "95 % interval", "n"):
        figures.add_column(column)
    drawn = [figures]
    for task, found in calibration.tasks.items():
        for name, metric in found.figures.items():
            value = "-" if metric.value is None else f"{metric.value:.3f}"
            span = "-" if metric.low is None else f"{metric.low:.3f} to {metric.high:.3f}"
            figures.add_row(task, name.replace("_", " "), value, span, str(metric.n))
        figures.add_row(task, "unread, failed", f"{found.unread}, {found.failed}", "", "")
        table = Table(title=f"{task}: rows are people's ratings, columns the judge's", title_justify="left")
        for column in ("people", *map(str, found.scale), "bias"):
            table.add_column(column, justify="right")
        for rating, counts in zip(found.scale, found.table, strict=True):
            bias = found.bias.get(str(rating), (None, 0))[0]
            table.add_row(str(rating), *map(str, counts), "" if bias is None else f"{bias:+.2f}")
        drawn.append(table)
    return drawn
