"""Physics of the base and of any number of trained bundles on held-out captions of the simulated world, in pairs.

All get the same prompts, the same noise and, where frames are observed, the same beginnings, so what is compared is
paired (`physworld.evaluation`); several bundles of one kind are training seeds of one method. Diversity is the mean
distance between samples of one caption, since the paper's method lost some. Of one's own clips `beside` is the loss on
those that training was not shown.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import physworld
from backbones import WanBackbone
from phantom.adapter import PhantomAdapter
from phantom.config import Recipe
from phantom.force import tensor
from phantom.pushed import MECHANISM, Ball, Followed, caption_of, followed, force_of, speed_rank
from phantom.sample import sample
from phantom.train import Trainer
from physworld import MECHANISMS, evaluation
from physworld.paired import LEAST, Difference, paired
from trainers import show, video, write_text
from trainers.heldout import HeldOutLoss

__all__ = ["Pushes", "beside", "evaluate", "others", "push"]

BATCH = 16
WHOLE = 0.8
"""Permanence of the base's ball from which on pushes are judged, not only reported: our choice."""
OTHERS = ", others' pushes"
DRAWS = 2000
"""Resamples of the interval of a rank correlation."""
DIVERSE = 4
"""Samples of one caption, and captions a mechanism, that diversity is measured on."""


@dataclass(frozen=True)
class Pushes:
    """How the balls of `clips` clips followed their pushes: `base` (which is told none), each bundle, and each bundle
    under the pushes of other clips (`NAME, others' pushes`), measured against the clips' own.
    """

    clips: int
    split: str
    seed: int
    followed: dict[str, Followed]

    @property
    def judged(self) -> bool:
        """Whether the base keeps its ball well enough for a verdict."""
        return self.followed["base"].permanence >= WHOLE

    def passes(self, name: str) -> bool | None:
        """Whether a bundle's direction and speed are nearer to the push than the base's and than under others' pushes,
        and the direction by more than the interval; None where that is not judged, as with too few balls for one.
        """
        own, rest = self.followed[name], ("base", others(name))
        nearer = [d for row in rest if (d := self.direction(name, row)) is not None]
        if not self.judged or any(d.high is None for d in nearer):
            return None
        if any(d.high is not None and d.high >= 0 for d in nearer):
            return False
        return all(
            own.angle_error < self.followed[r].angle_error and own.speed_rank > self.followed[r].speed_rank
            for r in rest
        )

    def direction(self, a: str, b: str) -> Difference | None:
        """Mean of a row's direction error less another's, degrees, over the clips whose ball is whole in both; None
        where there is no such clip.
        """
        both = self._both(a, b)
        one, other = ([pair[side].angle_error for pair in both] for side in (0, 1))
        return paired(a, b, [one], [other], seed=self.seed) if both else None

    def speed(self, a: str, b: str) -> Difference | None:
        """The same for the rank correlation of strength and speed, with the interval of a bootstrap over these
        clips; None below as many clips as an interval takes.
        """
        both = self._both(a, b)
        if len(both) < LEAST:
            return None

        def difference(rows: Any) -> float:
            one, other = ([both[i][side] for i in rows] for side in (0, 1))
            return speed_rank(one) - speed_rank(other)

        drawn = np.random.default_rng(self.seed).integers(0, len(both), (DRAWS, len(both)))
        low, high = np.nanquantile([difference(rows) for rows in drawn], [0.025, 0.975])
        return Difference(a, b, difference(range(len(both))), float(low), float(high), len(both))

    def _both(self, a: str, b: str) -> list[tuple[Ball, Ball]]:
        pairs = zip(self.followed[a].balls, self.followed[b].balls, strict=True)
        return [(one, other) for one, other in pairs if one is not None and other is not None]

    def against(self, name: str) -> list[str]:
        """The rows that a bundle is compared with: the base, itself under others' pushes, and the other bundles."""
        return [row for row in self.followed if row == others(name) or not (row == name or row.endswith(OTHERS))]

    def save(self, path: Path) -> Path:
        """Write rows, clips and differences as JSON, by rename."""
        pairs = [(row, b) for row in self.followed if others(row) in self.followed for b in self.against(row)]
        found = [{"a": a, "b": b, "direction": self.direction(a, b), "speed_rank": self.speed(a, b)} for a, b in pairs]
        more = {"followed": {name: asdict(f) for name, f in self.followed.items()}, "differences": found}
        return write_text(path, json.dumps(asdict(self) | more, default=asdict) + "\n")


def others(name: str) -> str:
    """The row of a bundle's control."""
    return name + OTHERS


