"""ProPhy's training: the branch learns to denoise while its routers are taught; before that, the semantic router may
learn alone from captions.

The backbone is frozen and outside; what moves are SEB, the physical blocks and REB (or LoRA in the rows that have no
branch). The control, `adapter: plain`, is physical blocks alone, of equal size, for as many steps, under the diffusion
loss alone.

References: ProPhy (Wang et al., 2025), training.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from backbones import Backbone, Text, attach, bundle, paths
from backbones.parked import parked
from physexperts import masked_mean
from prophy import losses
from prophy.adapter import ProphyAdapter
from prophy.config import Recipe
from prophy.wisa import WisaAdapter
from trainers import FitResult, HeldOut, InMemory, Length, MapStyle, Progress, Stage, fit, run_folder
from trainers.data import take
from trainers.engine import Engine, launched

__all__ = ["Trainer", "adapter_of", "fresh", "kind_of", "ready", "save_bundle", "stages", "standardise", "train"]

Batch = Mapping[str, Any]

HELD_CLIPS = 32
"""Clips of the held-out loss: our choice."""

STANDARD_ROWS, STANDARD_BATCH = 1024, 32
"""Rows whose texts give the router's mean and spread, and how many are read at once: items on disk hold latents too."""


class Trainer:
    """The loss of one adapter beside one frozen backbone, attached so that `predict` asks it (`attach(...,
    in_predict=True)`); batches hold `latent`, `text`, `mask`, `labels`, and where tokens are aligned `target` and
    `active`.
    """

    def __init__(self, recipe: Recipe, adapter: Any, backbone: Any) -> None:
        self.recipe, self.adapter, self.backbone = recipe, adapter, backbone
        with torch.no_grad():
            self.empty = backbone.embed([""])

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """L_diff and what the recipe adds to it."""
        x0, labels, generator = batch["latent"], batch["labels"], progress.generator
        sigma = levels(self.recipe, self.backbone, len(x0), generator).to(x0.device)
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        dropped = (torch.rand(len(x0), generator=generator) < self.recipe.noise.text_dropout).to(x0.device)
        text = self.text(batch, dropped)
        self.adapter.tell(batch, generator)
        velocity = self.backbone.predict(paths.noise(x0, eps, sigma), sigma, text)
        spec = self.backbone.spec
        terms = {"diffusion": losses.diffusion(velocity.float(), paths.target(x0, eps), sigma, spec.prediction)}
        # An empty prompt says nothing of its video: its row leaves the pairs.
        return terms | self.adapter.terms(batch, labels * ~dropped[:, None])

    def held_out(self, batch: Batch, level: float, generator: torch.Generator) -> dict[str, Tensor]:
        """L_diff at one noise level with every prompt, and L_fine-align where tokens have targets, unweighted."""
        x0 = batch["latent"]
        sigma = sigma_of(self.recipe, self.backbone, torch.full((len(x0),), level)).to(x0.device)
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        text = self.text(batch, torch.zeros(len(x0), dtype=torch.bool, device=x0.device))
        with torch.no_grad():
            velocity = self.backbone.predict(paths.noise(x0, eps, sigma), sigma, text)
            spec, refined = self.backbone.spec, self.adapter.seen.refinement
            error = losses.diffusion(velocity.float(), paths.target(x0, eps), sigma, spec.prediction)
            if refined is None or "target" not in batch:
                return {"diffusion": error}
            fine = losses.fine(refined, batch["target"], batch["active"], self.recipe.losses)
            return {"diffusion": error, "align": fine}

    def text(self, batch: Batch, dropped: Tensor) -> Text:
        """The text of a batch, the empty one where it is dropped."""
        empty = self.empty.to(batch["text"].device)
        features = torch.where(dropped[:, None, None], empty.features.float(), batch["text"])
        return Text(features, torch.where(dropped[:, None], empty.mask, batch["mask"]))


