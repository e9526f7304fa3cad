"""A scalar wave, u_tt = c^2 lap u: circular ripples on a pond, or a plane pulse that meets a wall with slits.

The pond's edges reflect (no slope across them), so a ripple that starts from rest is a sum of cosine modes that swing
as cos(c k t): exact. The slit is a leap-frog on half-pixel cells with u = 0 on the wall; the wall has a colour of its
own. c is in px / frame, u in units of the initial crest. The law is reversible: only what the caption says
("spreads", "moves right") tells a reversed clip.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Num, UInt8
from scipy import ndimage

from physworld.clip import FRAMES, SIZE
from physworld.pace import pace
from physworld.ramp import UNFIT, Ramp, blobs, coarsening, legible, peaks, pixels, pool, scatter
from physworld.thermal import to_modes, to_plate, wavenumbers

Simulated = tuple[
    UInt8[np.ndarray, "t h w 3"], dict[str, Float16[np.ndarray, "t h w _"]], dict[str, Bool[np.ndarray, "t h w"]]
]

SCENARIOS = ("ripple", "slit")
COUNTS = {"one": 1, "two": 2}
LEVELS = {"very slow": 0.35, "slow": 0.5, "fast": 0.9, "very fast": 1.15}
"""Wave speed c in px / frame; the outer two are held out of training (our choice)."""
TURNS = {"right": 0, "up": 1, "left": 2, "down": 3}
"""Quarter turns (counterclockwise as seen) from a pulse that moves right."""
RAMP = Ramp(((20, 50, 190), (222, 224, 220), (205, 40, 30)), -1.0, 1.0)
WALL = np.array((40, 30, 35), np.float32)
CELLS = 2
STEPS = 8
MODES = 14
RULE = {
    "low": ("uneven", "stutter", "strange", "energy_err", "dim", "c_relerr", "wave_resid", "off_manifold"),
    "flags": ("valid", "dir_ok", "count_ok"),
    "motion": "motion",
    "at_least": {},
    "tolerance": {
        "uneven": 1.5,
        "stutter": 1.0,
        "strange": 0.1,
        "energy_err": 0.3,
        "dim": 0.65,
        "c_relerr": 0.12,
        "wave_resid": 0.45,
        "off_manifold": 0.01,
    },  # our choice
}


def sample(rng: np.random.Generator, split: str) -> dict[str, Any]:
    """Draw a pond or a wall; out of distribution: two fast ripples, fast and up, or a speed beyond the two levels."""
    ood = str(rng.choice(["combination", "range"])) if split == "ood" else None
    while True:
        scenario, count = str(rng.choice(SCENARIOS)), str(rng.choice(list(COUNTS)))
        level, heading = str(rng.choice(["slow", "fast"])), str(rng.choice(list(TURNS)))
        held_out = level == "fast" and (count == "two" if scenario == "ripple" else heading == "up")
        if (ood == "combination") == held_out:
            break
    if ood == "range":
        level = "very " + level
    params = {"scenario": scenario, "count": count, "level": level, "c": LEVELS[level], "ood": ood}
    if scenario == "slit":
        wall, middle = int(rng.integers(10, 16)), int(rng.integers(12, 21))
        half = int(rng.integers(3, 6)) if count == "two" else 0
        slits = [[middle - half - 2, middle - half + 2], [middle + half - 2, middle + half + 2]][: COUNTS[count]]
        start = wall - float(rng.uniform(3.5, 4.5))
        return params | {
            "heading": heading,
            "wall": wall,
            "slits": slits,
            "start": start,
            "width": float(rng.uniform(1.2, 1.6)),
        }
    places = scatter(rng, COUNTS[count], low=7.0, high=SIZE - 7.0, apart=10.0)
    return params | {"drops": [[float(y), float(x), float(rng.uniform(1.6, 2.2))] for y, x in places]}


def caption(params: dict[str, Any]) -> str:
    """Say what the wave does."""
    one = params["count"] == "one"
    if params["scenario"] == "ripple":
        what = "ripple spreads" if one else "ripples spread"
        return f"{params['count']} {params['level']} {what} on a pond"
    through = "one slit" if one else f"{params['count']} slits"
    return f"a {params['level']} wave moves {params['heading']} through {through}"


def expect(words: list[str]) -> dict[str, Any]:
    """Give what a caption's words fix ({} for other sentences): ripples or slits, how many, c, the heading."""
    text = " ".join(words)
    for count in COUNTS:
        for level, speed in LEVELS.items():
            for scenario, heading in [("ripple", None), *(("slit", h) for h in TURNS)]:
                fixed = {"scenario": scenario, "count": count, "level": level, "heading": heading}
                if caption(fixed) == text:
                    return fixed | {"count": COUNTS[count], "c": speed}
    return {}


