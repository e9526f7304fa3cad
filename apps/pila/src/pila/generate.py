"""Videos from prompts, with PILA and without it, through the stock pipeline.

Beside each mp4 lies a json with all that made it: prompt, seed, labels, routing weights at every noise level, bundle,
recipe, versions. A comparison uses one noise for both sides and names them. A tiny video is enlarged by pixel copies so
that a player shows it.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

import backbones
from backbones import WanBackbone, attach, bundle
from physexperts import MECHANISMS
from pila.adapter import Anatomy, PilaAdapter
from pila.bundles import PILA
from pila.config import Recipe, override
from trainers import video

__all__ = ["Journal", "generate", "load_adapter", "named", "recipe_of", "sample_pair", "to_bytes"]

VISIBLE = 256
"""Smallest side of a written video in pixels (our choice)."""
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


def recipe_of(folder: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a bundle (none: the shipped one) was trained with, with overrides such as `routing.k=2`."""
    return override(Recipe.model_validate(_read(folder).meta["config"]), overrides)


def load_adapter(folder: Path | None, backbone: WanBackbone, *, recipe: Recipe | None = None) -> PilaAdapter:
    """Load a bundle (none: the shipped one) for a backbone, under its own recipe or under one of the same sizes."""
    trained = _read(folder)
    bundle.check(trained, backbone)
    try:
        return PilaAdapter.from_bundle(trained, backbone, recipe=recipe)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of the bundle do not fit this recipe; sizes and structure come from training: {error}"
        ) from None


def _read(folder: Path | None) -> bundle.Bundle:
    folder = PILA if folder is None else Path(folder)
    if folder == PILA and not (folder / "bundle.json").exists():
        raise ValueError(f"no bundle is shipped in {folder} yet; train one with `pila train` and pass --bundle DIR")
    if not (folder / "bundle.json").exists():
        inside = folder / "bundle"
        hint = (
            f"did you mean --bundle {inside}?"
            if (inside / "bundle.json").exists()
            else "`pila train --out RUN` writes one into RUN/bundle, `pila export RUN --out DIR` into DIR"
        )
        raise ValueError(f"expected a bundle folder (bundle.json, bundle.safetensors), got {folder}; {hint}")
    trained = bundle.load(folder)
    if trained.kind != PilaAdapter.kind:
        raise ValueError(f"expected a bundle of kind {PilaAdapter.kind!r}, got {trained.kind!r} in {folder}")
    return trained


def sample_pair(
    backbone: WanBackbone,
    adapter: PilaAdapter,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    base: bool = True,
    watch: Callable[[float, Anatomy], None] | None = None,
) -> tuple[Float[Tensor, "b 3 t h w"] | None, Float[Tensor, "b 3 t h w"]]:
    """The videos of prompts without (where asked) and with an adapter, from the same noise, in [-1, 1]."""
    recipe = adapter.recipe
    d, s = recipe.data, recipe.sampling
    noise = backbones.noise(backbone, list(seeds), d.frames, d.height, d.width)
    settings: dict[str, Any] = {
        "noise": noise,
        "frames": d.frames,
        "height": d.height,
        "width": d.width,
        "steps": s.steps,
        "guidance": s.guidance,
    }
    alone = backbones.sample(backbone, list(prompts), **settings) if base else None
    adapter.sigma_range = _sigma_range(backbone, adapter)
    adapter.watch = watch
    try:
        with attach(backbone, adapter, mode=s.mode):
            corrected = backbones.sample(backbone, list(prompts), **settings)
    finally:
        adapter.watch = None
    return alone, corrected


def generate(
    backbone: WanBackbone,
    adapter: PilaAdapter,
    prompt: str,
    *,
    seed: int,
    out: Path,
    compare: bool = False,
    fields: bool = False,
) -> list[Path]:
    """Write `out` (mp4) and its json; with `compare` the base stands to the left; with `fields` pictures of bank and
    experts at the last corrected noise level.

    ValueError for an `out` that is a folder or names another format.
    """
    out = named(out)
    journal = Journal()
    base, corrected = sample_pair(backbone, adapter, [prompt], [seed], base=compare, watch=journal)
    film, shown = to_bytes(corrected[0]), [adapter.recipe.adapter]
    frames, scale = film, max(1, -(-VISIBLE // film.shape[1]))
    if base is not None:
        from pila import pictures

        shown = ["base", *shown]
        frames, scale = pictures.beside([to_bytes(base[0]), film], shown, scale=scale), 1
    written = [video.write(out, frames, backbone.spec.time.fps, scale=scale)]
    about = {
        "prompt": prompt,
        "seed": seed,
        "shows": shown,  # from left to right
        "labels": _names(adapter),
        "routing": [
            {"sigma": sigma, "weights": dict(zip(MECHANISMS, weights[0], strict=True))}
            for sigma, weights in journal.routing
        ],
        "backbone": {"id": backbone.id, "digest": backbone.digest},
        "bundle": adapter.origin,
        "config": adapter.recipe.model_dump(mode="json"),
        "versions": {name: version(name) for name in VERSIONS},
    }
    written.append(_write_text(out.with_suffix(".json"), json.dumps(about, indent=1) + "\n"))
    if fields and journal.last is not None:
        from pila import pictures

        level = f"noise level {journal.routing[-1][0]:.3f} (the last that was corrected)"
        written += pictures.draw(journal.last, adapter, film, out, about=f"“{prompt}”, seed {seed}, {level}")
    return written


def named(out: Path) -> Path:
    """The mp4 that `out` asks for: the suffix may be left out; ValueError for a folder or another format."""
    if out.is_dir() or out.suffix not in ("", ".mp4"):
        raise ValueError(f"expected the name of an mp4 to write, such as {out.with_suffix('')}.mp4, got {out}")
    return out.with_suffix(".mp4")


def to_bytes(film: Float[Tensor, "3 t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """A video in [-1, 1] as bytes."""
    return ((film.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


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


def _write_text(path: Path, text: str) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text(text)
    part.replace(path)
    return path
