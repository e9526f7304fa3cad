"""Which foreground is which body: components followed over time, and taken apart where two bodies touch.

From the frame with the most components, bodies are followed forwards and backwards. Each is looked for by its own
pixels (masked template matching), so a component that two bodies claim is divided by whose pixels fit better.
Components that always lie side by side are one body (a person's arms and trunk), and so is a swarm of more small ones
than there is room for. Bodies are labelled by size, the largest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

__all__ = ["bodies_of", "least_area"]

LEAST_SHARE = 0.0008
"""Smallest component, as a share of the picture, and no less than `LEAST_PIXELS`. Our choice."""
LEAST_PIXELS = 12
LEAST_LIFE = 0.2
"""Share of the frames that a body must be seen in."""
TOGETHER = 0.9
"""Components that touch in this share of the frames that both are in are one body."""
ALIKE = 2.0
"""Bodies whose sizes are within this factor of the median's are of a kind: a swarm, when there are many."""
SPECK = 2
"""Pixels of the smallest piece of a swarm."""
MEMORY = 4
"""Frames that a body may be hidden before it is a new one."""
EIGHT = np.ones((3, 3), int)


@dataclass
class _Body:
    mask: Bool[np.ndarray, "h w"]
    frame: Float32[np.ndarray, "h w 3"]
    velocity: tuple[int, int] = (0, 0)
    hidden: int = 0
    extent: Bool[np.ndarray, "h w"] | None = None
    """Where any of its parts was lately."""


def least_area(height: int, width: int) -> int:
    """Pixels of the smallest component that counts.

    >>> least_area(64, 64), least_area(180, 320)
    (12, 46)
    """
    return max(LEAST_PIXELS, round(LEAST_SHARE * height * width))


def bodies_of(
    frames: Float32[np.ndarray, "t h w 3"], front: Bool[np.ndarray, "t h w"], *, most: int
) -> UInt8[np.ndarray, "t h w"]:
    """Label the foreground by body, at most `most` of them, the largest first."""
    components = [_components(one) for one in front]
    smallest = [min((int(c.sum()) for c in found), default=0) for found in components]
    anchor = max(range(len(front)), key=lambda t: (len(components[t]), smallest[t]))
    labels = np.zeros(front.shape, np.int32)
    count = 0
    bodies: dict[int, _Body] = {}
    for found in components[anchor]:
        count += 1
        labels[anchor][found] = count
        bodies[count] = _Body(found, frames[anchor])
    for order in (range(anchor + 1, len(front)), range(anchor - 1, -1, -1)):
        alive = {k: _Body(body.mask, body.frame) for k, body in bodies.items()}
        for t in order:
            count = _step(frames[t], components[t], alive, labels[t], count)
    kept = _kept(_joined(labels), most)
    return kept if kept.any() else _swarm(front, most)


def _swarm(front: Bool[np.ndarray, "t h w"], most: int) -> UInt8[np.ndarray, "t h w"]:
    """What moves in pieces too small to be followed, as one body when most frames hold many (drops, grains)."""
    swarm, pieces = np.zeros(front.shape, np.uint8), []
    for t, one in enumerate(front):
        count, regions = cv2.connectedComponents(one.astype(np.uint8))
        large = np.bincount(regions.ravel(), minlength=count) >= SPECK
        large[0] = False
        pieces.append(int(large.sum()))
        swarm[t] = large[regions]
    return swarm if np.median(pieces) > 2 * most else np.zeros_like(swarm)


def _components(front: Bool[np.ndarray, "h w"]) -> list[Bool[np.ndarray, "h w"]]:
    reach = round(min(front.shape) / 90)
    joined = front
    if reach:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        joined = cv2.morphologyEx(front.astype(np.uint8), cv2.MORPH_CLOSE, kernel).astype(bool)
    regions, count = ndimage.label(joined, EIGHT)  # pyright: ignore[reportGeneralTypeIssues]
    least = least_area(*front.shape)
    found = [(regions == k) & joined for k in range(1, count + 1)]
    return [one for one in found if one.sum() >= least]


def _step(
    frame: Float32[np.ndarray, "h w 3"],
    components: Sequence[Bool[np.ndarray, "h w"]],
    alive: dict[int, _Body],
    label: np.ndarray,
    count: int,
) -> int:
    """Give each component of the next frame to the bodies that are found in it; returns how many bodies there are."""
    moves = {k: _found(body, frame) for k, body in alive.items()}
    placed = {k: _moved(body.mask, moves[k]) for k, body in alive.items()}
    lately = {k: _moved(body.extent, moves[k]) for k, body in alive.items() if body.extent is not None}
    for component in components:
        area = int(component.sum())
        claims = [
            k for k, there in placed.items() if (there & component).sum() >= 0.25 * min(area, max(int(there.sum()), 1))
        ]
        if not claims:  # a part that was out of sight, or something new
            parts = {k: (there & component).sum() for k, there in lately.items()}
            claims = [k for k in parts if parts[k] and parts[k] == max(parts.values())][:1]
        if not claims:
            count += 1
            claims = [count]
            alive[count] = _Body(component, frame)
            moves[count], placed[count] = (0, 0), component
        if len(claims) == 1:
            label[component] = claims[0]
        else:
            _divide(frame, component, {k: (alive[k], moves[k], placed[k]) for k in claims}, label)
    for k in list(alive):
        mask = label == k
        if mask.any():
            extent = mask | lately[k] if k in lately else mask
            alive[k] = _Body(mask, frame, moves[k], extent=extent)
        elif alive[k].hidden < MEMORY:
            body = alive[k]
            alive[k] = _Body(_moved(body.mask, body.velocity), body.frame, body.velocity, body.hidden + 1, body.extent)
        else:
            del alive[k]
    return count


