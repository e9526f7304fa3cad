"""VBench-2.0: prompts and questions of five physical dimensions, layouts, and the total of five categories.

Prompts of Mechanics (57), Material (50), Thermotics (50), Motion_Rationality (58) and Dynamic_Spatial_Relationship
(69) are shipped; three videos of each, called by the *short* prompt's first 180 characters even where a longer one was
given to the model: `<root>/<Dimension>/<prompt[:180]>-<0..2>.mp4`.

References: VBench-2.0 (Zheng et al., 2025); github.com/Vchitect/VBench at 45e79ec, `VBench-2.0/` (Apache-2.0).
"""

from collections.abc import Mapping
from statistics import fmean

from bench.official import tables, vbench
from bench.official.prompts import DATA, Prompt, PromptList
from bench.official.vbench import Dimension
from bench.results import Metric, System

RATER = "LLaVA-Video-7B-Qwen2 (VBench-2.0)"
SAMPLES = 3
SHIPPED = ("Mechanics", "Material", "Thermotics", "Motion_Rationality", "Dynamic_Spatial_Relationship")
CONDITIONAL = ("Mechanics", "Material", "Thermotics")
"""A video in which the first question is answered no is left out."""
CATEGORIES = {
    "creativity": ("Composition", "Diversity"),
    "commonsense": ("Instance_Preservation", "Motion_Rationality"),
    "controllability": (
        "Camera_Motion",
        "Complex_Landscape",
        "Complex_Plot",
        "Dynamic_Attribute",
        "Dynamic_Spatial_Relationship",
        "Human_Interaction",
        "Motion_Order_Understanding",
    ),
    "human_fidelity": ("Human_Anatomy", "Human_Clothes", "Human_Identity"),
    "physics": ("Material", "Mechanics", "Multi-View_Consistency", "Thermotics"),
}
DIMENSIONS = tuple(dimension for dimensions in CATEGORIES.values() for dimension in dimensions)


def prompts(dimension: str) -> PromptList:
    """Give the prompts of a dimension, with its questions and the prompt as it was rewritten for Wan."""
    if dimension not in SHIPPED:
        raise ValueError(f"expected one of {', '.join(SHIPPED)}, got {dimension!r}")
    rows = tables.content(DATA / "vbench2" / f"{dimension}.json")
    long = tables.text(DATA / "vbench2" / f"wan_augmented_{dimension}.txt").splitlines()
    return PromptList(
        f"VBench-2.0 {dimension}",
        tuple(
            Prompt(i, row["prompt_en"], dimension, {"questions": row["auxiliary_info"], "dense caption": words})
            for i, (row, words) in enumerate(zip(rows, long, strict=True))
        ),
    )


def layout(prompt: Prompt, sample: int, suffix: str, model: str) -> tuple[str, ...]:
    """Name a video as the official code looks for it: a folder a dimension."""
    return prompt.group, f"{prompt.caption[:180]}-{sample}{suffix}"


def system(name: str, found: Mapping[str, Dimension]) -> tuple[System, list[str]]:
    """Put the dimensions together: categories, total, and both again as the official script has them."""
    if strange := sorted(found.keys() - set(DIMENSIONS)):
        raise ValueError(f"expected dimensions of VBench-2.0, got {', '.join(strange)}: is this VBench?")
    metrics: dict[str, Metric] = {}
    for category, dimensions in CATEGORIES.items():
        here = [found[d].score for d in dimensions if d in found]
        n, n_valid = len(dimensions), len(here)
        value = fmean(here) if n_valid == n else None
        metrics[category] = Metric(value=value, n=n, n_valid=n_valid, unit="dimensions")
        metrics[f"{category}_absent_as_zero"] = Metric(value=sum(here) / n, n=n, n_valid=n_valid, unit="dimensions")
    n, n_valid = len(DIMENSIONS), len(found)
    zero = fmean(metrics[f"{category}_absent_as_zero"].value or 0.0 for category in CATEGORIES)
    whole = zero if n_valid == n else None
    metrics["total"] = Metric(value=whole, n=n, n_valid=n_valid, unit="dimensions")
    metrics["total_absent_as_zero"] = Metric(value=zero, n=n, n_valid=n_valid, unit="dimensions")
    items, notes = vbench.videos_of(found)
    groups = vbench.groups_of(found, items)
    for dimension in CONDITIONAL:
        if dimension in found and not groups[dimension]["score"].n:
            notes.append(f"{dimension}: no result of a single video is there, so how many count is unknown")
    return System(name=name, metrics=metrics, groups=groups, items=items), notes + vbench.absent(DIMENSIONS, found)
