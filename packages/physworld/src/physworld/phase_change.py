"""Ice that melts or grows by the enthalpy method: H_t = D lap T, T a function of H.

H < 0 is ice at T = H, 0..1 is ice turning to water at T = 0 (latent heat 1), H > 1 is water at T = H - 1. The molten
share phi = clip(H, 0, 1) is the phase field: **phi = 1 is molten**. Melting: ice at 0 in warm water. Growing: disks
whose core is held cold, in water at 0. D = 1 px^2 / frame, edges insulated; the temperature of the water (of the
core), in units of latent heat over heat capacity, drives the front.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Num, UInt8
from scipy import ndimage

from physworld.clip import FRAMES, SIZE
from physworld.pace import pace
from physworld.ramp import UNFIT, Ramp, blobs, coarsening, legible, pixels, pool, scatter

Simulated = tuple[
    UInt8[np.ndarray, "t h w 3"], dict[str, Float16[np.ndarray, "t h w _"]], dict[str, Bool[np.ndarray, "t h w"]]
]

SCENARIOS = ("melt", "grow")
COUNTS = {"one": 1, "two": 2}
LEVELS = {
    "melt": {"very slowly": 0.35, "slowly": 0.55, "quickly": 1.2, "very quickly": 1.7},
    "grow": {"very slowly": -0.3, "slowly": -0.6, "quickly": -1.8, "very quickly": -2.6},
}
"""Temperature of the warm water / of the cold core; the outer levels are held out of training (our choice)."""
RAMP = Ramp(((240, 248, 252), (120, 190, 215), (20, 60, 130)))
CELLS = 2
STEPS = 20
RULE = {
    "low": ("uneven", "stutter", "faint", "regrowth", "off_manifold"),
    "flags": ("valid", "dir_ok", "count_ok"),
    "motion": "motion_px",
    "at_least": {"monotone": 0.9},
    "tolerance": {"uneven": 1.0, "stutter": 0.5, "faint": 0.04, "regrowth": 0.02, "off_manifold": 0.01},  # our choice
}


def sample(rng: np.random.Generator, split: str) -> dict[str, Any]:
    """Draw disks of ice; out of distribution: two that grow quickly, or a rate beyond the two levels."""
    ood = str(rng.choice(["combination", "range"])) if split == "ood" else None
    while True:
        scenario, count = str(rng.choice(SCENARIOS)), str(rng.choice(list(COUNTS)))
        level = str(rng.choice(["slowly", "quickly"]))
        if (ood == "combination") == (scenario == "grow" and count == "two" and level == "quickly"):
            break
    if ood == "range":
        level = "very " + level
    melts = scenario == "melt"
    bounds = ((5, 8) if count == "one" else (4, 6)) if melts else ((2.5, 4) if count == "one" else (2.5, 3))
    radii = rng.uniform(*bounds, COUNTS[count])
    room, gap = float(radii.max()) + (1.5 if melts else 5), 2.5 if melts else 9
    places = scatter(rng, COUNTS[count], low=room, high=SIZE - room, apart=float(radii.sum()) + gap)
    disks = np.column_stack([places, radii]).tolist()
    return {
        "scenario": scenario,
        "count": count,
        "level": level,
        "drive": LEVELS[scenario][level],
        "disks": disks,
        "ood": ood,
    }


def caption(params: dict[str, Any]) -> str:
    """Say what the ice does."""
    melts, one = params["scenario"] == "melt", params["count"] == "one"
    what = "one disk" if one else f"{params['count']} disks"
    does = params["scenario"] + ("s" if one else "")
    return f"{what} of ice {does} {params['level']} in {'warm' if melts else 'cold'} water"


def expect(words: list[str]) -> dict[str, Any]:
    """Give what a caption's words fix ({} for other sentences): melt or grow, how many disks, the drive."""
    text = " ".join(words)
    for scenario in SCENARIOS:
        for count in COUNTS:
            for level, drive in LEVELS[scenario].items():
                if caption({"scenario": scenario, "count": count, "level": level}) == text:
                    return {"scenario": scenario, "count": COUNTS[count], "level": level, "drive": drive}
    return {}