def _found(body: _Body, frame: Float32[np.ndarray, "h w 3"]) -> tuple[int, int]:
    """Where a body's pixels fit best, as a shift (y, x) of whole pixels around where its speed leads."""
    h, w = body.mask.shape
    ys, xs = np.nonzero(body.mask)
    if not len(ys) or body.hidden:
        return body.velocity
    top, left, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
    vy, vx = body.velocity
    reach = 3 + max(abs(vy), abs(vx)) + round(0.03 * min(h, w))
    pad = reach + max(abs(vy), abs(vx)) + 1
    large = cv2.copyMakeBorder(frame, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    y0, x0 = top + vy - reach + pad, left + vx - reach + pad
    window = large[max(y0, 0) : bottom + vy + reach + pad, max(x0, 0) : right + vx + reach + pad]
    template = body.frame[top:bottom, left:right]
    mask = np.repeat(body.mask[top:bottom, left:right, None].astype(np.float32), 3, 2)
    if window.shape[0] < template.shape[0] or window.shape[1] < template.shape[1]:
        return body.velocity
    cost = cv2.matchTemplate(window, template, cv2.TM_SQDIFF, mask=mask)
    y, x = np.unravel_index(int(cost.argmin()), cost.shape)
    return int(y + max(y0, 0) - pad - top), int(x + max(x0, 0) - pad - left)


def _divide(
    frame: Float32[np.ndarray, "h w 3"],
    component: Bool[np.ndarray, "h w"],
    claims: dict[int, tuple[_Body, tuple[int, int], Bool[np.ndarray, "h w"]]],
    label: np.ndarray,
) -> None:
    """Give each pixel of a component to the body whose own pixels, moved there, fit it better."""
    costs = []
    for body, (dy, dx), there in claims.values():
        before = np.roll(body.frame, (dy, dx), (0, 1))
        misfit = cv2.blur(np.abs(frame - before).mean(-1), (3, 3))
        away = np.asarray(ndimage.distance_transform_edt(~there)) if there.any() else np.full(there.shape, 1e3)
        costs.append(np.where(there, np.minimum(misfit, 40.0), 40.0 + 20.0 * away))
    names = np.array(list(claims))
    label[component] = names[np.argmin(costs, axis=0)][component]


def _moved(mask: Bool[np.ndarray, "h w"], by: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    h, w = mask.shape
    dy, dx = int(np.clip(by[0], -h, h)), int(np.clip(by[1], -w, w))
    moved = np.zeros_like(mask)
    ys, xs = slice(max(dy, 0), h + min(dy, 0)), slice(max(dx, 0), w + min(dx, 0))
    moved[ys, xs] = mask[max(-dy, 0) : h - max(dy, 0), max(-dx, 0) : w - max(dx, 0)]
    return moved


def _joined(labels: np.ndarray) -> np.ndarray:
    """Join what touches in nearly every frame that shows both."""
    names = [int(k) for k in np.unique(labels) if k]
    reach = max(1, round(min(labels.shape[1:]) / 60))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    parent = {k: k for k in names}
    near: dict[tuple[int, int], int] = {}
    both: dict[tuple[int, int], int] = {}
    for label in labels:
        here = [int(k) for k in np.unique(label) if k]
        for k in here:
            grown = cv2.dilate((label == k).astype(np.uint8), kernel).astype(bool)
            touched = set(np.unique(label[grown]).tolist())
            for other in here:
                if other > k:
                    both[k, other] = both.get((k, other), 0) + 1
                    near[k, other] = near.get((k, other), 0) + (other in touched)
    for (k, other), times in both.items():
        if times >= 2 and near[k, other] >= TOGETHER * times:
            a, b = _root(parent, k), _root(parent, other)
            parent[max(a, b)] = min(a, b)
    joined = np.zeros_like(labels)
    for k in names:
        joined[labels == k] = _root(parent, k)
    return joined


def _root(parent: dict[int, int], k: int) -> int:
    while parent[k] != k:
        k = parent[k]
    return k


def _kept(labels: np.ndarray, most: int) -> UInt8[np.ndarray, "t h w"]:
    """Rename the lasting bodies by size, the largest 1; more small ones of a kind than there is room for are one."""
    names, areas = np.unique(labels[labels > 0], return_counts=True)
    life = np.array([(labels == k).any((1, 2)).sum() for k in names])
    lasting = life >= max(2, LEAST_LIFE * len(labels))
    names, areas = names[lasting], areas[lasting] / life[lasting]
    alike = (
        np.abs(np.log(areas / np.median(areas))) < np.log(ALIKE) if len(names) > most else np.zeros(len(names), bool)
    )
    kept = np.zeros(labels.shape, np.uint8)
    groups = [names[alike]] if alike.sum() > most else []
    groups += [names[k : k + 1] for k in range(len(names)) if not groups or not alike[k]]
    sizes = [np.isin(labels, group).sum() for group in groups]
    for rank, which in enumerate(np.argsort(-np.array(sizes), kind="stable")[:most] if groups else (), 1):
        kept[np.isin(labels, groups[which])] = rank
    return kept
