"""Measure the backbone: what share of its clips obeys the law, between a floor above and negative controls below.

Sources, all for the same captions: `real` (held-out simulations), `vae` (the same through the autoencoder: the best
that any of its generators can do), `static`, `reversed` and `shuffled` (the controls: a metric that passes them
measures nothing, except where a law runs backwards just as well), and `base`, the backbone's samples. Two numbers a
mechanism: the share of clips that pass every gate, and the continuous score, 0 for shuffled frames and 1 for the
autoencoder's floor.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.table import Table

import physworld
from physworld import MECHANISMS, SIZE, Clip, controls, metrics
from physworld.mechanism import module
from trainers import show
from world import vae as autoencoder
from world.clips import to_bytes, to_signed
from world.sheet import save_sheet

Videos = UInt8[np.ndarray, "n t h w 3"]
Measures = dict[str, float]

SOURCES = ("real", "vae", "static", "reversed", "shuffled", "base")
BATCH = 16


@dataclass(frozen=True)
class Evaluation:
    """`passes[mechanism][source]` and `scores[...]` in [0, 1]; `medians` of each measure for the reader.

    `pixels` is the side of the clips, `fitted_on` says which clips the thresholds are from.
    """

    weights: str
    split: str
    clips: int
    seed: int
    steps: int
    guidance: float
    passes: dict[str, dict[str, float]]
    scores: dict[str, dict[str, float]]
    medians: dict[str, dict[str, dict[str, float | None]]]
    pixels: int = SIZE
    fitted_on: str = ""

    def to_json(self) -> str:
        """Write all as JSON; a measure that no clip allowed is null."""
        return json.dumps(asdict(self), indent=1)


def evaluate(
    weights: str,
    *,
    clips: int,
    split: str = "test",
    seed: int = 0,
    steps: int = 25,
    guidance: float = 1.5,
    mechanisms: Sequence[str] = MECHANISMS,
    thresholds: Any = None,
    scale: int | None = None,
    device: str = "cpu",
    quiet: bool = False,
) -> Evaluation:
    """Measure real clips, the floor, the controls and the backbone on `clips` captions a mechanism.

    `scale` is that of the clips which the backbone was trained on, read from its folder by default.
    """
    import backbones

    backbone = backbones.load(weights, device=device)
    scale = scale or scale_of(backbone)
    thresholds = thresholds or metrics.Thresholds.load()
    passes, scores, medians = {}, {}, {}
    for index, mechanism in enumerate(show.track(mechanisms, "evaluate", quiet=quiet)):
        real = physworld.simulate_many(mechanism, list(range(clips)), split=split, scale=scale)
        sources = {name: make(real) for name, make in controls_of(backbone.pipe.vae).items()}
        noise = [seed + 100_000 * index + i for i in range(clips)]
        prompts = [c.caption for c in real]
        sources["base"] = samples(backbone, prompts, noise, steps=steps, guidance=guidance, size=SIZE * scale)
        measured = {name: measure(real, videos) for name, videos in sources.items()}
        passes[mechanism] = {n: _mean(float(thresholds.passes(mechanism, m)) for m in ms) for n, ms in measured.items()}
        scores[mechanism] = {n: _mean(thresholds.score(mechanism, m) for m in ms) for n, ms in measured.items()}
        medians[mechanism] = {n: _medians(ms) for n, ms in measured.items()}
    about = (weights, split, clips, seed, steps, guidance)
    return Evaluation(*about, passes, scores, medians, pixels=SIZE * scale, fitted_on=thresholds.fitted_on)


def scale_of(backbone: Any) -> int:
    """Read the scale that a backbone was trained at from the folder it came from; 1 where it says nothing."""
    about = Path(str(backbone.pipe.name_or_path)) / "backbone.json"
    pixels = json.loads(about.read_text(encoding="utf-8")).get("pixels", SIZE) if about.is_file() else SIZE
    return pixels // SIZE


def controls_of(vae: Any) -> dict[str, Callable[[list[Clip]], Videos]]:
    """Give what makes each source from real clips."""

    def videos(clips: list[Clip]) -> Videos:
        return np.stack([clip.video for clip in clips])

    return {
        "real": videos,
        "vae": lambda clips: autoencoder.decode(vae, autoencoder.encode(vae, videos(clips))),
        "static": lambda clips: np.stack([controls.static(clip.video) for clip in clips]),
        "reversed": lambda clips: np.stack([controls.reversed_(clip.video) for clip in clips]),
        "shuffled": lambda clips: np.stack([controls.shuffled(clip.video, clip.seed) for clip in clips]),
    }


def samples(
    backbone: Any, prompts: list[str], seeds: list[int], *, steps: int, guidance: float, size: int = SIZE
) -> Videos:
    """Sample one clip a prompt through the stock pipeline, each with the noise of its own seed."""
    import backbones

    noise = backbones.noise(backbone, seeds, height=size, width=size)
    parts = []
    for start in range(0, len(prompts), BATCH):
        cut = slice(start, start + BATCH)
        video = backbones.sample(
            backbone, prompts[cut], noise=noise[cut], height=size, width=size, steps=steps, guidance=guidance
        )
        parts.append(to_bytes(video))
    return np.concatenate(parts)


def measure(clips: list[Clip], videos: Videos) -> list[Measures]:
    """Fit the law that each clip's caption promises to what a video shows."""
    return [metrics.measure(clip.caption, video) for clip, video in zip(clips, videos, strict=True)]


