"""VideoPhy: 344 test prompts, and its rater VideoCon-Physics with two readings of one score.

The rater gives p(Yes)/(p(Yes)+p(No)) in (0, 1) for semantic adherence (SA) and physical commonsense (PC). **Two
readings exist and papers mix them**: the benchmark's author takes the mean (`sa_mean`), most papers the share of
videos with a score of at least one half (`sa_at_half`). Both are given, and neither is called SA.

What surprises: the rater appends to its output and writes no header, so that a second run doubles the rows. Rows are
told apart by path, the last one counts, and how many were doubled is said. The caption stands in the SA prompt alone.

References: VideoPhy (Bansal et al., 2024); github.com/Hritikbansal/videophy at 01d366c (MIT).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.means import Value, mean, share
from bench.official import tables
from bench.official.folder import Clip, owner
from bench.official.prompts import PromptList
from bench.results import Item, Metric, System

RATER = "VideoCon-Physics"
TASKS = {"sa": "sa_testing.csv", "pc": "physics_testing.csv"}
# Copyright (c) 2024 Hritikbansal, MIT: the text that the rater was trained on, to the letter.
CHAT = (
    "The following is a conversation between a curious human and AI assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions.\nHuman: <|video|>\nHuman: {question}\nAI: "
)
QUESTIONS = {
    "sa": 'Does this video entail the description: "{caption}"?',
    "pc": "Does this video follow the physical laws?",
}
_CAPTION = re.compile(re.escape(CHAT.format(question=QUESTIONS["sa"])).replace(r"\{caption\}", "(.*)"), re.DOTALL)


@dataclass(frozen=True)
class Scores:
    """Scores by the path that the rater was given (none: not a number), captions where the prompts hold them."""

    scores: dict[str, float | None]
    captions: dict[str, str]
    doubled: int = 0
    changed: int = 0


def tables_for(clips: Sequence[Clip]) -> dict[str, str]:
    """Write the rater's two input tables, by file name."""
    made = {}
    for task, file in TASKS.items():
        texts = [CHAT.format(question=QUESTIONS[task].format(caption=clip.prompt.caption)) for clip in clips]
        paths = [str(clip.path.resolve()) for clip in clips]
        made[file] = tables.rater_table(("videopath", "caption"), zip(paths, texts, strict=True))
    return made


def read(path: Path, task: str) -> Scores:
    """Read the rater's output for "sa" or "pc".

    Raises:
        ValueError: if a row has not three columns, a score is not in 0..1, or the prompts are of the other task.
    """
    scores: dict[str, float | None] = {}
    captions: dict[str, str] = {}
    doubled = changed = 0
    for number, row in enumerate(tables.rows(path), start=1):
        if len(row) != 3:
            raise ValueError(
                f"expected path, prompt and score in row {number} of {path}, got {len(row)} columns: if a run was cut "
                f"off there, delete the row and let the rater append it again"
            )
        name, prompt, score = row
        if prompt != CHAT.format(question=QUESTIONS["pc"]) if task == "pc" else not _CAPTION.fullmatch(prompt):
            raise ValueError(f"expected the prompt of {task.upper()} in row {number} of {path}, got {prompt[-60:]!r}")
        value = _score(score, f"row {number} of {path}")
        if name in scores:
            doubled += 1
            changed += scores[name] != value
        scores[name] = value
        if task == "sa":
            captions[name] = _CAPTION.fullmatch(prompt)[1]  # pyright: ignore[reportOptionalSubscript]
    if not scores:
        raise ValueError(f"expected rows of path, prompt and score in {path}, got none")
    return Scores(scores, captions, doubled, changed)


def _score(text: str, where: str) -> float | None:
    """A score in 0..1; bfloat16 divides 0 by 0 into nan where neither word has any probability."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"expected a score in {where}, got {text[:40]!r}") from None
    if math.isnan(value):
        return None
    if not 0 <= value <= 1:
        raise ValueError(f"expected a score in 0..1 in {where}, got {text}: VideoPhy-2's rater gives 1..5")
    return value


def system(name: str, prompts: PromptList, sa: Scores | None, pc: Scores | None) -> tuple[System, list[str]]:
    """Put the rater's scores together: figures over all, by group of the prompt list, by video; and notes."""
    given = {task: scores for task, scores in (("sa", sa), ("pc", pc)) if scores is not None}
    paths = list(dict.fromkeys(path for scores in given.values() for path in scores.scores))
    items, notes = [], []
    unknown = 0
    for path in paths:
        caption = sa.captions.get(path) if sa else None
        found = owner(Path(path).stem, prompts)
        prompt = prompts.by_caption.get(caption) if caption is not None else found[0] if found else None
        unknown += prompt is None
        values = with_halves({task: scores.scores.get(path) for task, scores in given.items()})
        items.append(
            Item(
                id=prompt.id if prompt else Path(path).stem,
                group=prompt.group if prompt else "",
                prompt=prompt.caption if prompt else caption or "",
                seed=found[1] if found else None,
                values=dict(values),
                details={"videopath": path},
            )
        )
    for task, scores in given.items():
        notes += _said(task, scores, paths)
    notes += coverage(items, prompts, unknown)
    groups = {
        group: figures([item for item in items if item.group == group], list(given))
        for group in sorted({item.group for item in items if item.group})
    }
    return System(name=name, metrics=figures(items, list(given)), groups=groups, items=distinct(items)), notes