def levels(recipe: Recipe, backbone: Any, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Draw noise levels as the backbone was trained: uniform timesteps (v-prediction), or uniform with its shift."""
    return sigma_of(recipe, backbone, torch.rand(count, generator=generator))


def sigma_of(recipe: Recipe, backbone: Any, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The noise levels at quantiles `u` in [0, 1) of those that are drawn."""
    scheduler = backbone.pipe.scheduler
    if backbone.spec.prediction == "v":
        table = paths.level(scheduler.alphas_cumprod.double().cpu()).float()
        return table[(u * len(table)).long()]
    own = (scheduler.config.get(name) for name in ("flow_shift", "shift"))
    shift = recipe.noise.shift or float(next((s for s in own if s is not None), 1.0))
    return shift * u / (1 + (shift - 1) * u)


def stages(recipe: Recipe, adapter: Any, backbone: Any, data: MapStyle, said: MapStyle | None = None) -> list[Stage]:
    """The stages of a recipe: where there is a semantic router, first that alone on captions; then all.

    `said` is what that first stage reads: sentences with labels; none: the captions of `data`.
    """
    s, trainer = recipe.semantic, Trainer(recipe, adapter, backbone)
    everything = Stage(
        kind_of(recipe),
        adapter.rates(),
        trainer.loss,
        data=data,
        batch_size=recipe.batch,
        accumulate=recipe.accumulate,
        length=Length(steps=recipe.steps),
        optim=recipe.optim,
    )
    if not recipe.alone_first:
        return [everything]
    first = Stage(
        "semantic",
        {"semantic": 1.0},
        lambda batch, _: adapter.first(batch),
        data=data if said is None else said,
        batch_size=s.first_batch,
        length=Length(steps=s.first_steps),
        optim=replace(recipe.optim, lr=s.first_lr, weight_decay=s.first_weight_decay),
    )
    return [first, everything]


def standardise(adapter: Any, said: MapStyle) -> None:
    """Measure mean and spread of the training texts for the semantic router, on rows spread evenly over them."""
    block = getattr(adapter, "semantic", None)
    if block is None:
        return
    rows = torch.linspace(0, len(said) - 1, min(len(said), STANDARD_ROWS)).long()
    parts = [take(said, part, torch.device(adapter.recipe.device)) for part in rows.split(STANDARD_BATCH)]
    with torch.no_grad():
        block.standard.measure(torch.cat([masked_mean(p["text"].float(), p["mask"]) for p in parts]))


def kind_of(recipe: Recipe) -> str:
    """What a recipe trains, in a word: prophy, plain, lora, lora+seb, ..., wisa."""
    if recipe.adapter != "prophy":
        return recipe.adapter
    parts = [name for name, part in (("seb", recipe.semantic), ("reb", recipe.refine)) if part.on]
    if recipe.branch.kind == "physical" and len(parts) == 2:
        return "prophy"
    return "+".join(["lora" if recipe.branch.kind == "lora" else "pb", *parts])


def adapter_of(recipe: Recipe) -> type:
    """The class that a recipe trains."""
    return WisaAdapter if recipe.adapter == "wisa" else ProphyAdapter


def fresh(recipe: Recipe, backbone: Any) -> Any:
    """A new adapter whose first weights are a function of the recipe's seed; the backbone needs no weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        adapter = adapter_of(recipe)(backbone, recipe)
    return adapter.to(recipe.device)


def train(
    recipe: Recipe,
    backbone: Backbone,
    data: MapStyle,
    *,
    said: MapStyle | None = None,
    out: Path,
    resume: bool = False,
    only: str | None = None,
    teacher: str = "",
    held: MapStyle | None = None,
    quiet: bool = False,
    engine: Engine | None = None,
) -> tuple[Any, FitResult]:
    """Train an adapter and write its bundle into `out/bundle`; `only` stops after the stage of that name; `said` as in
    `stages`; `held` are clips for the held-out loss (not of WISA, whose guidance steps in wherever it does not train).
    Of several processes (`engine`; none: as they were launched) the first writes.
    """
    engine = engine or launched()
    adapter = fresh(recipe, backbone)
    standardise(adapter, data if said is None else said)
    run_folder.begin(out, recipe, engine)
    held_out = None
    if held is not None and recipe.adapter != "wisa":
        look, clips = Trainer(recipe, adapter, backbone), min(HELD_CLIPS, len(held))
        held_out = HeldOut(look.held_out, held, clips=clips, batch_size=min(16, clips), every=recipe.save_every)
    if recipe.checkpointing:
        for model in backbone.transformers:
            model.enable_gradient_checkpointing()  # pyright: ignore
    try:
        with backbone.frozen(), attach(backbone, adapter, in_predict=True):
            adapter.train()  # attached, it would guide as it does while sampling (WISA); groups are set by their stages
            plan = _until(stages(recipe, adapter, backbone, data, said), only)
            with parked(backbone):
                result = fit(
                    plan,
                    adapter.groups(),
                    out=out,
                    seed=recipe.seed,
                    resume=resume,
                    save_every=recipe.save_every,
                    trackers=recipe.trackers,
                    held_out=held_out,
                    engine=engine,
                    quiet=quiet,
                )
    finally:
        for model in backbone.transformers:
            model.disable_gradient_checkpointing()  # pyright: ignore
    about: dict[str, Any] = {"history": result.history, "teacher": teacher}
    run_folder.finish(out, recipe, engine, lambda home: save_bundle(adapter, backbone, home, **about))
    return adapter, result


def ready(recipe: Recipe, backbone: Backbone, out: Path, *, resume: bool, only: str | None = None) -> None:
    """Refuse what `train` would refuse, before hours go into the cache: an unknown stage, a folder with a run."""
    _until(stages(recipe, fresh(recipe, backbone), backbone, InMemory({"latent": [0]})), only)
    run_folder.unused(out, resume=resume)


def save_bundle(
    adapter: Any, backbone: Backbone, folder: Path, *, history: tuple[Any, ...] = (), teacher: str = ""
) -> Path:
    """Write the adapter's bundle; it reads hidden states, so it asks for the same transformer."""
    groups = {name: module.state_dict() for name, module in adapter.groups().items()}
    dtype = getattr(torch, adapter.recipe.store)
    kept = {
        name: {key: value.to(dtype) for key, value in part.items() if "partners." not in key}
        for name, part in groups.items()
    }
    return bundle.save(
        folder,
        kind=adapter.kind,
        groups=kept,
        backbone=backbone,
        config=adapter.recipe.model_dump(mode="json"),
        stages=[{**vars(record), "teacher": teacher} for record in history],
        requires="config",
    )


def _until(plan: list[Stage], only: str | None) -> list[Stage]:
    if only is None:
        return plan
    known = [stage.name for stage in plan]
    if only not in known:
        raise ValueError(f"expected a stage out of {known}, got {only!r}")
    return plan[: known.index(only) + 1]
