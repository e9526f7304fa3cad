"""What `mmphysvideo check` looks at before hours go into a run; nothing is written."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

import physworld
from backbones import Text, blocks_of
from mmphysvideo.config import Recipe
from mmphysvideo.data import records_of
from mmphysvideo.plan import artefacts, token_grid
from mmphysvideo.pseudo_world import of_clip
from mmphysvideo.relations import pooled
from mmphysvideo.streams import levels
from mmphysvideo.teacher import Teacher
from mmphysvideo.train import learner
from trainers import check, video
from trainers.check import Finding

__all__ = ["look"]

EQUAL = 1e-5
"""Largest relative difference of a fresh teacher from two separate runs of the base: a product of another batch size
rounds differently."""


def look(recipe: Recipe, backbone: Any, cache: Path) -> list[Finding]:
    """Look at everything."""
    d = recipe.data
    shape = backbone.spec.latent.shape(d.frames, d.height, d.width)
    found = [Finding("backbone", f"{backbone.id} ({backbone.digest})"), Finding("latent", f"{shape}")]
    perceived = np.zeros((0, d.frames, d.height, d.width, 3), np.uint8)
    if d.source == "world":
        each = max(1, check.FEW // len(physworld.MECHANISMS))
        scale = physworld.scale_of(d.frames, d.height, d.width)
        clips = [
            c for m in physworld.MECHANISMS for c in physworld.simulate_many(m, range(each), split=d.split, scale=scale)
        ]
        frames = np.stack([c.video for c in clips])
        perceived = np.stack([of_clip(c, d.modality).frames for c in clips])
        found.append(Finding("records", f"{d.clips} clips of the simulated world ({d.split})"))
        count = d.clips
    else:
        records, skipped = records_of(recipe)
        found.append(check.read(len(records), "found", skipped))
        without = sum("perception" not in r.extra for r in records)
        if without:
            level = "error" if without == len(records) else "warn"
            said = f"{without} of {len(records)} clips have none: make it with `mmphysvideo pipe`"
            found.append(Finding("perception", said, level))
        spec = video.ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width)
        paths = [r.path for r in check.few(records)]
        cuts = check.cut(paths, spec)
        found += [*check.lengths(cuts), *check.rates(paths, spec)]
        whole = [c.frames for c in cuts if c.frames is not None]
        frames, count = np.stack(whole) if whole else perceived, len(records)
    latent = backbone.spec.latent
    how: dict[str, Any] = {"mean": latent.mean, "std": latent.std, "batch": d.encode_batch, "device": recipe.device}
    for name, films in (("video", frames), (f"perception ({d.modality})", perceived)):
        if len(films):
            seen = check.round_trip(backbone.encode, backbone.decode, films, **how)
            found += [Finding(f"{name}: {f.what}", f.said, f.level) for f in seen[: 2 if name == "video" else 1]]
    found += [_cells(recipe, backbone), identity(recipe, backbone)]
    return [
        *found,
        check.disk(cache, sum(a.bytes_each * a.items for a in artefacts(recipe, backbone, "teacher", count))),
    ]


@torch.no_grad()
def identity(recipe: Recipe, backbone: Any) -> Finding:
    """A fresh teacher is the base: bit for bit on the same two rows, and within rounding of two separate runs."""
    d = recipe.data
    shape = backbone.spec.latent.shape(d.frames, d.height, d.width)
    g = torch.Generator().manual_seed(0)
    x, q = (torch.randn(1, *shape, generator=g).to(backbone.device) for _ in range(2))
    sigma = levels(recipe, backbone, 1, g).to(x.device)
    text: Text = backbone.embed(["a ball"])
    teacher = learner(recipe, backbone, "teacher")
    assert isinstance(teacher, Teacher)
    said = torch.cat(teacher.velocities(x, q, sigma, text.features))
    twice = Text(torch.cat([text.features] * 2), torch.cat([text.mask] * 2))
    whole = backbone.predict(torch.cat([x, q]), torch.cat([sigma] * 2), twice)
    apart = torch.cat([backbone.predict(row, sigma, text) for row in (x, q)])
    off = float((said - apart).abs().max() / apart.abs().max())
    exact = torch.equal(said, whole)
    said_ = f"a fresh teacher is the base{', bit for bit' if exact else ''}; within {off:.1e} of two separate runs"
    half = backbone.transformer.dtype != torch.float32
    fine = (exact or recipe.teacher.streams == "separate" or recipe.teacher.form == "channels") and (
        half or off <= EQUAL
    )
    return Finding("identity", said_, "ok" if fine else "error")


def _cells(recipe: Recipe, backbone: Any) -> Finding:
    a, (t, y, x) = recipe.student.align, token_grid(recipe, backbone)
    blocks = blocks_of(backbone.transformer).spec.n_blocks
    if a.source == "none":
        return Finding("alignment", "none: the control of equal steps")
    try:
        cells = pooled(torch.zeros(1, t * y * x, 1), (t, y, x), a.cells).shape[2:4]
    except ValueError as error:
        return Finding("alignment", str(error), "error")
    said = f"block {a.place} of {blocks} with {a.source}; {t} x {cells[0]} x {cells[1]} tokens after pooling"
    return Finding("alignment", said, "ok" if max(a.place, a.teacher_place) < blocks else "error")
