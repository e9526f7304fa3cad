"""Ink carried by a two-dimensional incompressible flow: pseudo-spectral Navier-Stokes for the vorticity, periodic.

    w_t + div(v w) = nu lap w,    lap psi = -w,  v = (v_y, v_x) = (-psi_x, psi_y),    s_t + div(v s) = kappa lap s

w = d_x v_y - d_y v_x is positive for a vortex that turns clockwise as seen (y points down). Both transports are in
flux form, so the ink's mean mode never changes; mixing makes the sum of s^2 fall in every frame, which no reversed
clip does. `density` is the ink s (0..1), `pressure` solves lap p = -div(v . grad v) for density 1. Units px and
frames.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Complex, Float, Float16, Num, UInt8
from scipy import fft, ndimage

from physworld.clip import FRAMES, SIZE
from physworld.pace import pace
from physworld.ramp import UNFIT, Ramp, coarsening, legible, pixels, pool

Simulated = tuple[
    UInt8[np.ndarray, "t h w 3"], dict[str, Float16[np.ndarray, "t h w _"]], dict[str, Bool[np.ndarray, "t h w"]]
]

SCENARIOS = ("vortex", "pair")
LEVELS = {
    "vortex": {"very weak": 0.4, "weak": 0.6, "strong": 1.1, "very strong": 1.4},
    "pair": {"very weak": 0.18, "weak": 0.26, "strong": 0.46, "very strong": 0.58},
}
"""Greatest speed of the vortex / speed of the pair in px / frame, in open water; the periodic box's return flow costs a
lone vortex about a fifth. "very weak" is held out of training (our choice)."""
SPINS = {"clockwise": 1, "counterclockwise": -1}
HEADINGS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
RAMP = Ramp(((225, 220, 200), (70, 140, 190), (40, 15, 90)), -0.02, 1.05)
CELLS = 2
STEPS = 4
VISCOSITY = 0.03
MIXING = 0.06
RULE = {
    "low": ("uneven", "stutter", "ink_drift", "unmixing", "ink_max_growth", "jerk", "off_manifold"),
    "flags": ("valid", "dir_ok"),
    "motion": "motion_px",
    "at_least": {},
    "tolerance": {
        "uneven": 1.0,
        "stutter": 0.5,
        "ink_drift": 0.02,
        "unmixing": 0.02,
        "ink_max_growth": 0.04,
        "jerk": 0.1,
        "off_manifold": 0.01,
    },  # our choice
}


def sample(rng: np.random.Generator, split: str) -> dict[str, Any]:
    """Draw a flow; out of distribution: strong counterclockwise vortex, weak pair moving down, or very weak flows."""
    ood = str(rng.choice(["combination", "range"])) if split == "ood" else None
    while True:
        scenario = str(rng.choice(SCENARIOS))
        level = str(rng.choice(["weak", "strong", "very strong"]))
        way = str(rng.choice(list(SPINS if scenario == "vortex" else HEADINGS)))
        if (ood == "combination") == ((way, level) in {("counterclockwise", "strong"), ("down", "weak")}):
            break
    if ood == "range":
        level = "very weak"
    params = {"scenario": scenario, "level": level, "way": way, "speed": LEVELS[scenario][level], "ood": ood}
    width = float(rng.uniform(1.9, 2.5))
    if scenario == "vortex":
        centre = rng.uniform(14.5, 17.5, 2)
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(5, 7.5)
        ink = centre + reach * np.array([np.sin(angle), np.cos(angle)])
        core = float(rng.uniform(3.5, 4.5))
    else:
        heading = np.array(HEADINGS[way])
        centre = np.array([16.0, 16.0]) - rng.uniform(4, 6) * heading + rng.uniform(-3, 3) * (1 - np.abs(heading))
        ink = centre + rng.uniform(-0.5, 1.0) * heading
        core = float(rng.uniform(1.9, 2.3))
    return params | {
        "centre": centre.tolist(),
        "ink": ink.tolist(),
        "width": width,
        "core": core,
        "gap": float(rng.uniform(6.5, 7.5)),
        "nu": VISCOSITY,
        "kappa": MIXING,
    }


def caption(params: dict[str, Any]) -> str:
    """Say what the ink does."""
    if params["scenario"] == "vortex":
        return f"ink turns {params['way']} in a {params['level']} vortex"
    return f"ink moves {params['way']} between two {params['level']} vortices"


def expect(words: list[str]) -> dict[str, Any]:
    """Give what a caption's words fix ({} for other sentences): vortex or pair, its way and its speed."""
    text = " ".join(words)
    for scenario, ways in (("vortex", SPINS), ("pair", HEADINGS)):
        for way in ways:
            for level, speed in LEVELS[scenario].items():
                fixed = {"scenario": scenario, "way": way, "level": level}
                if caption(fixed) == text:
                    return fixed | {"speed": speed}
    return {}


