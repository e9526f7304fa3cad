"""From (mechanism, seed, split, scale) to clips: deterministic, batched where a batch is faster.

A clip's random numbers come from `default_rng([mechanism index, split offset, seed])` alone, so splits never share a
clip, a clip does not depend on its neighbours in a batch, and `scale` changes the drawing only.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from physworld.clip import MECHANISMS, SPLITS, Clip, annotation
from physworld.mechanism import module

BATCH = 64
LABELS = {"collision": ("collision", "rigid_body"), "phase_change": ("phase_change", "thermal")}
"""Mechanisms that carry a second label."""

NOT_OF_CLIPS = ("__init__.py", "controls.py", "evaluation.py", "metrics.py", "paired.py")
"""Files that no clip depends on."""


def simulate(mechanism: str, seed: int, *, split: str = "train", scale: int = 1) -> Clip:
    """One clip of a mechanism (17 frames, 32 * scale pixels square) with its exact fields."""
    return simulate_many(mechanism, [seed], split=split, scale=scale)[0]


def caption(mechanism: str, seed: int, *, split: str = "train") -> str:
    """The caption of a clip without drawing it: its parameters are cheap, a flow is not.

    >>> caption("thermal", 3) == simulate("thermal", 3).caption
    True
    """
    return module(mechanism).caption(parameters(mechanism, seed, split=split))


def parameters(mechanism: str, seed: int, *, split: str = "train") -> dict[str, Any]:
    """The parameters of a clip's law without drawing it: its `Clip.params`, in px and frames.

    >>> parameters("thermal", 3)["D"] == simulate("thermal", 3).params["D"]
    True
    """
    if split not in SPLITS or seed < 0:
        raise ValueError(f"expected a split among {', '.join(SPLITS)} and a seed >= 0, got {split!r} and {seed}")
    return module(mechanism).sample(np.random.default_rng(_key(mechanism, split, seed)), split)


@dataclass(frozen=True)
class Planned:
    """A clip that is named but not drawn yet: for lists of which a cache draws only what it lacks."""

    mechanism: str
    seed: int
    split: str = "train"
    scale: int = 1

    @property
    def name(self) -> str:
        """What the clip is called in reports."""
        return f"{self.split}-{self.mechanism}-{self.seed:06d}"

    @property
    def content(self) -> str:
        """What makes it, as text: the code of the world and the clip's coordinates. Another text is another clip."""
        return json.dumps([code(), self.mechanism, self.seed, self.split, self.scale])

    @property
    def caption(self) -> str:
        """What it shows, without drawing it."""
        return caption(self.mechanism, self.seed, split=self.split)

    @property
    def labels(self) -> tuple[str, ...]:
        """The mechanisms that it shows, without drawing it."""
        return LABELS.get(self.mechanism, (self.mechanism,))

    @property
    def annotation(self) -> dict[str, Any]:
        """WISA-80K's `physical_annotation` of it, without drawing it."""
        scenario = parameters(self.mechanism, self.seed, split=self.split)["scenario"]
        return annotation(self.mechanism, scenario)

    def draw(self) -> Clip:
        """Simulate it."""
        return simulate(self.mechanism, self.seed, split=self.split, scale=self.scale)


def spread(clips: int, *, split: str = "train", scale: int = 1) -> list[Planned]:
    """Name so many clips, spread evenly over the mechanisms, seeds from 0; the first mechanisms get one more."""
    each, rest = divmod(clips, len(MECHANISMS))
    return [
        Planned(mechanism, seed, split, scale)
        for index, mechanism in enumerate(MECHANISMS)
        for seed in range(each + (index < rest))
    ]


def simulate_many(mechanism: str, seeds: Iterable[int], *, split: str = "train", scale: int = 1) -> list[Clip]:
    """Clips of one mechanism, in the order of `seeds`; each equals what `simulate` gives for its seed."""
    world = module(mechanism)
    if split not in SPLITS:
        raise ValueError(f"expected a split, one of {', '.join(SPLITS)}, got {split!r}")
    if scale < 1:
        raise ValueError(f"expected a scale of 1 (32 px), 2 (64 px) or more, got {scale}")
    seeds = [int(seed) for seed in seeds]
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"expected seeds >= 0, got {min(seeds)}")
    clips: list[Clip] = []
    for first in range(0, len(seeds), BATCH):
        part = seeds[first : first + BATCH]
        params = [world.sample(np.random.default_rng(_key(mechanism, split, seed)), split) for seed in part]
        for seed, p, (video, fields, valid) in zip(part, params, world.simulate_batch(params, scale), strict=True):
            clips.append(
                Clip(
                    mechanism=mechanism,
                    scenario=p["scenario"],
                    seed=seed,
                    split=split,
                    scale=scale,
                    video=video,
                    caption=world.caption(p),
                    labels=LABELS.get(mechanism, (mechanism,)),
                    params=p,
                    fields=fields,
                    valid=valid,
                )
            )
    return clips


@cache
def code(*also: str) -> str:
    """Digest of the source that clips are made by: where it changes, clips may. Caches of them carry it in their keys.

    `also` names files that a result depends on besides, such as `metrics.py`.
    """
    sha = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.name not in NOT_OF_CLIPS or file.name in also:
            sha.update(file.read_bytes())
    return sha.hexdigest()


def _key(mechanism: str, split: str, seed: int) -> list[int]:
    return [MECHANISMS.index(mechanism), SPLITS.index(split), seed]
