"""Blast waves in a gas at rest: two-dimensional Euler equations, gamma = 1.4, HLL fluxes on half-pixel finite volumes.

    q = (rho, rho v_y, rho v_x, E),    q_t + d_y F(q) + d_x G(q) = 0,    p = (gamma - 1)(E - rho |v|^2 / 2)

The air has rho = 1, p = .1 (speed of sound .37 px / frame); a blast is a disk of higher pressure at the same density.
The picture shows both: red is log p, green and blue a ramp of rho, so frame 0 shows where the blast is. The edges let
waves out: mass is conserved until the front leaves. Units px and frames.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Num, UInt8
from scipy import ndimage

from physworld.clip import FRAMES, SIZE
from physworld.pace import pace
from physworld.ramp import UNFIT, Ramp, coarsening, legible, peaks, pixels, pool, scatter

Simulated = tuple[
    UInt8[np.ndarray, "t h w 3"], dict[str, Float16[np.ndarray, "t h w _"]], dict[str, Bool[np.ndarray, "t h w"]]
]

SCENARIOS = ("blast",)
COUNTS = {"one": 1, "two": 2}
LEVELS = {"very weak": 0.6, "weak": 1.0, "strong": 3.5, "very strong": 5.0}
"""Pressure of the blast at frame 0; the outer two are held out of training (our choice)."""
PLACES = {"left": (9.5, 13.5), "middle": (14.5, 17.5), "right": (18.5, 22.5)}
GAMMA = np.float32(1.4)
AIR = 0.1
DENSITY = Ramp(((5, 60), (70, 235), (250, 160)), 0.0, 3.0)
LOG_PRESSURE = Ramp(((10.0,), (130.0,), (250.0,)), float(np.log(0.04)), float(np.log(5.5)))
CELLS = 2
STEPS = 14
"""Steps a frame: Courant number below one half for the strongest blast."""
EARLY = 5
RULE = {
    "low": ("uneven", "stutter", "drift_px", "energy_fall", "mass_drift", "off_manifold"),
    "flags": ("valid", "dir_ok", "count_ok"),
    "motion": "front_growth",
    "at_least": {"front_monotone": 0.8},
    "tolerance": {
        "uneven": 1.0,
        "stutter": 0.5,
        "drift_px": 0.5,
        "energy_fall": 0.2,
        "mass_drift": 0.01,
        "off_manifold": 0.01,
    },  # our choice
}


def sample(rng: np.random.Generator, split: str) -> dict[str, Any]:
    """Draw blasts; out of distribution: two weak ones, or a pressure beyond the two levels."""
    ood = str(rng.choice(["combination", "range"])) if split == "ood" else None
    while True:
        count, level = str(rng.choice(list(COUNTS))), str(rng.choice(["weak", "strong"]))
        if (ood == "combination") == (count == "two" and level == "weak"):
            break
    if ood == "range":
        level = "very " + level
    params = {"scenario": "blast", "count": count, "level": level, "pressure": LEVELS[level], "ood": ood}
    if count == "one":
        params["place"] = str(rng.choice(list(PLACES)))
        centres = [[float(rng.uniform(11, 21)), float(rng.uniform(*PLACES[params["place"]]))]]
    else:
        centres = scatter(rng, 2, low=9.5, high=22.5, apart=8.5).tolist()
    return params | {"centres": centres, "radii": rng.uniform(2.0, 2.7, len(centres)).tolist()}


def caption(params: dict[str, Any]) -> str:
    """Say what the gas does."""
    if params["count"] == "two":
        return f"two {params['level']} blasts spread in air"
    return f"one {params['level']} blast spreads in air from the {params['place']}"


def expect(words: list[str]) -> dict[str, Any]:
    """Give what a caption's words fix ({} for other sentences): how many blasts, how strong, where a single one is."""
    text = " ".join(words)
    for level, pressure in LEVELS.items():
        for count, place in [("two", None), *(("one", p) for p in PLACES)]:
            fixed = {"scenario": "blast", "count": count, "level": level, "place": place}
            if caption(fixed) == text:
                return fixed | {"count": COUNTS[count], "pressure": pressure}
    return {}


def start(params: dict[str, Any]) -> Float[np.ndarray, "4 n n"]:
    """Give the conserved state at frame 0: still air with smooth disks of high pressure."""
    y, x = pixels(CELLS)
    pressure = np.full((SIZE * CELLS, SIZE * CELLS), AIR)
    for (cy, cx), radius in zip(params["centres"], params["radii"], strict=True):
        r2 = ((y - cy) ** 2 + (x - cx) ** 2) / radius**2
        pressure += (params["pressure"] - AIR) * np.exp(-(r2**2))
    still = np.zeros_like(pressure)
    return np.stack([still + 1, still, still, pressure / (float(GAMMA) - 1)]).astype(np.float32)


def pressure_of(q: Float[np.ndarray, "4 *s"]) -> Float[np.ndarray, "*s"]:
    """Give p from the conserved state."""
    return (GAMMA - 1) * (q[3] - np.float32(0.5) * (q[1] * q[1] + q[2] * q[2]) / q[0])


