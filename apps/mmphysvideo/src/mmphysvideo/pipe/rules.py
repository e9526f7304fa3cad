"""A witness that needs no model: it names what moves, by colour, and what happens, by how it moves.

It knows few words. Bodies come from motion segmentation (`Seen.bodies`); a process is `collision` where two bodies
meet and one of them changes its velocity, `growth` or `shrinking` where an area changes steadily, `flow` for a swarm of
small pieces, otherwise `motion`. It is the default so that the pipeline runs anywhere; its captions are plain.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from mmphysvideo.pipe.evidence import Evidence, Subject
from mmphysvideo.pipe.seen import Seen

__all__ = ["Rules"]

HUES = ((12, "red"), (22, "orange"), (34, "yellow"), (85, "green"), (100, "cyan"), (130, "blue"), (165, "purple"))
"""Upper bounds of OpenCV's hue (0 to 180); above, red again."""
STILL = 0.01
"""Share of the longer side that a centre must move in all for its body to move: our choice."""
TURN = 0.5
"""Change of velocity at a meeting, over the larger speed before or after: our choice."""
STEADY = 0.2
"""Relative spread of the area of a body that collides, at most: our choice."""
GROWN = 1.4


@dataclass(frozen=True)
class Rules:
    """The rules as a witness."""

    name: str = "rules"

    def testify(self, clip: Seen) -> Evidence:
        """Name moving bodies and what they do."""
        bodies, t = clip.bodies, len(clip.frames)
        h, w = bodies.shape[1:]
        count = int(bodies.max(initial=0))
        paths = [_centres(bodies == k) for k in range(1, count + 1)]
        names = _distinct([_colour(clip.frames, bodies == k) for k in range(1, count + 1)])
        speeds = [_speed(path) for path in paths]
        order = sorted(range(count), key=lambda k: -speeds[k])
        process = _process(bodies, paths)
        subjects = []
        for k in range(count):
            shown = np.flatnonzero((bodies == k + 1).any((1, 2)))
            cited = sorted({int(shown[0]), int(shown[len(shown) // 2]), int(shown[-1])})
            ys, xs = np.nonzero(bodies[cited[0]] == k + 1)
            box = (xs.min() / w, ys.min() / h, (xs.max() + 1) / w, (ys.max() + 1) / h)
            moved = float(np.linalg.norm(paths[k][shown[-1]] - paths[k][shown[0]]))
            area = int(np.median((bodies[shown] == k + 1).sum((1, 2))))
            why = (
                f"{area} px differ from the empty scene in {len(shown)} of {t} frames; its centre moves {moved:.1f} px"
            )
            role = "agent" if order and k == order[0] else "patient" if "collision" in process else "other"
            subjects.append(
                Subject(id=k + 1, name=names[k], role=role, evidence_frames=cited, box=tuple(map(float, box)), why=why)  # pyright: ignore[reportArgumentType]
            )
        caption = _caption(subjects, process, paths, max(h, w))
        motion = "static" if clip.camera.kind == "static" else "moving"
        return Evidence(
            clip=clip.name,
            process=process,
            subjects=subjects,
            camera_motion=motion,
            keep=bool(subjects),
            caption=caption if subjects else "nothing stands out by its motion",
        )


def _centres(mask: Bool[np.ndarray, "t h w"]) -> Float[np.ndarray, "t 2"]:
    path = np.full((len(mask), 2), np.nan)
    for t in np.flatnonzero(mask.any((1, 2))):
        path[t] = np.argwhere(mask[t]).mean(0)
    return path


def _speed(path: Float[np.ndarray, "t 2"]) -> float:
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    return float(np.nanmedian(steps)) if np.isfinite(steps).any() else 0.0


def _process(bodies: UInt8[np.ndarray, "t h w"], paths: list[Float[np.ndarray, "t 2"]]) -> list[str]:
    if not paths:
        return []
    found = []
    reach = max(2, round(min(bodies.shape[1:]) / 32))
    for a in range(len(paths)):
        for b in range(a + 1, len(paths)):
            if _collide(bodies, paths, a, b, reach) and "collision" not in found:
                found.append("collision")
    for k in range(len(paths)):
        area = (bodies == k + 1).sum((1, 2)).astype(float)
        shown = area[area > 0]
        frames = (bodies[area > 0][::4] == k + 1).astype(np.uint8)
        pieces = [cv2.connectedComponents(frame)[0] - 1 for frame in frames]
        if np.median(pieces) > 12:
            found.append("flow")
        elif len(shown) > 4:
            third = len(shown) // 3
            ratio = np.median(shown[-third:]) / np.median(shown[:third])
            steady = np.corrcoef(np.arange(len(shown)), shown)[0, 1] if shown.std() > 0 else 0.0
            if ratio > GROWN and steady > 0.8:
                found.append("growth")
            elif ratio < 1 / GROWN and steady < -0.8:
                found.append("shrinking")
    return list(dict.fromkeys(found)) or ["motion"]


def _collide(
    bodies: UInt8[np.ndarray, "t h w"], paths: list[Float[np.ndarray, "t 2"]], a: int, b: int, reach: int
) -> bool:
    """Whether two bodies that were apart come together and one of them then moves otherwise.

    Only bodies that keep their size count: a hand whose outline grows and shrinks has a centre that jumps.
    """
    for k in (a, b):
        area = (bodies == k + 1).sum((1, 2)).astype(float)
        if area[area > 0].std() > STEADY * area[area > 0].mean():
            return False
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    near = np.array([(cv2.dilate((f == a + 1).astype(np.uint8), kernel)[f == b + 1]).any() for f in bodies])
    both = np.asarray(np.isfinite(np.concatenate([paths[a], paths[b]], 1)).all(1))
    first = int(near.argmax()) if near.any() else 0
    before, after = np.flatnonzero(both[:first]), np.flatnonzero(both[first:]) + first
    if len(before) < 2 or len(after) < 3:
        return False
    for path in (paths[a], paths[b]):
        u = (path[before[-1]] - path[before[max(0, len(before) - 4)]]) / max(1, min(3, len(before) - 1))
        v = (path[after[min(4, len(after) - 1)]] - path[after[1]]) / max(1, min(3, len(after) - 2))
        if np.linalg.norm(v - u) > max(TURN * max(np.linalg.norm(u), np.linalg.norm(v)), 0.3):
            return True
    return False


def _colour(frames: UInt8[np.ndarray, "t h w 3"], mask: Bool[np.ndarray, "t h w"]) -> str:
    r, g, b = np.median(frames[mask], axis=0).astype(np.uint8)
    hue, saturation, value = cv2.cvtColor(np.array([[[r, g, b]]], np.uint8), cv2.COLOR_RGB2HSV)[0, 0]
    if value < 50:
        return "dark body"
    if saturation < 45:
        return "white body" if value > 190 else "grey body"
    name = next((name for bound, name in HUES if hue <= bound), "red")
    return f"{name} body"


def _distinct(names: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        twins = sum(one == name or one.startswith(f"{name} ") for one in found)
        found.append(f"{name} {twins + 1}" if twins else name)
    return found


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _caption(subjects: list[Subject], process: list[str], paths: list[Float[np.ndarray, "t 2"]], side: int) -> str:
    if "collision" in process and len(subjects) >= 2:
        return f"{_a(subjects[0].name)} and {_a(subjects[1].name)} collide"
    said = []
    for subject, path in zip(subjects, paths, strict=True):
        ends = path[np.isfinite(path).all(1)]
        dy, dx = ends[-1] - ends[0]
        if "flow" in process and len(subjects) == 1:
            said.append("many small pieces drift about")
        elif max(abs(dy), abs(dx)) < STILL * side:
            said.append(f"{_a(subject.name)} moves in its place")
        else:
            way = ("down" if dy > 0 else "up") if abs(dy) > abs(dx) else ("to the right" if dx > 0 else "to the left")
            said.append(f"{_a(subject.name)} moves {way}")
    return ", ".join(said)
