"""PhyWorld: do balls that a model draws keep their speed, fall, and share momentum when they meet?

The world is 10 x 10 units, seen as a square picture of red and blue balls on white, a frame each .1 s, origin below on
the left. A model is given four frames. Balls are found by colour, and where a ball should be is known.

What surprises: a ball that vanished is officially put at the far edge (x = 10, the left one of two at 0) with the last
height and radius; that is what the errors say here, too, and `vanished` is the share of frames in which it happened.
Centres are means of pixel indices, half a pixel below the picture's own coordinates.

References: "How far is video generation from world model" (Kang et al., 2024), its id_ood_data/evaluate.py; the authors
say that the published code may deviate from theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, UInt8

from bench import means, results
from trainers import show, video
from trainers.data import Skipped

__all__ = ["Balls", "Task", "Truth", "evaluate", "find_balls", "group_of", "score", "truth_of"]

Task = Literal["uniform", "parabola", "collision"]
Part = Literal["rollout", "truth", "reconstruction", "whole"]
WORLD = 10.0  # units across the picture
DT_S = 0.1
GIVEN = 4  # frames that the model was shown; the last of them is the first that counts
IMPACT = 0.1  # units/s: a larger change of a true velocity within a frame is the collision
STEADY = 5  # first frames over which a collision's radii are compared
SPEEDS = (1.0, 4.0)  # that were trained on
RADII = {"uniform": (0.7, 1.4), "parabola": (0.7, 1.4), "collision": (0.5, 1.5)}  # likewise
LEAST_RADIUS = {"uniform": 0.6, "parabola": 0.6, "collision": 0.5}
"""Smaller balls are left out officially: they vanish in the picture's own coding."""

Film = UInt8[np.ndarray, "t h w 3"]


@dataclass(frozen=True)
class Truth:
    """Where balls should be, (t, balls, 2) as (x, y) with y up, and how they began: radius and speed of each (the
    second ball of a collision moves left), and its colour (0 red, 1 blue)."""

    position: Float[np.ndarray, "t n 2"]
    radius: Float[np.ndarray, " n"]
    speed: Float[np.ndarray, " n"]
    colour: tuple[int, ...]


@dataclass(frozen=True)
class Balls:
    """What was found: centres (x, y) and radii in units of the world, and in which frames. NaN where unseen."""

    position: Float[np.ndarray, "t n 2"]
    radius: Float[np.ndarray, "t n"]
    seen: Bool[np.ndarray, "t n"]


def find_balls(frames: Film, colours: Sequence[int]) -> Balls:
    """Find one ball of each colour: the mean of its pixels, and the radius of a disk of their number.

    Red: R > 127, G < 127, B < 127; blue likewise. Frames as they are shown; y is turned to point up.

    >>> picture = np.full((1, 20, 20, 3), 255, np.uint8)
    >>> picture[0, 4:6, 9:11] = (255, 0, 0)
    >>> find_balls(picture, [0]).position.tolist()
    [[[4.75, 7.25]]]
    """
    high, low = frames > 127, frames < 127
    ones = {0: high[..., 0] & low[..., 1] & low[..., 2], 1: low[..., 0] & low[..., 1] & high[..., 2]}
    masks = np.stack([ones[colour] for colour in colours], 1)[:, :, ::-1]
    unit = WORLD / frames.shape[2]
    area = masks.sum((2, 3))
    seen = area > 0
    rows, columns = np.arange(masks.shape[2]), np.arange(masks.shape[3])
    with np.errstate(invalid="ignore"):
        x = (masks.sum(2) * columns).sum(-1) / area
        y = (masks.sum(3) * rows).sum(-1) / area
    radius = np.where(seen, np.sqrt(area / np.pi) * unit, np.nan)
    return Balls(np.stack([x, y], -1) * unit, radius, seen)


