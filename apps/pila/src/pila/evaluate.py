"""Physics of base and adapter on held-out captions of the simulated world, measured from the pixels against the law, in
pairs (`physworld.evaluation`). With few clips the intervals are wide; read them before the means.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backbones import WanBackbone
from physworld import MECHANISMS, evaluation, scale_of
from pila.adapter import PilaAdapter
from pila.generate import sample
from trainers import show, video

__all__ = ["evaluate"]


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