def heat_content(params: list[dict[str, Any]]) -> tuple[Float[np.ndarray, "b n n"], Bool[np.ndarray, "b n n"]]:
    """Give the enthalpy at frame 0 and the cells that are held cold."""
    y, x = pixels(CELLS)
    start, held = [], []
    for p in params:
        outside = np.min([np.hypot(y - cy, x - cx) - r for cy, cx, r in p["disks"]], 0)
        molten = np.clip(0.5 + outside * CELLS, 0, 1)
        drive = p["drive"]
        core = (outside < -1.2) & (p["scenario"] == "grow")
        warm = molten * (1 + max(drive, 0))
        start.append(np.where(core, drive, warm))
        held.append(core)
    return np.stack(start).astype(np.float32), np.stack(held)


def conduct(enthalpy: Float[np.ndarray, "b n n"], held: Bool[np.ndarray, "b n n"]) -> Float[np.ndarray, "b n n"]:
    """Advance one frame: STEPS explicit steps of H_t = lap T with insulated edges."""
    rate = np.float32(CELLS**2 / STEPS)
    for _ in range(STEPS):
        warmth = np.minimum(enthalpy, 0) + np.maximum(enthalpy - 1, 0)
        flow_y, flow_x = np.diff(warmth, axis=1) * rate, np.diff(warmth, axis=2) * rate
        new = enthalpy.copy()
        new[:, :-1] += flow_y
        new[:, 1:] -= flow_y
        new[:, :, :-1] += flow_x
        new[:, :, 1:] -= flow_x
        enthalpy = np.where(held, enthalpy, new)
    return enthalpy


def simulate_batch(params: list[dict[str, Any]], scale: int) -> list[Simulated]:
    """Simulate ice: video, molten share (phase) and temperature, both meaningful everywhere."""
    enthalpy, held = heat_content(params)
    history = np.empty((FRAMES, *enthalpy.shape), np.float32)
    for t in range(FRAMES):
        history[t] = enthalpy = enthalpy if t == 0 else conduct(enthalpy, held)
    states = np.moveaxis(history, 0, 1)
    phi = pool(np.clip(states, 0, 1), coarsening(CELLS, scale))
    warmth = pool(np.minimum(states, 0) + np.maximum(states - 1, 0), coarsening(CELLS, scale))
    everywhere = np.ones(phi.shape[1:], bool)
    return [
        (
            RAMP.colour(phi[b]),
            {"phase": phi[b, ..., None].astype(np.float16), "temperature": warmth[b, ..., None].astype(np.float16)},
            {"phase": everywhere.copy(), "temperature": everywhere.copy()},
        )
        for b in range(len(params))
    ]


def measure(video: Num[np.ndarray, "t h w 3"], expectation: dict[str, Any], scale: int) -> dict[str, float]:
    """Read the ice back: does its area change the right way, always, everywhere, and are the disks as many as said.

    `faint` is the share of ice that the palest frame misses in its middle, while there is enough to have a middle.
    """
    phi, off = RAMP.read(video)
    ice = ndimage.gaussian_filter(1 - phi.astype(np.float64), (0, 0.5 * scale, 0.5 * scale), mode="nearest")
    sign = -1 if expectation["scenario"] == "melt" else 1
    area = ice.sum((1, 2)) / scale**2
    steps, cells = sign * np.diff(area), sign * np.diff(ice, axis=0)
    moved = float(np.abs(cells).sum())
    large = area > 12  # a disk of radius 2 px holds whole ice in its middle
    found = [blobs(frame > 0.5, 4 * scale**2) for frame in ice[:3]]
    count_err = float(np.mean([abs(n - expectation["count"]) for n in found]) / expectation["count"])
    shows = legible(phi, off) and 0.005 < float(ice.mean()) < 0.95
    return pace(ice) | {
        "valid": float(shows),
        "off_manifold": float(off.mean()),
        "dir_ok": float(steps.sum() > 1),
        "nonmonotone": float((steps < -0.002 * max(float(area.max()), 1)).mean()),
        "monotone": float((steps >= -0.002 * max(float(area.max()), 1)).mean()),
        "regrowth": float(np.maximum(-cells, 0).sum()) / moved if moved > 1 else UNFIT,
        "faint": 1.0 - float(ice.max((1, 2))[large].min(initial=1.0)),
        "count_err": count_err,
        "count_ok": float(count_err < 0.2),
        "motion_px": float(abs(area[-1] - area[0])),
    }
