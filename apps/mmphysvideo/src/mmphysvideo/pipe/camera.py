"""How the camera moved: the similarity that lays each frame on the middle one, or none where the camera rests.

Corners are followed from frame to frame and a similarity is fitted to most of them (RANSAC). It counts only when its
corners are spread over the picture and when it explains most of what changes at textured pixels: otherwise the
only body with texture would pass for the world.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

__all__ = ["Camera", "camera_of"]

CELLS = 4
"""The picture is divided into 4 x 4 cells; corners that fit must lie in at least `LEAST_CELLS` of them."""
LEAST_CELLS = 6
LEAST_MOTION = 0.004
"""A camera rests when it moves no corner of the picture by more than this share of the longer side, or by a pixel. Our
choice."""
BETTER = 0.6
"""Share of the difference at textured pixels that the camera's motion must explain, and share of those pixels that must
fit better with it, in half of the cells at least. An expanding blast looks like a zoom, but not by so much. Our
choice."""


@dataclass(frozen=True)
class Camera:
    """`motion[t]` (2 x 3) takes a place (x, y) of frame t to the middle frame's; `kind` is static or moving."""

    motion: Float64[np.ndarray, "t 2 3"]
    kind: str

    def stabilised(
        self, frames: UInt8[np.ndarray, "t h w 3"]
    ) -> tuple[Float32[np.ndarray, "t h w 3"], Bool[np.ndarray, "t h w"]]:
        """Frames laid on the middle one, and where they show anything."""
        if self.kind == "static":
            return frames.astype(np.float32), np.ones(frames.shape[:3], bool)
        t, h, w, _ = frames.shape
        laid, seen = np.empty(frames.shape, np.float32), np.empty((t, h, w), bool)
        full = np.full((h, w), 255, np.uint8)
        for k in range(t):
            laid[k] = cv2.warpAffine(frames[k].astype(np.float32), self.motion[k], (w, h))
            seen[k] = cv2.warpAffine(full, self.motion[k], (w, h)) > 250
        return laid, seen

    def back(self, masks: UInt8[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h w"]:
        """Labels of stabilised frames in the frames' own places."""
        if self.kind == "static":
            return masks
        h, w = masks.shape[1:]
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        return np.stack([cv2.warpAffine(m, a, (w, h), flags=flags) for m, a in zip(masks, self.motion, strict=True)])


def camera_of(frames: UInt8[np.ndarray, "t h w 3"]) -> Camera:
    """Estimate the camera's motion from frame to frame and chain it."""
    t, h, w, _ = frames.shape
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    steps = [np.eye(3) for _ in range(t - 1)]
    for k in range(t - 1):
        if (step := _step(grey[k], grey[k + 1])) is not None:
            steps[k][:2] = step
    chain = [np.eye(3)]
    for step in steps:
        chain.append(step @ chain[-1])  # takes frame 0 to frame k
    middle = chain[t // 2]
    motion = np.stack([(middle @ np.linalg.inv(one))[:2] for one in chain])
    corners = np.array([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1]], float).T
    moved = np.abs(motion @ corners - corners[:2]).max()
    still = Camera(np.repeat(np.eye(3)[None, :2], t, 0), "static")
    if moved <= max(1.0, LEAST_MOTION * max(h, w)):
        return still
    return Camera(motion, "moving") if _fits(grey, motion) else still


def _step(a: UInt8[np.ndarray, "h w"], b: UInt8[np.ndarray, "h w"]) -> Float64[np.ndarray, "2 3"] | None:
    """The similarity from one frame to the next; None where too few corners, or corners in too few places, agree."""
    h, w = a.shape
    corners = cv2.goodFeaturesToTrack(a, 200, 0.01, max(3.0, min(h, w) / 40))
    if corners is None or len(corners) < 12:
        return None
    there, good, _ = cv2.calcOpticalFlowPyrLK(a, b, corners, None, winSize=(15, 15), maxLevel=3)  # pyright: ignore[reportCallIssue, reportArgumentType]
    good = good.ravel() == 1
    if good.sum() < 12:
        return None
    cv2.setRNGSeed(0)
    motion, inliers = cv2.estimateAffinePartial2D(corners[good], there[good], ransacReprojThreshold=1.0)
    if motion is None:
        return None
    places = corners[good][inliers.ravel() == 1].reshape(-1, 2)
    cells = {(int(y * CELLS / h), int(x * CELLS / w)) for x, y in places}
    return motion if len(cells) >= LEAST_CELLS and inliers.mean() >= 0.5 else None


def _fits(grey: list[UInt8[np.ndarray, "h w"]], motion: Float64[np.ndarray, "t 2 3"]) -> bool:
    """Whether most textured pixels differ less from the middle frame after the motion than before."""
    middle = grey[len(grey) // 2].astype(np.float32)
    h, w = middle.shape
    texture = np.hypot(cv2.Sobel(middle, cv2.CV_32F, 1, 0), cv2.Sobel(middle, cv2.CV_32F, 0, 1)) > 16
    better, worse, before, after = np.zeros((h, w)), np.zeros((h, w)), 0.0, 0.0
    for frame, one in zip(grey, motion, strict=True):
        if np.allclose(one, np.eye(3)[:2], atol=1e-6):
            continue
        frame = frame.astype(np.float32)
        laid = cv2.warpAffine(frame, one, (w, h), borderMode=cv2.BORDER_REPLICATE)
        without, within = np.abs(frame - middle) * texture, np.abs(laid - middle) * texture
        before, after, gain = before + without.sum(), after + within.sum(), without - within
        better += gain > 4
        worse += gain < -4
    gained, lost = (cv2.resize(one, (CELLS, CELLS), interpolation=cv2.INTER_AREA) for one in (better, worse))
    agreed = (gained > BETTER * (gained + lost)) & (gained > 0)
    return bool(agreed.sum() >= CELLS**2 / 2 and after < (1 - BETTER) * before)
