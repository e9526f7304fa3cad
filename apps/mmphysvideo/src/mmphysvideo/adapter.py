"""A bundle of this app as what `backbones.attach` takes: a teacher that samples two streams, or a student."""

from typing import Any

import torch

from mmphysvideo.config import Recipe
from mmphysvideo.student import Student
from mmphysvideo.teacher import Teacher
from mmphysvideo.weights import as_kept

__all__ = ["MMPhysVideo", "is_teacher"]


class MMPhysVideo:
    """What the entry point names: it makes a `Teacher` or a `Student`, whichever the bundle holds."""

    kind = "mmphysvideo"

    @classmethod
    def from_bundle(cls, bundle: Any, backbone: Any, *, recipe: Recipe | None = None) -> Teacher | Student:
        """Build what a bundle holds; `recipe` replaces the one it was trained with, under the same sizes."""
        recipe = recipe or Recipe.model_validate(bundle.meta["config"])
        made: Any
        if is_teacher(bundle):
            with torch.random.fork_rng(devices=[]):
                made = Teacher(recipe, backbone)
            for name, part in made.groups().items():
                part.load_state_dict(bundle.tensors.get(name, {}))
            for stream in made.streams if recipe.teacher.weights.kind == "full" else ():
                as_kept(stream.model, backbone.transformer)
        else:
            made = Student(recipe, backbone, bundle.tensors["weights"])
        made.origin = {
            "sha256": bundle.meta["sha256"],
            "made_for": {key: bundle.meta["backbone"][key] for key in ("id", "backbone_digest")},
            "stages": {stage["name"]: stage["steps"] for stage in bundle.meta["stages"]},
            "teacher": bundle.meta["stages"][-1].get("teacher", "") if bundle.meta["stages"] else "",
        }
        return made.to(backbone.device).eval().requires_grad_(False)


def is_teacher(bundle: Any) -> bool:
    """Whether a bundle holds a teacher: a student is weights and nothing else."""
    return set(bundle.tensors) != {"weights"}
