"""PhyGenBench: 160 prompts, and the three totals that PhyGenEval's stages add up to.

    closed   = round((s + m_gpt + v_gpt) / 3)             GPT-4o's route
    open     = round((s + m_llava + v_intern) / 3)        LLaVA's and InternVideo2's route
    ensemble = floor((closed + open) / 2)                 the published board

with s key phenomenon, m order and v naturalness, each 0 to 3. A domain's score is the mean over its prompts / 3, the
average is over all prompts. **The floor costs .06 to .08**: papers quote now one total, now another, so all three are
given under their names.

The benchmark has no licence: prompts and questions are read from a clone that the user names, and nothing of them is
kept here. What surprises: two laws are spelt twice ("Atmosphere", "Atmospheric Pressure"; "Deposition", "deposition"),
and a one-item first stage subtracts the retrieval score of the *last* frame that was looked at, as the official code
does.

References: PhyGenBench (Meng et al., 2024); github.com/OpenGVLab/PhyGenBench at b6416b7 (`PhyGenEval/overall.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.means import mean
from bench.official import tables
from bench.official.prompts import Prompt, PromptList
from bench.results import Item, Metric, System

RATER = "PhyGenEval"
DOMAINS = {
    "Force": "Mechanics",
    "Light": "Optics",
    "Heat": "Thermal",
    "Physical Properties": "Material",
    "Chemical Properties": "Material",
}
STAGES = ("single", "multi_gpt", "multi_llava", "video_gpt", "video_intern")
FILES = {  # what the stages write, below PhyGenEval
    "single": "single/prompt_replace_augment_single_question_{model}_res.json",
    "multi_gpt": "multi/prompt_replace_augment_multi_question_{model}_res.json",
    "multi_llava": "multi/prompt_replace_augment_multi_question_{model}_res_llava.json",
    "video_gpt": "video/prompt_replace_augment_video_question_{model}_res.json",
    "video_intern": "video/prompt_replace_augment_video_question_{model}_res_intern.json",
}
TOTALS = ("closed", "open", "ensemble")


@dataclass(frozen=True)
class Totals:
    """One video's totals, 0 to 3; none where a stage is missing."""

    closed: int | None
    open: int | None
    ensemble: int | None


def prompts(clone: Path) -> PromptList:
    """Read the prompts of a clone of the repository."""
    path = clone / "PhyGenBench" / "prompts.json"
    if not path.is_file():
        raise ValueError(
            f"expected a clone of github.com/OpenGVLab/PhyGenBench, got {clone} without PhyGenBench/prompts.json: the "
            f"benchmark has no licence, so its prompts are not shipped"
        )
    rows = tables.content(path)
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of prompts in {path}, got {type(rows).__name__}")
    return PromptList("PhyGenBench", tuple(_prompt(i, row, path) for i, row in enumerate(rows)))


def _prompt(number: int, row: Any, path: Path) -> Prompt:
    try:
        caption, main, law = str(row["caption"]), str(row["main_category"]), str(row["sub_category"])
    except (KeyError, TypeError):
        raise ValueError(f"expected caption, main_category and sub_category in entry {number} of {path}") from None
    if main not in DOMAINS:
        raise ValueError(f"expected a main_category among {', '.join(DOMAINS)} in entry {number}, got {main!r}")
    return Prompt(number, caption, DOMAINS[main], {"law": law_of(law)}, (f"output_video_{number + 1}",))


def law_of(name: str) -> str:
    """Spell a law one way.

    >>> law_of("Atmosphere Pressure"), law_of("deposition")
    ('Atmospheric Pressure', 'Deposition')
    """
    name = name.strip().replace("Atmosphere Pressure", "Atmospheric Pressure")
    return name[:1].upper() + name[1:]


def layout(prompt: Prompt, sample: int, suffix: str, model: str) -> tuple[str, ...]:
    """Name a video as the official scripts look for it, below the clone."""
    return "PhyVideos", model, f"output_video_{prompt.number + 1}{suffix}"


