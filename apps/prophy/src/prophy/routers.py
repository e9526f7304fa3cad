"""What the routers have learned, measured on the simulated world: which prompts are alike, and where a phenomenon is.

Semantic routing. 200 paraphrases, written by hand without the words by which the world's captions name what happens
(`data/paraphrases-test.json`), are put to the mechanism whose captions are routed most alike: nearest centroid of rho_p
by cosine, the centroids being those of training captions. Balanced accuracy over the eight mechanisms, beside that of
the same router before training and of one trained on labels shuffled among the captions. Bar: >= 0.9, and >= 0.2 above
both. The same on the 200 that the stage was tuned on (`data/paraphrases-dev.json`) is told, and counts for nothing.

Refinement. The map that REB's head reads for a clip's mechanism, at 10 % noise, against the cells where the mechanism
truly acts more than average: average precision above chance, macro over mechanisms that fill less than half of their
clips. Bar: >= 0.3, and above the 97.5 % quantile of 200 random routers of the same tokens. Beside it stands the same
score of the frozen backbone's own attention to the words (`prophy.places`).
"""

import json
import tempfile
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

import physworld
from backbones import Backbone, Text
from physexperts import MECHANISMS, Labels, RouterStats
from prophy.adapter import ProphyAdapter
from prophy.config import Recipe
from prophy.labels import shuffled
from prophy.places import Places
from prophy.rewordings import sentences
from prophy.train import fresh, stages, standardise
from trainers import fit
from vlmdistill.localisation import Localisation, bar, macro, random_router

__all__ = ["RefinementReport", "SemanticReport", "paraphrases", "refinement_report", "semantic_report"]

CAPTIONS = 64
"""Training captions a mechanism that centroids are made of."""
SEMANTIC_BAR, SEMANTIC_LEAD = 0.9, 0.2
LOCALISATION_BAR = 0.3
RANDOM_ROUTERS = 200


@dataclass(frozen=True)
class SemanticReport:
    """Balanced accuracy on the paraphrases: trained, at initialisation, trained on shuffled labels; by mechanism; and
    trained, on the development set.

    `pearson` correlates the mean routing of the mechanisms over training captions; `entropy` is over log E.
    """

    accuracy: float
    initial: float
    shuffled: float
    by_mechanism: dict[str, float]
    development: float
    pearson: list[list[float]]
    entropy: float
    dead: list[int]

    @property
    def passes(self) -> bool:
        """Whether the bar of the page is reached."""
        lead = self.accuracy - max(self.initial, self.shuffled)
        return self.accuracy >= SEMANTIC_BAR and lead >= SEMANTIC_LEAD


@dataclass(frozen=True)
class RefinementReport:
    """Average precision above chance (macro, by mechanism), with prevalences and the quantile of random routers; the
    same of the backbone's own attention to the phenomenon's words; how the tokens are shared among the experts.
    """

    score: float
    random_quantile: float
    attention: float
    by_mechanism: dict[str, float]
    attention_by_mechanism: dict[str, float]
    prevalence: dict[str, float]
    pointing: dict[str, float]
    load: list[float]
    entropy: float
    dead: list[int]

    @property
    def passes(self) -> bool:
        """Whether the bar of the page is reached."""
        return self.score >= LOCALISATION_BAR and self.score > self.random_quantile


def paraphrases(which: Literal["dev", "test"] = "test") -> list[tuple[str, str]]:
    """The prompts of `data/paraphrases-{which}.json` with their mechanisms.

    >>> len(paraphrases())
    200
    """
    tree = json.loads(files("prophy").joinpath(f"data/paraphrases-{which}.json").read_text(encoding="utf-8"))
    return [(prompt, mechanism) for mechanism, prompts in tree["prompts"].items() for prompt in prompts]


