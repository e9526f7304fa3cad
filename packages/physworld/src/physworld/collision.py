"""Two balls meet: momentum is conserved, they bounce (restitution 1) or stick (restitution 0); m = r^2, no gravity.

The motion is solved by its one event: straight lines, the exact time of contact, straight lines. Bouncing disks are frictionless
(only the normal velocities change); sticking balls meet head on, so that going on together conserves angular momentum as well.
Contact falls in frames 4 to 10 (rejection sampling), all balls stay inside the picture, so nobody needs a wall. Units px and
frames; impulse is m dv in px^2 px/frame. Held out for OOD: yellow hits purple, and closing speeds below the range.
"""

from typing import Any

import numpy as np

from physworld import disk
from physworld.clip import FRAMES, SIZE

SCENARIOS = ("bounces", "sticks")
RADIUS = {"small": (2.5, 3.1), "large": (3.9, 4.6)}  # px; our choice
CLOSING = (1.05, 2.2)  # closing speed, px/frame; our choice
HELD_OUT_CLOSING = (0.75, 0.95)  # slower: faster balls leave the picture
CONTACT = (4.0, 10.0)  # frames
OFFSET = 0.45  # largest impact parameter as a share of r1 + r2 (bounces); our choice
LEAST_SPEED = 0.35  # a ball that "moves" moves at least this fast before contact, px/frame; our choice


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
