"""VideoPhy-2: 591 test prompts, ratings from 1 to 5, and rules that a video follows, violates or leaves open.

    Joint = mean[SA >= 4 and PC >= 4],   Rule = n_1 / (n_0 + n_1)

Papers' columns "SA" and "PC" are shares of ratings of at least 4 (`sa_at_4`); the mean rating (`sa_mean`) is another
figure and called so. No aggregate of rules is defined by the authors: adherence is our choice, and the share of rules
that could not be judged (2) stands beside it.

What surprises: the rater's own parser takes the first of zero..five, 0..5 that is anywhere in the answer, so that
"None" is 1 ("one"), "10" is 0 and what it cannot read is 0 too. Zeros are therefore no ratings: they count as the
official code counts them (below 4) and their number is said. Whether a prompt is hard is known for 270 of the 591.

References: VideoPhy-2 (Bansal et al., 2025); github.com/Hritikbansal/videophy at 01d366c (MIT).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.means import Value, mean, share
from bench.official import tables
from bench.official.folder import Clip, owner
from bench.official.prompts import Prompt, PromptList
from bench.official.videophy import both, coverage, distinct
from bench.results import Item, Metric, System

RATER = "VideoPhy-2 AutoEval"
TASKS = {"sa": "sa_pc.csv", "pc": "sa_pc.csv", "rule": "rule.csv"}
NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, **{str(n): n for n in range(6)}}
GOOD = 4
RULES = {0: "violated", 1: "followed", 2: "cannot be determined"}


@dataclass(frozen=True)
class Ratings:
    """Ratings by the path that the rater was given, with captions."""

    scores: dict[str, int]
    captions: dict[str, str]
    doubled: int = 0
    changed: int = 0


@dataclass(frozen=True)
class Rules:
    """Labels by path and rule: 0, 1 or 2, and 3 to 5 where the parser took a number from elsewhere in the answer."""

    labels: dict[tuple[str, str], int]
    doubled: int = 0


def official_rating(answer: str) -> int:
    """Read an answer as the rater's own code does.

    >>> [official_rating(a) for a in ("4", "None", "10", "I rate 1 to 5: 4", "good")]
    [4, 1, 0, 1, 0]
    """
    return next((n for word, n in NUMBERS.items() if word in answer.lower()), 0)


def tables_for(clips: Sequence[Clip], rules: Path | None = None) -> dict[str, str]:
    """Write the rater's input tables by file name: one for SA and PC, and with a table of rules (videopath, rule; paths
    inside the videos' folder) one for them."""
    body = [(clip.prompt.caption, str(clip.path.resolve())) for clip in clips]
    made = {"sa_pc.csv": tables.rater_table(("caption", "videopath"), body)}
    if rules is not None:
        known = {clip.path.name: str(clip.path.resolve()) for clip in clips}
        listed = [(Path(row["videopath"]).name, row["rule"]) for row in tables.records(rules, "videopath", "rule")]
        if strange := sorted({name for name, _ in listed} - known.keys()):
            raise ValueError(f"expected rules for videos that are there and sound, got {len(strange)}: {strange[0]}")
        body = [(known[name], rule) for name, rule in listed]
        made["rule.csv"] = tables.rater_table(("videopath", "rule"), body)
    return made


def read(path: Path) -> Ratings:
    """Read the rater's output for SA or PC (caption, videopath, score)."""
    scores: dict[str, int] = {}
    captions: dict[str, str] = {}
    doubled = changed = 0
    for number, row in enumerate(tables.records(path, "caption", "videopath", "score"), start=2):
        rating = _whole(row["score"], f"row {number} of {path}")
        name = row["videopath"]
        if name in scores:
            doubled += 1
            changed += scores[name] != rating
        scores[name], captions[name] = rating, row["caption"]
    if not scores:
        raise ValueError(f"expected ratings in {path}, got none")
    return Ratings(scores, captions, doubled, changed)


def read_rules(path: Path) -> Rules:
    """Read the rater's output for rules (videopath, rule, score)."""
    rows = tables.records(path, "videopath", "rule", "score")
    labels = {
        (row["videopath"], row["rule"]): _whole(row["score"], f"row {n} of {path}") for n, row in enumerate(rows, 2)
    }
    if not labels:
        raise ValueError(f"expected judgements of rules in {path}, got none")
    return Rules(labels, len(rows) - len(labels))


def _whole(text: str, where: str) -> int:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"expected a score in {where}, got {text[:40]!r}") from None
    if value not in range(6):
        raise ValueError(f"expected a whole score from 0 to 5 in {where}, got {text}: VideoPhy's rater gives 0..1")
    return int(value)


def system(
    name: str, prompts: PromptList, sa: Ratings | None, pc: Ratings | None, rules: Rules | None
) -> tuple[System, list[str]]:
    """Put the rater's outputs together: figures over all, by hardness, by video; and notes."""
    given = {task: ratings for task, ratings in (("sa", sa), ("pc", pc)) if ratings is not None}
    by_video: dict[str, dict[str, int]] = {}
    for (path, rule), label in (rules.labels if rules else {}).items():
        by_video.setdefault(path, {})[rule] = label
    paths = list(dict.fromkeys([*(p for ratings in given.values() for p in ratings.scores), *by_video]))
    items, unknown = [], 0
    for path in paths:
        caption = next((r.captions[path] for r in given.values() if path in r.captions), None)
        found = owner(Path(path).stem, prompts)
        prompt = prompts.by_caption.get(caption) if caption is not None else found[0] if found else None
        unknown += prompt is None
        rated = any(path in ratings.scores for ratings in given.values())  # videos of rules may be others
        values = with_good({task: ratings.scores.get(path) for task, ratings in given.items()} if rated else {})
        items.append(_item(prompt, caption, path, found[1] if found else None, values, by_video.get(path, {})))
    notes = [note for task, ratings in given.items() for note in _said(task, ratings, paths, by_video)]
    if rules and rules.doubled:
        notes.append(f"rule: {rules.doubled} doubled rows; the last one of each video and rule counts")
    if rules and (strange := sum(label > 2 for label in rules.labels.values())):
        notes.append(f"rule: {strange} labels of 3 to 5 are an accident of the rater's parser and count nowhere")
    notes += coverage(items, prompts, unknown)
    return _system(name, items), notes


