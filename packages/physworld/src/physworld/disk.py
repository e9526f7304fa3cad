"""Disks, rods and beads over a constant background, and the way back from pixels to what was drawn.

A picture covers the world square [0, 32] x [0, 32], axes (y, x) with y DOWN; pixel i at scale s has its centre at (i +
1/2) / s. A shape is drawn by its signed distance: coverage = clip(1/2 - s * distance, 0, 1), so an edge pixel holds the
covered share of its area to within some per cent. A pixel is background + sum_k coverage_k (colour_k - background):
linear, hence invertible by least squares (`unmix`), and the distance of a pixel to that cone is a quality score of its
own ("off_manifold").
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32, Int, Num, UInt8
from scipy import ndimage

from physworld.clip import SIZE

BACKGROUND = (22, 24, 32)
COLOURS = {
    "red": (232, 62, 52),
    "green": (58, 196, 84),
    "blue": (56, 112, 250),
    "yellow": (242, 208, 48),
    "purple": (214, 80, 236),
}
"""The five colours; as directions from the background any two are at least 29 degrees apart."""
ROD = (112, 114, 120)
NAMES = tuple(COLOURS)


def pixel_centres(scale: int) -> Float32[np.ndarray, " n"]:
    """World coordinate of each pixel centre along one axis."""
    return ((np.arange(SIZE * scale) + 0.5) / scale).astype(np.float32)


def disks(
    centres: Float[np.ndarray, "t n 2"], radii: Float[np.ndarray, " n"], scale: int
) -> Float32[np.ndarray, "t n h w"]:
    """Coverage of n disks with centres (y, x)."""
    axis = pixel_centres(scale)
    centres = centres.astype(np.float32)
    dy = axis - centres[..., 0, None]
    dx = axis - centres[..., 1, None]
    distance = np.sqrt(dy[..., :, None] ** 2 + dx[..., None, :] ** 2) - radii.astype(np.float32)[:, None, None]
    return np.clip(0.5 - scale * distance, 0.0, 1.0)


def boxes(
    low: Float[np.ndarray, "t n 2"], high: Float[np.ndarray, "t n 2"], scale: int
) -> Float32[np.ndarray, "t n h w"]:
    """Coverage of n upright boxes from corner `low` to corner `high`, both (y, x)."""
    axis = pixel_centres(scale)
    inside = np.minimum(axis - low[..., None].astype(np.float32), high[..., None].astype(np.float32) - axis)
    share = np.clip(0.5 + scale * inside, 0.0, 1.0)
    return share[..., 0, :, None] * share[..., 1, None, :]


def paint(
    coverage: Float32[np.ndarray, "t n h w"],
    colours: Num[np.ndarray, "n 3"],
    background: tuple[int, int, int] = BACKGROUND,
) -> UInt8[np.ndarray, "t h w 3"]:
    """Mix n colours over the background; a later shape lies on top of an earlier one."""
    t, n, h, w = coverage.shape
    picture = np.broadcast_to(np.asarray(background, np.float32), (t, h, w, 3)).copy()
    for k in range(n):
        share = coverage[:, k, :, :, None]
        picture += share * (np.asarray(colours[k], np.float32) - picture)
    return np.rint(picture).astype(np.uint8)


def rgb(*names: str) -> Float32[np.ndarray, "n 3"]:
    """Colours by name as an array."""
    return np.array([COLOURS[name] for name in names], np.float32)


def unmix(
    video: UInt8[np.ndarray, "t h w 3"], colours: Num[np.ndarray, "n 3"], background: tuple[int, int, int] = BACKGROUND
) -> tuple[Float32[np.ndarray, "t n h w"], Float32[np.ndarray, "t h w"]]:
    """Coverage of each of one or two colours, and the distance to their mixtures in units of full scale (0..1).

    Non-negative least squares per pixel, in closed form: where the free solution for two colours has a negative share,
    the better of the two single-colour solutions is taken.
    """
    assert 1 <= len(colours) <= 2
    back = np.asarray(background, np.float32)
    basis = np.asarray(colours, np.float32) - back
    offset = video.astype(np.float32) - back
    norms = (basis**2).sum(1)
    alone = np.clip(offset @ basis.T / norms, 0.0, None)
    if len(basis) == 1:
        share = alone
    else:
        share = offset @ np.linalg.pinv(basis).astype(np.float32)
        outside = np.asarray((share < 0).any(axis=-1))
        gain = alone**2 * norms  # the squared length that each colour alone explains
        single = np.where(gain == gain.max(-1, keepdims=True), alone, 0.0)
        share = np.where(outside[..., None], single, share)
    share = np.clip(share, 0.0, 1.0)
    residual = np.sqrt(((offset - share @ basis) ** 2).sum(-1)) / (255.0 * np.sqrt(3.0))
    return np.moveaxis(share, -1, 1).astype(np.float32), residual.astype(np.float32)


def nearest_colour(video: UInt8[np.ndarray, "t h w 3"], *, least: float = 0.35) -> Int[np.ndarray, "t h w"]:
    """Index into NAMES of the colour whose direction from the background is nearest, -1 for background and grey.

    A pixel counts when at least the share `least` of the colour is there and grey explains it worse.
    """
    back = np.asarray(BACKGROUND, np.float32)
    basis = np.concatenate([rgb(*NAMES), np.array([ROD], np.float32)]) - back
    length = np.linalg.norm(basis, axis=1)
    offset = video.astype(np.float32) - back
    along = offset @ (basis / length[:, None]).T
    best = along.argmax(-1)
    strength = np.take_along_axis(along, best[..., None], -1)[..., 0] / length[best]
    return np.where((strength >= least) & (best < len(NAMES)), best, -1)


@dataclass(frozen=True)
class Blob:
    """One connected component of a coverage picture: area in world px^2, centroid (y, x) in world px."""

    area: float
    y: float
    x: float


def blobs(coverage: Float[np.ndarray, "h w"], scale: int, *, least_area: float = 2.0) -> list[Blob]:
    """Connected components (8 neighbours), largest first; each takes in its anti-aliased rim."""
    solid = coverage > 0.4
    if not solid.any():
        return []
    eight = np.ones((3, 3), int)
    labels = np.asarray(ndimage.label(solid, eight)[0])  # pyright: ignore[reportIndexIssue]
    count = int(labels.max())
    grown = ndimage.maximum_filter(labels, size=3)
    labels = np.where(labels > 0, labels, grown)
    weight = np.where(coverage > 0.04, coverage, 0.0)  # below: 8-bit rounding and decoder haze
    y, x = pixel_centres(scale), pixel_centres(scale)
    index = np.arange(1, count + 1)
    mass = ndimage.sum_labels(weight, labels, index)
    mass_y = ndimage.sum_labels(weight * y[:, None], labels, index)
    mass_x = ndimage.sum_labels(weight * x[None, :], labels, index)
    found = [Blob(m / scale**2, my / m, mx / m) for m, my, mx in zip(mass, mass_y, mass_x, strict=True)]
    return sorted((b for b in found if b.area >= least_area), key=lambda b: -b.area)


def body_fields(
    coverage: Float32[np.ndarray, "t n h w"], values: Float[np.ndarray, "t n c"]
) -> tuple[Float16[np.ndarray, "t h w c"], Bool[np.ndarray, "t h w"]]:
    """A value of each body, constant inside it, as a picture; valid where a body covers at least half of the pixel."""
    inside = coverage >= 0.5
    frames, bodies, h, w = coverage.shape
    field = np.zeros((frames, h, w, values.shape[-1]), np.float16)
    for k in range(bodies):
        field = np.where(inside[:, k, :, :, None], values[:, k, None, None, :], field)
    return field.astype(np.float16), np.asarray(inside.any(axis=1))