def start(params: dict[str, Any]) -> Float[np.ndarray, "2 n n"]:
    """Give vorticity and ink at frame 0 on the cells of the periodic box."""
    y, x = pixels(CELLS)

    def bump(cy: float, cx: float, width: float) -> np.ndarray:
        dy, dx = ((y - cy + 16) % SIZE) - 16, ((x - cx + 16) % SIZE) - 16
        return np.exp(-(dy**2 + dx**2) / (2 * width**2))

    (cy, cx), core, speed = params["centre"], params["core"], params["speed"]
    if params["scenario"] == "vortex":  # a Gaussian vortex turns fastest at 1.585 core, with .4513 w0 core
        vorticity = SPINS[params["way"]] * speed / (0.4513 * core) * bump(cy, cx, core)
    else:  # each vortex carries the other with w0 core^2 / gap; the clockwise one is on the heading's right hand
        hy, hx = HEADINGS[params["way"]]
        side = 0.5 * params["gap"]
        peak = speed * params["gap"] / core**2
        vorticity = peak * (bump(cy + side * hx, cx - side * hy, core) - bump(cy - side * hx, cx + side * hy, core))
    return np.stack([vorticity, bump(params["ink"][0], params["ink"][1], params["width"])]).astype(np.float32)


K_Y = (2 * np.pi * fft.fftfreq(SIZE * CELLS, 1 / CELLS)).astype(np.float32)[:, None]
K_X = (2 * np.pi * fft.rfftfreq(SIZE * CELLS, 1 / CELLS)).astype(np.float32)
K2 = K_Y**2 + K_X**2
INVERSE_K2 = np.where(K2 > 0, 1 / np.where(K2 > 0, K2, 1), 0).astype(np.float32)
KEPT = (np.maximum(np.abs(K_Y), K_X) < 2 / 3 * np.pi * CELLS).astype(np.float32)
DECAY = np.stack([VISCOSITY * K2, MIXING * K2]).astype(np.float32)


def to_modes(field: Float[np.ndarray, "*b n n"]) -> Complex[np.ndarray, "*b n m"]:
    """Transform the last two axes."""
    return np.asarray(fft.rfft2(field))


def to_cells(modes: Complex[np.ndarray, "*b n m"]) -> Float[np.ndarray, "*b n n"]:
    """Transform back."""
    return np.asarray(fft.irfft2(modes, s=(SIZE * CELLS, SIZE * CELLS)))


def velocity_of(vorticity: Complex[np.ndarray, "*b n m"]) -> Float[np.ndarray, "*b 2 n n"]:
    """Give the velocity (y, x) of a vorticity."""
    stream = vorticity * INVERSE_K2
    return to_cells(np.stack([-1j * K_X * stream, 1j * K_Y * stream], -3).astype(np.complex64))


def tendency(modes: Complex[np.ndarray, "b 2 n m"]) -> Complex[np.ndarray, "b 2 n m"]:
    """Give -div(v q) for q = vorticity and ink, dealiased."""
    velocity, carried = velocity_of(modes[:, 0]), to_cells(modes)
    flux = to_modes(velocity[:, None] * carried[:, :, None])
    return (-1j * KEPT) * (K_Y * flux[:, :, 0] + K_X * flux[:, :, 1])


def advance(modes: Complex[np.ndarray, "b 2 n m"], dt: float) -> Complex[np.ndarray, "b 2 n m"]:
    """Take one fourth-order Runge-Kutta step with the diffusion integrated exactly."""
    half = np.exp(-DECAY * np.float32(dt / 2))
    whole = half * half
    k1 = tendency(modes)
    k2 = tendency(half * (modes + dt / 2 * k1))
    k3 = tendency(half * modes + dt / 2 * k2)
    k4 = tendency(whole * modes + dt * half * k3)
    return whole * modes + dt / 6 * (whole * k1 + 2 * half * (k2 + k3) + k4)


