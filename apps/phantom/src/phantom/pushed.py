"""Clips with a known force: balls of the simulated world, thrown by what is then called the push, or a data set's own.

A thrown ball was pushed at its start, along its first velocity; the strength is its speed, scaled to [0, 1] over
`SPEEDS`. What the push decides is left out of the caption, or nobody would have to listen to it. How well a push is
followed is read from the pixels: the angle between the wanted and the shown direction, and the rank correlation of
strength and shown speed, on clips in which one ball stays whole.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

import physworld
from phantom.config import Recipe
from phantom.force import Point, Wind, read_forces
from physworld.rigid_body import GRAVITY
from physworld.track import Track, follow
from trainers import ClipSpec, cache_job, video
from trainers.data import Skipped

__all__ = ["MECHANISM", "Ball", "Followed", "caption_of", "followed", "force_of", "pushed_items", "speed_rank"]

MECHANISM = "rigid_body"
SPEEDS = (0.7, 2.2)
"""Speeds in px/frame that strengths 0 and 1 stand for: the range of thrown balls, our choice."""


def force_of(seed: int, *, split: str = "train") -> Point:
    """The push of a thrown ball."""
    p = physworld.parameters(MECHANISM, seed, split=split)
    (vy, vx), (y, x) = p["speed"], p["start"]
    strength = (math.hypot(vy, vx) - SPEEDS[0]) / (SPEEDS[1] - SPEEDS[0])
    inside = [min(max(float(at) / physworld.SIZE, 0.0), 1.0) for at in (x, y)]
    return Point(inside[0], 1 - inside[1], math.degrees(math.atan2(-vy, vx)), min(max(strength, 0.0), 1.0))


def caption_of(seed: int, *, split: str = "train") -> str:
    """The caption of a thrown ball without its direction, which is for the push to say, and with its gravity, which is
    not; a gravity out of distribution has no name.

    >>> caption_of(0)
    'a large purple ball is thrown under weak gravity'
    >>> caption_of(0, split="ood").endswith("ball is thrown")
    True
    """
    p = physworld.parameters(MECHANISM, seed, split=split)
    levels = [f" under {name} gravity" for name, (low, high) in GRAVITY.items() if low <= p["g"] <= high]
    return f"a {p['size']} {p['colour']} ball is thrown" + "".join(levels)


def pushed_items(recipe: Recipe, skipped: list[Skipped]) -> Iterator[tuple[cache_job.Item, Point | Wind]]:
    """Clips of the force stage with their forces: thrown balls, or the rows of `force.table`."""
    f, d = recipe.force, recipe.data
    if f.table is not None:
        table = Path(f.table)
        rows, notes = read_forces(table, Path(d.root) if d.root else None)
        skipped += [Skipped(table.name, note) for note in notes]
        if others := {type(row.force).__name__.lower() for row in rows} - {f.kind}:
            raise ValueError(
                f"expected {f.kind} forces in {table}, got {others.pop()}: set force.kind to what it holds"
            )
        spec = ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width)
        for row in rows:
            load = partial(video.load, row.path, spec)
            yield cache_job.Item(row.path.name, row.path, load, spec, {"caption": row.caption}), row.force
        return
    if f.kind == "wind":
        raise ValueError("expected a table of wind forces (force.table=FILE.csv): nothing blows in the simulated world")
    from phantom.data import world_item

    scale = physworld.scale_of(d.frames, d.height, d.width)
    for seed in range(f.clips):
        clip = physworld.Planned(MECHANISM, seed, d.split, scale)
        said = {"caption": caption_of(seed, split=d.split)}
        yield replace(world_item(recipe, clip), noted=said), force_of(seed, split=d.split)


@dataclass(frozen=True)
class Ball:
    """What a whole ball showed: its direction's error in degrees, the strength that was wanted, its speed in
    px/frame.
    """

    angle_error: float
    strength: float
    speed: float


@dataclass(frozen=True)
class Followed:
    """How pushes were followed: on `n` clips of `of` one ball stayed whole; `permanence` is the mean share of frames
    with exactly one ball, over all clips; `angle_error` is the median in degrees, `speed_rank` the rank correlation
    (Spearman) of strength and shown speed (NaN where no clip, or no spread, is left to tell). `balls` are the clips one
    by one, None where the ball did not stay whole.
    """

    n: int
    of: int
    permanence: float
    angle_error: float
    speed_rank: float
    balls: tuple[Ball | None, ...] = ()


def followed(
    videos: Sequence[UInt8[np.ndarray, "t h w 3"]],
    forces: Sequence[Point],
    colours: Sequence[str],
    *,
    least: float = 0.8,
) -> Followed:
    """Measure pushes on videos of one ball each; clips whose ball is whole in less than `least` of the frames are left
    out and counted.
    """
    balls: list[Ball | None] = []
    whole: list[float] = []
    for film, force, colour in zip(videos, forces, colours, strict=True):
        (track,), _ = follow(film, [colour], film.shape[1] // physworld.SIZE)
        whole.append(track.perm)
        if track.perm < least or not track.fits:
            balls.append(None)
            continue
        vy, vx = _first_velocity(track)
        turn = math.degrees(math.atan2(-vy, vx)) - force.angle
        balls.append(Ball(abs((turn + 180) % 360 - 180), force.strength, math.hypot(vy, vx)))
    kept = [ball for ball in balls if ball is not None]
    return Followed(
        n=len(kept),
        of=len(videos),
        permanence=float(np.mean(whole)),
        angle_error=float(np.median([ball.angle_error for ball in kept])) if kept else math.nan,
        speed_rank=speed_rank(kept),
        balls=tuple(balls),
    )


def speed_rank(balls: Sequence[Ball]) -> float:
    """Rank correlation (Spearman) of wanted strength and shown speed; NaN where there is nothing to tell."""
    return _spearman(np.array([ball.strength for ball in balls]), np.array([ball.speed for ball in balls]))


def _first_velocity(track: Track) -> tuple[float, float]:
    """The velocity at the start from a parabola through the track, px/frame."""
    t = np.flatnonzero(track.seen).astype(float)
    y, x = (np.polynomial.polynomial.polyfit(t, track.position[track.seen][:, axis], 2) for axis in (0, 1))
    return float(y[1]), float(x[1])


def _spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    if len(a) < 3 or not np.ptp(a) or not np.ptp(b):
        return math.nan
    first, second = ((np.searchsorted(np.sort(v), v) + np.searchsorted(np.sort(v), v, "right")) / 2 for v in (a, b))
    return float(np.corrcoef(first, second)[0, 1])
