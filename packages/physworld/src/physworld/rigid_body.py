"""A ball is thrown: x is linear in time, y is a parabola (px and frames, y DOWN, so gravity g > 0 raises y).

The track is the closed form, not a time step: y = y0 + vy t + g t^2 / 2. Left and right, two strengths of gravity (the
caption sometimes leaves gravity out), five colours, two sizes. Held out for the OOD split: the combination yellow +
left, and gravity between the two levels, which no caption names.
"""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from physworld import disk
from physworld.clip import FRAMES, SIZE
from physworld.pace import jolt, pace
from physworld.ramp import UNFIT
from physworld.track import dominant, follow, outside

SCENARIOS = ("thrown",)
GRAVITY = {"weak": (0.04, 0.07), "strong": (0.13, 0.18)}  # px/frame^2; our choice
HELD_OUT_GRAVITY = (0.09, 0.11)
RADIUS = {"small": (2.3, 2.9), "large": (3.9, 4.7)}  # px; our choice
SPEED = (0.7, 1.35)  # horizontal, px/frame; our choice
UNNAMED = 0.25  # share of captions without gravity; our choice
LEAST_SPEED = 0.1  # slowest horizontal motion that has a direction, px/frame; our choice
RULE = {
    "low": (
        "uneven",
        "stutter",
        "traj_rms_px",
        "worst_px",
        "jolt_px",
        "g_relerr",
        "area_cv",
        "gone",
        "off_manifold",
    ),
    "flags": ("valid", "dir_ok"),
    "motion": "motion_px",
    "at_least": {"perm": 0.75},
    "tolerance": {"g_relerr": 0.1},
}


def sample(rng: np.random.Generator, split: str) -> dict[str, Any]:
    """Parameters of one throw whose ball stays inside the picture for the whole clip."""
    ood = ("combination", "range")[rng.integers(2)] if split == "ood" else None
    if ood == "combination":
        colour, direction = "yellow", "left"
    else:
        while True:
            colour, direction = str(rng.choice(disk.NAMES)), ("left", "right")[rng.integers(2)]
            if (colour, direction) != ("yellow", "left"):
                break
    size = ("small", "large")[rng.integers(2)]
    level = ("weak", "strong")[rng.integers(2)]
    g = rng.uniform(*(HELD_OUT_GRAVITY if ood == "range" else GRAVITY[level]))
    named = ood != "range" and rng.uniform() >= UNNAMED
    radius = rng.uniform(*RADIUS[size])
    t = np.arange(FRAMES)
    sign = -1.0 if direction == "left" else 1.0
    low, high = radius + 0.5, SIZE - radius - 0.5
    while True:
        vx = sign * rng.uniform(*SPEED)
        x0 = rng.uniform(low, high)
        vy = rng.uniform(-1.9, 0.3)
        y0 = rng.uniform(low, high)
        x, y = x0 + vx * t, y0 + vy * t + 0.5 * g * t**2
        if min(x.min(), y.min()) >= low and max(x.max(), y.max()) <= high:
            break
    return {
        "scenario": "thrown",
        "ood": ood,
        "colour": colour,
        "direction": direction,
        "size": size,
        "gravity": level if named else None,
        "g": float(g),
        "radius": float(radius),
        "start": (float(y0), float(x0)),
        "speed": (float(vy), float(vx)),
    }


def simulate_batch(params: list[dict[str, Any]], scale: int) -> list[tuple[np.ndarray, dict, dict]]:
    """Draw each throw; velocity and displacement (from frame 0) are valid inside the ball."""
    return [_simulate(p, scale) for p in params]


def _simulate(p: dict[str, Any], scale: int) -> tuple[np.ndarray, dict, dict]:
    t = np.arange(FRAMES)[:, None]
    fall = np.array([p["g"], 0.0])
    moved = np.array(p["speed"]) * t + 0.5 * fall * t**2
    velocity = np.array(p["speed"]) + fall * t
    track = np.array(p["start"]) + moved
    cover = disk.disks(track[:, None], np.array([p["radius"]]), scale)
    video = disk.paint(cover, disk.rgb(p["colour"]))
    fields, valid = {}, {}
    for slot, value in (("displacement", moved), ("velocity", velocity)):
        fields[slot], valid[slot] = disk.body_fields(cover, value[:, None])
    p["track"] = track
    return video, fields, valid


def caption(params: dict[str, Any]) -> str:
    """One sentence that says what a pixel can check."""
    text = f"a {params['size']} {params['colour']} ball is thrown to the {params['direction']}"
    return text if params["gravity"] is None else f"{text} under {params['gravity']} gravity"


def expect(words: list[str]) -> dict[str, Any]:
    """What the words fix: scenario, colour, direction, size and, where named, the range of g; {} if this is no
    throw."""
    if "thrown" not in words:
        return {}
    expected: dict[str, Any] = {"scenario": "thrown"}
    for key, choices in (("colour", disk.NAMES), ("direction", ("left", "right")), ("size", tuple(RADIUS))):
        named = [word for word in words if word in choices]
        if named:
            expected[key] = named[0]
    for level, bounds in GRAVITY.items():
        if level in words:
            expected["g"] = bounds
    return expected


def measure(video: UInt8[np.ndarray, "t h w 3"], expectation: dict[str, Any], scale: int) -> dict[str, float]:
    """Follow the ball and fit x linear, y quadratic: residual, gravity against the caption's range, direction, size.

    `worst_px` is the largest residual of one frame, `jolt_px` its largest second difference, `gone` the share of frames
    without the ball; `uneven` and `stutter` are those of `pace`.
    """
    colour = expectation.get("colour") or dominant(video)
    (ball,), off = follow(video, [colour], scale)
    found = {
        "valid": float(ball.fits),
        "perm": ball.perm,
        "area_cv": ball.area_cv,
        "gone": ball.gone,
        "off_manifold": off,
    } | pace(video.mean(-1))
    if not ball.fits:
        unfit = dict.fromkeys(("traj_rms_px", "worst_px", "jolt_px", "g_relerr"), UNFIT)
        return found | unfit | dict.fromkeys(("g", "dir_ok", "size_ok", "motion_px"), 0.0)
    t = np.arange(len(video))[ball.seen]
    y, x = ball.position[ball.seen].T
    along, down = np.polynomial.Polynomial.fit(t, x, 1), np.polynomial.Polynomial.fit(t, y, 2)
    residual = np.stack([y - down(t), x - along(t)], -1)
    distance = np.linalg.norm(residual, axis=-1)
    g = float(down.deriv(2)(0.0))
    vx = float(along.deriv()(0.0))
    wanted = {"left": -1.0, "right": 1.0}.get(expectation.get("direction", ""), float(np.sign(vx)))
    size = "small" if ball.radius < 0.5 * (RADIUS["small"][1] + RADIUS["large"][0]) else "large"
    return found | {
        "traj_rms_px": float(np.sqrt((distance**2).mean())),
        "worst_px": float(distance.max()),
        "jolt_px": jolt(residual),
        "g": g,
        "g_relerr": outside(g, expectation.get("g", (GRAVITY["weak"][0], GRAVITY["strong"][1]))),
        "dir_ok": float(wanted * vx > LEAST_SPEED),
        "size_ok": float(expectation.get("size", size) == size),
        "motion_px": ball.spread,
    }
