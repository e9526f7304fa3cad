"""Experts behind three small interfaces, and the embedded ones, which need no weights.

A segmenter says which pixels are whose, a tracker which point went where, a depth model how far away everything is.
They get the frames of a clip (and what was found before them), nothing else: the same function with the same constants
runs on films and on the simulated world. Without a depth model the scene is the plane Z = 0, and the manifest says
`depth: none`. Models with weights are in `models`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from scipy.optimize import linear_sum_assignment

from mmphysvideo.perception import Perception, Space, Tracks, planar_points
from mmphysvideo.pipe.evidence import Evidence, NoEvidence, Subject, pixels_of, supported
from mmphysvideo.pipe.flow import tracks_of
from mmphysvideo.pipe.rules import Rules
from mmphysvideo.pipe.seen import Seen
from mmphysvideo.pipe.settings import Experts, Settings
from mmphysvideo.pipe.settings import Witness as WitnessSettings

__all__ = [
    "Crew",
    "Depth",
    "FlowTracker",
    "MotionSegmenter",
    "Segmenter",
    "Tracker",
    "crew_of",
    "perceive",
    "witness_of",
]

LEAST_OVERLAP = 0.1
"""IoU of a subject's box with a moving body's below which they are not the same: our choice."""


@runtime_checkable
class Segmenter(Protocol):
    """Labels each pixel with 1 for the first subject, 2 for the second, ..., 0 for none."""

    @property
    def name(self) -> str: ...
    def segment(self, clip: Seen, subjects: Sequence[Subject]) -> UInt8[np.ndarray, "t h w"]: ...


@runtime_checkable
class Tracker(Protocol):
    """Follows points of every labelled subject."""

    @property
    def name(self) -> str: ...
    def track(self, clip: Seen, masks: UInt8[np.ndarray, "t h w"]) -> Tracks: ...


@runtime_checkable
class Depth(Protocol):
    """Gives Z of each pixel, of one scale over the clip, and the focal length in pixels."""

    @property
    def name(self) -> str: ...
    def depth(
        self, clip: Seen, masks: UInt8[np.ndarray, "t h w"]
    ) -> tuple[Float32[np.ndarray, "t h w"], float | int]: ...


@dataclass(frozen=True)
class MotionSegmenter:
    """Moving bodies (`background`, `bodies`), given to the subjects whose boxes they fill."""

    name: str = "motion"

    def segment(self, clip: Seen, subjects: Sequence[Subject]) -> UInt8[np.ndarray, "t h w"]:
        """Match bodies with boxes; a subject whose box holds no moving body gets no mask."""
        bodies = clip.bodies
        count = int(bodies.max(initial=0))
        overlap = np.zeros((len(subjects), count))
        for i, subject in enumerate(subjects):
            frame = next(k for k in subject.evidence_frames if 0 <= k < len(bodies))
            ys, xs = pixels_of(subject.box, *bodies.shape[1:])
            for k in range(count):
                here = bodies[frame] == k + 1
                if here.any():
                    by, bx = np.nonzero(here)
                    overlap[i, k] = _iou((ys.start, xs.start, ys.stop, xs.stop), _bounds(by, bx))
        labels = np.zeros_like(bodies)
        for i, k in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[i, k] >= LEAST_OVERLAP:
                labels[bodies == k + 1] = i + 1
        return labels


@dataclass(frozen=True)
class FlowTracker:
    """Lucas-Kanade on each subject cut out (`flow`)."""

    name: str = "flow"

    def track(self, clip: Seen, masks: UInt8[np.ndarray, "t h w"]) -> Tracks:
        """Follow a grid of points in each subject."""
        return tracks_of(clip.frames, masks)


@dataclass(frozen=True)
class Crew:
    """Everyone who works on a clip."""

    witness: Any
    segmenter: Segmenter
    tracker: Tracker
    depth: Depth | None

    @property
    def names(self) -> dict[str, str]:
        """Who they are, for the manifest."""
        depth = self.depth.name if self.depth else "none"
        return {
            "witness": self.witness.name,
            "segmenter": self.segmenter.name,
            "tracker": self.tracker.name,
            "depth": depth,
        }


def crew_of(settings: Settings) -> Crew:
    """Build the crew that settings name; models load with their first clip. ValueError for what is incomplete."""
    return Crew(witness_of(settings.witness), *_experts(settings.experts))


def witness_of(w: WitnessSettings) -> Any:
    """Build the witness that settings name. ValueError for what is incomplete."""
    if w.kind == "rules":
        return Rules()
    if not w.model:
        raise ValueError(f"expected witness.model, the name or folder of the model, for witness.kind={w.kind}")
    if w.kind == "server" and not w.url.startswith(("http://", "https://")):
        raise ValueError(f"expected witness.url such as http://localhost:8000/v1, got {w.url!r}")
    from mmphysvideo.pipe import vlm

    return vlm.Server(w) if w.kind == "server" else vlm.LocalModel(w)


def _experts(e: Experts) -> tuple[Segmenter, Tracker, Depth | None]:
    from mmphysvideo.pipe import models

    segmenter = MotionSegmenter() if e.segmenter == "motion" else models.Sam2(e.segmenter, e.device)
    tracker = FlowTracker() if e.tracker == "flow" else models.CoTracker(e.tracker, e.device)
    depth = None if e.depth == "none" else models.DepthAnything(e.depth, e.device)
    return segmenter, tracker, depth


def testimony(clip: Seen, crew: Crew, *, fallback: bool) -> tuple[Evidence, str, str]:
    """Evidence, who gave it, and why it was not the crew's own witness ("" when it was)."""
    try:
        return crew.witness.testify(clip), crew.witness.name, ""
    except NoEvidence as error:
        if not fallback:
            raise
        return Rules().testify(clip), "rules", str(error)


