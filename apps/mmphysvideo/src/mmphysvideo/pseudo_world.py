"""The simulated world's clips as perception: masks, point map and tracks from exact fields, no expert needed.

Balls and the block are followed exactly. Media have no outline of their own: a subject is where the field passes a
level (`LEVELS`, our choice), and its tracks are carried by the exact velocity, or stay where the medium is at rest. The
world is a plane, so Z = 0. The rod of a spring belongs to the background.
"""

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy import ndimage

from mmphysvideo.perception import Perception, Space, Tracks, planar_points
from mmphysvideo.pseudo import Modality, PseudoRGB, encode
from physworld import Clip, disk
from physworld.elastic import BEAD_RADIUS

__all__ = ["of_clip", "perception_of"]

LEVELS = {
    "fluid": ("density", 0.3, "ink"),
    "compressible_flow": ("pressure", 1.2, "blast"),
    "phase_change": ("phase", 0.5, "ice"),
    "thermal": ("temperature", 0.3, "heat"),
    "optical": ("wave", 0.15, "wave"),
}
"""Field, level and name of the subject of each medium: above the level, for ice below it, for waves by size."""
TRACK_STRIDE = 2
"""Pixels of the 32-pixel picture between tracks: our choice."""


def of_clip(clip: Clip, modality: Modality = "unified", *, seed: int | None = None) -> PseudoRGB:
    """Draw a simulated clip's exact perception as pseudo-RGB, at the size at which the clip was drawn.

    >>> import physworld
    >>> of_clip(physworld.simulate("collision", 0)).frames.shape
    (17, 32, 32, 3)
    """
    return encode(perception_of(clip), modality, seed=seed)


def perception_of(clip: Clip) -> Perception:
    """Give masks, points and tracks of a simulated clip, in pixels of its picture."""
    t, h, w, _ = clip.video.shape
    if "track" in clip.params:
        masks, tracks, names = _bodies(clip)
    else:
        masks, tracks, names = _medium(clip)
    return Perception(masks, planar_points(t, h, w), tracks, Space.planar(h, w), names)


def _bodies(clip: Clip) -> tuple[UInt8[np.ndarray, "t h w"], Tracks, tuple[str, ...]]:
    p, scale = clip.params, clip.scale
    centres = np.asarray(p["track"], np.float32).reshape(len(clip.video), -1, 2)
    if clip.scenario == "lattice":  # one block, seen through its beads
        radii, who, names = np.full(centres.shape[1], BEAD_RADIUS), np.ones(centres.shape[1], int), ("block",)
    else:
        radii = np.ravel(p["radii"] if "radii" in p else p["radius"])
        who = np.arange(1, len(radii) + 1)
        sizes = p.get("sizes", [p.get("size", "")])
        colours = p.get("colours", [p.get("colour")])
        names = tuple(f"{s} {c} ball".strip() for s, c in zip(sizes, colours, strict=True))
    cover = disk.disks(centres, radii, scale)
    masks = np.zeros(clip.video.shape[:3], np.uint8)
    for k, label in enumerate(who):
        masks[cover[:, k] >= 0.5] = label
    positions, visible, subjects = [], [], []
    for k, label in enumerate(who):
        reach = np.arange(-radii[k], radii[k] + 1e-6, min(TRACK_STRIDE, radii[k]))
        offsets = np.stack(np.meshgrid(reach, reach, indexing="ij"), -1).reshape(-1, 2)
        offsets = np.concatenate([np.zeros((1, 2)), offsets[np.hypot(*offsets.T) < radii[k] - 0.5 / scale]])
        offsets = np.unique(offsets.round(6), axis=0)
        at = (centres[None, :, k] + offsets[:, None]) * scale - 0.5
        positions.append(at)
        visible.append(_label_at(masks, at) == label)
        subjects += [label] * len(offsets)
    tracks = Tracks(np.concatenate(positions).astype(np.float32), np.concatenate(visible), np.array(subjects, np.uint8))
    return masks, tracks, names


def _medium(clip: Clip) -> tuple[UInt8[np.ndarray, "t h w"], Tracks, tuple[str, ...]]:
    slot, level, name = LEVELS[clip.mechanism]
    field = clip.fields[slot][..., 0].astype(np.float32)
    inside = field < level if name == "ice" else np.abs(field) > level
    masks = (inside & clip.valid[slot]).astype(np.uint8)
    t, h, w = masks.shape
    stride = TRACK_STRIDE * clip.scale
    y, x = np.meshgrid(np.arange(stride // 2, h, stride), np.arange(stride // 2, w, stride), indexing="ij")
    start = np.stack([y.ravel(), x.ravel()], -1).astype(np.float32)
    position = np.repeat(start[:, None], t, 1)
    if "velocity" in clip.fields:
        velocity = clip.fields["velocity"].astype(np.float32) * clip.scale
        for k in range(t - 1):  # Heun's step from frame to frame
            now = _at(velocity[k], position[:, k])
            then = _at(velocity[k + 1], position[:, k] + now)
            position[:, k + 1] = position[:, k] + 0.5 * (now + then)
    visible = _label_at(masks, position) == 1
    tracks = Tracks(position, visible, np.ones(len(position), np.uint8))
    return masks, tracks[visible.any(1)], (name,)


def _at(field: Float32[np.ndarray, "h w 2"], at: Float[np.ndarray, "n 2"]) -> Float32[np.ndarray, "n 2"]:
    parts = [ndimage.map_coordinates(field[..., c], at.T, order=1, mode="nearest") for c in (0, 1)]
    return np.stack(parts, -1).astype(np.float32)


def _label_at(masks: UInt8[np.ndarray, "t h w"], at: Float[np.ndarray, "n t 2"]) -> UInt8[np.ndarray, "n t"]:
    """The label at each place; 0 outside of the picture."""
    t, h, w = masks.shape
    y, x = np.moveaxis(np.rint(at).astype(int), -1, 0)
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    found = masks[np.arange(t)[None], y.clip(0, h - 1), x.clip(0, w - 1)]
    return np.where(inside, found, 0).astype(np.uint8)
