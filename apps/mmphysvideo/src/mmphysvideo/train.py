"""MMPhysVideo's two trainings: the teacher learns both streams, then the student learns the video beside it.

    L_T = L(x) + lambda_q L(q)             L_S = L(x) + lambda D(student, teacher)

L is the backbone's own loss (`streams.diffusion`). Teacher and student draw the same noise levels, noises and dropped
texts at a step of a seed, whatever is aligned, so that a student and its control differ by the alignment alone.

References: MMPhysVideo (2026); what it leaves open is marked in `mmphysvideo.config`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones import bundle, paths
from backbones.parked import parked
from mmphysvideo.config import Recipe
from mmphysvideo.streams import diffusion, levels
from mmphysvideo.student import Learner, Student
from mmphysvideo.teacher import Teacher
from trainers import (
    FitResult,
    HeldOut,
    Length,
    MapStyle,
    Progress,
    Stage,
    StageRecord,
    fit,
    run_folder,
)
from trainers.engine import Engine, launched

__all__ = [
    "HELD_CLIPS",
    "STAGES",
    "Noised",
    "Trainer",
    "kind_of",
    "learner",
    "save_bundle",
    "stage_of",
    "train",
]

STAGES = ("teacher", "student")
HELD_CLIPS = 64
"""Clips of the held-out loss: our choice."""

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Noised:
    """A batch on the way between data and noise; sigma is 0 where a latent is observed."""

    x: Float[Tensor, "b c t h w"]
    target: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, "b t"]
    text: Float[Tensor, "b l e"]
    q: Float[Tensor, "b c t h w"] | None = None
    q_target: Float[Tensor, "b c t h w"] | None = None


class Trainer:
    """The loss of a teacher or of a learner; batches hold `latent`, `text`, and what the recipe needs of `perception`
    and `features`.
    """

    def __init__(self, recipe: Recipe, model: Teacher | Learner | Student, backbone: Any) -> None:
        self.recipe, self.model, self.backbone = recipe, model, backbone
        mixed = recipe.dtype == "bfloat16"  # what is trained stays in float32, LoRA as well as whole weights
        self.autocast = {"device_type": recipe.device.split(":")[0], "dtype": torch.bfloat16, "enabled": mixed}
        with torch.no_grad():
            self.empty = backbone.embed([""]).features.float()

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The terms of L_T or of L_S."""
        generator = progress.generator
        b, n = len(batch["latent"]), self.recipe.noise
        sigma = levels(self.recipe, self.backbone, b, generator)
        begun = torch.rand(b, generator=generator) < (n.observed if self.backbone.spec.per_token_time else 0.0)
        lengths = torch.randint(1, n.most_latents + 1, (b,), generator=generator) * begun
        dropped = torch.rand(b, generator=generator) < n.text_dropout
        return self.terms(batch, self.noised(batch, sigma, lengths, dropped, generator))

    def held_out(self, batch: Batch, level: float, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms at one noise level, nothing observed, every text kept."""
        with torch.no_grad():
            return self.terms(batch, self.at(batch, level, generator))

    def at(self, batch: Batch, level: float, generator: torch.Generator) -> Noised:
        """Noise a batch to one level, nothing observed, every text kept."""
        b = len(batch["latent"])
        sigma = torch.full((b,), level)
        if self.backbone.spec.prediction == "v":  # a level that the schedule has
            table = paths.level(self.backbone.pipe.scheduler.alphas_cumprod.double().cpu()).float()
            sigma = table[(table - level).abs().argmin()].expand(b)
        nothing = torch.zeros(b, dtype=torch.long)
        return self.noised(batch, sigma, nothing, nothing.bool(), generator)

    def noised(
        self,
        batch: Batch,
        sigma: Float[Tensor, " b"],
        lengths: Tensor,
        dropped: Tensor,
        generator: torch.Generator,
    ) -> Noised:
        """Noise a batch; the first `lengths` latents of the video are observed, of its perception none."""
        x0 = batch["latent"]
        device, t = x0.device, x0.shape[2]
        eps = torch.randn(x0.shape, generator=generator).to(device)
        open_ = torch.arange(t, device=device) >= lengths.to(device)[:, None]
        sigma = sigma.to(device)
        each = sigma[:, None] * open_
        text = torch.where(dropped.to(device)[:, None, None], self.empty.to(device), batch["text"])
        x = paths.noise(x0, eps, each[:, None, :, None, None])
        found = Noised(x, paths.target(x0, eps), each, text)
        if "perception" not in batch:
            return found
        q0 = batch["perception"]
        zeta = torch.randn(q0.shape, generator=generator).to(device)  # last: a control draws all the rest alike
        return Noised(**vars(found) | {"q": paths.noise(q0, zeta, sigma), "q_target": paths.target(q0, zeta)})

    def terms(self, batch: Batch, seen: Noised) -> dict[str, Tensor]:
        """The weighted terms of a noised batch."""
        prediction, sigma = self.backbone.spec.prediction, self._asked(seen)
        with torch.autocast(**self.autocast), warnings.catch_warnings():
            # autocast hands Wan's float32 norms half-precision states, which they take, if not by their fastest kernel
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight", category=UserWarning)
            if isinstance(self.model, Teacher):
                assert seen.q is not None
                assert seen.q_target is not None
                v, u = self.model.velocities(seen.x, seen.q, sigma, seen.text)
                whole = seen.sigma.amax(1, keepdim=True).expand_as(seen.sigma)
                perception = diffusion(u.float(), seen.q_target, whole, prediction)
                return {
                    "video": diffusion(v.float(), seen.target, seen.sigma, prediction),
                    "perception": self.recipe.teacher.perception * perception,
                }
            assert isinstance(self.model, Learner)
            v, kept = self.model(seen.x, sigma, seen.text)
            terms = {"video": diffusion(v.float(), seen.target, seen.sigma, prediction)}
            if kept is not None:
                a = self.recipe.student.align
                away = self.model.alignment(kept, seen.x, seen.q, sigma, seen.text, batch.get("features"))
                terms["align"] = a.weight * away
        return terms

    def _asked(self, seen: Noised) -> Tensor:
        """The noise level as the backbone takes it: of each latent, or one a clip."""
        return seen.sigma if self.backbone.spec.per_token_time else seen.sigma.amax(1)


def learner(
    recipe: Recipe, backbone: Any, stage: str, *, teacher: Teacher | None = None, width: int = 0
) -> Teacher | Learner:
    """What a stage trains, with first weights that are a function of the recipe's seed."""
    if stage not in STAGES:
        raise ValueError(f"expected a stage among {', '.join(STAGES)}, got {stage!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if stage == "teacher":
            model: Teacher | Learner = Teacher(recipe, backbone)
        else:
            model = Learner(recipe, backbone, teacher, width=width)
    return model if backbone.device.type == "meta" else model.to(recipe.device)  # a plan has no values to move


def stage_of(recipe: Recipe, model: Teacher | Learner, backbone: Any, data: MapStyle) -> Stage:
    """The one stage of a training."""
    name = STAGES[isinstance(model, Learner)]
    part = getattr(recipe, name)
    return Stage(
        name,
        dict.fromkeys(model.groups(), 1.0),
        Trainer(recipe, model, backbone).loss,
        data=data,
        batch_size=recipe.batch,
        accumulate=recipe.accumulate,
        length=Length(steps=part.steps),
        optim=part.optim,
    )


def train(
    recipe: Recipe,
    backbone: Any,
    model: Teacher | Learner,
    data: MapStyle,
    *,
    out: Path,
    held: MapStyle | None = None,
    resume: bool = False,
    quiet: bool = False,
    engine: Engine | None = None,
) -> FitResult:
    """Train a teacher or a learner and write its bundle into `out/bundle`; `held` are clips for the held-out loss. Of
    several processes (`engine`; none: as they were launched) the first writes.
    """
    engine = engine or launched()
    run_folder.begin(out, recipe, engine)
    held_out = None
    if held is not None:
        look, clips = Trainer(recipe, model, backbone), min(HELD_CLIPS, len(held))
        held_out = HeldOut(look.held_out, held, clips=clips, batch_size=min(16, clips), every=recipe.save_every)
    watch: dict[str, nn.Module] = {"transformer": backbone.transformer}
    teacher = model.teacher if isinstance(model, Learner) else None
    if teacher is not None:
        watch["teacher"] = teacher
    streams = model.streams if isinstance(model, Teacher) else (model.stream,)
    for stream in streams if recipe.checkpointing else ():
        stream.model.enable_gradient_checkpointing()
    stage = stage_of(recipe, model, backbone, data)
    with backbone.frozen(), parked(backbone):
        result = fit(
            [stage],
            model.groups(),
            out=out,
            seed=recipe.seed,
            resume=resume,
            save_every=recipe.save_every,
            held_out=held_out,
            watch=watch,
            engine=engine,
            quiet=quiet,
        )
    about: dict[str, Any] = {"history": result.history, "teacher": teacher}
    run_folder.finish(out, recipe, engine, lambda home: save_bundle(recipe, backbone, model.groups(), home, **about))
    return result


def save_bundle(
    recipe: Recipe,
    backbone: Any,
    groups: Mapping[str, nn.Module],
    folder: Path,
    *,
    history: Sequence[StageRecord] = (),
    teacher: Teacher | None = None,
) -> Path:
    """Write a teacher, or a student without its projector, as a bundle for its backbone."""
    taught = teacher.origin.get("sha256", "") if teacher is not None else ""
    return bundle.save(
        folder,
        kind="mmphysvideo",
        groups={name: module.state_dict() for name, module in groups.items() if name != "projector"},
        backbone=backbone,
        config=recipe.model_dump(mode="json"),
        stages=[asdict(record) | {"teacher": taught} for record in history],
        requires="config",
    )


def kind_of(recipe: Recipe, stage: str) -> str:
    """What a recipe trains in a stage, in a few words: the method, or the ablation or control that it is.

    >>> kind_of(Recipe(), "student"), kind_of(Recipe(), "teacher")
    ('student', 'teacher')
    """
    if stage == "teacher":
        t = recipe.teacher
        if t.form == "channels":
            return "teacher of channels"
        ways = {"none": "teacher without links", "to_rgb": "one way to RGB", "to_perception": "one way to perception"}
        return ways.get(t.links.way, "teacher" if t.streams == "shared" else "teacher of separate streams")
    a = recipe.student.align
    if a.source == "none":
        return "student without alignment"
    if a.source != "teacher":
        return f"student of {a.source}"
    return "student" if a.kind == "relations" else "student by cosine"