def coverage(items: Sequence[Item], prompts: PromptList, unknown: int) -> list[str]:
    """Say how many videos have no prompt, and how many prompts no video."""
    said = [f"{unknown} of {len(items)} videos belong to no prompt of {prompts.name}"] if unknown else []
    lacking = len({prompt.id for prompt in prompts.prompts} - {item.id for item in items})
    return said + ([f"{lacking} of {len(prompts.prompts)} prompts have no video here"] if lacking else [])


def _said(task: str, scores: Scores, paths: Sequence[str]) -> list[str]:
    said = []
    if scores.doubled:
        other = f", {scores.changed} of them with another score" if scores.changed else ""
        said.append(f"{task.upper()}: {scores.doubled} doubled rows{other}; the last one of each video counts")
    if missing := len(paths) - len(scores.scores):
        said.append(f"{task.upper()}: {missing} videos have no score")
    if lost := sum(score is None for score in scores.scores.values()):
        said.append(f"{task.upper()}: {lost} scores are not numbers and count nowhere")
    return said


def with_halves(scores: Mapping[str, Value]) -> dict[str, Value]:
    """Return a video's scores and whether each, and both, are at least one half (1 or 0; none where unknown).

    >>> with_halves({"sa": 0.5, "pc": 0.2})
    {'sa_score': 0.5, 'sa_at_half': 1, 'pc_score': 0.2, 'pc_at_half': 0, 'joint_at_half': 0}
    """
    values: dict[str, Value] = {}
    for task, score in scores.items():
        values |= {f"{task}_score": score, f"{task}_at_half": None if score is None else int(score >= 0.5)}
    if len(scores) == 2:
        values["joint_at_half"] = both([values["sa_at_half"]], [values["pc_at_half"]])[0]
    return values


def figures(items: Sequence[Item], tasks: Sequence[str]) -> dict[str, Metric]:
    """Return both readings for the tasks at hand, and where both are, the share with both of at least one half."""
    found: dict[str, Metric] = {}
    for task in tasks:
        found[f"{task}_mean"] = mean([item.values.get(f"{task}_score") for item in items], unit="mean score")
        found[f"{task}_at_half"] = share(
            [item.values.get(f"{task}_at_half") for item in items], unit="share of scores >= .5"
        )
    if len(tasks) == 2:
        found["joint_at_half"] = share([item.values.get("joint_at_half") for item in items], unit="share of both >= .5")
    return found


def both(a: Sequence[Value], b: Sequence[Value]) -> list[int | None]:
    """Return 1 where both hold and 0 where one does not; none where either is unknown.

    >>> both([1, 1, None], [1, 0, 0])
    [1, 0, None]
    """
    return [None if x is None or y is None else int(bool(x and y)) for x, y in zip(a, b, strict=True)]


def distinct(items: Sequence[Item]) -> tuple[Item, ...]:
    """Tell the videos of one prompt apart by number; where every prompt has one video, no number is kept, so that two
    systems are paired prompt by prompt whatever their files are called."""
    if len({item.id for item in items}) == len(items):
        return tuple(item.model_copy(update={"seed": None}) for item in items)
    seen: set[tuple[str, int | None]] = set()
    kept = []
    for item in items:
        seed = item.seed or 0
        while (item.id, seed) in seen:
            seed += 1
        seen.add((item.id, seed))
        kept.append(item.model_copy(update={"seed": seed}))
    return tuple(kept)


def board(path: Path) -> list[System]:
    """Read people's labels (caption, states_of_matter, source, majority_sa, majority_pc), a system a source."""
    rows = tables.records(path, "caption", "states_of_matter", "source", "majority_sa", "majority_pc")
    sources: dict[str, list[dict[str, str]]] = {}
    for number, row in enumerate(rows, start=2):
        if {row["majority_sa"], row["majority_pc"]} - {"0", "1"}:
            raise ValueError(f"expected labels 0 or 1 in row {number} of {path}")
        sources.setdefault(row["source"], []).append(row)
    return [_people(source, mine) for source, mine in sources.items()]


def _people(source: str, rows: Sequence[dict[str, str]]) -> System:
    def labels(rows: Sequence[dict[str, str]]) -> dict[str, Metric]:
        sa, pc = ([row[f"majority_{task}"] == "1" for row in rows] for task in ("sa", "pc"))
        return {"sa": share(sa), "pc": share(pc), "joint": share(both(sa, pc))}

    states = sorted({row["states_of_matter"] for row in rows})
    groups = {state: labels([row for row in rows if row["states_of_matter"] == state]) for state in states}
    return System(name=source, metrics=labels(rows), groups=groups)
