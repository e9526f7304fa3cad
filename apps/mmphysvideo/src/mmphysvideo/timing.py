"""What training steps and sampling calls take on this machine, on random data of the recipe's sizes; one JSON line.

`mmphysvideo plan --measured FILE` reads these lines: beside the seconds of a step they carry the work that was done
(counted by a dry run). A forward of the base and of the student are timed in turns: their ratio is what the student
costs at inference, and it should be 1.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from backbones.parked import parked
from mmphysvideo.config import Recipe
from mmphysvideo.plan import described, work_of
from mmphysvideo.relations import pooled
from mmphysvideo.streams import Stream, levels
from mmphysvideo.student import Learner
from mmphysvideo.teacher import Teacher
from mmphysvideo.train import Trainer, kind_of, learner
from mmphysvideo.weights import plain
from trainers import Progress, timing

__all__ = ["at", "made", "measure", "random_batch"]


def measure(recipe: Recipe, backbone: Any, stage: str, *, steps: int) -> dict[str, Any]:
    """Time a step (loss, backward, AdamW) of a stage, and a forward of the base and of a student."""
    model = made(recipe, backbone, stage)
    batch = {k: v.to(recipe.device) for k, v in random_batch(recipe, backbone, recipe.batch).items()}
    trained = [p for group in model.groups().values() for p in group.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    trainer = Trainer(recipe, model, backbone)
    for stream in _streams(model) if recipe.checkpointing else ():
        stream.model.enable_gradient_checkpointing()

    def step(i: int) -> None:
        terms = list(trainer.loss(batch, at(stage, i)).values())
        sum(terms[1:], start=terms[0]).backward()
        optimizer.step()
        optimizer.zero_grad()

    figures: dict[str, Any] = {}
    with backbone.frozen(), parked(backbone):
        figures[stage] = asdict(timing.measure(step, calls=steps, device=recipe.device))
        figures[stage]["work"] = asdict(work_of(recipe, recipe.batch, stage)[stage])
        if isinstance(model, Learner):
            merged = plain(backbone, recipe.student.weights, model.weights.state_dict())
            calls = {"base_forward": forward(recipe, Stream(backbone, backbone.transformer), batch)}
            calls["student_forward"] = forward(recipe, Stream(backbone, merged), batch)
            for name, call in calls.items():
                figures[name] = asdict(timing.measure(call, calls=steps, device=recipe.device))
    return {
        **timing.machine(recipe.device),
        "kind": kind_of(recipe, stage),
        "backbone": backbone.id,
        "shape": described(recipe, backbone),
        "batch": recipe.batch,
        "parameters": sum(p.numel() for p in trained),
        "seconds_a_step": figures,
    }


def forward(recipe: Recipe, stream: Stream, batch: dict[str, Tensor]) -> Callable[[int], None]:
    """A forward of a transformer as sampling asks for it."""
    backbone, x = stream.backbone, batch["latent"]
    sigma = levels(recipe, backbone, len(x), torch.Generator().manual_seed(0)).to(x.device)

    @torch.no_grad()
    def call(_: int) -> None:
        tokens = stream.begin(x, sigma, batch["text"])
        for k in range(len(stream.stack)):
            tokens = stream.stack.block(k, tokens)
        stream.flow(stream.stack.end(tokens), x, sigma)

    return call


def made(recipe: Recipe, backbone: Any, stage: str) -> Teacher | Learner:
    """What a stage trains, beside an untrained teacher or the width of an encoder's features."""
    a = recipe.student.align
    if stage == "teacher" or a.source == "none":
        return learner(recipe, backbone, stage)
    if a.source != "teacher":
        return learner(recipe, backbone, stage, width=features_of(recipe, backbone, 1).shape[-1])
    teacher = learner(recipe, backbone, "teacher")
    assert isinstance(teacher, Teacher)
    return learner(recipe, backbone, stage, teacher=teacher.eval().requires_grad_(False))


def at(stage: str, step: int) -> Progress:
    """The progress of a step."""
    return Progress(stage, step, step, None, 0.0, torch.Generator().manual_seed(step))


def random_batch(recipe: Recipe, backbone: Any, batch: int) -> dict[str, Tensor]:
    """One batch of noise in the shape of a cache."""
    d, g = recipe.data, torch.Generator().manual_seed(0)
    shape = backbone.spec.latent.shape(d.frames, d.height, d.width)
    with torch.no_grad():
        text = backbone.embed(["a ball"] * batch).features.float().cpu()
    latents = {name: torch.randn(batch, *shape, generator=g) for name in ("latent", "perception")}
    if recipe.student.align.source in ("vjepa2", "videomae"):
        latents["features"] = features_of(recipe, backbone, batch)
    return {"text": text, **latents}


def features_of(recipe: Recipe, backbone: Any, batch: int) -> Tensor:
    """Noise in the shape of an encoder's features, two tubelets a latent behind the first."""
    from mmphysvideo.plan import feature_width, token_grid

    t, y, x = token_grid(recipe, backbone)
    cells = pooled(torch.zeros(1, t * y * x, 1), (t, y, x), recipe.student.align.cells).shape[2:4]
    width = feature_width(recipe)
    return torch.randn(batch, 2 * (t - 1), *cells, width, generator=torch.Generator().manual_seed(1))


def _streams(model: Teacher | Learner) -> tuple[Stream, ...]:
    return model.streams if isinstance(model, Teacher) else (model.stream,)
