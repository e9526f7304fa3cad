"""Base, students and teachers on held-out captions of the simulated world, in pairs (`physworld.evaluation`); or, of
one's own clips, the diffusion loss of all on those that training was not shown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones import Text
from mmphysvideo.config import Recipe
from mmphysvideo.generate import sample
from mmphysvideo.streams import diffusion
from mmphysvideo.student import Student
from mmphysvideo.teacher import Teacher
from mmphysvideo.train import Trainer
from physworld import evaluation, scale_of
from trainers import show, video
from trainers.heldout import HeldOutLoss

__all__ = ["beside", "evaluate"]


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


def beside(backbone: Any, trained: Teacher | Student) -> HeldOutLoss:
    """The diffusion loss of base and student (or teacher) on the video of one noised clip, every text kept.

    A teacher sees the clip's perception beside it, as noisy as the clip: it is told more than the base is.
    """
    look = Trainer(trained.recipe, trained, backbone)

    def loss(batch: dict[str, Any], level: float, generator: torch.Generator) -> dict[str, Tensor]:
        seen = look.at(batch, level, generator)
        sigma, text = seen.sigma.amax(1), seen.text
        with torch.no_grad():
            base = backbone.predict(seen.x, sigma, Text.of(text))
            if isinstance(trained, Teacher):
                assert seen.q is not None
                v, _ = trained.velocities(seen.x, seen.q, sigma, text)
            else:
                stream = trained.stream
                tokens = stream.begin(seen.x, sigma, text)
                for k in range(len(stream.stack)):
                    tokens = stream.stack.block(k, tokens)
                v = stream.flow(stream.stack.end(tokens), seen.x, sigma)
        both, prediction = {"base": base, "trained": v}, backbone.spec.prediction
        return {name: diffusion(u.float(), seen.target, seen.sigma, prediction) for name, u in both.items()}

    return loss
