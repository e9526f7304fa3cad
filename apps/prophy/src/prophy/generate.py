"""Videos from prompts, with ProPhy and without it, through the stock pipeline.

Beside each mp4 lies a json with all that made it: prompt, seed, the semantic routing, how the tokens were shared among
the refinement experts at every noise level, bundle, recipe, versions. A comparison uses one noise for both sides and
names them. A tiny video is enlarged by pixel copies so that a player shows it.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

import backbones
from backbones import Backbone, attach, bundle
from prophy.adapter import Seen
from prophy.bundles import PROPHY
from prophy.config import Recipe, override
from prophy.train import adapter_of, kind_of
from trainers import video

__all__ = ["Journal", "generate", "load_adapter", "named", "read", "recipe_of", "sample", "to_bytes"]

VISIBLE = 256
"""Smallest side of a written video in pixels (our choice)."""
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
    return override(Recipe.model_validate(read(folder).meta["config"]), overrides)


def load_adapter(folder: Path | None, backbone: Backbone, *, recipe: Recipe | None = None) -> Any:
    """Load a bundle (none: the shipped one) for its backbone, under its own recipe or under one of the same sizes."""
    trained = read(folder)
    bundle.check(trained, backbone)
    recipe = recipe or Recipe.model_validate(trained.meta["config"])
    try:
        return adapter_of(recipe).from_bundle(trained, backbone, recipe=recipe)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of the bundle do not fit this recipe; sizes and structure come from training: {error}"
        ) from None


def read(folder: Path | None) -> bundle.Bundle:
    """Read a bundle of this app (none: the shipped one); ValueError says where bundles are."""
    folder = PROPHY if folder is None else Path(folder)
    if folder == PROPHY and not (folder / "bundle.json").exists():
        raise ValueError(f"no bundle is shipped in {folder} yet; train one with `prophy train` and pass --bundle DIR")
    if not (folder / "bundle.json").exists():
        inside = folder / "bundle"
        hint = (
            f"did you mean --bundle {inside}?"
            if (inside / "bundle.json").exists()
            else "`prophy train --out RUN` writes one into RUN/bundle, `prophy export RUN --out DIR` into DIR"
        )
        raise ValueError(f"expected a bundle folder (bundle.json, bundle.safetensors), got {folder}; {hint}")
    trained = bundle.load(folder)
    if trained.kind not in ("prophy", "wisa"):
        raise ValueError(f"expected a bundle of kind 'prophy' or 'wisa', got {trained.kind!r} in {folder}")
    return trained


def sample(
    backbone: Backbone,
    adapter: Any | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    watch: Any = None,
) -> Float[Tensor, "b 3 t h w"]:
    """The videos of prompts with an adapter, or of the base alone, in [-1, 1]; a seed fixes the noise of its clip."""
    d, s = recipe.data, recipe.sampling
    settings: dict[str, Any] = {
        "noise": backbones.noise(backbone, list(seeds), d.frames, d.height, d.width),  # pyright: ignore
        "frames": d.frames,
        "height": d.height,
        "width": d.width,
        "steps": s.steps,
        "guidance": s.guidance,
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
) -> list[Path]:
    """Write `out` (mp4) and its json; with `compare` the base stands to the left; with `maps` two pictures at
    the last noise level: where REB finds what the prompt speaks of, and who refines which token.

    ValueError for an `out` that is a folder or names another format, and for `maps` of an adapter without REB.
    """
    from prophy import pictures
    from trainers.pictures import beside

    out, recipe = named(out), adapter.recipe
    if maps and getattr(adapter, "refine", None) is None:
        raise ValueError(f"expected an adapter with refinement experts for --maps, got {kind_of(recipe)}")
    journal = Journal()
    base = sample(backbone, None, [prompt], [seed], recipe) if compare else None
    film = to_bytes(sample(backbone, adapter, [prompt], [seed], recipe, watch=journal)[0])
    shown, frames, scale = [kind_of(recipe)], film, max(1, -(-VISIBLE // film.shape[1]))
    if base is not None:
        shown = ["base", *shown]
        frames, scale = beside([to_bytes(base[0]), film], shown, scale=scale), 1
    written = [video.write(out, frames, backbone.spec.time.fps, scale=scale)]
    about = {
        "prompt": prompt,
        "seed": seed,
        "shows": shown,  # from left to right
        "semantic_routing": journal.semantic,
        "refinement": journal.levels,
        "backbone": {"id": backbone.id, "digest": backbone.digest},
        "bundle": adapter.origin,
        "config": recipe.model_dump(mode="json"),
        "versions": {name: version(name) for name in VERSIONS},
    }
    written.append(_write_text(out.with_suffix(".json"), json.dumps(about, indent=1) + "\n"))
    if maps and journal.last is not None:
        about_it = f"“{prompt}”, seed {seed}, noise level {journal.levels[-1]['sigma']:.3f}"
        drawn = out.with_name(f"{out.stem}-maps.png")
        written.append(pictures.found(journal.last, film, drawn, recipe, prompt=prompt, about=about_it))
        drawn = out.with_name(f"{out.stem}-experts.png")
        written.append(pictures.experts(journal.last, film, drawn, about=about_it))
    return written


def named(out: Path) -> Path:
    """The mp4 that `out` asks for: the suffix may be left out; ValueError for a folder or another format."""
    if out.is_dir() or out.suffix not in ("", ".mp4"):
        raise ValueError(f"expected the name of an mp4 to write, such as {out.with_suffix('')}.mp4, got {out}")
    return out.with_suffix(".mp4")


def to_bytes(film: Float[Tensor, "3 t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """A video in [-1, 1] as bytes."""
    return ((film.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def _write_text(path: Path, text: str) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text(text)
    part.replace(path)
    return path