def pressure_of(velocity: Float[np.ndarray, "*b 2 n n"]) -> Float[np.ndarray, "*b n n"]:
    """Solve lap p = -div div(v v) for density 1 and zero mean."""
    vy, vx = velocity[..., 0, :, :], velocity[..., 1, :, :]
    stress = to_modes(np.stack([vy * vy, vx * vx, vy * vx], -3))
    twice = K_Y**2 * stress[..., 0, :, :] + K_X**2 * stress[..., 1, :, :] + 2 * K_Y * K_X * stress[..., 2, :, :]
    return to_cells(-twice * INVERSE_K2)


def solve(params: list[dict[str, Any]]) -> Complex[np.ndarray, "b t 2 n m"]:
    """Integrate a batch: modes of vorticity and ink at every frame."""
    modes = to_modes(np.stack([start(p) for p in params]))
    history = [modes]
    for _ in range(FRAMES - 1):
        for _ in range(STEPS):
            modes = advance(modes, 1 / STEPS)
        history.append(modes)
    return np.stack(history, 1)


def simulate_batch(params: list[dict[str, Any]], scale: int) -> list[Simulated]:
    """Simulate flows: video, velocity, pressure and ink (density), all meaningful everywhere."""
    clips = []
    for first in range(0, len(params), 8):  # eight clips fit the cache
        for modes in solve(params[first : first + 8]):
            velocity = velocity_of(modes[:, 0])
            pressure = pool(pressure_of(velocity), coarsening(CELLS, scale))
            ink = pool(to_cells(modes[:, 1]), coarsening(CELLS, scale))
            velocity = np.moveaxis(pool(velocity, coarsening(CELLS, scale)), 1, -1)
            slots = {"velocity": velocity, "pressure": pressure[..., None], "density": ink[..., None]}
            fields = {name: value.astype(np.float16) for name, value in slots.items()}
            clips.append((RAMP.colour(ink), fields, {name: np.ones(ink.shape, bool) for name in fields}))
    return clips


def measure(video: Num[np.ndarray, "t h w 3"], expectation: dict[str, Any], scale: int) -> dict[str, float]:
    """Read the ink back: its amount, its mixing (never unmixing), the smoothness and the way of its centre of mass."""
    ink, off = RAMP.read(video)
    ink = ink.astype(np.float64)
    total = ink.sum((1, 2))
    shows = legible(ink.astype(np.float32), off) and float(total.min()) > scale**2
    smooth = ndimage.gaussian_filter(ink, (0, 0.7 * scale, 0.7 * scale), mode="nearest")
    top, square = smooth.max((1, 2)), np.square(smooth).sum((1, 2))
    y, x = pixels(scale)
    weight = np.maximum(total, 1e-3)
    path = np.stack([(ink * y).sum((1, 2)), (ink * x).sum((1, 2))], -1) / weight[:, None]
    steps = np.diff(path, axis=0)
    travel = path[-1] - path[0]
    length = float(np.linalg.norm(path[4::4] - path[:-4:4], axis=-1).sum()) if len(path) > 4 else 0.0
    if expectation["scenario"] == "vortex":
        (dy, dx), (step_y, step_x) = (path[:-1] - path[0]).T, steps.T
        swept = (
            SPINS[expectation["way"]] * 0.5 * float((dx * step_y - dy * step_x).sum())
        )  # area between path and chord
        way = swept > 0.4 and length > 1
    else:
        ahead = float(travel @ np.array(HEADINGS[expectation["way"]]))
        way = ahead > 0.7 * float(np.linalg.norm(travel)) and ahead > 1
    mean = max(float(total.mean()), 1e-3)
    return pace(smooth) | {
        "valid": float(shows),
        "off_manifold": float(off.mean()),
        "ink_drift": float(np.abs(total / mean - 1).max()) if shows else UNFIT,
        "ink_max_growth": float(np.maximum(np.diff(top), 0).sum() / max(float(top[0]), 1e-3)),
        "unmixing": float(np.maximum(np.diff(square), 0).sum() / max(float(square[0]), 1e-3)),
        "jerk": float(np.sqrt(np.square(np.diff(steps, n=2, axis=0)).sum(-1).mean())) if len(path) > 3 else UNFIT,
        "dir_ok": float(shows and way),
        "motion_px": length,
    }