def hll(q: Float[np.ndarray, "4 b n n"], axis: int) -> Float[np.ndarray, "4 b _ _"]:
    """Give HLL fluxes through the faces normal to `axis` (0 is y); outside the edges the state is that inside."""
    along = 2 + axis
    width = [(0, 0)] * 4
    width[along] = (1, 1)
    q = np.pad(q, width, mode="edge")
    rho, normal = q[0], q[1 + axis]
    speed = normal / rho
    pressure = pressure_of(q)
    sound = np.sqrt(GAMMA * pressure / rho)
    flux = q * speed
    flux[1 + axis] += pressure
    flux[3] += pressure * speed
    left, right = [slice(None)] * 3, [slice(None)] * 3
    left[along - 1], right[along - 1] = slice(None, -1), slice(1, None)
    l, r = tuple(left), tuple(right)
    slowest, fastest = speed - sound, speed + sound
    s_l = np.minimum(np.minimum(slowest[l], slowest[r]), 0)
    s_r = np.maximum(np.maximum(fastest[l], fastest[r]), 0)
    every = slice(None)
    jump = q[(every, *r)] - q[(every, *l)]
    return (s_r * flux[(every, *l)] - s_l * flux[(every, *r)] + s_l * s_r * jump) / (s_r - s_l)


def advance(q: Float[np.ndarray, "4 b n n"], dt: float) -> Float[np.ndarray, "4 b n n"]:
    """Take one finite-volume step."""
    rate = np.float32(dt * CELLS)
    return q - rate * (np.diff(hll(q, 0), axis=2) + np.diff(hll(q, 1), axis=3))


def solve(params: list[dict[str, Any]]) -> Float[np.ndarray, "b t 4 n n"]:
    """Integrate a batch: the conserved state at every frame."""
    q = np.stack([start(p) for p in params], 1)
    history = [q]
    for _ in range(FRAMES - 1):
        for _ in range(STEPS):
            q = advance(q, 1 / STEPS)
        history.append(q)
    return np.moveaxis(np.stack(history), (2, 1), (0, 2))


def draw(density: Float[np.ndarray, "t h w"], pressure: Float[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """Colour a gas: red is log p, green and blue the density."""
    red = LOG_PRESSURE.colour(np.log(np.maximum(pressure, 1e-3)))
    return np.concatenate([red, DENSITY.colour(density)], -1)


def simulate_batch(params: list[dict[str, Any]], scale: int) -> list[Simulated]:
    """Simulate gases: video, density, pressure and velocity, all meaningful everywhere."""
    clips = []
    for first in range(0, len(params), 4):  # four clips fit the cache
        for q in solve(params[first : first + 4]):
            q = np.moveaxis(pool(q, coarsening(CELLS, scale)), 1, 0)
            pressure = pressure_of(q)
            velocity = np.stack([q[1] / q[0], q[2] / q[0]], -1)
            slots = {"density": q[0][..., None], "pressure": pressure[..., None], "velocity": velocity}
            fields = {name: value.astype(np.float16) for name, value in slots.items()}
            clips.append((draw(q[0], pressure), fields, {name: np.ones(q[0].shape, bool) for name in fields}))
    return clips


def measure(video: Num[np.ndarray, "t h w 3"], expectation: dict[str, Any], scale: int) -> dict[str, float]:
    """Read density and pressure back: mass while the front is inside, its growth, place and number of blasts.

    `drift_px` is the farthest that the centre of the raised pressure moves in one step, `energy_fall` the largest share
    of the excess pressure that is lost while the front is inside.
    """
    density, off = DENSITY.read(np.asarray(video)[..., 1:])
    log_p, _ = LOG_PRESSURE.read(np.asarray(video)[..., :1])
    mass = density.mean((1, 2), dtype=np.float64)
    excess = np.maximum(log_p - np.float32(np.log(AIR)), 0)
    touched = (np.abs(density - 1) > 0.12) | (excess > 0.25)
    radius = np.sqrt(touched.mean((1, 2)) * SIZE**2 / np.pi)
    inside = radius[:-1] < 0.5 * SIZE
    grows = np.diff(radius) > -0.05
    found = peaks(excess[0], scale, above=0.5 * float(excess[0].max()) + 1e-3, apart=3)
    _, x = pixels(scale)
    core = np.maximum(excess[0] - 0.5 * excess[0].max(), 0)
    middle = float((core * x).sum() / max(float(core.sum()), 1e-3))
    low, high = PLACES.get(expectation["place"], (0, SIZE))
    heat = (np.exp(log_p.astype(np.float64)) - AIR).mean((1, 2))
    heat = heat / max(float(heat[0]), 1e-6)
    smooth = ndimage.gaussian_filter(log_p, (0, 0.7 * scale, 0.7 * scale), mode="nearest")
    centre = _centre(excess, scale)
    shows = legible(log_p, off) and float(excess[0].max()) > 0.5
    return pace(smooth) | {
        "valid": float(shows),
        "off_manifold": float(off.mean()),
        "mass_drift": float(np.abs(mass[:EARLY] / max(float(mass[0]), 1e-3) - 1).max()) if shows else UNFIT,
        "drift_px": float(np.linalg.norm(np.diff(centre, axis=0), axis=-1).max()),
        "energy_fall": float(1.0 - heat[:-1][inside].min(initial=1.0)) if shows else UNFIT,
        "front_monotone": float(grows[inside].mean()) if inside.any() else 0.0,
        "front_growth": float(radius[-1] - radius[0]),
        "dir_ok": float(shows and low - 0.7 < middle < high + 0.7),
        "count_ok": float(found == expectation["count"]),
    }


def _centre(excess: Float[np.ndarray, "t h w"], scale: int) -> Float[np.ndarray, "t 2"]:
    """Centre (y, x) of what the blast has raised, px; the picture's middle where that is nothing."""
    y, x = pixels(scale)
    weight = excess.astype(np.float64) + 1e-6
    return np.stack([(weight * y).sum((1, 2)), (weight * x).sum((1, 2))], -1) / weight.sum((1, 2))[:, None]
