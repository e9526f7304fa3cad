"""Phantom's training: one stage, in which the physics stream and the couplings learn both flows beside a frozen model.

L = L_v + alpha_z L_z, each the flow-matching error on what is not observed. alpha_z rises and starts again when the
physics gradient grows too large (`trainers.RecursiveRamp`). Half of the samples have observed beginnings, clean in both
streams, the others none; both streams share the noise level.

References: Phantom (2026), losses, recursive loss-weight scheduling and training; what it leaves open is marked in
`phantom.config`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from safetensors.torch import save as tensors
from torch import Tensor, nn

from backbones import Text, WanBackbone, bundle, paths
from backbones.bundle import Bundle
from backbones.parked import parked
from phantom.adapter import PhantomAdapter
from phantom.config import Recipe
from phantom.data import Clips
from phantom.latent import Basis
from trainers import (
    FitResult,
    HeldOut,
    Length,
    MapStyle,
    Progress,
    Ramp,
    RecursiveRamp,
    Stage,
    StageRecord,
    fit,
    run_folder,
    write_bytes,
)
from trainers.engine import Engine, launched

__all__ = ["BASIS", "Flows", "Trainer", "fresh", "read_basis", "save_bundle", "stages", "train"]

BASIS = "basis.safetensors"
"""In the folder of a run: the basis of z, which lies in no checkpoint because it does not move."""

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Flows:
    """A batch on the way between data and noise, in both streams; `open` is true where a latent is not observed."""

    x: Float[Tensor, "b c t h w"]
    z: Float[Tensor, "b d t y x"]
    sigma: Float[Tensor, "b t"]
    open: Bool[Tensor, "b t"]
    video_target: Float[Tensor, "b c t h w"]
    physics_target: Float[Tensor, "b d t y x"]
    text: Text
    force: Float[Tensor, "b 3 f y2 x2"] | None = None


class Trainer:
    """The loss of an adapter beside its frozen backbone; batches hold `latent`, `text`, `z`, `observed`."""

    def __init__(self, recipe: Recipe, adapter: PhantomAdapter, backbone: WanBackbone) -> None:
        self.recipe, self.adapter, self.backbone = recipe, adapter, backbone
        own = backbone.pipe.scheduler.config
        self.shift = recipe.shift or float(own.get("flow_shift") or own.get("shift") or 1.0)
        with torch.no_grad():
            self.empty = backbone.embed([""]).features.float()

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """L_v and alpha_z L_z, and L_z by itself for the schedule and the log."""
        generator = progress.generator
        b = len(batch["latent"])
        u = torch.rand(b, generator=generator)
        begun = torch.rand(b, generator=generator) < self.recipe.condition.share
        lengths = torch.randint(1, self.recipe.condition.most_latents + 1, (b,), generator=generator) * begun
        return self._terms(batch, u, lengths, progress)

    def force_loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The same terms for the force stage: more of the high noise that motion is decided in, and at most the first
        frame observed, since a longer beginning shows what the push did.
        """
        generator, f, b = progress.generator, self.recipe.force, len(batch["latent"])
        u = torch.rand(b, generator=generator) ** (1 / f.noisy)
        lengths = (torch.rand(b, generator=generator) < f.observed).long()
        return self._terms(batch, u, lengths, progress)

    def _terms(self, batch: Batch, u: Tensor, lengths: Tensor, progress: Progress) -> dict[str, Tensor]:
        generator = progress.generator
        dropped = torch.rand(len(u), generator=generator) < self.recipe.condition.text_dropout
        video, physics = self.errors(self.flows(batch, u, lengths, dropped, generator))
        terms = {"video": video, "log/physics": physics}
        if self.recipe.weight.end > 0 and "physics" in progress.ramps:
            terms["physics"] = progress.ramp("physics") * physics
        return terms

    def held_out(self, batch: Batch, level: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Both errors at one noise level, observed beginnings of the longest length; beside the physics error that of
        saying that the last observed state stays (`stays`).
        """
        b, most = len(batch["latent"]), self.recipe.condition.most_latents
        lengths, kept = torch.full((b,), most), torch.zeros(b, dtype=torch.bool)
        flows = self.flows(batch, torch.full((b,), level), lengths, kept, generator)
        with torch.no_grad():
            video, physics = self.errors(flows)
        still = flows.z[:, :, most - 1 : most]
        sigma = flows.sigma.amax(1)[:, None, None, None, None]
        stays = (flows.z[:, :, most:] - still) / sigma  # the velocity that would lead to that state
        error = (stays - flows.physics_target[:, :, most:]).square().mean()
        return {"video": video, "physics": physics, "stays": error}

    def flows(
        self,
        batch: Batch,
        u: Float[Tensor, " b"],
        lengths: Tensor,
        dropped: Bool[Tensor, " b"],
        generator: torch.Generator,
    ) -> Flows:
        """Noise a batch: uniform `u` becomes sigma by the shift; the first `lengths` latents are observed."""
        x0, z0 = batch["latent"], batch["z"]
        device, t = x0.device, x0.shape[2]
        sigma = (self.shift * u / (1 + (self.shift - 1) * u)).to(device)
        lengths = lengths.to(device)
        open_ = torch.arange(t, device=device) >= lengths[:, None]
        sigma = sigma[:, None] * open_
        observed = _beginnings(batch["observed"], lengths, t)
        z_seen = torch.where(open_[:, None, :, None, None], z0, observed)
        eps, zeta = (torch.randn(part.shape, generator=generator).to(device) for part in (x0, z0))
        s = sigma[:, None, :, None, None]
        gone = dropped.to(device)[:, None, None]
        features = torch.where(gone, self.empty.to(device), batch["text"])
        force = batch.get("force")  # is dropped with the text
        return Flows(
            x=(1 - s) * x0 + s * eps,
            z=(1 - s) * z_seen + s * zeta,
            sigma=sigma,
            open=open_,
            video_target=paths.target(x0, eps),
            physics_target=paths.target(z0, zeta),
            text=Text.of(features),
            force=None if force is None else force * ~gone[..., None, None],
        )

    def errors(self, flows: Flows) -> tuple[Tensor, Tensor]:
        """The mean squared error of both velocities over what is not observed."""
        video, physics = self.adapter.velocities(flows.x, flows.z, flows.sigma, flows.text, force=flows.force)
        return _error(video, flows.video_target, flows.open), _error(physics, flows.physics_target, flows.open)


def stages(
    recipe: Recipe, adapter: PhantomAdapter, backbone: WanBackbone, data: MapStyle, pushed: MapStyle | None = None
) -> list[Stage]:
    """Both flows together; with `pushed` clips the force stage behind it, which has the injector, too."""
    w = recipe.weight
    ramps: dict[str, Any] = {}
    if w.end > 0 and w.fixed:
        ramps["physics"] = Ramp(w.end, w.end)
    elif w.end > 0:
        ramps["physics"] = RecursiveRamp(
            end=w.end,
            steps=w.ramp_steps,
            term="log/physics",
            group="branch",
            eta=w.threshold,
            factor=w.factor,
            measure_every=w.measure_every,
        )
    trainer = Trainer(recipe, adapter, backbone)
    common: dict[str, Any] = {"batch_size": recipe.batch, "accumulate": recipe.accumulate, "cost": 1.0}
    joint = Stage(
        "joint",
        {"branch": 1.0},
        trainer.loss,
        data=data,
        length=Length(steps=recipe.steps),
        ramps=ramps,
        optim=recipe.optim,
        **common,
    )
    if pushed is None:
        return [joint]
    f = recipe.force
    steady = {"physics": Ramp(f.weight, f.weight)} if w.end > 0 and f.weight > 0 else {}
    force = Stage(
        "force",
        {"branch": 1.0, "injector": f.injector_rate},
        trainer.force_loss,
        data=pushed,
        length=Length(steps=f.steps),
        ramps=steady,
        optim=f.optim,
        **common,
    )
    return [stage for stage in (joint, force) if stage.length.steps]


def fresh(recipe: Recipe, backbone: WanBackbone, basis: Basis, encoder: Any) -> PhantomAdapter:
    """A new adapter whose first weights are a function of the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        adapter = PhantomAdapter(recipe, backbone, basis, encoder)
    return adapter.to(recipe.device)


def begin_from(bundle: Bundle, backbone: WanBackbone, *, recipe: Recipe, basis: Basis, encoder: Any) -> PhantomAdapter:
    """An adapter with a bundle's weights to train on; its injector is new where the bundle has none. ValueError where
    the recipe makes another network of them than the bundle's own.
    """
    adapter = fresh(recipe, backbone, basis, encoder)
    adapter.branch.load_state_dict(bundle.tensors["branch"])
    if adapter.injector is not None and "injector" in bundle.tensors:
        adapter.injector.load_state_dict(bundle.tensors["injector"])
    theirs = Recipe.model_validate(bundle.meta["config"])
    for part in ("branch", "couple", "physics"):  # what shapes of weights do not tell apart
        own, other = (getattr(r, part).model_dump(exclude={"encoder"}) for r in (recipe, theirs))
        if own != other:
            named = [f"{part}.{key}={other[key]}" for key in own if own[key] != other[key]]
            again = " ".join(f"--set {each}" for each in named)
            raise ValueError(f"the bundle was trained with {', '.join(named)}; go on with the same: {again}")
    return adapter


def train(
    recipe: Recipe,
    backbone: WanBackbone,
    encoder: Any,
    data: Clips,
    *,
    out: Path,
    held: MapStyle | None = None,
    pushed: MapStyle | None = None,
    only: str | None = None,
    begun: Bundle | None = None,
    resume: bool = False,
    quiet: bool = False,
    engine: Engine | None = None,
) -> tuple[PhantomAdapter, FitResult]:
    """Train an adapter and write its bundle into `out/bundle`; `held` are clips for the held-out loss, `pushed` those
    of the force stage; `only` stops after the stage of that name; `begun` is a bundle whose weights are the first ones,
    `data` then have its basis. Of several processes (`engine`; none: as they were
    launched) the first writes.

    ValueError for a stage that the recipe does not have.
    """
    engine = engine or launched()
    if begun is None:
        adapter = fresh(recipe, backbone, data.basis, encoder)
    else:
        given: dict[str, Any] = {"recipe": recipe, "basis": data.basis, "encoder": encoder}
        adapter = bundle.build(begun, backbone, make=begin_from, **given)
    plan = stages(recipe, adapter, backbone, data, pushed)
    if only is not None:
        names = [stage.name for stage in plan]
        if only not in names:
            raise ValueError(f"expected a stage among {', '.join(names)}, got {only!r}")
        plan = plan[: names.index(only) + 1]
    groups: dict[str, nn.Module] = {"branch": adapter.branch}
    if adapter.injector is not None:
        groups["injector"] = adapter.injector
    run_folder.begin(out, recipe, engine)
    if engine.main:
        basis = {name: value.contiguous() for name, value in data.basis.state_dict().items()}
        write_bytes(out / BASIS, tensors(basis))
    held_out = None
    if held is not None:
        trainer = Trainer(recipe, adapter, backbone)
        clips = min(64, len(held))
        held_out = HeldOut(trainer.held_out, held, clips=clips, batch_size=min(16, clips), every=recipe.save_every)
    _checkpoint_jointly(backbone, adapter, on=recipe.checkpointing)
    try:
        with backbone.frozen(), parked(backbone):
            result = fit(
                plan,
                groups,
                out=out,
                seed=recipe.seed,
                resume=resume,
                save_every=recipe.save_every,
                held_out=held_out,
                watch={"transformer": backbone.transformer},
                engine=engine,
                quiet=quiet,
            )
    finally:
        _checkpoint_jointly(backbone, adapter, on=False)
    about: dict[str, Any] = {"history": result.history, "before": [] if begun is None else begun.meta["stages"]}
    run_folder.finish(out, recipe, engine, lambda home: save_bundle(adapter, backbone, home, **about))
    return adapter, result


def save_bundle(
    adapter: PhantomAdapter,
    backbone: WanBackbone,
    folder: Path,
    *,
    history: Sequence[StageRecord] = (),
    before: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write an adapter as a bundle for its backbone; `before` are the stages of the bundle that it went on from."""
    return bundle.save(
        folder,
        kind=adapter.kind,
        groups={name: module.state_dict() for name, module in adapter.groups().items()},
        backbone=backbone,
        config=adapter.recipe.model_dump(mode="json"),
        stages=[*before, *(asdict(record) for record in history)],
        requires="config",
    )


def read_basis(run: Path, recipe: Recipe) -> Basis:
    """The basis of z that a run was trained with; ValueError where there is none."""
    if not (run / BASIS).is_file():
        raise ValueError(f"expected the folder of a run with its {BASIS}, got {run}")
    kept = load_file(run / BASIS)
    basis = Basis(kept["mean"].numel(), recipe.physics.channels)
    basis.load_state_dict(kept)
    return basis


def _checkpoint_jointly(backbone: WanBackbone, adapter: PhantomAdapter, *, on: bool) -> None:
    """Compute both streams of a block again in the backward pass, or keep their activations."""
    models: tuple[Any, ...] = (backbone.transformer, adapter.branch.stream)
    for model in models:
        if on:
            model.enable_gradient_checkpointing()
        else:
            model.disable_gradient_checkpointing()


def _beginnings(observed: Float[Tensor, "b d n y x"], lengths: Tensor, t: int) -> Float[Tensor, "b d t y x"]:
    """Take each sample's beginning out of those that lie end to end (1, 2, ... latents), zeros behind it."""
    out = observed.new_zeros(*observed.shape[:2], t, *observed.shape[3:])
    for i, p in enumerate(lengths.tolist()):
        first = p * (p - 1) // 2
        out[i, :, :p] = observed[i, :, first : first + p]
    return out


def _error(velocity: Tensor, target: Tensor, open_: Bool[Tensor, "b t"]) -> Tensor:
    each = (velocity - target).square().mean((1, 3, 4))
    return (each * open_).sum() / open_.sum().clamp_min(1)