def observe(clip: Seen, subjects: Sequence[Subject], crew: Crew) -> Perception:
    """Let the experts look at a clip."""
    masks = crew.segmenter.segment(clip, subjects)
    tracks = crew.tracker.track(clip, masks)
    t, h, w = masks.shape
    points, space = planar_points(t, h, w), Space.planar(h, w)
    if crew.depth is not None:
        z, focal = crew.depth.depth(clip, masks)
        y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
        points = np.stack([(x - (w - 1) / 2) * z / focal, (y - (h - 1) / 2) * z / focal, z], -1).astype(np.float32)
        space = Space.robust(points, focal)
    return Perception(masks, points, tracks, space, tuple(s.name for s in subjects))


def perceive(
    frames: UInt8[np.ndarray, "t h w 3"], times_s: np.ndarray | None = None, settings: Settings | None = None
) -> tuple[Perception, str]:
    """Perceive one clip with the embedded experts, as a run does: filters, rules, experts, checks.

    Returns the perception (of the subjects that pass their checks; empty when none does) and why the pipeline would
    drop the clip ("" when it keeps it).

    >>> import physworld
    >>> perception, why = perceive(physworld.simulate("rigid_body", 0, scale=2).video)
    >>> perception.masks.shape, perception.subjects, why
    ((17, 64, 64), ('purple body',), '')
    """
    from mmphysvideo.pipe import filters
    from mmphysvideo.pipe.consistency import checked

    settings = settings or Settings()
    times_s = np.arange(len(frames)) / 16.0 if times_s is None else times_s
    clip = Seen("clip", frames, times_s, settings.subjects)
    crew = Crew(Rules(), MotionSegmenter(), FlowTracker(), None)
    why = filters.refuse(filters.measure(frames), settings.bounds)
    subjects, _, none = supported(crew.witness.testify(clip), frames, most=settings.subjects)
    seen = observe(clip, subjects, crew)
    kept, _, dropped = checked(seen, settings.checks)
    return kept, why or none or dropped


def without(perception: Perception, dropped: Sequence[int]) -> Perception:
    """Take subjects (1, 2, ...) out of a perception and number the others anew."""
    stay = [k for k in range(1, len(perception.subjects) + 1) if k not in dropped]
    new = np.zeros(len(perception.subjects) + 1, np.uint8)
    new[stay] = np.arange(1, len(stay) + 1)
    tracks = perception.tracks[np.isin(perception.tracks.subject, stay)]
    return replace(
        perception,
        masks=new[perception.masks],
        tracks=replace(tracks, subject=new[tracks.subject]),
        subjects=tuple(perception.subjects[k - 1] for k in stay),
    )


def _bounds(ys: np.ndarray, xs: np.ndarray) -> tuple[int, int, int, int]:
    return int(ys.min()), int(xs.min()), int(ys.max()) + 1, int(xs.max()) + 1


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(height, 0) * max(width, 0)
    return both / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both, 1)
