"""Physics of the base and of trained adapters on held-out captions of the simulated world, in pairs
(`physworld.evaluation`); or, of one's own clips, the diffusion loss of both on those that training was not shown.
Several bundles of one kind are training seeds of one method. With few clips the intervals are wide; read them before
the means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones import Backbone, attach, paths
from physworld import MECHANISMS, evaluation, scale_of
from prophy.generate import sample
from prophy.losses import diffusion
from prophy.train import Trainer, kind_of, sigma_of
from trainers import show, video
from trainers.heldout import HeldOutLoss

__all__ = ["beside", "evaluate"]

BATCH = 32
SAME = ("frames", "height", "width")


def evaluate(
    backbone: Backbone,
    adapters: Sequence[Any],
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    mechanisms: Sequence[str] = MECHANISMS,
    routers: Mapping[str, Any] | None = None,
    keep: Path | None = None,
    quiet: bool = False,
) -> evaluation.Evaluation:
    """Measure `clips` captions a mechanism with the base alone and with each adapter; with `keep` a stopped evaluation
    goes on. ProPhy comes before its controls; what is known of the `routers` lies in `more`.

    ValueError for adapters of different clip sizes or sampling settings, which would not be paired.
    """
    recipe = adapters[0].recipe
    d, s = recipe.data, recipe.sampling
    for other in adapters[1:]:
        if other.recipe.sampling != s or any(getattr(other.recipe.data, n) != getattr(d, n) for n in SAME):
            raise ValueError("expected bundles of one clip size and one sampling: others are not paired")
    about: dict[str, Any] = {"backbone": backbone.digest, "steps": s.steps, "guidance": s.guidance}
    runs: dict[str, list[Any]] = {"base": [None]}
    for adapter in sorted(adapters, key=lambda a: kind_of(a.recipe) != "prophy"):
        runs.setdefault(kind_of(adapter.recipe), []).append(adapter)

    def maker(adapter: Any) -> evaluation.Maker:
        return lambda captions, seeds: list(video.to_bytes(sample(backbone, adapter, captions, seeds, recipe)))

    def said(adapter: Any) -> dict[str, Any]:
        if adapter is None:
            return about
        own = adapter.origin and {"bundle": adapter.origin["sha256"], "recipe": adapter.recipe.model_dump(mode="json")}
        return about | own if own else {}

    with show.bar("evaluate", quiet=quiet) as bar:
        found = evaluation.evaluate(
            {name: [maker(one) for one in of] for name, of in runs.items()},
            clips=clips,
            split=split,
            seed=seed,
            scale=scale_of(d.frames, d.height, d.width),
            mechanisms=mechanisms,
            batch=BATCH,
            about={name: [said(one) for one in of] for name, of in runs.items()},
            folder=keep,
            watch=bar,
            kept=bar.skip,
        )
    return replace(found, more={"routers": dict(routers or {})})


def beside(backbone: Backbone, adapter: Any) -> HeldOutLoss:
    """The diffusion loss of base and adapter on one noised clip, every text kept.

    ValueError for WISA, whose guidance is part of its sampling: it has no prediction of one pass.
    """
    recipe, trainer = adapter.recipe, Trainer(adapter.recipe, adapter, backbone)
    if recipe.adapter == "wisa":
        raise ValueError(
            "expected ProPhy, a row of its ablation or its control for the loss on one's own clips, got WISA, which has"
            " no prediction without its guidance; measure it on the world (--set data.source=world)"
        )

    def loss(batch: dict[str, Any], level: float, generator: torch.Generator) -> dict[str, Tensor]:
        x0 = batch["latent"]
        sigma = sigma_of(recipe, backbone, torch.full((len(x0),), level)).to(x0.device)
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        text = trainer.text(batch, torch.zeros(len(x0), dtype=torch.bool, device=x0.device))
        asked: tuple[Any, ...] = (paths.noise(x0, eps, sigma), sigma, text)
        target, prediction = paths.target(x0, eps), backbone.spec.prediction
        with torch.no_grad():
            base = backbone.predict(*asked)
            with attach(backbone, adapter, in_predict=True):
                trained = backbone.predict(*asked)
        both = {"base": base, "trained": trained}
        return {name: diffusion(v.float(), target, sigma, prediction) for name, v in both.items()}

    return loss
