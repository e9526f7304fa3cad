"""Base, students and teachers on held-out captions of the simulated world, in pairs (`physworld.evaluation`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmphysvideo.config import Recipe
from mmphysvideo.generate import sample
from mmphysvideo.student import Student
from mmphysvideo.teacher import Teacher
from physworld import evaluation, scale_of
from trainers import show, video

__all__ = ["evaluate"]


def evaluate(
    backbone: Any,
    trained: Mapping[str, Sequence[Teacher | Student]],
    recipe: Recipe,
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    keep: Path | None = None,
    quiet: bool = False,
) -> evaluation.Evaluation:
    """Measure `clips` captions a mechanism of the base and of methods, each a bundle a training seed; with `keep` a
    stopped evaluation goes on.
    """
    d = recipe.data
    sampling = recipe.sampling.model_dump() | {"backbone": backbone.digest}

    def maker(who: Teacher | Student | None) -> evaluation.Maker:
        return lambda captions, seeds: list(video.to_bytes(sample(backbone, who, captions, seeds, recipe)))

    makers: dict[str, list[evaluation.Maker]] = {"base": [maker(None)]}
    makers |= {name: [maker(who) for who in runs] for name, runs in trained.items()}
    about: dict[str, list[dict[str, Any]]] = {"base": [sampling | {"base": True}]}
    about |= {name: [sampling | {"bundle": who.origin["sha256"]} for who in runs] for name, runs in trained.items()}
    with show.bar("evaluate", quiet=quiet) as bar:
        return evaluation.evaluate(
            makers,
            clips=clips,
            split=split,
            seed=seed,
            scale=scale_of(d.frames, d.height, d.width),
            about=about,
            folder=keep,
            watch=bar,
            kept=bar.skip,
        )
