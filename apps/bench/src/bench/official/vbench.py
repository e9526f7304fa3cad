"""VBench and VBench-2.0: one format of results, two sets of weights.

Both write `<name>_eval_results.json` = {dimension: [score, [{video_path, video_results}, ...]]}; a folder or zip of
them is what the leaderboards take. The official script counts **an absent dimension as 0**: a partial run then has a
total that means nothing, and under VBench's normalisation a negative part. Here `total` exists only where every
dimension does; the script's figure is `total_absent_as_zero`.

    VBench      quality, semantic = weighted means of (x - min) / (max - min),   total = (4 quality + semantic) / 5
    VBench-2.0  total = mean of five categories, a category = mean of its dimensions

VBench-2.0's conditional dimensions (Mechanics, Material, Thermotics) leave a video out where the judge did not see what
was asked for (result -1), so that `n_valid` belongs to the score: few valid videos score easily.

References: VBench (Huang et al., 2024), VBench-2.0 (Zheng et al., 2025); github.com/Vchitect/VBench at 45e79ec
(`scripts/`, `VBench-2.0/scripts/`; Apache-2.0).
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bench.official import tables
from bench.official.prompts import Prompt, PromptList
from bench.results import Item, Metric, System

RATER = "VBench"
SAMPLES = 5
TOLERANCE = 1e-6
MOST_FILES = 10_000


@dataclass(frozen=True)
class Scale:
    """How VBench maps a dimension to 0..1, and what it weighs."""

    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


QUALITY = {
    "subject_consistency": Scale(0.1462),
    "background_consistency": Scale(0.2615),
    "temporal_flickering": Scale(0.6293),
    "motion_smoothness": Scale(0.706, 0.9975),
    "aesthetic_quality": Scale(),
    "imaging_quality": Scale(),
    "dynamic_degree": Scale(weight=0.5),
}
SEMANTIC = {
    "object_class": Scale(),
    "multiple_objects": Scale(),
    "human_action": Scale(),
    "color": Scale(),
    "spatial_relationship": Scale(),
    "scene": Scale(high=0.8222),
    "appearance_style": Scale(0.0009, 0.2855),
    "temporal_style": Scale(high=0.364),
    "overall_consistency": Scale(high=0.364),
}
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1


@dataclass(frozen=True)
class Dimension:
    """What a run says of one dimension: its score, and its videos' results by path where they are numbers."""

    score: float
    videos: dict[str, float]


def prompts(path: Path) -> PromptList:
    """Read VBench's prompts from its `VBench_full_info.json` (946 entries; not shipped here)."""
    rows = tables.content(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "prompt_en" in row for row in rows):
        raise ValueError(f"expected VBench_full_info.json, a list of entries with prompt_en, got {path}")
    return PromptList("VBench", tuple(Prompt(i, str(row["prompt_en"])) for i, row in enumerate(rows)))


def layout(prompt: Prompt, sample: int, suffix: str, model: str) -> tuple[str, ...]:
    """Name a video as the official code looks for it."""
    return (f"{prompt.caption}-{sample}{suffix}",)


def dimensions(path: Path) -> dict[str, Dimension]:
    """Read every evaluation result of a file, a folder or a zip; nothing is unpacked.

    Raises:
        ValueError: if there is none, or if two files have other scores for one dimension.
    """
    found: dict[str, Dimension] = {}
    where: dict[str, str] = {}
    for name, words in _files(path):
        content = tables.parsed(words, name)
        if not isinstance(content, dict):
            continue  # *_full_info.json is a list
        for key, value in content.items():
            dimension, entry = key.replace(" ", "_"), _dimension(key, value, name)
            if dimension in found and found[dimension] != entry:
                raise ValueError(f"expected one score for {key}, got {where[dimension]} and {name}: keep one of them")
            found[dimension], where[dimension] = entry, name
    if not found:
        raise ValueError(f"expected *_eval_results.json in {path}, got none")
    return found