def ripples(params: dict[str, Any], scale: int) -> Float[np.ndarray, "t h w"]:
    """Let Gaussian drops at rest swing: each cosine mode as cos(c k t)."""
    y, x = pixels(scale)
    start = np.zeros((SIZE * scale, SIZE * scale))
    for cy, cx, width in params["drops"]:
        start += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    phase = params["c"] * np.sqrt(wavenumbers(SIZE * scale)) * np.arange(FRAMES)[:, None, None]
    return to_plate(to_modes(start) * np.cos(phase))


def barrier(params: dict[str, Any]) -> Bool[np.ndarray, "n n"]:
    """Give the wall of a slit scene whose pulse moves right, one pixel thick."""
    wall = np.zeros((SIZE * CELLS, SIZE * CELLS), bool)
    column = slice(params["wall"] * CELLS, (params["wall"] + 1) * CELLS)
    wall[:, column] = True
    for low, high in params["slits"]:
        wall[low * CELLS : high * CELLS, column] = False
    return wall


def pulses(params: list[dict[str, Any]]) -> Float[np.ndarray, "b t n n"]:
    """Integrate plane pulses that move right through walls: leap-frog, STEPS a frame, reflecting edges."""
    _, x = pixels(CELLS)
    open_ = ~np.stack([barrier(p) for p in params])
    c, start, width = (np.array([p[k] for p in params], np.float32)[:, None, None] for k in ("c", "start", "width"))

    def pulse(t: float) -> np.ndarray:
        shape = np.exp(-((x.astype(np.float32) - start - c * np.float32(t)) ** 2) / (2 * width**2))
        return (np.broadcast_to(shape, open_.shape) * open_).astype(np.float32)

    before, now = pulse(-1 / STEPS), pulse(0.0)
    gain, history = np.square(c * np.float32(CELLS / STEPS)), [now]
    for _ in range(FRAMES - 1):
        for _ in range(STEPS):
            change_y, change_x = np.diff(now, axis=1), np.diff(now, axis=2)
            bend = np.zeros_like(now)
            bend[:, :-1] += change_y
            bend[:, 1:] -= change_y
            bend[:, :, :-1] += change_x
            bend[:, :, 1:] -= change_x
            before, now = now, (2 * now - before + gain * bend) * open_
        history.append(now)
    return np.stack(history, 1)


def simulate_batch(params: list[dict[str, Any]], scale: int) -> list[Simulated]:
    """Simulate waves: video, u, and where it means something (off the wall)."""
    through = [p for p in params if p["scenario"] == "slit"]
    passed = iter(pulses(through)) if through else iter(())
    clips = []
    for p in params:
        if p["scenario"] == "slit":
            turn = TURNS[p["heading"]]
            wave = np.rot90(pool(next(passed), coarsening(CELLS, scale)), turn, (1, 2))
            wall = np.rot90(pool(barrier(p).astype(np.float32), coarsening(CELLS, scale)), turn) > 0.5
        else:
            wave = ripples(p, scale)
            wall = np.zeros(wave.shape[1:], bool)
        video = RAMP.colour(wave)
        video[:, wall] = WALL.astype(np.uint8)
        valid = np.broadcast_to(~wall, wave.shape).copy()
        clips.append((video, {"wave": wave[..., None].astype(np.float16)}, {"wave": valid}))
    return clips


