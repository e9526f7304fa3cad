"""Videos from prompts, images or observed frames, with Phantom and without it, and the physics that went beside them.

Beside each mp4 lies a json with all that made it: prompt, seed, which physics latent was used, what was observed,
bundle, recipe, versions. A comparison uses one noise for both sides and names them.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.torch import save as tensors
from torch import Tensor

from backbones import WanBackbone, bundle
from phantom.adapter import PhantomAdapter
from phantom.bundles import PHANTOM
from phantom.config import Recipe, kind_of
from phantom.force import Point, Wind, tensor
from phantom.sample import cut, sample
from trainers import ClipSpec, Skipped, override, pictures, video, write_bytes

__all__ = ["generate", "load_adapter", "observe", "read", "recipe_of"]

VERSIONS = ("phantom", "physbackbones", "phystrainers", "torch", "diffusers", "transformers")


def recipe_of(folder: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a bundle (none: the shipped one) was trained with, with overrides such as `sampling.steps=10`."""
    return override(Recipe.model_validate(read(folder).config), overrides)


def load_adapter(folder: Path | None, backbone: WanBackbone, *, recipe: Recipe | None = None) -> PhantomAdapter:
    """Load a bundle (none: the shipped one) for its backbone, under its own recipe or under one of the same sizes."""
    return bundle.build(read(folder), backbone, make=PhantomAdapter.from_bundle, recipe=recipe)


def read(folder: Path | None) -> bundle.Bundle:
    """Read a bundle of this app (none: the shipped one)."""
    return bundle.read(folder, app="phantom", kinds=(PhantomAdapter.kind,), shipped=PHANTOM)


def observe(recipe: Recipe, *, image: Path | None, film: Path | None) -> tuple[Tensor | None, list[Skipped]]:
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
        return video.from_bytes(np.array(picture)[None, None]), []
    if film is None:
        return None, []
    decoded = video.read(film)
    whole = len(decoded.frames)
    kept = min(cut(whole), d.frames - 4)
    spec = ClipSpec(frames=kept, fps=d.fps, height=d.height, width=d.width)
    notes = [Skipped(str(film), f"{whole} frames, of which the first {kept} (4m + 1, some left to make) are observed")]
    return video.from_bytes(video.clip(decoded, spec).frames[None]), notes if kept != whole else []


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
    quiet: bool = False,
) -> list[Path]:
    """Write `out` (mp4) and its json; `compare` puts the base to the left; `save_physics` keeps z (safetensors) and
    draws it; `follow` is a video whose own physics is to be followed; `force` is given to the physics and drawn.
    """
    from phantom.pictures import physics as draw_physics
    from phantom.pictures import pushed

    out, recipe = video.named(out), adapter.recipe
    physics: dict[str, Any] = {}
    if follow is not None:
        d = recipe.data
        spec = ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width)
        physics["z"] = adapter.latent(video.from_bytes(video.load(follow, spec).frames[None]).to(backbone.device))
    written: list[Path] = []
    if force is not None:
        d = recipe.data
        physics["force"] = tensor(force, d.frames, d.height, d.width)[None]
        adapter.check_force(force)

    def make(trained: bool, progress: Any) -> Tensor:
        who, given = (adapter, physics) if trained else (None, None)
        how: dict[str, Any] = {"observed": observed, "physics": given, "progress": progress}
        return sample(backbone, who, [prompt], [seed], recipe, **how)

    films = pictures.sampled(kind_of(recipe), make, compare=compare, quiet=quiet)
    film = films[kind_of(recipe)]
    written.append(pictures.write(out, films, backbone.spec.time.fps))
    if force is not None:
        written.append(pushed(force, film, out.with_name(f"{out.stem}-force.png")))
    z = adapter.physics_latent().cpu()
    if save_physics:
        path = out.with_name(f"{out.stem}-physics.safetensors")
        written.append(write_bytes(path, tensors({"z": z.contiguous()})))
        written.append(draw_physics(z[0], film, adapter, out.with_name(f"{out.stem}-physics.png"), prompt))
    about: dict[str, Any] = {
        "prompt": prompt,
        "seed": seed,
        "shows": list(films),
        "packages": VERSIONS,
        "physics": {"kind": recipe.physics.kind, "encoder": recipe.physics.encoder, "grid": list(z.shape[2:])},
        "observed_frames": 0 if observed is None else observed.shape[2],
        "force": None if force is None else {"kind": type(force).__name__.lower(), **asdict(force)},
        "follows": None if follow is None else str(follow),
    }
    written.append(pictures.tell(out, backbone=backbone, trained=adapter, **about))
    return written