def _files(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every json file, one level of folders down; hidden ones are passed over, as officially."""
    if path.is_dir():
        files = sorted(file for pattern in ("*.json", "*/*.json") for file in path.glob(pattern))
        for file in files[: MOST_FILES + 1]:
            if not any(part.startswith((".", "__")) for part in file.relative_to(path).parts):
                yield str(file), tables.text(tables.inside(path, str(file.relative_to(path))))
    elif zipfile.is_zipfile(path):
        yield from _zipped(path)
    else:
        yield str(path), tables.text(path)


def _zipped(path: Path) -> Iterator[tuple[str, str]]:
    """The json files of a zip, bounded by what they say of their size and by what is read of them."""
    try:
        with zipfile.ZipFile(path) as archive:
            left = tables.MOST_BYTES
            for entry in archive.infolist():
                parts = PurePosixPath(entry.filename).parts
                if not entry.filename.endswith(".json") or len(parts) > 2:
                    continue
                if any(part.startswith((".", "__")) for part in parts):
                    continue
                with archive.open(entry) as file:
                    data = file.read(left + 1)
                left -= len(data)
                if left < 0:
                    raise ValueError(f"expected at most {tables.MOST_BYTES // 2**20} MiB in {path}, got more")
                yield f"{path}:{entry.filename}", data.decode("utf-8-sig")
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, RuntimeError) as error:
        # zipfile says NotImplementedError of a compression that it lacks, RuntimeError of an encrypted entry
        raise ValueError(f"expected a zip of results, got {path}: {error}") from None


def _dimension(key: str, value: Any, where: str) -> Dimension:
    if not isinstance(value, list) or not value or isinstance(value[0], bool) or not isinstance(value[0], int | float):
        raise ValueError(f"expected [score, [videos]] for {key} in {where}, got {str(value)[:60]}")
    videos: dict[str, float] = {}
    for entry in value[1] if len(value) > 1 and isinstance(value[1], list) else []:
        if isinstance(entry, dict) and isinstance(result := entry.get("video_results"), int | float):
            videos[str(entry.get("video_path", len(videos)))] = float(result)
    return Dimension(float(value[0]), videos)


def system(name: str, found: Mapping[str, Dimension]) -> tuple[System, list[str]]:
    """Put VBench's dimensions together."""
    known = QUALITY | SEMANTIC
    if strange := sorted(found.keys() - known.keys()):
        raise ValueError(f"expected dimensions of VBench, got {', '.join(strange)}: is this VBench-2.0?")
    scores = {dimension: entry.score for dimension, entry in found.items()}
    metrics = {}
    for kind, scales in (("quality", QUALITY), ("semantic", SEMANTIC)):
        metrics |= _with_absent(kind, list(scales), scores, lambda mine, scales=scales: _weighted(mine, scales))
    metrics |= _with_absent("total", list(known), scores, total)
    items, notes = videos_of(found)
    return System(name=name, metrics=metrics, groups=groups_of(found, items), items=items), notes + absent(known, found)


def _with_absent(name: str, dimensions: Sequence[str], scores: Mapping[str, float], rule: Any) -> dict[str, Metric]:
    """A figure where every dimension is there, and the official one, for which an absent dimension is 0."""
    here = [dimension for dimension in dimensions if dimension in scores]
    value = rule(scores) if len(here) == len(dimensions) else None
    zero = rule({dimension: scores.get(dimension, 0.0) for dimension in dimensions})
    n, n_valid = len(dimensions), len(here)
    return {
        name: Metric(value=value, n=n, n_valid=n_valid, unit="dimensions"),
        f"{name}_absent_as_zero": Metric(value=zero, n=n, n_valid=n_valid, unit="dimensions"),
    }


def _weighted(scores: Mapping[str, float], scales: Mapping[str, Scale]) -> float:
    parts = [s.weight * (scores[d] - s.low) / (s.high - s.low) for d, s in scales.items()]
    return sum(parts) / sum(s.weight for s in scales.values())


def total(scores: Mapping[str, float]) -> float:
    """Return VBench's total of all sixteen dimensions."""
    quality, semantic = _weighted(scores, QUALITY), _weighted(scores, SEMANTIC)
    return (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)


def absent(known: Mapping[str, Any] | Sequence[str], found: Mapping[str, Dimension]) -> list[str]:
    """Say which dimensions are missing."""
    missing = [dimension for dimension in known if dimension not in found]
    return [f"absent, so there is no total: {', '.join(missing)}"] if missing else []


def videos_of(found: Mapping[str, Dimension]) -> tuple[tuple[Item, ...], list[str]]:
    """Give every video's result as an item a dimension (-1, "not seen", is null), and name scores that are not the mean
    of their videos: 0..100 for imaging quality."""
    items, notes = [], []
    for dimension, entry in found.items():
        valid = [result for result in entry.videos.values() if result != -1]
        if valid and min(abs(sum(valid) / len(valid) / scale - entry.score) for scale in (1, 100)) > TOLERANCE:
            notes.append(f"{dimension}: the score {entry.score:.6g} is not the mean of its {len(valid)} valid videos")
        items += [
            Item(
                id=f"{dimension}/{PurePosixPath(path).name}",
                group=dimension,
                values={"result": None if result == -1 else result},
                details={"video_path": path},
            )
            for path, result in entry.videos.items()
        ]
    return tuple(items), notes


def groups_of(found: Mapping[str, Dimension], items: Sequence[Item]) -> dict[str, dict[str, Metric]]:
    """Give each dimension's score with the number of its videos and of those that count."""
    groups = {}
    for dimension, entry in found.items():
        known = [item.values["result"] is not None for item in items if item.group == dimension]
        n_valid = None if all(known) else sum(known)
        groups[dimension] = {"score": Metric(value=entry.score, n=len(known), n_valid=n_valid)}
    return groups