def totals(stages: Mapping[str, int | None]) -> Totals:
    """Add up the stages of one video.

    >>> totals({"single": 3, "multi_gpt": 0, "multi_llava": 3, "video_gpt": 1, "video_intern": 0})
    Totals(closed=1, open=2, ensemble=1)
    """

    def route(*names: str) -> int | None:
        scores = [stages.get(name) for name in names]
        return None if None in scores else round(sum(s for s in scores if s is not None) / 3)

    closed = route("single", "multi_gpt", "video_gpt")
    opened = route("single", "multi_llava", "video_intern")
    return Totals(closed, opened, None if closed is None or opened is None else (closed + opened) // 2)


def read(path: Path, model: str, prompts: PromptList) -> list[dict[str, int | None]]:
    """Read the stages of every prompt: from the official result (a file), or from the stages' own outputs (a clone, or
    its folder PhyGenEval), of which those of one route are enough.
    """
    if path.is_file():
        rows = _list(path, prompts)
        return [{stage: _stage(row, stage, f"entry {i} of {path}") for stage in STAGES} for i, row in enumerate(rows)]
    root = path / "PhyGenEval" if (path / "PhyGenEval").is_dir() else path
    found = {stage: root / name.format(model=model) for stage, name in FILES.items()}
    found = {stage: tables.inside(root, str(file.relative_to(root))) for stage, file in found.items() if file.is_file()}
    if "single" not in found or len(found) < 3:
        raise ValueError(
            f"expected the outputs of PhyGenEval below {root}: {FILES['single'].format(model=model)} and those of one "
            f"route at least, got {', '.join(found) or 'none'}: is {model!r} the model in the files' names (--name)?"
        )
    columns: dict[str, list[int | None]] = {}
    for stage, file in found.items():
        reader = READERS[stage]
        columns[stage] = [
            _read(reader, row, model, f"entry {i} of {file}") for i, row in enumerate(_list(file, prompts))
        ]
    return [{stage: columns[stage][i] for stage in columns} for i in range(len(prompts.prompts))]


def _list(path: Path, prompts: PromptList) -> list[Any]:
    """A list with an entry a prompt, in the prompts' order."""
    rows = tables.content(path)
    if not isinstance(rows, list) or len(rows) != len(prompts.prompts):
        got = f"{len(rows)} entries" if isinstance(rows, list) else type(rows).__name__
        raise ValueError(f"expected a list of {len(prompts.prompts)} entries in {path}, got {got}")
    for prompt, row in zip(prompts.prompts, rows, strict=True):
        if not isinstance(row, dict) or row.get("caption", prompt.caption) != prompt.caption:
            raise ValueError(
                f"expected the captions of the clone's prompts.json, got another in entry {prompt.number} of {path}"
            )
    return rows


def _stage(row: dict[str, Any], stage: str, where: str) -> int | None:
    score = row.get(stage)
    if score is not None and (isinstance(score, bool) or score not in range(4)):
        raise ValueError(f"expected {stage} from 0 to 3 in {where}, got {score!r}")
    return score


def _read(reader: Callable[[Any, str], int], row: Any, model: str, where: str) -> int:
    try:
        return reader(row, model)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"expected what PhyGenEval's stage writes in {where}, got {error!r} there") from None


def key_phenomenon(row: Any, model: str) -> int:
    """Grade the first stage: bins of a quarter where there is one item (below 0 falls through to 3, as officially), the
    official grade where there are two."""
    items = row["singleimage_question"]
    if len(items) != 1:
        return _graded(row[f"{model}_descrete"])
    score = float(items[0][model])
    if items[0]["Retrieval Prompt"] != "Last Frame":
        score -= float(items[0]["clip_retrieval"])
    return next((grade for grade in range(3) if 0.25 * grade <= score < 0.25 * (grade + 1)), 3)


def order_gpt(row: Any, model: str) -> int:
    """Grade the second stage of GPT-4o: three answers, or with retrieval three scores of at least 1.5."""
    question = row["multiimage_question"]
    if "CLIP_Index" in question:
        return sum(float(question[f"GPT4o_{i}_Score"]) >= 1.5 for i in (1, 2, 3))
    return sum(_yes(question[f"GPT4o_{i}"]["Choice"]) for i in (1, 2, 3))


def order_llava(row: Any, model: str) -> int:
    """Grade the second stage of LLaVA: with retrieval, the best of the neighbours' retrieval score + yes."""
    question = row["multiimage_question"]
    if "CLIP_Index" not in question:
        return sum(_yes(question[f"LLava_{i}"]) for i in (1, 2, 3))
    start, best, end = (int(number) for number in question["CLIP_Index"].split(","))
    if not 0 <= start <= best < end <= 10_000:
        raise ValueError(f"CLIP_Index {question['CLIP_Index']}")
    grade = int(_yes(question["LLava_3"]))
    for i, frames in ((1, range(start, best + 1)), (2, range(best, end))):
        scores = [float(question[f"retrieval_{i}_{k}"]) + _yes(question[f"LLava_{i}_{k}"]) for k in frames]
        grade += max(scores) >= 1.5
    return grade


def _yes(answer: str) -> bool:
    """Officially: a "no" anywhere is no, else a "yes" anywhere is yes."""
    answer = answer.strip().lower()
    return "no" not in answer and "yes" in answer


def _graded(score: Any) -> int:
    if isinstance(score, bool) or score not in range(4):
        raise ValueError(f"score {score!r}")
    return int(score)


READERS: dict[str, Callable[[Any, str], int]] = {
    "single": key_phenomenon,
    "multi_gpt": order_gpt,
    "multi_llava": order_llava,
    "video_gpt": lambda row, model: _graded(row["GPT4o_score"]),
    "video_intern": lambda row, model: _graded(row["InternVideo2_score"]),
}


def system(name: str, prompts: PromptList, stages: Sequence[Mapping[str, int | None]]) -> System:
    """Put the stages together: the three totals over all prompts and by domain."""
    items = []
    for prompt, mine in zip(prompts.prompts, stages, strict=True):
        total = totals(mine)
        values: dict[str, float | None] = {**{kind: getattr(total, kind) for kind in TOTALS}, **mine}
        items.append(Item(id=prompt.id, group=prompt.group, prompt=prompt.caption, values=values, details=prompt.facts))
    groups = {
        domain: figures([item for item in items if item.group == domain]) for domain in dict.fromkeys(DOMAINS.values())
    }
    return System(name=name, metrics=figures(items), groups=groups, items=tuple(items))


def figures(items: Sequence[Item]) -> dict[str, Metric]:
    """Return the totals as shares of 3."""
    scores = {kind: [item.values.get(kind) for item in items] for kind in TOTALS}
    return {
        kind: mean([None if score is None else score / 3 for score in mine], unit="share of 3 points")
        for kind, mine in scores.items()
    }
