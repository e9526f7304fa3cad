"""Videos from prompts: of a student, which is the plain backbone with other weights, or of a teacher with perception.

Beside each mp4 lies a json with all that made it: prompt, seed, bundle, recipe, versions. A comparison uses one noise
for both sides and names them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import backbones
from backbones import attach, bundle
from mmphysvideo.adapter import MMPhysVideo, is_teacher
from mmphysvideo.bundles import STUDENT
from mmphysvideo.config import Recipe
from mmphysvideo.student import Student
from mmphysvideo.teacher import Teacher
from mmphysvideo.train import kind_of
from trainers import override, pictures, video

__all__ = [
    "generate",
    "load_teacher",
    "load_trained",
    "methods_of",
    "name_of",
    "picture",
    "read",
    "recipe_of",
    "sample",
    "worn",
]

VERSIONS = ("mmphysvideo", "physbackbones", "phystrainers", "torch", "diffusers", "transformers")


def read(folder: Path | None) -> bundle.Bundle:
    """Read a bundle of this app (none: the shipped student); ValueError says where bundles are."""
    return bundle.read(folder, kinds=("mmphysvideo",), shipped=STUDENT, app="mmphysvideo")


def recipe_of(folder: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a bundle (none: the shipped one) was trained with, with overrides such as `sampling.steps=10`."""
    return override(Recipe.model_validate(read(folder).meta["config"]), overrides)


def load_trained(folder: Path | None, backbone: Any, *, recipe: Recipe | None = None) -> Teacher | Student:
    """Load a bundle (none: the shipped student) for its backbone, under its own recipe or one of the same sizes.

    ValueError for the bundle of another backbone, and for a recipe of other sizes.
    """
    trained = read(folder)
    bundle.check(trained, backbone)
    try:
        return MMPhysVideo.from_bundle(trained, backbone, recipe=recipe)
    except RuntimeError as error:
        raise ValueError(
            f"the weights of the bundle do not fit this recipe; sizes and structure come from training: {error}"
        ) from None


def load_teacher(folder: Path, backbone: Any) -> Teacher:
    """Load a teacher to learn from; ValueError where the bundle holds a student."""
    if not is_teacher(read(folder)):
        raise ValueError(f"expected a teacher's bundle for --teacher, got a student's in {folder}")
    trained = load_trained(folder, backbone)
    assert isinstance(trained, Teacher)
    return trained


def name_of(trained: Teacher | Student) -> str:
    """What a bundle holds, in a few words."""
    return kind_of(trained.recipe, "teacher" if isinstance(trained, Teacher) else "student")


def methods_of(trained: Mapping[str, Teacher | Student]) -> dict[str, list[Teacher | Student]]:
    """Bundles by method: those whose recipes differ by the seed alone are its training runs.

    Two methods that would have one name (students of different teachers) are told apart by the folder of their first.
    """
    found: dict[str, tuple[str, list[Teacher | Student]]] = {}
    for folder, who in trained.items():
        same = json.dumps([name_of(who), who.recipe.model_dump(mode="json", exclude={"seed"})], sort_keys=True)
        found.setdefault(same, (folder, []))[1].append(who)
    names = [name_of(runs[0]) for _, runs in found.values()]
    return {
        name if names.count(name) == 1 else f"{name} ({folder})": runs
        for name, (folder, runs) in zip(names, found.values(), strict=True)
    }


@contextmanager
def worn(backbone: Any, student: Student) -> Iterator[None]:
    """Let the stock pipeline run on the student's weights inside the block: nothing else is different."""
    own = backbone.pipe.transformer
    backbone.pipe.transformer = student.model
    try:
        yield
    finally:
        backbone.pipe.transformer = own


def sample(
    backbone: Any,
    trained: Teacher | Student | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    image: Float[Tensor, "b 3 h w"] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Float[Tensor, "b 3 t h w"]:
    """The videos of prompts in [-1, 1], of a teacher, a student, or the base; a seed fixes the noise of its clip.
    `progress` is called with the steps that are done and the steps in all.
    """
    d, s = recipe.data, recipe.sampling
    settings: dict[str, Any] = {
        "noise": backbones.noise(backbone, list(seeds), d.frames, d.height, d.width),
        "image": image,
        "frames": d.frames,
        "height": d.height,
        "width": d.width,
        "steps": s.steps,
        "guidance": s.guidance,
        "watch": progress,
    }
    with torch.no_grad():
        if isinstance(trained, Teacher):
            with attach(backbone, trained):
                return backbones.sample(backbone, list(prompts), **settings)
        if trained is not None:
            with worn(backbone, trained):
                return backbones.sample(backbone, list(prompts), **settings)
        return backbones.sample(backbone, list(prompts), **settings)


def generate(
    backbone: Any,
    trained: Teacher | Student,
    prompt: str,
    *,
    seed: int,
    out: Path,
    compare: bool = False,
    image: Float[Tensor, "1 3 h w"] | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Write `out` (mp4) and its json; `compare` puts the base to the left; a teacher's perception stands to the right
    of its video.
    """
    out, recipe = video.named(out), trained.recipe

    def make(own: bool, progress: Any) -> Tensor:
        return sample(backbone, trained if own else None, [prompt], [seed], recipe, image=image, progress=progress)

    films = pictures.sampled(name_of(trained), make, compare=compare, quiet=quiet)
    if isinstance(trained, Teacher):
        with torch.no_grad():
            films[recipe.data.modality] = video.to_bytes(backbone.decode(trained.perception()))[0]
    about: dict[str, Any] = {"prompt": prompt, "seed": seed, "shows": list(films), "packages": VERSIONS}
    return [
        pictures.write(out, films, backbone.spec.time.fps),
        pictures.tell(out, backbone=backbone, trained=trained, image=image is not None, **about),
    ]


def picture(path: Path, recipe: Recipe) -> Float[Tensor, "1 3 h w"]:
    """Read a first frame in [-1, 1] at the recipe's size; ValueError for what is no picture."""
    from PIL import Image, UnidentifiedImageError

    size = (recipe.data.width, recipe.data.height)
    try:
        with Image.open(path) as opened:
            pixels = np.array(opened.convert("RGB").resize(size, Image.Resampling.BOX))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"expected a picture at {path}, but it cannot be read: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
