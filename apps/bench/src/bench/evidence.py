"""What can be looked at beside a figure: paths against the law, quantities over time, the motion in the picture.

`evidence` reads one clip of the simulated world the way its measure does and keeps what a person can check by eye: the
track of a body with the fitted parabola or the two lines of a collision, the amount of ink or heat that should stay, an
area that should only shrink. Tracks are (x, y) in units of the picture's width and height, frame by frame, null where
the body is out of sight. `motion` works on any film: optical flow on a coarse grid, in units of the picture.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from physworld import SIZE, captions, compressible_flow, fluid, phase_change, thermal
from physworld.track import Track, dominant, follow

CELLS = 8
"""Arrows along the shorter side of the picture (our choice)."""
FLOW_SIDE = 128
"""Pixels of the shorter side at which flow is looked for (our choice)."""
LEAST_FLOW = 0.002
"""Motion a frame, in widths of the picture, below which no arrow is drawn."""

Film = UInt8[np.ndarray, "t h w 3"]


def evidence(caption: str, film: Film) -> dict[str, Any]:
    """Give `tracks` (each with a `name`, `points` and the `law`'s points) and `series` (each with `name`, `unit`,
    `values`, what the law `expects` and in `words`); {} for a caption that is not of this world.
    """
    expected = captions.parse(caption)
    if expected is None:
        return {}
    scale, wanted = film.shape[1] // SIZE, expected.parameters
    match expected.mechanism:
        case "rigid_body":
            (ball,), _ = follow(film, [wanted.get("colour") or dominant(film)], scale)
            return _paths([("ball", ball, _thrown(ball))])
        case "collision":
            colours = wanted.get("colours") or (dominant(film),)
            balls, _ = follow(film, colours, scale)
            return _paths([(c, ball, _struck(ball)) for c, ball in zip(colours, balls, strict=True)])
        case "elastic" if expected.scenario == "spring":
            (ball,), _ = follow(film, [wanted.get("colour") or dominant(film)], scale, rod=True)
            return _paths([("ball", ball, None)])
        case "fluid":
            ink = fluid.RAMP.read(film)[0].sum((1, 2))
            return _series("amount of ink", "of its mean", ink / max(float(ink.mean()), 1e-6), 1.0, "stays")
        case "compressible_flow":
            density = compressible_flow.DENSITY.read(film[..., 1:])[0].mean((1, 2))
            return _series("mass", "of the first frame", density / max(float(density[0]), 1e-6), 1.0, "stays")
        case "phase_change":
            area = (1 - phase_change.RAMP.read(film)[0]).sum((1, 2)) / scale**2
            melts = expected.scenario == "melt"
            only = (np.minimum if melts else np.maximum).accumulate(area)
            return _series("area of ice", "px", area, only, "only shrinks" if melts else "only grows")
        case "thermal":
            heat = thermal.RAMP.read(film)[0].mean((1, 2))
            return _series("heat", "of its mean", heat / max(float(heat.mean()), 1e-6), 1.0, "stays")
        case _:
            return {}


def motion(film: Film) -> Float[np.ndarray, "steps y x 2"]:
    """Mean optical flow (x, y) from each frame to the next on a coarse grid, in widths of the picture a frame.

    Farneback's polynomial expansion on grey frames of 128 pixels. Cells that hardly move are zero.
    """
    import cv2

    height, width = film.shape[1:3]
    factor = FLOW_SIDE / min(height, width)
    size = (round(width * factor), round(height * factor))
    grey = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC) for f in film]
    cells = (round(CELLS * height / min(height, width)), round(CELLS * width / min(height, width)))
    flows = []
    for a, b in pairwise(grey):
        start = np.zeros((size[1], size[0], 2), np.float32)
        flow = cv2.calcOpticalFlowFarneback(a, b, start, 0.5, 3, 15, 3, 7, 1.5, 0) / size[0]
        rows = np.array_split(flow, cells[0])
        grid = np.array([[part.mean((0, 1)) for part in np.array_split(row, cells[1], axis=1)] for row in rows])
        flows.append(np.where(np.linalg.norm(grid, axis=-1, keepdims=True) < LEAST_FLOW, 0, grid))
    return np.array(flows) if flows else np.zeros((0, *cells, 2))


def _thrown(ball: Track) -> np.ndarray | None:
    """The track that the law fits: x linear, y quadratic in time."""
    if not ball.fits:
        return None
    t, every = np.flatnonzero(ball.seen), np.arange(len(ball.seen))
    y, x = ball.position[ball.seen].T
    fit = np.polynomial.Polynomial.fit
    return np.stack([fit(t, y, 2)(every), fit(t, x, 1)(every)], -1)


def _struck(ball: Track) -> np.ndarray | None:
    """The best two straight lines, before and after one moment."""
    if not ball.fits:
        return None
    t, every = np.flatnonzero(ball.seen), np.arange(len(ball.seen))
    at = ball.position[ball.seen]

    def lines(k: int) -> tuple[float, np.ndarray]:
        before, after = (np.polyfit(t[part], at[part], 1) for part in (slice(0, k + 1), slice(k + 1, None)))
        both = np.where((every <= t[k])[:, None], np.outer(every, before[0]) + before[1], 0)
        both += np.where((every > t[k])[:, None], np.outer(every, after[0]) + after[1], 0)
        return float(((both[ball.seen] - at) ** 2).sum()), both

    return min((lines(k) for k in range(2, len(t) - 3)), key=lambda found: found[0])[1]


def _paths(bodies: Sequence[tuple[str, Track, np.ndarray | None]]) -> dict[str, Any]:
    return {
        "tracks": [
            {
                "name": name,
                "points": [_point(p) if seen else None for p, seen in zip(ball.position, ball.seen, strict=True)],
                "law": None if law is None else [_point(p) for p in law],
            }
            for name, ball, law in bodies
        ]
    }


def _point(yx: Any) -> list[float]:
    return [round(float(yx[1]) / SIZE, 4), round(float(yx[0]) / SIZE, 4)]


def _series(name: str, unit: str, values: Any, law: Any, words: str) -> dict[str, Any]:
    expects = np.broadcast_to(np.asarray(law, float), np.shape(values))
    numbers = [[round(float(v), 4) for v in column] for column in (values, expects)]
    return {"series": [{"name": name, "unit": unit, "values": numbers[0], "expects": numbers[1], "words": words}]}
