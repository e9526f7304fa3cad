"""What `prophy check` looks at before hours go into a run: backbone, clips, labels, round trip, teacher, identity.

Nothing is written. Of a folder every record is read and a few clips are cut; of the simulated world a few are drawn.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones import verify
from prophy.adapter import count
from prophy.config import Recipe
from prophy.data import teacher_of, token_grid
from prophy.labels import names, vector
from prophy.plan import artefacts
from prophy.sources import Clip, Refused, clips_of, spec_of
from prophy.train import fresh, kind_of
from trainers import check, video
from trainers.check import Finding

__all__ = ["look"]


def look(recipe: Recipe, backbone: Any, cache: Path) -> list[Finding]:
    """Look at everything; ValueError for what leaves nothing to look at (no records, an illegal size)."""
    d, source = recipe.data, clips_of(recipe)
    grid, times = token_grid(recipe, backbone)
    adapter = fresh(recipe, backbone)
    parts = ", ".join(f"{name} {count(group):,}" for name, group in adapter.groups().items())
    found = [
        Finding("backbone", f"{backbone.id} ({backbone.digest})"),
        Finding("latent", str(backbone.spec.latent.shape(d.frames, d.height, d.width))),
        Finding("token grid (t, y, x)", f"{grid}, at {[round(t, 3) for t in times.tolist()]} s"),
        Finding("trains", f"{kind_of(recipe)}: {parts}"),
    ]
    if getattr(adapter, "physical", None) is not None:
        found.append(Finding("physical blocks beside", str(adapter.physical.places)))
    found.append(check.read(len(source.clips), f"of {d.source}", source.skipped, source.notes))
    found.append(_labels(recipe, source.clips))
    if d.source != "world":
        found.append(_by_clip(recipe, source.clips))
    found += _pixels(recipe, backbone, source.clips)
    try:
        found.append(Finding("token targets", teacher_of(recipe)[0]))
    except ValueError as error:
        found.append(Finding("token targets", str(error), "error"))
    found.append(_identity(recipe, backbone, adapter))
    return [
        *found,
        check.disk(cache, sum(a.bytes_each * a.items for a in artefacts(recipe, backbone, len(source.clips)))),
    ]


def _labels(recipe: Recipe, clips: list[Clip]) -> Finding:
    counts = torch.stack([vector(clip.labels, recipe.data.vocabulary) for clip in clips]).sum(0)
    known = names(recipe.data.vocabulary)
    return check.coverage({name: int(n) for name, n in zip(known, counts.tolist(), strict=True)}, len(clips))


def _by_clip(recipe: Recipe, clips: list[Clip]) -> Finding:
    known = names(recipe.data.vocabulary)
    rows = []
    for clip in clips:
        marks = vector(clip.labels, recipe.data.vocabulary).tolist()
        said = [name for name, there in zip(known, marks, strict=True) if there]
        rows.append((clip.id, said, clip.labels.source or "annotation"))
    return check.by_clip(rows)


def _pixels(recipe: Recipe, backbone: Any, clips: list[Clip]) -> list[Finding]:
    cuts = [_cut(clip) for clip in check.few(clips)]
    frames = [cut.frames for cut in cuts if cut.frames is not None]
    found = check.lengths(cuts)
    if recipe.data.source != "world":
        found += check.rates([Path(str(clip.item.media)) for clip in check.few(clips)], spec_of(recipe))
    if not frames:
        return found
    how: dict[str, Any] = {"batch": recipe.data.encode_batch, "device": recipe.device}
    latent, films = backbone.spec.latent, np.stack(frames)
    return found + check.round_trip(backbone.encode, backbone.decode, films, mean=latent.mean, std=latent.std, **how)


def _cut(clip: Clip) -> check.Cut:
    try:
        loaded = clip.item.load()
    except (ValueError, OSError, Refused) as error:
        return check.Cut(clip.id, why=str(error))
    return check.Cut(clip.id, loaded.frames, video.jitter(loaded.times_s))


def _identity(recipe: Recipe, backbone: Any, adapter: Any) -> Finding:
    same = verify.unchanged(backbone, adapter, verify.Probe.of(recipe.data, steps=1))
    return check.identity(same, "adapter", count(adapter))
