"""PILA's training as a list of stages: observe (A), recover (B), couple (C).

A teaches encoder and fields on what can be seen: the velocity of the pixels, from nearly clean estimates to pure
noise. B recovers the hidden fields one after another from their equations. C lets routed experts correct the fields
and the decoder correct the generator, with physics, condition and masks warmed up and the encoder held still at
first. The control, `adapter: plain`, is the same network for the same number of steps under the flow-matching loss
alone. The generator is frozen throughout; its prediction is made in every step without gradient.

References: PILA (Wang et al., 2026), training stages A-C (B.2, B.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones import Text, WanBackbone, bundle, paths
from backbones.parked import parked
from pila import losses
from pila.adapter import PilaAdapter
from pila.config import Recipe
from trainers import FitResult, InMemory, Length, MapStyle, Progress, Ramp, Stage, fit, run_folder
from trainers.engine import Engine, launched

__all__ = ["Trainer", "fresh", "ready", "save_bundle", "shift_of", "stages", "train"]

ADDED = {"observe": 0.33, "recover": 0.75, "couple": 1.5}
"""What the adapter's step takes beside the frozen model's forward, in each kind of stage, as `pila time` measured on
the embedded backbone of `EMBEDDED` weights. A forward grows with the weights and the adapter does not: in larger models
it hardly counts. For the estimate of a run alone.
"""
EMBEDDED = 2.7e6

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A noised batch and what the frozen model makes of it."""

    x_s: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, " b"]
    velocity: Float[Tensor, "b c t h w"]
    target: Float[Tensor, "b c t h w"]
    text: Text

    @property
    def x0(self) -> Float[Tensor, "b c t h w"]:
        """The estimate of the clean latent (Eq. 1)."""
        return paths.to_x0(self.x_s, self.velocity, self.sigma)