def _item(
    prompt: Prompt | None,
    caption: str | None,
    path: str,
    sample: int | None,
    values: dict[str, Value],
    rules: dict[str, int],
) -> Item:
    details: dict[str, Any] = {"videopath": path}
    if rules:
        details["rules"] = {rule: RULES.get(label, "unreadable") for rule, label in rules.items()}
    return Item(
        id=prompt.id if prompt else Path(path).stem,
        group=prompt.group if prompt else "",
        prompt=prompt.caption if prompt else caption or "",
        seed=sample,
        values=dict(values),
        details=details,
    )


def with_good(ratings: Mapping[str, Value]) -> dict[str, Value]:
    """Return a video's ratings and whether each, and both, are at least 4 (1 or 0; none where unknown).

    >>> with_good({"sa": 4, "pc": 3})
    {'sa': 4, 'sa_at_4': 1, 'pc': 3, 'pc_at_4': 0, 'joint_at_4': 0}
    """
    values: dict[str, Value] = {}
    for task, rating in ratings.items():
        values |= {task: rating, f"{task}_at_4": None if rating is None else int(rating >= GOOD)}
    if {"sa", "pc"} <= ratings.keys():
        values["joint_at_4"] = both([values["sa_at_4"]], [values["pc_at_4"]])[0]
    return values


def _said(task: str, ratings: Ratings, paths: Sequence[str], by_video: dict[str, dict[str, int]]) -> list[str]:
    said = []
    if ratings.doubled:
        other = f", {ratings.changed} of them with another rating" if ratings.changed else ""
        said.append(f"{task.upper()}: {ratings.doubled} doubled rows{other}; the last one of each video counts")
    if missing := sum(path not in ratings.scores and path not in by_video for path in paths):
        said.append(f"{task.upper()}: {missing} videos have no rating")
    if zeros := sum(rating == 0 for rating in ratings.scores.values()):
        said.append(f"{task.upper()}: {zeros} ratings of 0: answers that the rater's parser could not read or misread")
    return said


def _system(name: str, items: Sequence[Item]) -> System:
    groups = {
        group: figures([item for item in items if item.group == group])
        for group in sorted({item.group for item in items if item.group})
    }
    return System(name=name, metrics=figures(items), groups=groups, items=distinct(items))


def figures(items: Sequence[Item]) -> dict[str, Metric]:
    """Return mean ratings, shares of ratings >= 4, Joint, and rules with the share that could not be judged."""
    found: dict[str, Metric] = {}
    for task in ("sa", "pc"):
        if ratings := [item.values[task] for item in items if task in item.values]:
            found[f"{task}_mean"] = mean(ratings, unit="mean rating, 1 to 5")
            good = [item.values[f"{task}_at_4"] for item in items if task in item.values]
            found[f"{task}_at_4"] = share(good, unit="share of ratings >= 4")
    if joint := [item.values["joint_at_4"] for item in items if "joint_at_4" in item.values]:
        found["joint_at_4"] = share(joint, unit="share of both >= 4")
    labels = [label for item in items for label in _labels(item).values()]
    if labels:
        decided = [{"followed": True, "violated": False}.get(label) for label in labels]
        readable = [label == RULES[2] for label in labels if label != "unreadable"]
        found["rule"] = share(decided, unit="share followed of those decided")
        found["rule_undecidable"] = share(readable, unit="share of rules")
    return found


def _labels(item: Item) -> dict[str, str]:
    rules = item.details.get("rules", {})
    return {str(rule): str(label) for rule, label in rules.items()} if isinstance(rules, dict) else {}


def people(path: Path) -> list[System]:
    """Read people's labels (JSON lines as the data set has them), a system a model."""
    models: dict[str, list[Item]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for number, row in enumerate(tables.lines(path), start=1):
        item, model = _labelled(row, f"line {number} of {path}")
        sample = seen[model, item.id]
        seen[model, item.id] += 1
        models.setdefault(model, []).append(item.model_copy(update={"seed": sample}))
    if not models:
        raise ValueError(f"expected labels in {path}, got none")
    return [_system(model, items) for model, items in models.items()]


def _labelled(row: Any, where: str) -> tuple[Item, str]:
    kinds = (("violated", "unfollowed"), ("followed", "followed"), ("cannot be determined", "cannot_be_determined"))
    try:
        ratings = {task: int(row[task]) for task in ("sa", "pc")}
        rules = {str(rule): label for label, kind in kinds for rule in row.get(f"physics_rules_{kind}", ())}
        caption, url, hard = str(row["caption"]), str(row["video_url"]), row.get("is_hard")
        model = str(row["model_name"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected caption, video_url, model_name, sa and pc in {where}, got {error!r}") from None
    if any(rating not in range(1, 6) for rating in ratings.values()):
        raise ValueError(f"expected ratings from 1 to 5 in {where}, got {ratings}")
    group = {"1": "hard", "0": "not hard"}.get(str(hard), "hardness unknown")
    details: dict[str, Any] = {"video_url": url, **({"rules": rules} if rules else {})}
    return Item(id=caption, group=group, prompt=caption, values=dict(with_good(ratings)), details=details), model