def push(
    backbone: WanBackbone,
    adapters: Mapping[str, Any],
    recipe: Recipe,
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    quiet: bool = False,
) -> Pushes:
    """Push thrown balls from their true first frame: the base, and each adapter under its own pushes and others'. All
    rows get the same captions, which leave the direction out.

    ValueError for an adapter that was not trained with point forces, or fewer than two clips.
    """
    if clips < 2:
        raise ValueError(f"expected at least 2 clips (each is pushed as another one is, too), got {clips}")
    d = recipe.data
    scale = physworld.scale_of(d.frames, d.height, d.width)
    truth = physworld.simulate_many(MECHANISM, range(clips), split=split, scale=scale)
    own = [force_of(c.seed, split=split) for c in truth]
    drawn = torch.stack([tensor(f, *c.video.shape[:3]) for f, c in zip(own, truth, strict=True)])
    noise = evaluation.noise_seeds(MECHANISM, clips, seed)
    rows: dict[str, tuple[Any, Tensor | None]] = {"base": (None, None)}
    for name, adapter in adapters.items():
        adapter.check_force(own[0])
        rows |= {name: (adapter, drawn), others(name): (adapter, drawn.roll(1, 0))}
    found: dict[str, Followed] = {}
    with show.bar("push", len(rows) * clips, quiet=quiet) as bar:
        for name, (adapter, forces) in rows.items():
            films: list[np.ndarray] = []
            for start in range(0, clips, BATCH):
                part = truth[start : start + BATCH]
                begun = video.from_bytes(np.stack([c.video[:1] for c in part]))
                given = None if forces is None else {"force": forces[start : start + BATCH]}
                captions = [caption_of(c.seed, split=split) for c in part]
                seeds = noise[start : start + BATCH]
                made = sample(backbone, adapter, captions, seeds, recipe, observed=begun, physics=given)
                films += list(video.to_bytes(made))
                bar.update(bar.done + len(part))
            found[name] = followed(films, own, [c.params["colour"] for c in truth])
    return Pushes(clips, split, seed, found)


def evaluate(
    backbone: WanBackbone,
    adapters: Mapping[str, Sequence[Any]],
    recipe: Recipe,
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    observed: int = 0,
    mechanisms: Sequence[str] = MECHANISMS,
    keep: Path | None = None,
    quiet: bool = False,
) -> evaluation.Evaluation:
    """Measure `clips` captions a mechanism of the base and of methods, each an adapter a training seed; `observed`
    frames of the true clip are given. With `keep` a stopped evaluation goes on. Diversity, of the base and of each
    method's first adapter, lies in `more`.

    ValueError for a recipe whose videos are none of the simulated world.
    """
    d, who = recipe.data, {"base": [None], **{name: list(runs) for name, runs in adapters.items()}}
    about = {"backbone": backbone.digest, "steps": recipe.sampling.steps, "guidance": recipe.sampling.guidance}

    def maker(adapter: Any) -> evaluation.Maker:
        def make(captions: list[str], seeds: range, observed: np.ndarray | None = None) -> list[np.ndarray]:
            begun = None if observed is None else video.from_bytes(observed)
            return list(video.to_bytes(sample(backbone, adapter, captions, seeds, recipe, observed=begun)))

        return make

    def said(adapter: Any) -> dict[str, Any]:
        if adapter is None:
            return about
        own = {"bundle": adapter.origin.get("sha256"), "recipe": adapter.recipe.model_dump(mode="json")}
        return about | own if adapter.origin else {}

    with show.bar("evaluate", quiet=quiet) as bar:
        found = evaluation.evaluate(
            {name: [maker(one) for one in runs] for name, runs in who.items()},
            clips=clips,
            split=split,
            seed=seed,
            scale=physworld.scale_of(d.frames, d.height, d.width),
            observed=observed,
            mechanisms=mechanisms,
            batch=BATCH,
            about={name: [said(one) for one in runs] for name, runs in who.items()},
            folder=keep,
            watch=bar,
            kept=bar.skip,
        )
    spread: dict[str, float] = {}
    with show.bar("diversity", len(who) * len(mechanisms), quiet=quiet) as bar:
        for name in who:
            each: list[float] = []
            for m in mechanisms:
                each.append(_diversity(backbone, who[name][0], recipe, m, clips=clips, split=split, seed=seed))
                bar.update(bar.done + 1)
            spread[name] = float(np.mean(each))
    return replace(found, more={"diversity": spread})


def _diversity(
    backbone: WanBackbone, adapter: Any, recipe: Recipe, mechanism: str, *, clips: int, split: str, seed: int
) -> float:
    """Mean root mean square distance between samples of one caption, in [0, 2]; on noise that no clip had."""
    captions = [physworld.caption(mechanism, i, split=split) for i in range(min(clips, DIVERSE))]
    prompts = [c for c in captions for _ in range(DIVERSE)]
    noise = evaluation.noise_seeds(mechanism, clips + len(prompts), seed)[clips:]
    films = sample(backbone, adapter, prompts, noise, recipe)
    each: Tensor = films.flatten(1).unflatten(0, (len(captions), DIVERSE))
    distance = torch.cdist(each, each) / each.shape[-1] ** 0.5
    pairs = DIVERSE * (DIVERSE - 1)
    return float((distance.sum((1, 2)) / pairs).mean())


def beside(backbone: WanBackbone, adapter: PhantomAdapter) -> HeldOutLoss:
    """The flow-matching error of base and adapter on one noised clip of which nothing is observed, every text kept.

    The adapter sees the clip's physics latent beside it, as noisy as the clip: it is told more than the base is.
    """
    trainer = Trainer(adapter.recipe, adapter, backbone)

    def loss(batch: dict[str, Any], level: float, generator: torch.Generator) -> dict[str, Tensor]:
        b = len(batch["latent"])
        nothing = torch.zeros(b, dtype=torch.long)
        flows = trainer.flows(batch, torch.full((b,), level), nothing, nothing.bool(), generator)
        with torch.no_grad():
            base = backbone.predict(flows.x, flows.sigma[:, 0], flows.text)
            trained, _ = adapter.velocities(flows.x, flows.z, flows.sigma, flows.text)
        target = flows.video_target
        return {"base": (base - target).square().mean(), "trained": (trained - target).square().mean()}

    return loss