def truth_of(path: Path, task: Task, frames: int) -> Truth:
    """Read where balls should be: an npz with `position` (t, 2) or (t, balls, 2) and `init`, as the authors' hdf5 files
    have them: (radius, speed[, colour]), or (radius, radius, speed, speed) of a collision.

    One position more than there are frames is left out, as officially.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            position, init = np.asarray(held["position"], float), np.asarray(held["init"], float).ravel()
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"expected an npz with position and init at {path}, got {error}") from None
    balls = 2 if task == "collision" else 1
    position = position.reshape(len(position), -1, 2) if position.ndim in (2, 3) else position
    if position.ndim != 3 or position.shape[1] != balls or len(init) < 2 * balls:
        raise ValueError(
            f"expected position (t, {balls}, 2) and {2 * balls} numbers in init of {path}, got {position.shape} and "
            f"{len(init)}"
        )
    if len(position) not in (frames, frames + 1):
        raise ValueError(f"expected {frames} positions in {path}, one for each frame, got {len(position)}")
    colour = (0, 1) if balls == 2 else (int(init[2]) if len(init) > 2 else 0,)
    return Truth(position[:frames], init[:balls], init[balls : 2 * balls], colour)


def score(frames: Film, truth: Truth, task: Task) -> dict[str, float]:
    """Compare what a film shows with where the balls should be, from the last given frame on, in frames in which the
    true balls are wholly inside.

    uniform, parabola: vel_error = |mean(v_x) - v_init| with v = diff(x) / .1 s; means of |x - x_true|, |y - y_true| and
    of the velocities' errors; delta_r = max r - min r. collision: errors before and after the true impact, which is
    left out; momentum sum(m v) and energy sum(m v^2 / 2) with m = r^2 against their initial values. Units of the world
    and seconds.

    ValueError where fewer than two frames count.
    """
    if frames.shape[1] != frames.shape[2]:
        raise ValueError(f"expected square frames, got {frames.shape[2]} x {frames.shape[1]}: which part is it?")
    counted = _inside(truth, task)
    if len(counted) < 2:
        raise ValueError(f"expected two frames with the whole ball after the {GIVEN} given ones, got {len(counted)}")
    found = find_balls(frames[counted], truth.colour)
    position, radius = _filled(found)
    true = truth.position[counted]
    shared = {"vanished": float(1 - found.seen.all(1).mean())}
    if task == "collision":
        return shared | _collision(position[..., 0], radius, true[..., 0], truth)
    error = np.abs(position - true)[:, 0]
    velocity, true_velocity = (np.diff(at, axis=0)[:, 0] / DT_S for at in (position, true))
    return shared | {
        "vel_error": float(abs(velocity[:, 0].mean() - truth.speed[0])),
        "abs_x_err_avg": float(error[:, 0].mean()),
        "abs_y_err_avg": float(error[:, 1].mean()),
        "delta_r": _spread(radius),
        "abs_x_vel_err_avg": float(np.abs(velocity - true_velocity)[:, 0].mean()),
        "abs_y_vel_err_avg": float(np.abs(velocity - true_velocity)[:, 1].mean()),
    }


def group_of(truth: Truth, task: Task) -> str:
    """Say whether radius and speed were trained on: "in", "radius out", "speed out", "both out", "at rest"; "" for a
    ball that is officially left out as too small."""
    (low_r, high_r), (low_v, high_v) = RADII[task], SPEEDS
    small = truth.radius <= LEAST_RADIUS[task] if task == "collision" else truth.radius < LEAST_RADIUS[task]
    if small.any():
        return ""
    if (truth.speed == 0).any():
        return "at rest"
    size = bool(((low_r <= truth.radius) & (truth.radius <= high_r)).all())
    pace = bool(((low_v <= truth.speed) & (truth.speed <= high_v)).all())
    return {(True, True): "in", (False, True): "radius out", (True, False): "speed out"}.get((size, pace), "both out")


def evaluate(
    videos: Path, truths: Path, task: Task, *, part: Part = "rollout", name: str = "model", quiet: bool = False
) -> tuple[results.Result, list[Skipped]]:
    """Score every `NAME.mp4` of a folder against `NAME.npz` of another; what cannot be scored is listed.

    `part`: which third of a side-by-side file (truth | reconstruction | rollout) shows the model's future, or "whole".
    """
    if part not in get_args(Part):
        raise ValueError(f"expected one of {', '.join(get_args(Part))}, got {part!r}")
    if task not in get_args(Task):
        raise ValueError(f"expected one of {', '.join(get_args(Task))}, got {task!r}")
    paths = sorted(videos.glob("*.mp4")) if videos.is_dir() else []
    if not paths:
        raise ValueError(f"expected a folder of mp4 files, got {videos}")
    items: list[results.Item] = []
    skipped: list[Skipped] = []
    for path in show.track(paths, "phyworld", quiet=quiet):
        try:
            frames = _part(video.read(path).frames, part, path)
            truth = truth_of(truths / f"{path.stem}.npz", task, len(frames))
            group = group_of(truth, task)
            if not group:
                skipped.append(Skipped(path.name, f"radius {truth.radius.min():g}: too small, officially left out"))
                continue
            details = {"radius": truth.radius.tolist(), "speed": truth.speed.tolist()}
            values: dict[str, float | None] = {**score(frames, truth, task)}
            items.append(results.Item(id=path.stem, group=group, values=values, details=details))
        except ValueError as error:
            skipped.append(Skipped(path.name, str(error)))
    if not items:
        raise ValueError(f"nothing in {videos} can be scored ({skipped[0].path}: {skipped[0].why})")
    units = {key: "share" if key == "vanished" else _unit(key) for key in items[0].values}
    metrics, groups = means.grouped(items, units)
    out = [item for item in items if item.group != "in"]
    if out:
        groups["out"] = means.grouped(out, units)[0]
    return (
        results.Result(
            benchmark="phyworld",
            title=f"PhyWorld, {task}",
            prompt_set=results.PromptSet(
                name=f"phyworld {task}", count=len(paths), digest=results.digest([path.stem for path in paths])
            ),
            rater=results.Rater(name="phyworld", kind="formula", settings={"task": task, "part": part}),
            systems=(results.System(name=name, metrics=metrics, groups=groups, items=tuple(items)),),
            versions=results.versions(),
            notes=tuple(f"left out: {one.path}: {one.why}" for one in skipped),
        ),
        skipped,
    )


def _inside(truth: Truth, task: Task) -> np.ndarray:
    """Indices of frames that count. Officially a collision asks only the outer edges of its two balls."""
    x, y = truth.position[..., 0], truth.position[..., 1]
    r = truth.radius
    if task == "collision":
        inside = (x[:, 0] - r[0] >= 0) & (x[:, 1] + r[1] <= WORLD)
    else:
        inside = ((x - r >= 0) & (x + r <= WORLD) & (y - r >= 0) & (y + r <= WORLD)).all(1)
    return np.flatnonzero(inside & (np.arange(len(x)) >= GIVEN - 1))


def _filled(found: Balls) -> tuple[np.ndarray, np.ndarray]:
    """Positions and radii with the official stand-in for a vanished ball."""
    position, radius = found.position.copy(), found.radius.copy()
    edge = np.full(position.shape[1], WORLD)
    if len(edge) == 2:
        edge[0] = 0.0
    for t, ball in np.argwhere(~found.seen):
        position[t, ball] = (edge[ball], position[t - 1, 0, 1] if t else np.nan)
        radius[t, ball] = radius[t - 1, ball] if t else np.nan
    return position, radius


def _collision(x: np.ndarray, radius: np.ndarray, true: np.ndarray, truth: Truth) -> dict[str, float]:
    v, true_v = np.diff(x, axis=0) / DT_S, np.diff(true, axis=0) / DT_S
    jumps = np.flatnonzero((np.abs(np.diff(true_v, axis=0)) > IMPACT).any(1)) + 1
    impact = int(jumps[0]) if len(jumps) else len(true_v) - 1
    mass, began = truth.radius**2, truth.speed * np.array([1.0, -1.0])
    momentum = np.abs((mass * v).sum(1) - (mass * began).sum())
    energy = np.abs((mass * v**2).sum(1) / 2 - (mass * began**2).sum() / 2)
    found = {"delta_r": max(_spread(radius[:STEADY, 0]), _spread(radius[:STEADY, 1]))}
    for when, steps, places in (
        ("pre", slice(None, impact), slice(None, impact + 1)),
        ("post", slice(impact + 1, None), slice(impact + 1, None)),
    ):
        mean_v = [_mean(v[steps, ball]) - _mean(true_v[steps, ball]) for ball in (0, 1)]
        found |= {
            f"{when}_vel_error": float(np.mean(np.abs(mean_v))),
            f"{when}_x_err_avg": _mean(np.abs(x - true)[places]),
            f"{when}_vel_err_avg": _mean(np.abs(v - true_v)[steps]),
            f"{when}_momentum_error_avg": _mean(momentum[steps]),
            f"{when}_energy_error_avg": _mean(energy[steps]),
        }
    return found


def _mean(values: np.ndarray) -> float:
    """NaN of nothing: the impact may be the last thing that is seen."""
    return float(values.mean()) if values.size else float("nan")


def _spread(radius: np.ndarray) -> float:
    known = radius[np.isfinite(radius)]
    return float(known.max() - known.min()) if known.size else float("nan")


def _part(frames: Film, part: Part, path: Path) -> UInt8[np.ndarray, "t h _ 3"]:
    if part == "whole":
        return frames
    width = frames.shape[2] // 3
    if frames.shape[2] != 3 * frames.shape[1]:
        raise ValueError(
            f"expected truth, reconstruction and rollout side by side in {path.name}, got {frames.shape[2]} x "
            f"{frames.shape[1]}: --part whole for a film of its own"
        )
    first = {"truth": 0, "reconstruction": 1, "rollout": 2}[part] * width
    return frames[:, :, first : first + width]


def _unit(key: str) -> str:
    if "energy" in key:
        return "units^4/s^2"
    if "momentum" in key:
        return "units^3/s"
    return "units/s" if "vel" in key else "units"
