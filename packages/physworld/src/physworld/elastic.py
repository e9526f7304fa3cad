"""Two elastic bodies, told apart by `scenario`: a lattice block that carries a true wave, and a mass on a spring.

`lattice`: a block fills the picture, clamped at its four edges, and is plucked: each component of the in-plane
displacement obeys d_tt = c^2 lap d exactly (a sum of clamped sine modes, each turning with cos(c k t)). It is seen
through 4 x 4 beads that ride on it. Stress is that of an isotropic solid of density 1 with mu = c^2 and lambda = -c^2,
for which div(stress) = d_tt. `spring`: a ball swings on a rod: d_tt = -w^2 d, which is NOT the wave equation. The
spring is drawn as a plain rod, since a coil lies below the pixel pitch. Fields are Lagrangian for the ball (moved from
frame 0) and, for the block, on its reference coordinates, which linear elasticity does not tell from the deformed ones.
Units px and frames, y DOWN.

Held out for OOD: yellow + left (plucked or swinging sideways: "left and right"), and stiffness between the levels,
unnamed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from scipy import optimize

from physworld import disk
from physworld.clip import FRAMES, SIZE
from physworld.pace import jolt, pace
from physworld.ramp import UNFIT
from physworld.track import FOREIGN, dominant, follow, outside

SCENARIOS = ("lattice", "spring")
BEADS = 4  # beads a side
MODES = 4  # sine modes a side that the block holds; the beads resolve exactly these
BEAD_RADIUS = 1.3
SPEED = {"soft": (1.2, 1.6), "stiff": (2.4, 3.2)}  # wave speed c, px/frame; our choice
HELD_OUT_SPEED = (1.8, 2.1)
PLUCK = (1.3, 1.9)  # greatest displacement at the start, px; our choice
PERIOD = {"stiff": (5.0, 7.0), "soft": (11.5, 15.5)}  # of the spring, frames; our choice
HELD_OUT_PERIOD = (8.2, 9.8)
SWING = (4.5, 7.0)  # amplitude of the ball, px; our choice
RADIUS = (3.2, 4.2)
ROD_HALF_WIDTH = 0.9
UNNAMED = 0.15  # share of captions that leave the stiffness out; our choice
LEAST_TREMBLE = 0.2  # motion of the most weakly plucked block: rms over beads and frames, px
RULE = {
    "low": (
        "uneven",
        "stutter",
        "jump",
        "law_rms_px",
        "worst_px",
        "jolt_px",
        "rate_relerr",
        "area_cv",
        "gone",
        "off_manifold",
    ),
    "flags": ("valid", "dir_ok"),
    "motion": "motion",
    "at_least": {"perm": 0.75},
    "tolerance": {"rate_relerr": 0.1, "uneven": 1.5, "stutter": 1.2, "jump": 1.0, "worst_px": 0.1, "jolt_px": 0.2},
}

_AXES = {"left": (1, -1.0), "right": (1, 1.0), "up": (0, -1.0), "down": (0, 1.0)}


def sample(rng: np.random.Generator, split: str) -> dict[str, Any]:
    """Parameters of a plucked block or of a swinging ball."""
    ood = ("combination", "range")[rng.integers(2)] if split == "ood" else None
    scenario = SCENARIOS[rng.integers(2)]
    directions = tuple(_AXES) if scenario == "lattice" else ("left", "up")  # "left and right", "up and down"
    if ood == "combination":
        colour, direction = "yellow", "left"
    else:
        while True:
            colour, direction = str(rng.choice(disk.NAMES)), str(rng.choice(directions))
            if (colour, direction) != ("yellow", "left"):
                break
    level = ("soft", "stiff")[rng.integers(2)]
    named = ood != "range" and rng.uniform() >= UNNAMED
    p: dict[str, Any] = {
        "scenario": scenario,
        "ood": ood,
        "colour": colour,
        "direction": direction,
        "stiffness": level if named else None,
    }
    if scenario == "lattice":
        c = rng.uniform(*(HELD_OUT_SPEED if ood == "range" else SPEED[level]))
        place = rng.uniform(0.3, 0.7, size=2) * SIZE
        width = rng.uniform(4.5, 6.5)
        return p | {"c": float(c), "modes": _pluck(place, width, rng.uniform(*PLUCK)), "place": place, "width": width}
    period = rng.uniform(*(HELD_OUT_PERIOD if ood == "range" else PERIOD[level]))
    radius = rng.uniform(*RADIUS)
    amplitude = rng.uniform(*SWING)
    rest = rng.uniform(15.5, SIZE - radius - amplitude - 0.5)
    return p | {
        "period": float(period),
        "w": float(2 * np.pi / period),
        "radius": float(radius),
        "amplitude": float(amplitude),
        "phase": float(rng.uniform(0, 2 * np.pi)),
        "rest": float(rest),
        "across": float(rng.uniform(10.0, 22.0)),
        "wall": ("low", "high")[rng.integers(2)],
    }


def _pluck(place: np.ndarray, width: float, height: float) -> np.ndarray:
    """Coefficients (i, j) of the sine modes of a Gaussian bump, scaled so that its peak is `height`."""
    axis = disk.pixel_centres(2).astype(float)
    k = np.arange(1, MODES + 1) * np.pi / SIZE
    waves = np.sin(k[:, None] * axis)
    y, x = (waves @ np.exp(-0.5 * ((axis - at) / width) ** 2) for at in place)
    modes = y[:, None] * x[None, :]
    shape = waves.T @ modes @ waves
    return modes * (height / np.abs(shape).max())


def _wavenumbers() -> np.ndarray:
    k = np.arange(1, MODES + 1) * np.pi / SIZE
    return np.sqrt(k[:, None] ** 2 + k[None, :] ** 2)


def simulate_batch(params: list[dict[str, Any]], scale: int) -> list[tuple[np.ndarray, dict, dict]]:
    """Draw each body.

    `lattice`: displacement, velocity, strain, stress and wave (the displacement along the pluck), valid everywhere.
    `spring`: displacement (from frame 0) and velocity inside the ball.
    """
    return [_lattice(p, scale) if p["scenario"] == "lattice" else _spring(p, scale) for p in params]


def _lattice(p: dict[str, Any], scale: int) -> tuple[np.ndarray, dict, dict]:
    component, sign = _AXES[p["direction"]]
    k = np.arange(1, MODES + 1) * np.pi / SIZE
    turn = p["c"] * _wavenumbers()
    t = np.arange(FRAMES)[:, None, None]
    modes = sign * p["modes"] * np.cos(turn * t)
    rates = -sign * p["modes"] * turn * np.sin(turn * t)

    rest = (np.arange(BEADS) + 1) * SIZE / (BEADS + 1)
    at_beads = np.sin(rest[:, None] * k)
    lift = at_beads @ modes @ at_beads.T
    grid = np.stack(np.meshgrid(rest, rest, indexing="ij"), -1)
    track = np.repeat(grid[None], FRAMES, 0)
    track[..., component] += lift
    track = track.reshape(FRAMES, -1, 2)
    cover = disk.disks(track, np.full(BEADS**2, BEAD_RADIUS), scale)
    video = disk.paint(cover, np.repeat(disk.rgb(p["colour"]), BEADS**2, 0))

    axis = disk.pixel_centres(scale)
    s, cosine = np.sin(axis[:, None] * k), np.cos(axis[:, None] * k) * k
    w = s @ modes @ s.T
    dy, dx = cosine @ modes @ s.T, s @ modes @ cosine.T
    zero = np.zeros_like(w)
    strain = np.stack([dy, zero, 0.5 * dx] if component == 0 else [zero, dx, 0.5 * dy], -1)
    trace = strain[..., :1] + strain[..., 1:2]
    mu = p["c"] ** 2
    stress = 2 * mu * strain - mu * trace * np.array([1.0, 1.0, 0.0])
    displacement = np.zeros((*w.shape, 2))
    displacement[..., component] = w
    velocity = np.zeros_like(displacement)
    velocity[..., component] = s @ rates @ s.T
    fields = {
        "displacement": displacement,
        "velocity": velocity,
        "strain": strain,
        "stress": stress,
        "wave": w[..., None],
    }
    fields = {name: value.astype(np.float16) for name, value in fields.items()}
    p["track"] = track
    return video, fields, {name: np.ones(w.shape, bool) for name in fields}


def _spring(p: dict[str, Any], scale: int) -> tuple[np.ndarray, dict, dict]:
    component = _AXES[p["direction"]][0]
    t = np.arange(FRAMES)
    swing = p["amplitude"] * np.cos(p["w"] * t + p["phase"])
    rate = -p["amplitude"] * p["w"] * np.sin(p["w"] * t + p["phase"])
    mirror = -1.0 if p["wall"] == "high" else 1.0  # the wall is at the near or at the far edge
    along = p["rest"] + swing if mirror > 0 else SIZE - p["rest"] - swing
    track = np.empty((FRAMES, 2))
    track[:, component], track[:, 1 - component] = along, p["across"]
    low, high = np.empty((FRAMES, 1, 2)), np.empty((FRAMES, 1, 2))
    low[:, 0, component] = -1.0 if mirror > 0 else along
    high[:, 0, component] = along if mirror > 0 else SIZE + 1.0
    low[:, 0, 1 - component], high[:, 0, 1 - component] = p["across"] - ROD_HALF_WIDTH, p["across"] + ROD_HALF_WIDTH
    ball = disk.disks(track[:, None], np.array([p["radius"]]), scale)
    rod = disk.boxes(low, high, scale)
    video = disk.paint(np.concatenate([rod, ball], 1), np.array([disk.ROD, disk.COLOURS[p["colour"]]]))
    velocity = np.zeros((FRAMES, 2))
    velocity[:, component] = mirror * rate
    fields, valid = {}, {}
    for slot, value in (("displacement", track - track[:1]), ("velocity", velocity)):
        fields[slot], valid[slot] = disk.body_fields(ball, value[:, None])
    p["track"] = track
    return video, fields, valid


def caption(params: dict[str, Any]) -> str:
    """`a soft sheet of red beads is plucked up` or `a blue ball on a stiff spring swings left and right`."""
    adjective = f"{params['stiffness']} " if params["stiffness"] else ""
    if params["scenario"] == "lattice":
        return f"a {adjective}sheet of {params['colour']} beads is plucked {params['direction']}"
    way = "left and right" if params["direction"] == "left" else "up and down"
    return f"a {params['colour']} ball on a {adjective}spring swings {way}"


def expect(words: list[str]) -> dict[str, Any]:
    """What the words fix: scenario, colour, direction and, where named, the range of c or of the period; {} if not
    elastic."""
    if "spring" in words:
        expected: dict[str, Any] = {"scenario": "spring", "direction": "up" if "up" in words else "left"}
        levels, parameter = PERIOD, "period"
    elif "sheet" in words:
        expected = {"scenario": "lattice"}
        named = [word for word in words if word in _AXES]
        if named:
            expected["direction"] = named[0]
        levels, parameter = SPEED, "c"
    else:
        return {}
    colours = [word for word in words if word in disk.NAMES]
    if colours:
        expected["colour"] = colours[0]
    stiffness = [bounds for level, bounds in levels.items() if level in words]
    if stiffness:
        expected[parameter] = stiffness[0]
    return expected


def measure(video: UInt8[np.ndarray, "t h w 3"], expectation: dict[str, Any], scale: int) -> dict[str, float]:
    """Fit the law of the caption's scenario: one c for all modes of the beads, or one sinusoid for the ball.

    Both scenarios report the same names: `law_rms_px` (residual of the fit), `rate` (c in px/frame, or the period in
    frames), `rate_relerr` (distance from the caption's range), `motion` (in units of the weakest motion that the world
    simulates).
    """
    colour = expectation.get("colour") or dominant(video)
    if expectation.get("scenario") == "spring":
        found = _measure_spring(video, colour, expectation, scale)
    else:
        found = _measure_lattice(video, colour, expectation, scale)
    return found | pace(video.mean(-1), turns=expectation.get("scenario") == "spring")


def _unfit(valid: bool, perm: float, area_cv: float, gone: float, off: float) -> dict[str, float]:
    known = {"valid": float(valid), "perm": perm, "area_cv": area_cv, "gone": gone, "off_manifold": off}
    unfit = dict.fromkeys(("law_rms_px", "worst_px", "jolt_px", "rate_relerr"), UNFIT)
    return known | unfit | {"rate": 0.0, "dir_ok": 0.0, "motion": 0.0}


def _measure_spring(video: np.ndarray, colour: str, expectation: dict[str, Any], scale: int) -> dict[str, float]:
    (ball,), off = follow(video, [colour], scale, rod=True)
    found = _unfit(ball.fits, ball.perm, ball.area_cv, ball.gone, off)
    if not ball.fits:
        return found
    component = 0 if expectation.get("direction") == "up" else 1
    t = np.arange(len(video))[ball.seen].astype(float)
    at = ball.position[ball.seen]
    along, across = at[:, component], at[:, 1 - component]

    def left(period: float) -> np.ndarray:
        turn = 2 * np.pi / period * t
        basis = np.stack([np.ones_like(t), np.cos(turn), np.sin(turn)], 1)
        return along - basis @ np.linalg.lstsq(basis, along, rcond=None)[0]

    def misfit(period: float) -> float:
        return float((left(period) ** 2).mean())

    grid = 1.0 / np.linspace(1 / 22.0, 1 / 4.0, 120)
    period, error = _refine(misfit, grid)
    residual = np.stack([left(period), across - across.mean()], -1)
    named = expectation.get("period", (PERIOD["stiff"][0], PERIOD["soft"][1]))
    return found | {
        "law_rms_px": float(np.sqrt(error + across.var())),
        "worst_px": float(np.linalg.norm(residual, axis=-1).max()),
        "jolt_px": jolt(residual),
        "rate": period,
        "rate_relerr": outside(period, named),
        "dir_ok": float(along.std() > 2 * across.std() and along.std() > 0.5),
        "motion": float(along.std() / (SWING[0] / np.sqrt(2.0))),
    }


def _measure_lattice(video: np.ndarray, colour: str, expectation: dict[str, Any], scale: int) -> dict[str, float]:
    cover, residual = disk.unmix(video, disk.rgb(colour))
    off = float(residual.mean())
    share = cover[:, 0] * (residual < FOREIGN)
    share = np.where(share > 0.04, share, 0.0)
    mass, moved = _beads(share, scale)
    typical = float(np.median(mass))
    fair = np.abs(mass - typical) <= 0.5 * typical if typical > 0 else np.zeros_like(mass, bool)
    valid = bool(0.3 < typical / (np.pi * BEAD_RADIUS**2) < 2.0 and fair.mean() > 0.5)
    area_cv = float(mass.std() / mass.mean()) if mass.any() else UNFIT
    found = _unfit(valid, float(fair.mean()), area_cv, float((mass == 0).mean()), off)
    if not valid:
        return found
    moved = np.where(fair[..., None], moved, 0.0)
    rest = (np.arange(BEADS) + 1) * SIZE / (BEADS + 1)
    to_modes = np.linalg.inv(np.sin(rest[:, None] * np.arange(1, MODES + 1) * np.pi / SIZE))
    modes = np.einsum("iy,tyxc,jx->tijc", to_modes, moved.reshape(-1, BEADS, BEADS, 2), to_modes)
    t = np.arange(len(video))
    k = _wavenumbers()
    weight = ((BEADS + 1) / (2 * BEADS)) ** 2  # mean square over the beads of a mode of amplitude 1

    def left(c: float) -> np.ndarray:
        turn = np.moveaxis(c * k[None] * t[:, None, None], 0, -1)
        basis = np.stack([np.cos(turn), np.sin(turn)], -1)  # (i, j, t, 2)
        values = np.moveaxis(modes, 0, 2)  # (i, j, t, component)
        gram = np.swapaxes(basis, -1, -2) @ basis + 1e-9 * np.eye(2)
        return values - basis @ np.linalg.solve(gram, np.swapaxes(basis, -1, -2) @ values)

    def misfit(c: float) -> float:
        return float(weight * (left(c) ** 2).sum() / len(t))

    c, error = _refine(misfit, np.linspace(0.7, 4.5, 96))
    residual = np.sqrt(weight) * np.moveaxis(left(c), 2, 0).reshape(len(t), -1)
    named = expectation.get("c", (SPEED["soft"][0], SPEED["stiff"][1]))
    component, sign = _AXES.get(expectation.get("direction", ""), (0, 0.0))
    start = moved[0].mean(0)
    return found | {
        "law_rms_px": float(np.sqrt(error)),
        "worst_px": float(np.linalg.norm(residual, axis=-1).max()),
        "jolt_px": jolt(residual),
        "rate": c,
        "rate_relerr": outside(c, named),
        "dir_ok": float(sign == 0.0 or sign * start[component] > 2 * abs(start[1 - component])),
        "motion": float(np.sqrt(((moved - moved.mean(0)) ** 2).sum(-1).mean()) / LEAST_TREMBLE),
    }


def _beads(share: Float[np.ndarray, "t h w"], scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Area (t, beads) and displacement (t, beads, (y, x)) of each bead, px: the centroid of a window that follows the
    bead."""
    axis = disk.pixel_centres(scale).astype(float)
    rest = (np.arange(BEADS) + 1) * SIZE / (BEADS + 1)
    grid = np.stack(np.meshgrid(rest, rest, indexing="ij"), -1).reshape(-1, 2)
    at = np.repeat(grid[None], len(share), 0)
    mass = np.zeros(at.shape[:2])
    for half in (3.2, 2.6, 2.6):  # half a spacing first, then close around the bead, so that no neighbour leaks in
        wy = np.clip(scale * (half - np.abs(axis - at[..., 0, None])) + 0.5, 0.0, 1.0)
        wx = np.clip(scale * (half - np.abs(axis - at[..., 1, None])) + 0.5, 0.0, 1.0)
        rows = np.einsum("thw,tbw->tbh", share, wx)
        mass = np.einsum("tbh,tbh->tb", rows, wy)
        y = np.einsum("tbh,tbh,h->tb", rows, wy, axis)
        x = np.einsum("thw,tbh,tbw,w->tb", share, wy, wx, axis, optimize=["einsum_path", (0, 1), (0, 1), (0, 1)])
        centre = np.stack([y, x], -1) / np.maximum(mass, 1e-9)[..., None]
        at = np.where(mass[..., None] > 1e-6, centre, at)
    return mass / scale**2, at - grid


def _refine(misfit: Callable[[float], float], grid: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The best grid value, then a bounded search between its neighbours: (value, least misfit)."""
    errors = [misfit(float(value)) for value in grid]
    best = int(np.argmin(errors))
    low, high = sorted((float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])))
    found = optimize.minimize_scalar(misfit, bounds=(low, high), method="bounded")
    value = float(found.x)  # pyright: ignore[reportAttributeAccessIssue]
    error = misfit(value)
    return (value, error) if error <= errors[best] else (float(grid[best]), errors[best])
