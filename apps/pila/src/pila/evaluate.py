"""Physics of base and adapter on held-out captions of the simulated world, measured from the pixels against the law, in
pairs (`physworld.evaluation`); or, of one's own clips, the flow-matching loss of both on those that training was not
shown. With few clips the intervals are wide; read them before the means.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones import WanBackbone
from physworld import MECHANISMS, evaluation, scale_of
from pila.adapter import PilaAdapter
from pila.generate import sample
from pila.losses import flow_matching
from pila.train import Trainer
from trainers import show, video
from trainers.heldout import HeldOutLoss

__all__ = ["beside", "evaluate"]


def evaluate(
    backbone: WanBackbone,
    adapter: PilaAdapter,
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    mechanisms: Sequence[str] = MECHANISMS,
    keep: Path | None = None,
    quiet: bool = False,
) -> evaluation.Evaluation:
    """Measure `clips` captions a mechanism with and without the adapter; with `keep` a stopped evaluation goes on."""
    recipe, d = adapter.recipe, adapter.recipe.data
    about = {"backbone": backbone.digest, "steps": recipe.sampling.steps, "guidance": recipe.sampling.guidance}
    own: dict[str, Any] = {}
    if adapter.origin is not None:
        own = about | {"bundle": adapter.origin["sha256"], "recipe": recipe.model_dump(mode="json")}

    def maker(who: PilaAdapter | None) -> evaluation.Maker:
        return lambda captions, seeds: list(video.to_bytes(sample(backbone, who, captions, seeds, recipe)))

    with show.bar("evaluate", quiet=quiet) as bar:
        return evaluation.evaluate(
            {"base": maker(None), recipe.adapter: maker(adapter)},
            clips=clips,
            split=split,
            seed=seed,
            scale=scale_of(d.frames, d.height, d.width),
            mechanisms=mechanisms,
            about={"base": [about], recipe.adapter: [own]},
            folder=keep,
            watch=bar,
            kept=bar.skip,
        )


def beside(backbone: WanBackbone, adapter: PilaAdapter) -> HeldOutLoss:
    """The flow-matching error of base and adapter on one noised clip, every text kept, with the clip's own labels."""
    noise = adapter.recipe.noise.model_copy(update={"text_dropout": 0.0})
    trainer = Trainer(adapter.recipe.model_copy(update={"noise": noise}), adapter, backbone)

    def loss(batch: dict[str, Any], level: float, generator: torch.Generator) -> dict[str, Tensor]:
        e = trainer.estimate(batch, (level, level), generator)
        with torch.no_grad():
            a = adapter.anatomy(e.x_s, e.velocity, e.sigma, e.text, batch["labels"])
        return {"base": flow_matching(e.velocity, e.target), "trained": flow_matching(a.velocity, e.target)}

    return loss
