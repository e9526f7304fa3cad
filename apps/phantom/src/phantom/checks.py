"""What `phantom check` looks at before hours go into a run: backbone, clips, round trip, grids, identity, resets, disk.

Nothing is written, except that expected resets of the recursive weight are read from the log of an earlier run.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

import physworld
from backbones import WanBackbone, verify
from phantom.config import Recipe
from phantom.latent import Basis, PhysicsLatent
from phantom.plan import artefacts
from phantom.train import fresh
from trainers import RecursiveRamp, check, expected_resets, read_records, video
from trainers.check import Finding

__all__ = ["look", "resets"]


def look(recipe: Recipe, backbone: WanBackbone, encoder: Any, cache: Path, run: Path | None = None) -> list[Finding]:
    """Look at everything; `run` is an earlier run whose log tells the norms of the physics gradient."""
    d = recipe.data
    shape = backbone.spec.latent.shape(d.frames, d.height, d.width)
    found = [Finding("backbone", f"{backbone.id} ({backbone.digest})"), Finding("latent", f"{shape}")]
    if d.source == "world":
        scale = physworld.scale_of(d.frames, d.height, d.width)
        frames = np.stack([clip.draw().video for clip in physworld.spread(check.FEW, split=d.split, scale=scale)])
        found.append(Finding("records", f"{d.clips} clips of the simulated world ({d.split})"))
        count = d.clips
    else:
        records, skipped = read_records(d.source, root=d.root)
        found.append(check.read(len(records), "found", skipped))
        spec = video.ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width)
        paths = [r.path for r in check.few(records)]
        cuts = check.cut(paths, spec)
        found += [*check.lengths(cuts), *check.rates(paths, spec)]
        whole = [c.frames for c in cuts if c.frames is not None]
        frames, count = (
            np.stack(whole) if whole else np.zeros((0, d.frames, d.height, d.width, 3), np.uint8),
            len(records),
        )
    if len(frames):
        latent = backbone.spec.latent
        how: dict[str, Any] = {"mean": latent.mean, "std": latent.std, "batch": d.encode_batch, "device": recipe.device}
        found += check.round_trip(backbone.encode, backbone.decode, frames, **how)
        found.append(_physics(recipe, encoder, frames, shape[1]))
    found += [_identity(recipe, backbone, encoder), resets(recipe, run)]
    return [*found, check.disk(cache, sum(a.bytes_each * a.items for a in artefacts(recipe, backbone, count)))]


def resets(recipe: Recipe, run: Path | None) -> Finding:
    """How many resets of the weight to expect in the time of a ramp, from the norms that an earlier run logged."""
    w = recipe.weight
    if w.end == 0 or w.fixed:
        return Finding("resets", "none: the weight of the physics loss does not move in this recipe")
    if run is None or not (run / "log.jsonl").is_file():
        return Finding("resets", "unknown before a run: give one with --run (its log has the norms)")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    norms = [line["recursive"]["physics"]["average"] for line in lines if "recursive" in line]
    ramp = RecursiveRamp(
        end=w.end, steps=w.ramp_steps, term="log/physics", group="branch", eta=w.threshold, factor=w.factor, window=1,
        measure_every=10,
    )  # fmt: skip
    try:
        return Finding("resets", f"{expected_resets([n for n in norms if n is not None], ramp):.2g} expected a ramp")
    except ValueError as error:
        return Finding("resets", str(error), "error" if "at most one reset" in str(error) else "warn")


def _physics(recipe: Recipe, encoder: Any, frames: np.ndarray, latents: int) -> Finding:
    if encoder is None:
        return Finding("physics latent", f"{recipe.physics.kind}: no encoder is asked")
    p = recipe.physics
    latent = PhysicsLatent(encoder, Basis(encoder.dim, 1), p.size, p.pool)
    features = latent.features(video.from_bytes(frames[:2]).to(recipe.device))
    said = f"{encoder.id}: {encoder.dim} features on {tuple(features.shape[1:4])}, of which {p.channels} are kept"
    fits = features.shape[1] == latents and p.channels <= encoder.dim
    return Finding("physics latent", said, "ok" if fits else "error")


def _identity(recipe: Recipe, backbone: WanBackbone, encoder: Any) -> Finding:
    dim = encoder.dim if encoder is not None else recipe.physics.channels
    adapter = fresh(recipe, backbone, Basis(dim, recipe.physics.channels), encoder)
    same = verify.unchanged(backbone, adapter, verify.Probe.of(recipe.data, steps=1))
    return check.identity(same, "branch", sum(p.numel() for p in adapter.branch.parameters()))
