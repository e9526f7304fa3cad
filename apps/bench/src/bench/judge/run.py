"""Asking a judge about many videos: in parallel, resumably, with every answer kept.

`answers.jsonl` gets a line as soon as a question is answered: the video's bytes, the question, the judge and what it
said. A run that was stopped reads it and asks only what is open; another judge, look or video is another line.
Questions that failed are no lines, so the next run asks them again. An answer that cannot be read stays, as unread.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.judge.client import Judge, NoAnswer
from bench.judge.frames import Look, chosen, fingerprint
from bench.judge.questions import Question, rating
from bench.official import tables
from bench.results import digest
from trainers import write_text

ANSWERS = "answers.jsonl"
HOPELESS = 8
"""So many failures before the first answer end a run: the server is not there, or the model is another."""


@dataclass(frozen=True)
class Asked:
    """A question about a video; `id` names the video in results."""

    id: str
    video: Path
    question: Question


@dataclass(frozen=True)
class Answer:
    """What the judge said, and the rating in it (none: it cannot be read)."""

    asked: Asked
    words: str
    rating: int | None


@dataclass(frozen=True)
class Answers:
    """All answers in the order of the questions, and why the others have none."""

    answers: tuple[Answer, ...]
    failed: tuple[tuple[Asked, str], ...]

    @property
    def unread(self) -> tuple[Answer, ...]:
        """Answers without a rating."""
        return tuple(answer for answer in self.answers if answer.rating is None)


def ask(
    judge: Judge,
    questions: Sequence[Asked],
    out: Path,
    *,
    look: Look = Look(),  # noqa: B008 - frozen
    workers: int = 4,
    seen: Callable[[], object] = lambda: None,
    there: Callable[[int], object] = lambda _: None,
) -> Answers:
    """Ask every question once; `seen` is called for each that is settled, and before that `there` with how many were.

    Raises:
        ValueError: if nothing but failures came back, with the first of them.
    """
    if len({_name(asked) for asked in questions}) < len(questions):
        raise ValueError("expected every question about a video once")
    out.mkdir(parents=True, exist_ok=True)
    marks = {video: fingerprint(video) for video in {asked.video for asked in questions}}
    who = digest({"judge": judge.name, **judge.settings, "frames": look.frames, "side": look.side})
    keys = {asked: digest([who, marks[asked.video], asked.question.task, asked.question.about]) for asked in questions}
    said = _read(out / ANSWERS)
    open_now = [asked for asked in questions if keys[asked] not in said]
    there(len(questions) - len(open_now))
    for _ in range(len(questions) - len(open_now)):
        seen()
    failed: dict[Asked, str] = {}
    answered = 0
    with (out / ANSWERS).open("a", encoding="utf-8") as file:
        for asked, words, why in _settled(judge, open_now, look, workers):
            seen()
            if words is None:
                failed[asked] = why
                if not answered and len(failed) >= HOPELESS:
                    raise ValueError(f"{judge.name} answered none of {len(failed)} questions: {why}")
                continue
            answered += 1
            said[keys[asked]] = words
            line = {"key": keys[asked], "judge": judge.name, "id": asked.id, "task": asked.question.task}
            line |= {"about": asked.question.about, "answer": words}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    if failed and len(failed) == len(questions):
        raise ValueError(f"{judge.name} answered none of {len(failed)} questions: {next(iter(failed.values()))}")
    answers = [
        Answer(asked, said[keys[asked]], rating(said[keys[asked]], asked.question.task))
        for asked in questions
        if keys[asked] in said
    ]
    return Answers(tuple(answers), tuple((asked, failed[asked]) for asked in questions if asked in failed))


def _name(asked: Asked) -> tuple[str, str, str]:
    return str(asked.video), asked.question.task, asked.question.about


def _read(path: Path) -> dict[str, str]:
    """Answers by key; a line that a killed run left half written is dropped from the file."""
    if not path.is_file():
        return {}
    kept: list[str] = []
    said: dict[str, str] = {}
    lines = tables.text(path).split("\n")
    for line in filter(str.strip, lines):
        try:
            entry: Any = json.loads(line)
            said[str(entry["key"])] = str(entry["answer"])
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        kept.append(line)
    whole = "".join(f"{line}\n" for line in kept)
    if whole != "\n".join(lines):
        write_text(path, whole)
    return said


def _settled(
    judge: Judge, questions: Sequence[Asked], look: Look, workers: int
) -> Iterable[tuple[Asked, str | None, str]]:
    """Question, answer, reason of its absence, as they come; few are under way at once, so that frames do not pile up.
    The questions of one video follow one another, and its frames are decoded for each: decoding costs little beside an
    answer."""

    def one(asked: Asked) -> str:
        return judge.ask(asked.question, chosen(asked.video, look))

    todo = iter(questions)
    pool = ThreadPoolExecutor(workers)
    under_way: dict[Future[str], Asked] = {}
    try:
        while True:
            for asked in todo:
                under_way[pool.submit(one, asked)] = asked
                if len(under_way) >= workers:
                    break
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                asked = under_way.pop(future)
                try:
                    yield asked, future.result(), ""
                except (NoAnswer, ValueError) as error:  # a server that fails, a video that cannot be decoded
                    yield asked, None, str(error)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def workers_for(judge: Judge) -> int:
    """Four questions at once for a server, one for a model on this machine."""
    return 4 if judge.settings.get("served") else 1
