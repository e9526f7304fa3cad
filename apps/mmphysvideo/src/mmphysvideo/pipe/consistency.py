"""Do the experts agree with one another? Checks on each subject, and on a clip through its subjects.

A subject fails for its size, for being seen too seldom, for an area that jumps, for tracks that die or leave its mask.
With a depth model the background must keep its distance. What fails is taken out; a clip without a subject is dropped.
"""

from dataclasses import asdict, dataclass

import cv2
import numpy as np
from jaxtyping import Bool

from mmphysvideo.perception import Perception, Tracks
from mmphysvideo.pipe.settings import Checks

__all__ = ["Agreement", "checked", "measured"]


@dataclass(frozen=True)
class Agreement:
    """`area`: median share of the picture; `life`: share of frames with a mask; `area_jitter`: median |change of log
    area|; `tracks`: how many; `survival`: share of visible points that are visible in the next frame with a mask;
    `agreement`: share of visible places within 2 px of the mask."""

    area: float
    life: float
    area_jitter: float
    tracks: int
    survival: float
    agreement: float


def measured(mask: Bool[np.ndarray, "t h w"], tracks: Tracks) -> Agreement:
    """Measure one subject."""
    areas = mask.sum((1, 2)).astype(float)
    shown = areas > 0
    if not shown.any():
        return Agreement(0.0, 0.0, 0.0, len(tracks), 0.0, 0.0)
    both = shown[1:] & shown[:-1]
    jumps = np.abs(np.log(areas[1:][both] / areas[:-1][both]))
    here = tracks.visible[:, :-1] & shown[1:]
    stays = tracks.visible[:, 1:] & here
    h, w = mask.shape[1:]
    inside = total = 0
    kernel = np.ones((5, 5), np.uint8)
    for k in np.flatnonzero(shown):
        near = cv2.dilate(mask[k].astype(np.uint8), kernel).astype(bool)
        y, x = np.rint(tracks.position[tracks.visible[:, k], k]).astype(int).reshape(-1, 2).T
        ok = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        total += len(y)
        inside += int(near[y.clip(0, h - 1), x.clip(0, w - 1)][ok].sum())
    return Agreement(
        area=float(np.median(areas[shown])) / (h * w),
        life=float(shown.mean()),
        area_jitter=float(np.median(jumps)) if len(jumps) else 0.0,
        tracks=len(tracks),
        survival=float(stays.sum() / max(here.sum(), 1)),
        agreement=inside / max(total, 1),
    )


def checked(perception: Perception, checks: Checks) -> tuple[Perception, dict[str, object], str]:
    """Take out the subjects that fail. Returns what stays, all measures and reasons as JSON, and why the clip is
    dropped ("" when it is kept)."""
    from mmphysvideo.pipe.experts import without

    found: dict[str, object] = {}
    failed = []
    reasons = []
    for k, name in enumerate(perception.subjects, 1):
        one = measured(perception.masks == k, perception.tracks[perception.tracks.subject == k])
        why = _refuse(one, checks)
        found[f"{k} {name}"] = asdict(one) | {"why": why}
        if why:
            failed.append(k)
            reasons.append(f"{name}: {why}")
    jitter = _depth_jitter(perception)
    found["depth_jitter"] = jitter
    kept = without(perception, failed)
    if jitter is not None and jitter > checks.most_depth_jitter:
        return kept, found, f"depth_jitter is {jitter:.3g}, wanted at most {checks.most_depth_jitter:g}"
    if not kept.subjects:
        return kept, found, f"no subject passes its checks ({'; '.join(reasons[:3])})" if reasons else "no subject"
    return kept, found, ""


def _refuse(one: Agreement, checks: Checks) -> str:
    low, high = checks.area
    bounds = {
        "life": (checks.least_life, 1.0),
        "area": (low, high),
        "area_jitter": (0.0, checks.most_area_jitter),
        "tracks": (checks.least_tracks, np.inf),
        "survival": (checks.least_survival, 1.0),
        "agreement": (checks.least_agreement, 1.0),
    }
    for name, (least, most) in bounds.items():
        value = getattr(one, name)
        if not least <= value <= most:
            return f"{name} is {value:.3g}, wanted {least:g} to {most:g}"
    return ""


def _depth_jitter(perception: Perception) -> float | None:
    """None for the plane."""
    if perception.space.focal_px is None:
        return None
    ground = ~(perception.masks > 0).any(0)
    if not ground.any() or len(perception.masks) < 2:
        return 0.0
    return float(np.median(np.log(np.maximum(perception.points[:, ground, 2], 1e-6)).std(0)))
