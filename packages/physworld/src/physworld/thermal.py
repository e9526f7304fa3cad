"""Heat in an insulated plate: T_t = D lap T, no flux through the edges.

Hot spots are Gaussians; each cosine mode of the plate decays by exp(-D k^2 t) exactly, so there is no time step and
the total heat does not change. Temperature is in units of the hottest spot, 0 is the cold plate; D is in px^2 /
frame.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Num, UInt8
from scipy import fft, ndimage, optimize

from physworld.clip import FRAMES, SIZE
from physworld.ramp import UNFIT, Ramp, legible, peaks, pixels, scatter

Simulated = tuple[
    UInt8[np.ndarray, "t h w 3"], dict[str, Float16[np.ndarray, "t h w _"]], dict[str, Bool[np.ndarray, "t h w"]]
]

SCENARIOS = ("spots",)
COUNTS = {"one": 1, "two": 2, "three": 3}
LEVELS = {"very slowly": 0.06, "slowly": 0.14, "quickly": 0.42, "very quickly": 0.8}
"""Diffusivity D in px^2 / frame; the outer two are held out of training (our choice)."""
RAMP = Ramp(((24, 16, 60), (210, 50, 40), (255, 225, 110)), -0.02, 1.1)
MODES = 10
LAG = 4
"""Frames between the two sides of the fitted semigroup: one frame's change drowns in an autoencoder's error."""
RULE = {
    "low": ("heat_drift", "heat_resid", "D_relerr", "maxprinc", "off_manifold"),
    "flags": ("valid", "count_ok"),
    "motion": "motion",
    "at_least": {},
    "tolerance": {
        "heat_drift": 0.03,
        "heat_resid": 0.1,
        "D_relerr": 0.05,
        "maxprinc": 0.02,
        "off_manifold": 0.01,
    },  # our choice
}


def sample(rng: np.random.Generator, split: str) -> dict[str, Any]:
    """Draw a plate; out of distribution: three spots quickly, or a diffusivity beyond the two levels."""
    ood = str(rng.choice(["combination", "range"])) if split == "ood" else None
    while True:
        count, level = str(rng.choice(list(COUNTS))), str(rng.choice(["slowly", "quickly"]))
        if (ood == "combination") == (count == "three" and level == "quickly"):
            break
    if ood == "range":
        level = "very " + level
    places = scatter(rng, COUNTS[count], low=5.0, high=SIZE - 5.0, apart=11.0)
    spots = [[float(y), float(x), float(rng.uniform(1.8, 2.8)), float(rng.uniform(0.7, 1.0))] for y, x in places]
    return {"scenario": "spots", "count": count, "level": level, "D": LEVELS[level], "spots": spots, "ood": ood}


def caption(params: dict[str, Any]) -> str:
    """Say what a plate shows."""
    if params["count"] == "one":
        return f"one hot spot spreads {params['level']} in a metal plate"
    return f"{params['count']} hot spots spread {params['level']} in a metal plate"


def expect(words: list[str]) -> dict[str, Any]:
    """Give what a caption's words fix ({} for other sentences): the number of spots and D."""
    text = " ".join(words)
    for count in COUNTS:
        for level, diffusivity in LEVELS.items():
            if caption({"count": count, "level": level}) == text:
                return {"scenario": "spots", "count": COUNTS[count], "level": level, "D": diffusivity}
    return {}


def wavenumbers(n: int) -> Float[np.ndarray, "n n"]:
    """Squared wavenumbers k^2 in px^-2 of the plate's n x n cosine modes."""
    k = np.pi * np.arange(n) / SIZE
    return k[:, None] ** 2 + k**2


def to_modes(field: Float[np.ndarray, "*b n n"]) -> Float[np.ndarray, "*b n n"]:
    """Transform the last two axes into the orthonormal cosine modes of an insulated plate."""
    return np.asarray(fft.dctn(field, axes=(-2, -1), norm="ortho"))


def to_plate(modes: Float[np.ndarray, "*b n n"]) -> Float[np.ndarray, "*b n n"]:
    """Transform back."""
    return np.asarray(fft.idctn(modes, axes=(-2, -1), norm="ortho"))


def temperature(params: dict[str, Any], scale: int) -> Float[np.ndarray, "t h w"]:
    """Solve the heat equation exactly from the spots at frame 0."""
    y, x = pixels(scale)
    start = np.zeros((SIZE * scale, SIZE * scale))
    for cy, cx, width, height in params["spots"]:
        start += height * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    modes = to_modes(start)
    t = np.arange(FRAMES)[:, None, None]
    return to_plate(modes * np.exp(-params["D"] * wavenumbers(SIZE * scale) * t))


def simulate_batch(params: list[dict[str, Any]], scale: int) -> list[Simulated]:
    """Simulate plates: video, temperature, and where it means something (everywhere)."""
    clips = []
    for p in params:
        heat = temperature(p, scale)
        fields = {"temperature": heat[..., None].astype(np.float16)}
        clips.append((RAMP.colour(heat), fields, {"temperature": np.ones(heat.shape, bool)}))
    return clips


def measure(video: Num[np.ndarray, "t h w 3"], expectation: dict[str, Any], scale: int) -> dict[str, float]:
    """Read the temperature back and fit D: drift of the heat, rise of extremes, residual of the exact semigroup."""
    heat, off = RAMP.read(video)
    heat = heat.astype(np.float64)
    low = {"valid": float(legible(heat, off)), "off_manifold": float(off.mean())}
    total = heat.mean((1, 2))
    smooth = ndimage.gaussian_filter(heat, (0, 0.7 * scale, 0.7 * scale), mode="nearest")
    span = max(float(np.ptp(smooth)), 1e-3)
    rises = np.maximum(np.diff(smooth.max((1, 2))), 0).sum() + np.maximum(-np.diff(smooth.min((1, 2))), 0).sum()
    modes = to_modes(heat)[:, :MODES, :MODES]
    modes[:, 0, 0] = 0
    before, after, k2 = modes[:-LAG], modes[LAG:], wavenumbers(SIZE * scale)[:MODES, :MODES]
    change = np.sqrt(np.square(after - before).sum())

    def misfit(log_d: float) -> float:
        return float(np.square(after - np.exp(-LAG * np.exp(log_d) * k2) * before).sum())

    best = float(optimize.fminbound(misfit, np.log(0.005), np.log(5)))  # pyright: ignore[reportArgumentType]
    fits = change > 1e-3
    d = float(np.exp(best)) if fits else 0.0
    found = peaks(heat[0], scale, above=float(heat[0].min() + 0.35 * span), apart=4)
    return low | {
        "heat_drift": float(np.abs(total / max(total.mean(), 1e-3) - 1).max()),
        "maxprinc": float(rises / span),
        "heat_resid": float(np.sqrt(misfit(best)) / change) if fits else UNFIT,
        "D": d,
        "D_relerr": abs(d / expectation["D"] - 1),
        "count_ok": float(found == expectation["count"]),
        "motion": float(np.linalg.norm(modes[-1] - modes[0]) / max(float(np.linalg.norm(modes[0])), 1e-3)),
    }
