"""Two balls meet: momentum is conserved, they bounce (restitution 1) or stick (restitution 0); m = r^2, no gravity.

The motion is solved by its one event: straight lines, the exact time of contact, straight lines. Bouncing disks are
frictionless (only the normal velocities change); sticking balls meet head on, so that going on together conserves
angular momentum as well. Contact falls in frames 4 to 10 (rejection sampling), all balls stay inside the picture, so
nobody needs a wall. Units px and frames; impulse is m dv in px^2 px/frame. Held out for OOD: yellow hits purple, and
closing speeds below the range.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from physworld import disk
from physworld.clip import FRAMES, SIZE
from physworld.pace import jolt, pace
from physworld.ramp import UNFIT
from physworld.track import LEAST_FRAMES, dominant, follow

SCENARIOS = ("bounces", "sticks")
RADIUS = {"small": (2.5, 3.1), "large": (3.9, 4.6)}  # px; our choice
CLOSING = (1.05, 2.2)  # closing speed, px/frame; our choice
HELD_OUT_CLOSING = (0.75, 0.95)  # slower: faster balls leave the picture
CONTACT = (4.0, 10.0)  # frames
OFFSET = 0.45  # largest impact parameter as a share of r1 + r2 (bounces); our choice
LEAST_SPEED = 0.35  # a ball that "moves" moves at least this fast before contact, px/frame; our choice
LEAST_CLOSING = 0.25  # closing speed below which no collision is seen, px/frame; our choice
TOUCH = 0.8  # balls this near to touching are in contact, px; our choice
RULE = {
    "low": (
        "uneven",
        "stutter",
        "line_rms_px",
        "worst_px",
        "jolt_px",
        "gone",
        "mom_relerr",
        "rest_err",
        "overlap_px",
        "touch_px",
        "area_cv",
        "off_manifold",
    ),
    "flags": ("valid", "dir_ok"),
    "motion": "motion_px",
    "at_least": {"perm": 0.75},
    "tolerance": {
        "uneven": 2.0,
        "stutter": 1.5,
        "overlap_px": 0.3,
        "touch_px": TOUCH,
        "mom_relerr": 0.02,
        "rest_err": 0.02,
    },
}


def sample(rng: np.random.Generator, split: str) -> dict[str, Any]:
    """Parameters of one meeting. Ball 0 is named first and is the one that is going `direction`."""
    ood = ("combination", "range")[rng.integers(2)] if split == "ood" else None
    if ood == "combination":
        first, second = "yellow", "purple"
    else:
        while True:
            first, second = (str(c) for c in rng.choice(disk.NAMES, 2, replace=False))
            if (first, second) != ("yellow", "purple"):
                break
    scenario = SCENARIOS[rng.integers(2)]
    sizes = tuple(("small", "large")[k] for k in rng.integers(2, size=2))
    direction = ("left", "right")[rng.integers(2)]
    sign = -1.0 if direction == "left" else 1.0
    radii = np.array([rng.uniform(*RADIUS[s]) for s in sizes])
    mass = radii**2
    while True:
        closing = rng.uniform(*(HELD_OUT_CLOSING if ood == "range" else CLOSING))
        share = rng.uniform(0.3, 1.1)  # how much of the closing speed ball 0 carries; above 1, ball 1 flees
        tilt = rng.uniform(-0.35, 0.35)
        heading = np.array([np.sin(tilt), sign * np.cos(tilt)])
        u = np.stack([share * closing * heading, (share - 1.0) * closing * heading])
        when = rng.uniform(*CONTACT)
        b = rng.uniform(-OFFSET, OFFSET) if scenario == "bounces" else 0.0
        side = np.array([-heading[1], heading[0]])
        normal = np.sqrt(1.0 - b * b) * heading + b * side  # from ball 0 to ball 1 at contact
        middle = rng.uniform(8.0, SIZE - 8.0, size=2)
        at = np.stack([middle - normal * radii[0], middle + normal * radii[1]])
        if scenario == "bounces":
            impulse = 2.0 * mass.prod() / mass.sum() * ((u[0] - u[1]) @ normal) * normal
            after = np.stack([u[0] - impulse / mass[0], u[1] + impulse / mass[1]])
        else:
            after = np.repeat(((mass[:, None] * u).sum(0) / mass.sum())[None], 2, 0)
        p = {"contact": when, "at": at, "before": u, "after": after}
        track = _track(p)
        margin = radii[:, None] + 0.5
        inside = (track >= margin).all() and (track <= SIZE - margin).all()
        if inside and np.linalg.norm(u[0]) >= LEAST_SPEED:
            break
    return p | {
        "scenario": scenario,
        "ood": ood,
        "colours": (first, second),
        "sizes": sizes,
        "direction": direction,
        "radii": radii,
        "mass": mass,
        "restitution": 1.0 if scenario == "bounces" else 0.0,
        "closing": float(closing),
    }


def _track(p: dict[str, Any]) -> np.ndarray:
    """Centres (t, 2 balls, (y, x)): two straight lines that meet at the contact."""
    dt = (np.arange(FRAMES) - p["contact"])[:, None, None]
    return p["at"] + np.minimum(dt, 0.0) * p["before"] + np.maximum(dt, 0.0) * p["after"]


def simulate_batch(params: list[dict[str, Any]], scale: int) -> list[tuple[np.ndarray, dict, dict]]:
    """Draw each meeting; velocity, displacement (from frame 0) and impulse are valid inside the balls.

    The impulse m (u' - u) of each ball is written in the first frame at or after the contact, zero in the others.
    """
    return [_simulate(p, scale) for p in params]


def _simulate(p: dict[str, Any], scale: int) -> tuple[np.ndarray, dict, dict]:
    track = _track(p)
    later = np.arange(FRAMES) >= p["contact"]
    velocity = np.where(later[:, None, None], p["after"], p["before"])
    hit = np.arange(FRAMES) == int(np.ceil(p["contact"]))
    impulse = np.where(hit[:, None, None], p["mass"][:, None] * (p["after"] - p["before"]), 0.0)
    cover = disk.disks(track, p["radii"], scale)
    video = disk.paint(cover, disk.rgb(*p["colours"]))
    fields, valid = {}, {}
    for slot, value in (("displacement", track - track[:1]), ("velocity", velocity), ("impulse", impulse)):
        fields[slot], valid[slot] = disk.body_fields(cover, value)
    p["track"] = track
    return video, fields, valid


def caption(params: dict[str, Any]) -> str:
    """`a small red ball going right hits a large blue ball and bounces` (or `and sticks to it`)."""
    (s0, s1), (c0, c1) = params["sizes"], params["colours"]
    end = "bounces" if params["scenario"] == "bounces" else "sticks to it"
    return f"a {s0} {c0} ball going {params['direction']} hits a {s1} {c1} ball and {end}"


def expect(words: list[str]) -> dict[str, Any]:
    """What the words fix: scenario, both colours and sizes, the direction of the first ball; {} if nothing hits."""
    if "hits" not in words:
        return {}
    expected: dict[str, Any] = {}
    if "bounces" in words or "sticks" in words:
        expected["scenario"] = "bounces" if "bounces" in words else "sticks"
        expected["restitution"] = 1.0 if "bounces" in words else 0.0
    for key, choices in (("colours", disk.NAMES), ("sizes", tuple(RADIUS))):
        named = tuple(word for word in words if word in choices)
        if len(named) == 2:
            expected[key] = named
    directions = [word for word in words if word in ("left", "right")]
    if directions:
        expected["direction"] = directions[0]
    return expected


def measure(video: UInt8[np.ndarray, "t h w 3"], expectation: dict[str, Any], scale: int) -> dict[str, float]:
    """Follow both balls, fit straight lines before and after the best break, and read momentum and restitution off
    them.

    m is the pixel area. `touch_px` says how far the balls are from touching at the break; restitution is that of the
    normal velocity for balls that should bounce, and the whole velocity left between them, over the closing speed, for
    those that should stick.
    """
    colours = expectation.get("colours") or (dominant(video), next(n for n in disk.NAMES if n != dominant(video)))
    balls, off = follow(video, colours, scale)
    both = balls[0].seen & balls[1].seen
    valid = all(ball.fits for ball in balls) and both.sum() >= LEAST_FRAMES
    found = {
        "valid": float(valid),
        "perm": min(ball.perm for ball in balls),
        "area_cv": max(ball.area_cv for ball in balls),
        "gone": max(ball.gone for ball in balls),
        "off_manifold": off,
    } | pace(video.mean(-1), turns=True)
    unfit = dict.fromkeys(
        ("line_rms_px", "worst_px", "jolt_px", "mom_relerr", "rest_err", "overlap_px", "touch_px"), UNFIT
    )
    unfit |= {"dir_ok": 0.0, "motion_px": 0.0}
    if not valid:
        return found | unfit
    t = np.arange(len(video))[both].astype(float)
    track = np.stack([ball.position[both] for ball in balls], 1)
    rms, k, before, after = _break(t, track)
    mass = np.array([np.median(ball.area[ball.seen]) for ball in balls])
    reach = balls[0].radius + balls[1].radius
    first = np.arange(len(t))[:, None, None] <= k
    residual = track - np.where(first, before[0] + t[:, None, None] * before[1], after[0] + t[:, None, None] * after[1])
    u, v = before[1], after[1]  # (ball, (y, x)), px/frame
    moment = np.linspace(t[k] - 0.25, t[k + 1] + 0.25, 31)[:, None]  # the contact lies between two frames
    apart = (before[0][1] - before[0][0]) + moment * (u[1] - u[0])
    distance = np.linalg.norm(apart, axis=-1)
    touch = int(np.abs(distance - reach).argmin())
    normal = apart[touch] / max(distance[touch], 1e-6)
    closing = float((u[0] - u[1]) @ normal)
    sticks = expectation.get("scenario") == "sticks"
    left = float(np.linalg.norm(v[1] - v[0])) if sticks else float((v[1] - v[0]) @ normal)
    flow = float((mass * np.linalg.norm(u, axis=-1)).sum())
    wanted = {"left": -1.0, "right": 1.0}.get(expectation.get("direction", ""), float(np.sign(u[0, 1])))
    gaps = np.linalg.norm(track[:, 1] - track[:, 0], axis=-1) - reach
    return found | {
        "line_rms_px": rms,
        "worst_px": float(np.linalg.norm(residual, axis=-1).max()),
        "jolt_px": max(jolt(residual[:, ball]) for ball in (0, 1)),
        "mom_relerr": float(np.linalg.norm((mass[:, None] * (v - u)).sum(0)) / max(flow, 1e-6)),
        "rest_err": abs(left / closing - (0.0 if sticks else 1.0)) if closing > LEAST_CLOSING else UNFIT,
        "overlap_px": float(max(-gaps.min(), 0.0)),
        "touch_px": float(abs(distance[touch] - reach)),
        "dir_ok": float(wanted * u[0, 1] > 0.5 * LEAST_SPEED),
        "motion_px": max(ball.spread for ball in balls),
    }


def _break(
    t: Float[np.ndarray, " n"], track: Float[np.ndarray, "n 2 2"]
) -> tuple[float, int, Float[np.ndarray, "2 2 2"], Float[np.ndarray, "2 2 2"]]:
    """The best cut k into two straight motions: rms residual (px), k, and for each side (value at t = 0, velocity) by
    ball."""

    def line(part: slice) -> tuple[float, np.ndarray]:
        basis = np.stack([np.ones_like(t[part]), t[part]], 1)
        flat = track[part].reshape(-1, 4)
        solution = np.linalg.lstsq(basis, flat, rcond=None)[0]
        return float(((basis @ solution - flat) ** 2).sum()), solution.reshape(2, 2, 2)

    best: tuple[float, int, np.ndarray, np.ndarray] | None = None
    for k in range(2, len(t) - 3):  # three frames on each side at least
        (e0, before), (e1, after) = line(slice(0, k + 1)), line(slice(k + 1, None))
        if best is None or e0 + e1 < best[0]:
            best = (e0 + e1, k, before, after)
    assert best is not None
    return float(np.sqrt(best[0] / (2 * len(t)))), *best[1:]
