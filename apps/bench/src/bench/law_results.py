"""Laws and constancies of many clips, from tracks or from films, as one result.

A clip that has nothing to be measured (a body that vanishes or is there twice, no motion, too few frames) is discarded:
its figures are null, `discarded` is 1 and says how often that happened. A model that freezes its films is thereby not
praised for conserving everything.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bench import constancy, invariance, laws, means, results, tracks
from trainers import show, video
from trainers.data import Skipped
from trainers.records import VIDEOS

__all__ = ["Law", "of_films", "of_tracks"]

Law = Literal["fall", "bounce", "swing", "collision", "slide"]
EXPERIMENT: dict[str, invariance.Experiment] = {
    "fall": "ballistic",
    "bounce": "ballistic",
    "swing": "pendulum",
    "collision": "collision",
    "slide": "sliding",
}
STILL_PX = 0.1  # a frame: a film whose moving part goes no faster is still; our choice
UNITS = {"acceleration_px_s2": "px/s^2", "period_s": "s", "motion_px": "px/frame", "discarded": "share"}

Values = dict[str, float | None]
Colour = tuple[int, int, int]


def of_tracks(
    path: Path,
    law: Law,
    *,
    fps: float | int | None = None,
    pivot: tuple[float, float] | None = None,
    name: str = "model",
    quiet: bool = False,
) -> tuple[results.Result, list[Skipped]]:
    """Score a track file, or every npz and csv of a folder; `pivot` (y, x) px is where a pendulum hangs."""
    paths = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in (".npz", ".csv"))
    if not paths:
        raise ValueError(f"expected a track file or a folder of npz and csv files, got {path}")
    items: list[results.Item] = []
    skipped: list[Skipped] = []
    for file in show.track(paths, "laws", quiet=quiet):
        try:
            values, details = track_figures(tracks.read(file, fps=fps), law, pivot)
            items.append(results.Item(id=file.stem, values=values, details=details))
        except ValueError as error:
            skipped.append(Skipped(file.name, str(error)))
    return _result(items, skipped, paths, name, {"law": law, "from": "tracks"}), skipped


def of_films(
    folder: Path,
    law: Law | None = None,
    *,
    colours: Sequence[Colour] = (),
    pivot: tuple[float, float] | None = None,
    name: str = "model",
    quiet: bool = False,
) -> tuple[results.Result, list[Skipped]]:
    """Score every film of a folder: what it keeps, and with `colours` (one a body) and `law` how its bodies move."""
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in VIDEOS) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"expected a folder of films, got {folder}")
    if law is not None and len(colours) != (2 if law == "collision" else 1):
        raise ValueError(
            f"expected the colour of each body for the law {law!r} (two of a collision), got {len(colours)}"
        )
    items: list[results.Item] = []
    skipped: list[Skipped] = []
    for file in show.track(paths, "laws", quiet=quiet):
        try:
            film = video.read(file)
            values, details = film_figures(film.frames, colours)
            if law is not None:
                found = tracks.by_colour(film.frames, colours, fps=film.fps or 1.0)
                moving, told = track_figures(found, law, pivot)
                values, details = values | moving, details | told
            items.append(results.Item(id=file.stem, values=values, details=details))
        except ValueError as error:
            skipped.append(Skipped(file.name, str(error)))
    settings = {"law": law, "from": "films", "colours": [list(colour) for colour in colours]}
    return _result(items, skipped, paths, name, settings), skipped


def track_figures(
    found: tracks.Tracks, law: Law, pivot: tuple[float, float] | None = None
) -> tuple[Values, dict[str, Any]]:
    """Give the invariance scores and the law's own fit of one clip, and what else there is to say.

    `invariance` is Morpheus' (best window), `invariance_whole` the same rule on the whole clip, `pis_...` NewtonGen's.
    """
    if law not in get_args(Law):
        raise ValueError(f"expected one of {', '.join(get_args(Law))}, got {law!r}")
    bodies = 2 if law == "collision" else 1
    if found.position.shape[1] != bodies:
        raise ValueError(f"expected {bodies} bodies for the law {law!r}, got {found.position.shape[1]}")
    scored = invariance.score(found, EXPERIMENT[law], pivot)
    values: Values = {
        "invariance": scored.score,
        "invariance_whole": scored.strict,
        "vanished": found.vanished,
        "discarded": float(bool(scored.discarded)),
    }
    if scored.discarded:
        return values, {"discarded": scored.discarded}
    values |= {f"invariance_{quantity}": value for quantity, value in scored.best.items()}
    if law in ("fall", "bounce"):
        at = found.position[:, 0] / invariance.SCALE_PX["ballistic"]
        values["pis_velocity_x"] = invariance.pis(invariance.velocity(at[:, 1]))
    details: dict[str, Any] = {}
    try:
        values |= _fitted(found, law)
    except ValueError as error:
        details["not fitted"] = str(error)
    return values, details


def film_figures(frames: np.ndarray, colours: Sequence[Colour] = ()) -> tuple[Values, dict[str, Any]]:
    """Give what one film keeps: warp error, divergence of its flow, and of each colour amount, number and area.

    Null for a film that stands still, which would keep all of it.
    """
    flows = constancy.flow(frames)
    motion = constancy.motion_px(flows)
    names = ["warp_error", "divergence"]
    names += [key + _nth(n) for n in range(len(colours)) for key in ("amount_drift", "count_constant", "area_spread")]
    if motion < STILL_PX:
        details = {"discarded": "nothing moves"}
        return {"motion_px": motion, "discarded": 1.0} | dict.fromkeys(names), details
    values: Values = {"motion_px": motion, "discarded": 0.0, "warp_error": constancy.warp_error(frames, flows)}
    region = constancy.moving_region(flows)
    values["divergence"] = constancy.divergence(flows, region) if region.any() else None
    details = {}
    for n, colour in enumerate(colours):
        try:
            found = constancy.things(frames, colour)
            values["amount_drift" + _nth(n)] = constancy.drift(constancy.amount(frames, colour))
            values["count_constant" + _nth(n)] = found.constant
            values["area_spread" + _nth(n)] = found.area_spread
        except ValueError as error:
            details[f"colour {n + 1}"] = str(error)
    return values, details


def _fitted(found: tracks.Tracks, law: Law) -> Values:
    position, times = found.position, found.times_s
    match law:
        case "fall":
            fall = laws.free_fall(position[:, 0], times)
            return {"acceleration_px_s2": fall.acceleration, "fall_residual": fall.relative}
        case "bounce":
            bounced = laws.bounces(position[:, 0, 0], times)
            return {"restitution": bounced.mean, "restitution_spread": bounced.spread, "gains": float(bounced.gains)}
        case "swing":
            swung = laws.swing(position[:, 0], times)
            return {"period_s": swung.period_s, "period_spread": swung.spread, "reach": swung.reach}
        case "collision":
            met = laws.collision(position, times)
            return {
                "momentum_error": met.momentum_error,
                "energy_ratio": met.energy_ratio,
                "restitution": met.restitution,
            }
        case _:
            return {}


def _nth(n: int) -> str:
    return f"_{n + 1}" if n else ""


def _result(
    items: list[results.Item], skipped: list[Skipped], paths: Sequence[Path], name: str, settings: dict[str, Any]
) -> results.Result:
    if not items:
        raise ValueError(f"nothing can be scored ({skipped[0].path}: {skipped[0].why})")
    keys = dict.fromkeys(key for item in items for key in item.values)
    metrics, groups = means.grouped(items, {key: UNITS.get(key, "") for key in keys})
    return results.Result(
        benchmark="laws",
        title="Laws on tracks and films",
        prompt_set=results.PromptSet(
            name="your clips", count=len(paths), digest=results.digest([path.name for path in paths])
        ),
        rater=results.Rater(name="laws", kind="law", settings=settings),
        systems=(results.System(name=name, metrics=metrics, groups=groups, items=tuple(items)),),
        versions=results.versions("scipy", "opencv-python-headless"),
        notes=tuple(f"left out: {one.path}: {one.why}" for one in skipped),
    )
