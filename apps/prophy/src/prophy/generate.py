"""Videos from prompts, with ProPhy and without it, through the stock pipeline.

Beside each mp4 lies a json with all that made it: prompt, seed, the semantic routing, how the tokens were shared among
the refinement experts at every noise level, bundle, recipe, versions. A comparison uses one noise for both sides and
names them. A tiny video is enlarged by pixel copies so that a player shows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import backbones
from backbones import Backbone, attach, bundle
from prophy.adapter import Seen
from prophy.bundles import PROPHY
from prophy.config import Recipe
from prophy.train import adapter_of, kind_of
from trainers import override, pictures, video

__all__ = ["Journal", "generate", "load_adapter", "read", "recipe_of", "sample"]

VERSIONS = (
    "prophy",
    "physbackbones",
    "physexperts",
    "phystrainers",
    "vlmdistill",
    "torch",
    "diffusers",
    "transformers",
)


@dataclass
class Journal:
    """What the routers did while one prompt was sampled, conditional branch: rho_s, and by noise level the token
    routing's shares and entropy; the last level's token routing whole.
    """

    semantic: list[float] = field(default_factory=list)
    levels: list[dict[str, Any]] = field(default_factory=list)
    last: Seen | None = None

    def __call__(self, seen: Seen) -> None:
        rows = seen.branch_rows.get("cond")
        if rows is None:
            return
        if seen.semantics is not None:
            self.semantic = [round(x, 4) for x in seen.semantics.routing.weights[rows][0].tolist()]
        if seen.refinement is not None:
            probs = seen.refinement.routing.probs[rows][0]
            entropy = torch.special.entr(probs).sum(-1).mean() / np.log(max(probs.shape[-1], 2))
            level = {"sigma": round(float(seen.sigma[rows][0]), 6), "entropy": round(float(entropy), 4)}
            self.levels.append(level | {"share": [round(x, 4) for x in probs.mean(0).tolist()]})
        self.last = seen


def recipe_of(folder: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a bundle (none: the shipped one) was trained with, with overrides such as `sampling.steps=10`."""
    return override(Recipe.model_validate(read(folder).config), overrides)


def load_adapter(folder: Path | None, backbone: Backbone, *, recipe: Recipe | None = None) -> Any:
    """Load a bundle (none: the shipped one) for its backbone, under its own recipe or under one of the same sizes."""
    trained = read(folder)
    recipe = recipe or Recipe.model_validate(trained.config)
    return bundle.build(trained, backbone, make=adapter_of(recipe).from_bundle, recipe=recipe)


def read(folder: Path | None) -> bundle.Bundle:
    """Read a bundle of this app (none: the shipped one)."""
    return bundle.read(folder, app="prophy", kinds=("prophy", "wisa"), shipped=PROPHY)


def sample(
    backbone: Backbone,
    adapter: Any | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    watch: Any = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Float[Tensor, "b 3 t h w"]:
    """The videos of prompts with an adapter, or of the base alone, in [-1, 1]; a seed fixes the noise of its clip.
    `progress` is called with the steps that are done and the steps in all.
    """
    d, s = recipe.data, recipe.sampling
    settings: dict[str, Any] = {
        "noise": backbones.noise(backbone, list(seeds), d.frames, d.height, d.width),  # pyright: ignore
        "frames": d.frames,
        "height": d.height,
        "width": d.width,
        "steps": s.steps,
        "guidance": s.guidance,
        "watch": progress,
    }
    if adapter is None:
        return backbones.sample(backbone, list(prompts), **settings)  # pyright: ignore[reportArgumentType]
    adapter.watch, adapter.inverted = watch, s.inverted
    try:
        with attach(backbone, adapter):
            return backbones.sample(backbone, list(prompts), **settings)  # pyright: ignore[reportArgumentType]
    finally:
        adapter.watch = None


def generate(
    backbone: Backbone,
    adapter: Any,
    prompt: str,
    *,
    seed: int,
    out: Path,
    compare: bool = False,
    maps: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Write `out` (mp4) and its json; with `compare` the base stands to the left; with `maps` two pictures at
    the last noise level: where REB finds what the prompt speaks of, and who refines which token.

    ValueError for an `out` that is a folder or names another format, and for `maps` of an adapter without REB.
    """
    out, recipe = video.named(out), adapter.recipe
    if maps and getattr(adapter, "refine", None) is None:
        raise ValueError(f"expected an adapter with refinement experts for --maps, got {kind_of(recipe)}")
    journal = Journal()

    def make(trained: bool, progress: Any) -> Tensor:
        who, watch = (adapter, journal) if trained else (None, None)
        return sample(backbone, who, [prompt], [seed], recipe, watch=watch, progress=progress)

    films = pictures.sampled(kind_of(recipe), make, compare=compare, quiet=quiet)
    film = films[kind_of(recipe)]
    written = [pictures.write(out, films, backbone.spec.time.fps)]
    about: dict[str, Any] = {"prompt": prompt, "seed": seed, "shows": list(films), "packages": VERSIONS}
    about |= {"semantic_routing": journal.semantic, "refinement": journal.levels}
    written.append(pictures.tell(out, backbone=backbone, trained=adapter, **about))
    if maps and journal.last is not None:
        from prophy.pictures import experts, found

        about_it = f"“{prompt}”, seed {seed}, noise level {journal.levels[-1]['sigma']:.3f}"
        drawn = out.with_name(f"{out.stem}-maps.png")
        written.append(found(journal.last, film, drawn, recipe, prompt=prompt, about=about_it))
        drawn = out.with_name(f"{out.stem}-experts.png")
        written.append(experts(journal.last, film, drawn, about=about_it))
    return written
