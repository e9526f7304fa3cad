"""Videos from prompts, with PILA and without it, through the stock pipeline.

Beside each mp4 lies a json with all that made it: prompt, seed, labels, routing weights at every noise level, bundle,
recipe, versions. A comparison uses one noise for both sides and names them. A tiny video is enlarged by pixel copies so
that a player shows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

import backbones
from backbones import WanBackbone, attach, bundle
from physexperts import MECHANISMS
from pila.adapter import Anatomy, PilaAdapter
from pila.bundles import PILA
from pila.config import Recipe
from trainers import override, pictures, video

__all__ = ["Journal", "generate", "load_adapter", "read", "recipe_of", "sample"]

VERSIONS = ("pila", "physbackbones", "physfields", "physexperts", "phystrainers", "torch", "diffusers", "transformers")


@dataclass
class Journal:
    """What an adapter did while a video was sampled: routing weights by noise level, and the last anatomy.

    Where both branches of guidance are corrected (`per_branch`) it keeps the conditional one, which comes first.
    """

    routing: list[tuple[float, list[list[float]]]] = field(default_factory=list)
    last: Anatomy | None = None

    def __call__(self, sigma: float, anatomy: Anatomy) -> None:
        if self.routing and self.routing[-1][0] == round(sigma, 6):
            return
        self.routing.append((round(sigma, 6), _rounded(anatomy.routing.dense())))
        self.last = anatomy


def read(folder: Path | None) -> bundle.Bundle:
    """Read a bundle of this app (none: the shipped one)."""
    return bundle.read(folder, app="pila", kinds=(PilaAdapter.kind,), shipped=PILA)


def recipe_of(folder: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a bundle (none: the shipped one) was trained with, with overrides such as `routing.k=2`."""
    return override(Recipe.model_validate(read(folder).config), overrides)


def load_adapter(folder: Path | None, backbone: WanBackbone, *, recipe: Recipe | None = None) -> PilaAdapter:
    """Load a bundle (none: the shipped one) for a backbone, under its own recipe or under one of the same sizes."""
    return bundle.build(read(folder), backbone, make=PilaAdapter.from_bundle, recipe=recipe)


def sample(
    backbone: WanBackbone,
    adapter: PilaAdapter | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    watch: Callable[[float, Anatomy], None] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Float[Tensor, "b 3 t h w"]:
    """The videos of prompts with an adapter, or of the base alone, in [-1, 1]; a seed fixes the noise of its clip.
    `progress` is called with the steps that are done and the steps in all.
    """
    d, s = recipe.data, recipe.sampling
    settings: dict[str, Any] = {
        "noise": backbones.noise(backbone, list(seeds), d.frames, d.height, d.width),
        "frames": d.frames,
        "height": d.height,
        "width": d.width,
        "steps": s.steps,
        "guidance": s.guidance,
        "watch": progress,
    }
    if adapter is None:
        return backbones.sample(backbone, list(prompts), **settings)
    adapter.sigma_range = _sigma_range(backbone, adapter)
    adapter.watch = watch
    try:
        with attach(backbone, adapter, mode=s.mode):
            return backbones.sample(backbone, list(prompts), **settings)
    finally:
        adapter.watch = None


def generate(
    backbone: WanBackbone,
    adapter: PilaAdapter,
    prompt: str,
    *,
    seed: int,
    out: Path,
    compare: bool = False,
    fields: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Write `out` (mp4) and its json; with `compare` the base stands to the left; with `fields` pictures of bank and
    experts at the last corrected noise level.

    ValueError for an `out` that is a folder or names another format.
    """
    out, recipe, journal = video.named(out), adapter.recipe, Journal()

    def make(trained: bool, progress: Any) -> Tensor:
        who, watch = (adapter, journal) if trained else (None, None)
        return sample(backbone, who, [prompt], [seed], recipe, watch=watch, progress=progress)

    films = pictures.sampled(recipe.adapter, make, compare=compare, quiet=quiet)
    written = [pictures.write(out, films, backbone.spec.time.fps)]
    own = {
        "labels": _names(adapter),
        "routing": [
            {"sigma": sigma, "weights": dict(zip(MECHANISMS, weights[0], strict=True))}
            for sigma, weights in journal.routing
        ],
    }
    about: dict[str, Any] = {"prompt": prompt, "seed": seed, "shows": list(films), "packages": VERSIONS, **own}
    written.append(pictures.tell(out, backbone=backbone, trained=adapter, **about))
    if fields and journal.last is not None:
        from pila.pictures import draw

        level = f"noise level {journal.routing[-1][0]:.3f} (the last that was corrected)"
        said = f"“{prompt}”, seed {seed}, {level}"
        written += draw(journal.last, adapter, films[recipe.adapter], out, about=said)
    return written


def _sigma_range(backbone: WanBackbone, adapter: PilaAdapter) -> tuple[float, float]:
    """The noise levels of the steps that are to be corrected (counted from 1 at pure noise)."""
    asked, steps = adapter.recipe.sampling.correct_steps, adapter.recipe.sampling.steps
    if asked is None:
        return (0.0, 1.0)
    first, last = asked
    if not 1 <= first <= last <= steps:
        raise ValueError(f"expected sampling.correct_steps within 1..{steps}, first <= last, got {first}, {last}")
    scheduler = type(backbone.pipe.scheduler).from_config(backbone.pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    sigmas = [float(s) for s in scheduler.sigmas[:steps]]
    # Half-way to the neighbours: the model is asked at 1000 sigma, which some schedulers round.
    low = 0.0 if last == steps else 0.5 * (sigmas[last - 1] + sigmas[last])
    high = 1.0 if first == 1 else 0.5 * (sigmas[first - 1] + sigmas[first - 2])
    return low, high


def _names(adapter: PilaAdapter) -> list[str]:
    assert adapter.labels is not None
    return [m for m, present in zip(MECHANISMS, adapter.labels[0].tolist(), strict=True) if present]


def _rounded(weights: Tensor) -> list[list[float]]:
    return [[round(float(w), 4) for w in row] for row in weights]
