"""What `pila check` looks at before hours go into a run: backbone, records, clips, labels, round trip, identity, disk.

Nothing is written. Of a folder every record is read and a few clips are cut; of the simulated world a few clips are
made. Captions that a language model would label are asked about for those few alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import physworld
from backbones import WanBackbone, verify
from physexperts import MECHANISMS, Labels
from pila.config import Recipe
from pila.data import labels_of
from pila.train import fresh
from trainers import check, read_records, video
from trainers.check import Finding
from trainers.job import clips_of

__all__ = ["look"]


def look(recipe: Recipe, backbone: WanBackbone, cache: Path) -> list[Finding]:
    """Look at everything; ValueError for what leaves nothing to look at (no records, an illegal size)."""
    d = recipe.data
    shape = backbone.spec.latent.shape(d.frames, d.height, d.width)
    times = [round(t, 3) for t in backbone.spec.time.latent_times(d.frames).tolist()]
    found = [
        Finding("backbone", f"{backbone.id} ({backbone.digest})"),
        Finding("latent", f"{shape}, at {times}"),
    ]
    found += _world(recipe, backbone) if d.source == "world" else _files(recipe, backbone)
    found.append(_identity(recipe, backbone))
    values = shape[1] * shape[2] * shape[3]
    each = 4 * (values * (shape[0] + 2) + backbone.spec.text_length * backbone.spec.text_dim)
    return [*found, check.disk(cache, clips_of(recipe.data) * each)]


def _world(recipe: Recipe, backbone: WanBackbone) -> list[Finding]:
    d = recipe.data
    few = min(d.clips, check.FEW)
    clips = [
        c.draw() for c in physworld.spread(few, split=d.split, scale=physworld.scale_of(d.frames, d.height, d.width))
    ]
    frames = np.stack([c.video for c in clips])
    return [
        Finding("records", f"{d.clips} clips of the simulated world ({d.split}), {len(clips)} made to look at"),
        _labels([Labels.of(c.labels) for c in clips]),
        *_round_trip(frames, backbone, recipe),
    ]


def _files(recipe: Recipe, backbone: WanBackbone) -> list[Finding]:
    d = recipe.data
    records, skipped = read_records(d.source, root=d.root)
    few = check.few(records)
    found = [check.read(len(records), "found", skipped)]
    asked = few if d.fallback == "llm" else records
    labels = [labels_of(r, recipe) for r in asked]
    if unknown := sorted({name for found_ in labels for name in found_.unknown}):
        found.append(Finding("categories", f"unknown and dropped: {', '.join(unknown)}", "warn"))
    found.append(_labels(labels))
    given = zip(asked, labels, strict=True)
    found.append(check.by_clip([(r.id, one.mechanisms, one.source or "annotation") for r, one in given]))
    spec, paths = video.ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width), [r.path for r in few]
    cuts = check.cut(paths, spec)
    found += [*check.lengths(cuts), *check.rates(paths, spec)]
    if uneven := sum(c.jitter > video.JITTER_LIMIT for c in cuts):
        why = "the residuals of a batch share one grid in time"
        found.append(Finding("uneven clips", f"the cache leaves them out, {uneven} of those looked at: {why}", "warn"))
    frames = [c.frames for c in cuts if c.frames is not None]
    return found + (_round_trip(np.stack(frames), backbone, recipe) if frames else [])


def _labels(labels: Sequence[Labels]) -> Finding:
    counts = torch.stack([one.multi_hot for one in labels]).sum(0)
    return check.coverage({m: int(n) for m, n in zip(MECHANISMS, counts.tolist(), strict=True)}, len(labels))


def _round_trip(frames: np.ndarray, backbone: WanBackbone, recipe: Recipe) -> list[Finding]:
    how: dict[str, Any] = {"batch": recipe.data.encode_batch, "device": recipe.device}
    latent = backbone.spec.latent
    return check.round_trip(backbone.encode, backbone.decode, frames, mean=latent.mean, std=latent.std, **how)


def _identity(recipe: Recipe, backbone: WanBackbone) -> Finding:
    adapter = fresh(recipe, backbone)
    same = verify.unchanged(backbone, adapter, verify.Probe.of(recipe.data, steps=1, mode=recipe.sampling.mode))
    return check.identity(same, "adapter", sum(p.numel() for p in adapter.parameters()))