class Trainer:
    """The losses of the stages over one adapter and one frozen backbone; batches hold `latent`, `text`, `flow`,
    `labels`.
    """

    def __init__(self, recipe: Recipe, adapter: PilaAdapter, backbone: WanBackbone) -> None:
        self.recipe, self.adapter, self.backbone = recipe, adapter, backbone
        self.shift = recipe.noise.shift or shift_of(backbone)
        with torch.no_grad():
            self.empty = backbone.embed([""]).features.float()

    @torch.no_grad()
    def estimate(self, batch: Batch, between: tuple[float, float], generator: torch.Generator) -> Estimate:
        """Noise a batch and ask the frozen model; sigma is uniform in `between`, then shifted."""
        x0 = batch["latent"]
        b = len(x0)
        u = between[0] + (between[1] - between[0]) * torch.rand(b, generator=generator)
        sigma = (self.shift * u / (1 + (self.shift - 1) * u)).to(x0.device)
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        dropped = (torch.rand(b, generator=generator) < self.recipe.noise.text_dropout).to(x0.device)
        text = Text.of(torch.where(dropped[:, None, None], self.empty.to(x0.device), batch["text"]))
        x_s = self.backbone.paths.noise(x0, eps, sigma)
        velocity = self.backbone.predict(x_s, sigma, text)
        return Estimate(x_s, sigma, velocity, self.backbone.paths.target(x0, eps), text)

    def observe(self, batch: Batch, progress: Progress, *, between: tuple[float, float]) -> dict[str, Tensor]:
        """Stage A: velocity and strain rate of the estimate against optical flow."""
        e = self.estimate(batch, between, progress.generator)
        _, recovered = self.adapter.recover(e.x0, e.sigma, phase="core")
        return losses.observe(recovered, batch["flow"], self._grid(e), self.recipe.observe)

    def recover(self, batch: Batch, progress: Progress, *, phase: str) -> dict[str, Tensor]:
        """Stage B: the equations of the fields that a phase has reached, with a small observable anchor."""
        e = self.estimate(batch, self.recipe.couple.range, progress.generator)
        _, recovered = self.adapter.recover(e.x0, e.sigma, phase=phase)
        seen = losses.observe(recovered, batch["flow"], self._grid(e), self.recipe.observe)
        anchor = {name: self.recipe.recover.observe_weight * term for name, term in seen.items()}
        if self.recipe.physics.proxy_only:
            return anchor
        return anchor | losses.recover(recovered, e.x0, batch["labels"], self._grid(e), phase, self.recipe)

    def couple(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Stage C: flow matching of the corrected velocity, residuals of the routed experts, a small observable
        anchor (Eq. 11).
        """
        e = self.estimate(batch, self.recipe.couple.range, progress.generator)
        a = self.adapter.anatomy(e.x_s, e.velocity, e.sigma, e.text, batch["labels"], warmth=progress.ramp("condition"))
        seen = losses.observe(a.recovered, batch["flow"], self._grid(e), self.recipe.observe)
        terms = {name: self.recipe.couple.observe_weight * term for name, term in seen.items()}
        if self.recipe.correct != "none":
            terms["flow_matching"] = losses.flow_matching(a.velocity, e.target)
        if self.recipe.couple.physics_weight > 0 and not self.recipe.physics.proxy_only:
            physics = losses.physics(
                a, batch["labels"], self._grid(e), self.adapter, self.recipe, blend=progress.ramp("mask")
            )
            terms["physics"] = progress.ramp("physics") * physics
        return terms | {"log/frozen": losses.flow_matching(e.velocity, e.target)}

    def plain(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The control: flow matching alone."""
        e = self.estimate(batch, self.recipe.couple.range, progress.generator)
        a = self.adapter.anatomy(e.x_s, e.velocity, e.sigma, e.text, batch["labels"])
        return {
            "flow_matching": losses.flow_matching(a.velocity, e.target),
            "log/frozen": losses.flow_matching(e.velocity, e.target),
        }

    def _grid(self, e: Estimate) -> Any:
        return self.adapter.grid(e.x_s.shape[2])


def stages(recipe: Recipe, adapter: PilaAdapter, backbone: WanBackbone, data: MapStyle) -> list[Stage]:
    """The stages of a recipe: A in widening ranges of noise, B in phases, C; or the one stage of the plain control."""
    trainer = Trainer(recipe, adapter, backbone)
    common: dict[str, Any] = {"data": data, "batch_size": recipe.batch, "accumulate": recipe.accumulate}
    if recipe.adapter == "plain":
        groups = _with_weights(adapter, dict.fromkeys(adapter.groups(), 1.0))
        return [Stage("plain", groups, trainer.plain, length=Length(steps=recipe.steps), optim=recipe.optim, **common)]
    steady = replace(recipe.optim, schedule="constant")
    fields = {"encoder": 1.0, "afe": 1.0}
    small = EMBEDDED / sum(p.numel() for p in backbone.transformer.parameters())
    observing = [
        Stage(
            f"observe-{low:g}-{high:g}",
            fields,
            partial(trainer.observe, between=(low, high)),
            length=Length(steps=recipe.observe.steps),
            optim=steady,
            handover="keep",
            cost=1 + ADDED["observe"] * small,
            **common,
        )
        for low, high in recipe.observe.ranges
    ]
    recovering = [
        Stage(
            f"recover-{phase}",
            fields,
            partial(trainer.recover, phase=phase),
            length=Length(steps=recipe.recover.steps),
            optim=steady,
            handover="keep",
            cost=1 + ADDED["recover"] * small,
            **common,
        )
        for phase in recipe.recover.phases
    ]
    c = recipe.couple
    factors = {
        "condition": 1.0,
        "router": 1.0,
        "operators": 1.0,
        "afe": 1.0,
        "decoder": 1.0,
        "encoder": c.encoder_factor,
    }
    if recipe.correct == "none":
        del factors["decoder"]  # nothing asks it
    if c.encoder_factor == 0:
        del factors["encoder"]
    coupling = Stage(
        "couple",
        _with_weights(adapter, factors),
        trainer.couple,
        length=Length(steps=c.steps),
        optim=recipe.optim,
        ramps={
            "physics": Ramp(0.0, c.physics_weight, 0, c.physics_warmup),
            "condition": Ramp(0.0, 1.0, 0, c.condition_warmup),
            "mask": Ramp(0.0, 1.0, 0, c.mask_warmup),
        },
        unfreeze={"encoder": c.encoder_frozen} if "encoder" in factors else {},
        handover="reset",
        cost=1 + ADDED["couple"] * small,
        **common,
    )
    return [s for s in (*observing, *recovering, coupling) if s.length.steps]


def train(
    recipe: Recipe,
    backbone: WanBackbone,
    data: MapStyle,
    *,
    out: Path,
    resume: bool = False,
    only: str | None = None,
    quiet: bool = False,
    engine: Engine | None = None,
) -> tuple[PilaAdapter, FitResult]:
    """Train an adapter and write its bundle into `out/bundle`; `only` stops after the last stage whose name begins
    so. Of several processes (`engine`; none: as they were launched) the first writes.
    """
    engine = engine or launched()
    adapter = fresh(recipe, backbone)
    plan = stages(recipe, adapter, backbone, data)
    if only is not None:
        plan = _until(plan, only)
    run_folder.begin(out, recipe, engine)
    with backbone.frozen(), parked(backbone):
        result = fit(
            plan,
            adapter.groups(),
            out=out,
            seed=recipe.seed,
            resume=resume,
            save_every=recipe.save_every,
            engine=engine,
            quiet=quiet,
        )
    run_folder.finish(out, recipe, engine, lambda home: save_bundle(adapter, backbone, home, history=result.history))
    return adapter, result


def ready(recipe: Recipe, backbone: WanBackbone, out: Path, *, resume: bool, only: str | None) -> None:
    """Refuse what `train` would refuse, before hours go into the cache: an unknown stage, a folder with a run."""
    plan = stages(recipe, fresh(recipe, backbone), backbone, InMemory({"latent": [0]}))
    if only is not None:
        _until(plan, only)
    run_folder.unused(out, resume=resume)


def fresh(recipe: Recipe, backbone: WanBackbone) -> PilaAdapter:
    """A new adapter whose first weights are a function of the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        adapter = PilaAdapter(backbone.spec, recipe)
    return adapter.to(recipe.device)


def save_bundle(adapter: PilaAdapter, backbone: WanBackbone, folder: Path, *, history: tuple[Any, ...] = ()) -> Path:
    """Write the adapter's bundle; it asks for the latent space alone, since the adapter sees velocities only."""
    return bundle.save(
        folder,
        kind=adapter.kind,
        groups={name: module.state_dict() for name, module in adapter.groups().items()},
        backbone=backbone,
        config=adapter.recipe.model_dump(mode="json"),
        stages=[vars(record) for record in history],
        requires="latent",
    )


def shift_of(backbone: WanBackbone) -> float:
    """The shift of the backbone's own noise schedule (1: none)."""
    config = backbone.pipe.scheduler.config
    for name in ("flow_shift", "shift"):
        if config.get(name) is not None:
            return float(config[name])
    return 1.0


def _until(plan: list[Stage], only: str) -> list[Stage]:
    last = max((i for i, s in enumerate(plan) if s.name.startswith(only)), default=None)
    if last is None:
        raise ValueError(f"expected a stage out of {[s.name for s in plan]} (or how their names begin), got {only!r}")
    return plan[: last + 1]


def _with_weights(adapter: PilaAdapter, factors: dict[str, float]) -> dict[str, float]:
    """Leave out groups without weights (a uniform router has none)."""
    groups: dict[str, nn.Module] = adapter.groups()
    return {name: factor for name, factor in factors.items() if any(True for _ in groups[name].parameters())}