def measure(video: Num[np.ndarray, "t h w 3"], expectation: dict[str, Any], scale: int) -> dict[str, float]:
    """Read u back, fit c to u(t+1) + u(t-1) = 2 cos(c K) u(t) away from walls; energy, direction, count.

    `energy_err` is the logarithm of the energy's change; `dim` how far one frame's amplitude falls below the median one
    (below its neighbours' at a wall); `strange` the worst frame's distance from the ramp, relative to its wave.
    """
    wave, off = RAMP.read(video)
    to_wall = np.sqrt(np.square(np.asarray(video, np.float32) - WALL).sum(-1) / 3) / 255
    is_wall = to_wall < off
    off = np.minimum(off, to_wall)
    wave = np.where(is_wall, 0, wave).astype(np.float64)
    wall = is_wall.mean(0) > 0.5
    far = np.asarray(ndimage.distance_transform_edt(~wall)) > 4 * scale if wall.any() else np.ones(wall.shape, bool)
    modes = to_modes(wave)
    band = np.zeros(wall.shape)
    band[:MODES, :MODES] = 1
    k = np.sqrt(wavenumbers(SIZE * scale))
    bend = to_plate(band * (modes[2:] + modes[:-2] - 2 * modes[1:-1])) * far
    size = float(np.linalg.norm(bend))
    sums = to_plate(band * (modes[2:] + modes[:-2]))

    def misfit(c: float) -> float:
        swung = to_plate(band * 2 * np.cos(c * k) * modes[1:-1])
        return float(np.linalg.norm((sums - swung) * far))

    fits = size > 0.05 * scale
    coarse = np.linspace(0.1, 1.6, 16)
    best = float(coarse[np.argmin([misfit(c) for c in coarse])])
    for step in (0.05, 0.025, 0.0125, 0.00625):
        best = min((best - step, best, best + step), key=misfit)
    c = best if fits else 0.0
    energy = energy_ratio(modes * band, c * k)
    loud = np.sqrt(np.square(modes[:, :MODES, :MODES]).sum((1, 2)))
    # a pulse that meets its own reflection dies down, but not within one frame
    around = np.minimum(loud[2:], loud[:-2]) if expectation["scenario"] == "slit" else np.median(loud)
    dim = 1.0 - float((loud[1:-1] / np.maximum(around, 1e-6)).min(initial=1.0))
    shows = legible(wave.astype(np.float32), off)
    return pace(to_plate(modes * band)) | {
        "valid": float(shows),
        "off_manifold": float(off.mean()),
        "wave_resid": misfit(best) / size if fits else UNFIT,
        "c": c,
        "c_relerr": abs(c / expectation["c"] - 1),
        "energy_ratio": energy,
        "energy_err": float(abs(np.log(max(energy, 1e-3)))),
        "dim": dim,
        "strange": float((off.mean((1, 2)) / np.maximum(np.abs(wave).mean((1, 2)), 1e-3)).max()),
        "dir_ok": float(shows and heads(wave, expectation, scale)),
        "count_ok": float(seen(wave, wall, expectation, scale) == expectation["count"]),
        "motion": float(np.linalg.norm(wave[-1] - wave[0]) / max(float(np.linalg.norm(wave[0])), 1e-2 * scale)),
    }


def energy_ratio(modes: Float[np.ndarray, "t h w"], phase: Float[np.ndarray, "h w"]) -> float:
    """Give the energy of the last frames over that of the first: per mode u(t)^2 + (u(t+1) - cos u(t))^2 / sin^2."""
    sin = np.sin(phase)
    good = np.abs(sin) > 0.05
    quadrature = np.where(good, (modes[1:] - np.cos(phase) * modes[:-1]) / np.where(good, sin, 1), 0)
    energy = ((np.square(modes[:-1]) + np.square(quadrature)) * good).sum((1, 2))
    return float(np.clip(energy[-3:].mean() / max(float(energy[:3].mean()), 1e-6), 0, UNFIT))


def heads(wave: Float[np.ndarray, "t h w"], expectation: dict[str, Any], scale: int) -> bool:
    """Say whether the wave goes where the caption says: ripples outward, a plane pulse along its heading."""
    power = np.square(wave) + 1e-9
    if expectation["scenario"] == "ripple":
        peak = np.abs(wave).max((1, 2))
        return bool(peak[-3:].mean() < 0.8 * peak[:3].mean())
    y, x = pixels(scale)
    along = {"right": x + 0 * y, "left": -x + 0 * y, "down": y + 0 * x, "up": -y + 0 * x}[expectation["heading"]]
    middle = (power * along).sum((1, 2)) / power.sum((1, 2))
    early = middle[:5]
    return bool(early[-1] - early[0] > 0.4 * expectation["c"] * (len(early) - 1))


def seen(
    wave: Float[np.ndarray, "t h w"], wall: Bool[np.ndarray, "h w"], expectation: dict[str, Any], scale: int
) -> int:
    """Count the drops in the first frame, or the openings of the wall."""
    if expectation["scenario"] == "ripple":
        return peaks(wave[0], scale, above=0.4, apart=4)
    if not wall.any():
        return 0
    along = wall.any(1) if expectation["heading"] in ("left", "right") else wall.any(0)
    return blobs(~np.atleast_2d(along), 2 * scale)
