"""What an encoder's features know of the physics: laws' parameters read off by ridge regression, beside random weights.

Of every clip the whole grid of features is projected to 64 principal dimensions (fitted on the probe's own training
clips), standardised, and regressed on a parameter of its law: gravity, throwing speed, wave speeds, diffusivity. The
same is done with the same network at random weights, for random features already read much (a disc's speed at R^2 of
.95); what counts is the ratio of the errors, with its bootstrap interval over clips. Below 1 the training helped.

Clips come from splits that the encoder never saw: fitted on `val`, tested on `test` and on the out-of-distribution
ranges of `ood`, each as simulated and under two distractors that carry no physics: a still texture over the picture,
and a band of light that drifts across it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

import physworld
from backbones import VJEPA2Encoder
from world.clips import to_signed

__all__ = ["QUANTITIES", "RENDERINGS", "Ratio", "probe", "table"]

DIMENSIONS = 64
STRENGTHS = tuple(10.0**k for k in range(-2, 5))
"""Ridge strengths; each fit takes the best on a fifth of its training clips."""

QUANTITIES: dict[str, tuple[str, Callable[[dict[str, Any]], float | None]]] = {
    "gravity, px/frame^2": ("rigid_body", lambda p: p["g"]),
    "throwing speed, px/frame": ("rigid_body", lambda p: p["speed"][1]),
    "spring rate, rad/frame": ("elastic", lambda p: p.get("w")),
    "lattice wave speed, px/frame": ("elastic", lambda p: p.get("c") if p["scenario"] == "lattice" else None),
    "vortex speed, px/frame": ("fluid", lambda p: p["speed"]),
    "blast pressure": ("compressible_flow", lambda p: p["pressure"]),
    "phase drive": ("phase_change", lambda p: p["drive"]),
    "closing speed, px/frame": ("collision", lambda p: p["closing"]),
    "diffusivity, px^2/frame": ("thermal", lambda p: p["D"]),
    "light speed, px/frame": ("optical", lambda p: p["c"]),
}
"""What is read, from clips of which mechanism; None where a scenario has no such parameter."""


def texture(videos: UInt8[np.ndarray, "n t h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "n t h w 3"]:
    """Lay one still random texture over each clip (standard deviation 12 of 255; our choice)."""
    n, _, h, w, _ = videos.shape
    noise = rng.normal(0, 12, (n, 1, h, w, 3))
    return np.clip(videos + noise, 0, 255).astype(np.uint8)


def light(videos: UInt8[np.ndarray, "n t h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "n t h w 3"]:
    """Let a band of light, 6 px wide and 40 of 255 bright, drift across each clip at its own speed (our choice)."""
    n, t, _, w, _ = videos.shape
    start, speed = rng.uniform(0, w, (n, 1, 1)), rng.uniform(-1.5, 1.5, (n, 1, 1))
    centre = start + speed * np.arange(t)[None, :, None]
    distance = (np.arange(w)[None, None] - centre + w / 2) % w - w / 2
    band = 40 * np.exp(-0.5 * (distance / 3) ** 2)
    return np.clip(videos + band[:, :, None, :, None], 0, 255).astype(np.uint8)


RENDERINGS: dict[str, Callable[..., UInt8[np.ndarray, "n t h w 3"]]] = {
    "plain": lambda videos, rng: videos,
    "texture": texture,
    "light": light,
}


@dataclass(frozen=True)
class Ratio:
    """Error of the trained encoder over that of random weights, with a 95 % bootstrap interval over clips.

    `trained` and `random` are root mean square errors in standard deviations of the quantity over its test clips.
    """

    quantity: str
    rendering: str
    split: str
    clips: int
    trained: float
    random: float
    ratio: float
    low: float
    high: float


def probe(weights: str | Path, *, fit: int = 320, test: int = 128, seeds: int = 3) -> list[Ratio]:
    """Read every quantity from the encoder at `weights` and from `seeds` networks of its size at random weights.

    `fit` and `test` count clips a mechanism.
    """
    trained = VJEPA2Encoder.load(weights)
    encoders = [trained, *(_random(weights, seed) for seed in range(seeds))]
    counts = {"val": fit, "test": test, "ood": 2 * test}
    mechanisms = dict.fromkeys(mechanism for mechanism, _ in QUANTITIES.values())
    found: list[Ratio] = []
    for mechanism in mechanisms:
        clips = {s: physworld.simulate_many(mechanism, range(n), split=s) for s, n in counts.items()}
        clips["ood"] = [c for c in clips["ood"] if c.params["ood"] == "range"]
        videos = {s: np.stack([c.video for c in part]) for s, part in clips.items()}
        for rendering, render in RENDERINGS.items():
            drawn = {s: render(v, np.random.default_rng(i)) for i, (s, v) in enumerate(videos.items())}
            seen = [{s: features(encoder, v) for s, v in drawn.items()} for encoder in encoders]
            for quantity, (owner, read) in QUANTITIES.items():
                if owner == mechanism:
                    values = {s: [read(c.params) for c in part] for s, part in clips.items()}
                    found += _compare(quantity, rendering, seen, values)
    return found


@torch.no_grad()
def features(encoder: VJEPA2Encoder, videos: UInt8[np.ndarray, "n t h w 3"]) -> Float[Tensor, "n d"]:
    """The whole grid of features of each clip, in one row."""
    parts = [
        encoder.encode(to_signed(videos[i : i + 64]), pad="first").last.flatten(1) for i in range(0, len(videos), 64)
    ]
    return torch.cat(parts)


def table(ratios: Iterable[Ratio]) -> str:
    """Write the ratios as a Markdown table, a row a quantity."""
    ratios = list(ratios)
    columns = [(r, s) for r in RENDERINGS for s in ("test", "ood")]
    lines = [
        "| quantity | " + " | ".join(f"{r}, {'held out' if s == 'test' else 'new range'}" for r, s in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for quantity in QUANTITIES:
        cells = {(r.rendering, r.split): r for r in ratios if r.quantity == quantity}
        row = [
            f"{c.ratio:.2f} [{c.low:.2f}, {c.high:.2f}]" if (c := cells.get(column)) is not None else ""
            for column in columns
        ]
        lines.append(f"| {quantity} | " + " | ".join(row) + " |")
    means = [_mean([r.ratio for r in ratios if (r.rendering, r.split) == column]) for column in columns]
    lines.append("| geometric mean | " + " | ".join(f"{m:.2f}" for m in means) + " |")
    return "\n".join(lines)


def _compare(
    quantity: str, rendering: str, seen: list[dict[str, Tensor]], values: dict[str, list[float | None]]
) -> list[Ratio]:
    kept = {s: [i for i, v in enumerate(part) if v is not None] for s, part in values.items()}
    truth = {s: torch.tensor([float(values[s][i] or 0) for i in rows]) for s, rows in kept.items()}
    found = []
    for split in ("test", "ood"):
        if len(truth[split]) < 8:
            continue
        scale = truth["val"].std()
        errors = [
            (_read(part["val"][kept["val"]], truth["val"], part[split][kept[split]]) - truth[split]) / scale
            for part in seen
        ]
        squares = torch.stack([e.square() for e in errors])  # (encoders, clips)
        own, others = squares[0], squares[1:].mean(0)
        ratio = float((own.mean() / others.mean()).sqrt())
        draws = torch.randint(len(own), (2000, len(own)), generator=torch.Generator().manual_seed(0))
        spread = (own[draws].mean(1) / others[draws].mean(1)).sqrt().quantile(torch.tensor([0.025, 0.975]))
        low, high = spread.tolist()
        trained, random = (float(x.mean().sqrt()) for x in (own, others))
        found.append(Ratio(quantity, rendering, split, len(own), trained, random, ratio, low, high))
    return found


def _read(x: Float[Tensor, "n d"], y: Float[Tensor, " n"], wanted: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    """Fit PCA and ridge on (x, y), return what they say of `wanted`."""
    centre = x.mean(0)
    u, s, v = torch.linalg.svd(x - centre, full_matrices=False)
    k = min(DIMENSIONS, len(x) // 2)
    scale = s[:k].clamp_min(1e-6) / len(x) ** 0.5
    z, zw = u[:, :k] * len(x) ** 0.5, (wanted - centre) @ v[:k].T / scale
    cut = len(x) - len(x) // 5
    held = [float((_ridge(z[:cut], y[:cut], a, z[cut:]) - y[cut:]).square().mean()) for a in STRENGTHS]
    return _ridge(z, y, STRENGTHS[int(np.argmin(held))], zw)


def _ridge(
    x: Float[Tensor, "n k"], y: Float[Tensor, " n"], strength: float, wanted: Float[Tensor, "m k"]
) -> Float[Tensor, " m"]:
    mean = y.mean()
    gram = x.T @ x + strength * torch.eye(x.shape[1])
    return mean + wanted @ torch.linalg.solve(gram, x.T @ (y - mean))


def _random(weights: str | Path, seed: int) -> VJEPA2Encoder:
    """A network of the same size at random weights, spread as in the tests so that cells differ."""
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config.from_pretrained(str(weights))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config.initializer_range = 1 / config.hidden_size**0.5  # keeps the size of what passes through a layer
        model: Any = VJEPA2Model(config)
    return VJEPA2Encoder(model.encoder, id=f"random-{seed}")


def _mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else float("nan")