def tables(result: Evaluation) -> list[Table]:
    """Show pass shares and scores as two tables."""
    shown = []
    for title, values in (
        (f"gated pass share, {result.clips} clips a mechanism ({result.split})", result.passes),
        ("score: each figure from 0 (as bad as shuffled frames) to 1 (at its floor)", result.scores),
    ):
        table = Table("mechanism", *SOURCES, title=title)
        for mechanism, row in values.items():
            table.add_row(mechanism, *(f"{row[source]:.2f}" for source in SOURCES))
        table.add_row("mean", *(f"{_mean(row[s] for row in values.values()):.2f}" for s in SOURCES), style="bold")
        shown.append(table)
    return shown


def sample_sheet(
    out: Path,
    weights: str,
    *,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 1.5,
    image: bool = False,
    scale: int | None = None,
    device: str = "cpu",
) -> Path:
    """Draw a sample of one caption per scenario; with `image`, continued from the true first frame."""
    import backbones

    backbone = backbones.load(weights, device=device)
    scale = scale or scale_of(backbone)
    clips = one_per_scenario(scale=scale)
    prompts = [clip.caption for clip in clips]
    first = to_signed(np.stack([clip.video for clip in clips]))[:, :, 0] if image else None
    size = SIZE * scale
    videos = backbones.sample(
        backbone, prompts, seed=seed, steps=steps, guidance=guidance, image=first, height=size, width=size
    )
    rows = [(clip.caption, video) for clip, video in zip(clips, to_bytes(videos), strict=True)]
    return save_sheet(out, rows, title=f"{weights}: seed {seed}, {steps} steps, guidance {guidance}")


def one_per_scenario(split: str = "test", *, scale: int = 1) -> list[Clip]:
    """Take the first clip of each scenario of each mechanism."""
    chosen: list[Clip] = []
    for mechanism in MECHANISMS:
        found: dict[str, Clip] = {}
        seeds = itertools.count()
        while set(found) != set(module(mechanism).SCENARIOS):
            clip = physworld.simulate(mechanism, next(seeds), split=split, scale=scale)
            found.setdefault(clip.scenario, clip)
        chosen += found.values()
    return chosen


def fit_thresholds(vae: Any, out: Path | None, *, clips: int, split: str, scale: int = 1, quiet: bool = False) -> Path:
    """Fit the pass thresholds to autoencoded clips of seeds that no evaluation uses, and write them."""
    make = controls_of(vae)
    measured: dict[str, dict[str, list[Measures]]] = {}
    for mechanism in show.track(MECHANISMS, "thresholds", quiet=quiet):
        real = physworld.simulate_many(mechanism, list(range(clips)), split=split, scale=scale)
        measured[mechanism] = {name: measure(real, make[name](real)) for name in ("vae", "shuffled")}
    thresholds = metrics.Thresholds.fit(
        {m: by_source["vae"] for m, by_source in measured.items()},
        {m: by_source["shuffled"] for m, by_source in measured.items()},
        fitted_on=f"{clips} clips a mechanism of the {split} split"
        + (f" at {SIZE * scale} px" if scale > 1 else "")
        + f" through {type(vae).__name__}",
    )
    path = out or Path(physworld.__file__).parent / "thresholds.json"
    thresholds.save(path)
    return path


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _medians(measures: list[Measures]) -> dict[str, float | None]:
    medians = {}
    for name in dict.fromkeys(key for measure in measures for key in measure):
        values = [m[name] for m in measures if name in m and not math.isnan(m[name])]
        medians[name] = float(np.median(values)) if values and math.isfinite(np.median(values)) else None
    return medians
