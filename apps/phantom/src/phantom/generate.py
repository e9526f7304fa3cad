"""Videos from prompts, images or observed frames, with Phantom and without it, and the physics that went beside them.

Beside each mp4 lies a json with all that made it: prompt, seed, which physics latent was used, what was observed,
bundle, recipe, versions. A comparison uses one noise for both sides and names them.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor

from backbones import WanBackbone, bundle
from phantom.adapter import PhantomAdapter
from phantom.bundles import PHANTOM
from phantom.config import Recipe, kind_of, override
from phantom.force import Point, Wind, tensor
from phantom.sample import cut, sample
from trainers import ClipSpec, video

__all__ = [
    "generate",
    "load_adapter",
    "named",
    "observe",
    "read",
    "recipe_of",
    "signed",
    "to_bytes",
    "write_text",
]

VISIBLE = 256
"""Smallest side of a written video in pixels (our choice)."""
VERSIONS = ("phantom", "physbackbones", "phystrainers", "torch", "diffusers", "transformers")


def recipe_of(folder: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a bundle (none: the shipped one) was trained with, with overrides such as `sampling.steps=10`."""
    return override(Recipe.model_validate(read(folder).meta["config"]), overrides)


def load_adapter(folder: Path | None, backbone: WanBackbone, *, recipe: Recipe | None = None) -> PhantomAdapter:
    """Load a bundle (none: the shipped one) for its backbone, under its own recipe or under one of the same sizes."""
    trained = read(folder)
    bundle.check(trained, backbone)
    try:
        return PhantomAdapter.from_bundle(trained, backbone, recipe=recipe)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of the bundle do not fit this recipe; sizes and structure come from training: {error}"
        ) from None


def read(folder: Path | None) -> bundle.Bundle:
    """Read a bundle of this app (none: the shipped one); ValueError says where bundles are."""
    folder = PHANTOM if folder is None else Path(folder)
    if folder == PHANTOM and not (folder / "bundle.json").exists():
        raise ValueError(f"no bundle is shipped in {folder} yet; train one with `phantom train` and pass --bundle DIR")
    if not (folder / "bundle.json").exists():
        inside = folder / "bundle"
        hint = (
            f"did you mean --bundle {inside}?"
            if (inside / "bundle.json").exists()
            else "`phantom train --out RUN` writes one into RUN/bundle, `phantom export RUN --out DIR` into DIR"
        )
        raise ValueError(f"expected a bundle folder (bundle.json, bundle.safetensors), got {folder}; {hint}")
    trained = bundle.load(folder)
    if trained.kind != PhantomAdapter.kind:
        raise ValueError(f"expected a bundle of kind {PhantomAdapter.kind!r}, got {trained.kind!r} in {folder}")
    return trained


def observe(recipe: Recipe, *, image: Path | None, film: Path | None) -> tuple[Tensor | None, list[str]]:
    """Read what is observed, (1, 3, p, h, w) in [-1, 1], and notes of what was cut; None where nothing is.

    ValueError for both at once, a file that cannot be read, and a film with no frame left to make.
    """
    d = recipe.data
    if image is not None and film is not None:
        raise ValueError("expected --image or --video, got both")
    if image is not None:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(image) as opened:
                picture = opened.convert("RGB").resize((d.width, d.height), Image.Resampling.BOX)
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"expected a picture at {image}, but it cannot be read: {error}") from None
        return signed(np.array(picture)[None]), []
    if film is None:
        return None, []
    decoded = video.read(film)
    whole = len(decoded.frames)
    kept = min(cut(whole), d.frames - 4)
    spec = ClipSpec(frames=kept, fps=d.fps, height=d.height, width=d.width)
    notes = [f"{film}: {whole} frames, of which the first {kept} (4m + 1, and some left to make) are observed"]
    return signed(video.clip(decoded, spec).frames), notes if kept != whole else []


def generate(
    backbone: WanBackbone,
    adapter: PhantomAdapter,
    prompt: str,
    *,
    seed: int,
    out: Path,
    compare: bool = False,
    observed: Float[Tensor, "1 3 p h w"] | None = None,
    save_physics: bool = False,
    follow: Path | None = None,
    force: Point | Wind | None = None,
) -> list[Path]:
    """Write `out` (mp4) and its json; `compare` puts the base to the left; `save_physics` keeps z (safetensors) and
    draws it; `follow` is a video whose own physics is to be followed; `force` is given to the physics and drawn.
    """
    from phantom import pictures

    out, recipe = named(out), adapter.recipe
    physics: dict[str, Any] = {}
    if follow is not None:
        d = recipe.data
        spec = ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width)
        physics["z"] = adapter.latent(signed(video.load(follow, spec).frames).to(backbone.device))
    written: list[Path] = []
    if force is not None:
        d = recipe.data
        physics["force"] = tensor(force, d.frames, d.height, d.width)[None]
        adapter.check_force(force)
    base = sample(backbone, None, [prompt], [seed], recipe, observed=observed) if compare else None
    film = to_bytes(sample(backbone, adapter, [prompt], [seed], recipe, observed=observed, physics=physics)[0])
    shown, frames, scale = [kind_of(recipe)], film, max(1, -(-VISIBLE // film.shape[1]))
    if base is not None:
        shown = ["base", *shown]
        frames, scale = pictures.beside([to_bytes(base[0]), film], shown, scale=scale), 1
    written.append(video.write(out, frames, backbone.spec.time.fps, scale=scale))
    if force is not None:
        written.append(pictures.pushed(force, film, out.with_name(f"{out.stem}-force.png")))
    z = adapter.physics_latent().cpu()
    if save_physics:
        written.append(_save_z(out.with_name(f"{out.stem}-physics.safetensors"), z))
        written.append(pictures.physics(z[0], film, adapter, out.with_name(f"{out.stem}-physics.png"), prompt))
    about = {
        "prompt": prompt,
        "seed": seed,
        "shows": shown,  # from left to right
        "physics": {"kind": recipe.physics.kind, "encoder": recipe.physics.encoder, "grid": list(z.shape[2:])},
        "observed_frames": 0 if observed is None else observed.shape[2],
        "force": None if force is None else {"kind": type(force).__name__.lower(), **asdict(force)},
        "follows": None if follow is None else str(follow),
        "backbone": {"id": backbone.id, "digest": backbone.digest},
        "bundle": adapter.origin,
        "config": recipe.model_dump(mode="json"),
        "versions": {name: version(name) for name in VERSIONS},
    }
    written.append(write_text(out.with_suffix(".json"), json.dumps(about, indent=1) + "\n"))
    return written


def named(out: Path) -> Path:
    """The mp4 that `out` asks for: the suffix may be left out; ValueError for a folder or another format."""
    if out.is_dir() or out.suffix not in ("", ".mp4"):
        raise ValueError(f"expected the name of an mp4 to write, such as {out.with_suffix('')}.mp4, got {out}")
    return out.with_suffix(".mp4")


def to_bytes(film: Float[Tensor, "3 t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """A video in [-1, 1] as bytes."""
    return ((film.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def signed(frames: UInt8[np.ndarray, "t h w 3"]) -> Float[Tensor, "1 3 t h w"]:
    """Bytes as a video in [-1, 1], a batch of one."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def _save_z(path: Path, z: Tensor) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({"z": z.contiguous()}, part)
    part.replace(path)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text(text)
    part.replace(path)
    return path