def semantic_report(adapter: ProphyAdapter, backbone: Backbone) -> SemanticReport:
    """Measure the semantic router; the control on shuffled labels is trained here, on captions, as the recipe says."""
    assert adapter.semantic is not None
    recipe = adapter.recipe
    clips = [c for m in MECHANISMS for c in physworld.simulate_many(m, range(CAPTIONS), split="train")]
    with torch.no_grad():
        said = backbone.embed([c.caption for c in clips])
        asked, tried = (backbone.embed([prompt for prompt, _ in paraphrases(which)]) for which in ("test", "dev"))
    kind = torch.tensor([MECHANISMS.index(c.mechanism) for c in clips])
    true, other = (torch.tensor([MECHANISMS.index(m) for _, m in paraphrases(which)]) for which in ("test", "dev"))
    labels = torch.stack([Labels.of(c.labels).multi_hot for c in clips])
    control = _trained_on([c.caption for c in clips], shuffled(labels, recipe.seed), recipe, backbone)
    measured = [_accuracies(who, said, kind, asked, true) for who in (adapter, fresh(recipe, backbone).eval(), control)]
    stats = RouterStats(recipe.semantic.experts, labels=len(MECHANISMS))
    with torch.no_grad():
        stats.update(adapter.semantic(said).routing, labels.to(said.features.device))
    health = stats.read()
    pearson = [[round(float(x), 3) for x in row] for row in health.pearson.nan_to_num(0.0)]
    means = [round(float(m.mean()), 6) for m in measured]  # 180 of 200 are .9, no less
    by = dict(zip(MECHANISMS, [round(x, 3) for x in measured[0].tolist()], strict=True))
    top = adapter.semantic(said).routing.probs.argmax(1)
    dead = [e for e in range(recipe.semantic.experts) if not bool((top == e).any())]
    dev = float(_accuracies(adapter, said, kind, tried, other).mean())
    return SemanticReport(means[0], means[1], means[2], by, dev, pearson, health.entropy, dead)


def _accuracies(
    adapter: ProphyAdapter, said: Text, kind: Int[Tensor, " n"], asked: Text, true: Int[Tensor, " m"]
) -> Float[Tensor, " 8"]:
    """The share of each mechanism's paraphrases that the nearest centroid of rho_p names."""
    assert adapter.semantic is not None
    with torch.no_grad():
        known, new = (F.normalize(adapter.semantic(t).routing.weights, dim=-1).cpu() for t in (said, asked))
    centroids = torch.stack([known[kind == c].mean(0) for c in range(len(MECHANISMS))])
    named = (new @ F.normalize(centroids, dim=-1).T).argmax(1)
    return torch.stack([(named[true == c] == c).double().mean() for c in range(len(MECHANISMS))])


def _trained_on(captions: list[str], labels: Float[Tensor, "n L"], recipe: Recipe, backbone: Backbone) -> ProphyAdapter:
    """The recipe's semantic router after its first stage on these labels (of at least one step)."""
    steps = recipe.semantic.first_steps or recipe.steps
    recipe = recipe.model_copy(update={"semantic": recipe.semantic.model_copy(update={"first_steps": steps})})
    adapter = fresh(recipe, backbone)
    with torch.no_grad():
        said = sentences(captions, labels, lambda s: backbone.embed(list(s)), other_words=recipe.semantic.reworded)
    standardise(adapter, said)
    first = replace(stages(recipe, adapter, backbone, said)[0], name="semantic")
    groups = {"semantic": adapter.groups()["semantic"]}
    with tempfile.TemporaryDirectory() as place:
        fit([first], groups, out=Path(place) / "run", seed=recipe.seed, save_every=10**9, quiet=True)
    return adapter.eval()


def refinement_report(adapter: ProphyAdapter, places: Places) -> RefinementReport:
    """Measure the refinement router, and beside it the backbone's own attention, on what was seen of held-out clips."""
    grid, seen = places.refinement.grid, places.tokens

    def at_random(seed: int) -> float:
        routed = random_router(seen.flatten(0, 1), len(MECHANISMS), seed).unflatten(0, seen.shape[:2])
        maps = routed.mT.unflatten(-1, grid)
        by = [{n: row[MECHANISMS.index(n)] for n in true} for row, true in zip(maps, places.truth, strict=True)]
        return macro(places.scored(by))

    mine, own = places.scored(places.read()), places.scored(places.attention)
    result = bar(macro(mine), at_random, floor=LOCALISATION_BAR, draws=RANDOM_ROUTERS)
    stats = RouterStats(adapter.recipe.refine.experts)
    stats.update(places.refinement.routing)
    health = stats.read()

    def mean(scores: dict[str, list[Localisation]], part: str) -> dict[str, float]:
        got = {m: [getattr(one, part) for one in each] for m, each in scores.items() if each}
        return {m: round(sum(each) / len(each), 3) for m, each in got.items()}

    return RefinementReport(
        score=result.score,
        random_quantile=result.random_quantile,
        attention=macro(own),
        by_mechanism=mean(mine, "above_chance"),
        attention_by_mechanism=mean(own, "above_chance"),
        prevalence=mean(mine, "prevalence"),
        pointing=mean(mine, "pointing"),
        load=[round(float(x), 3) for x in health.load],
        entropy=health.entropy,
        dead=list(health.dead),
    )
