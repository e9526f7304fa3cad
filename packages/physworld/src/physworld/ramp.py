"""Colour ramps that a metric can read backwards: scalar field -> colours -> scalar field.

A ramp is a polyline through three colours; the field runs linearly along it, `low` at the first stop and `high` at the
last. Reading a colour back projects it on the polyline, so a colour that no field value has (a generated one) gives the
nearest value and its distance from the polyline: `off_manifold`, in units of the full colour range, is a quality of its
own. Values outside [low, high] saturate: choose the range so that the law stays inside. Colours are 0..255.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8
from scipy import ndimage

LEGIBLE_OFF_MANIFOLD = 0.16
"""Farthest mean distance from a ramp at which a picture still shows the field; uniform noise: .2-.35 (our choice)."""
LEGIBLE_SMOOTH = 0.35
"""Least share of a field's variance that a 3 x 3 mean keeps; white noise keeps 1/9 (our choice)."""
UNFIT = 1e3
"""What a measure holds where its law cannot be fitted: finite, and far above any threshold."""


@dataclass(frozen=True)
class Ramp:
    """A piecewise-linear ramp through three colours of one to three channels."""

    stops: tuple[tuple[float | int, ...], tuple[float | int, ...], tuple[float | int, ...]]
    low: float | int = 0.0
    high: float | int = 1.0

    def colour(self, field: Num[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s c"]:
        """Draw a field.

        >>> Ramp(((0, 0, 0), (100, 0, 0), (100, 200, 0))).colour(np.array([0.25, 1.0])).tolist()
        [[50, 0, 0], [100, 200, 0]]
        """
        position = np.clip((field - self.low) / (self.high - self.low), 0, 1) * 2
        stops = np.asarray(self.stops, np.float32)
        channels = [np.interp(position, (0, 1, 2), stops[:, k]) for k in range(stops.shape[1])]
        return np.rint(np.stack(channels, -1)).astype(np.uint8)

    def read(self, colours: Num[np.ndarray, "*s c"]) -> tuple[Float[np.ndarray, "*s"], Float[np.ndarray, "*s"]]:
        """Give the field and each colour's distance from the ramp, 1 being the diagonal of the colour cube."""
        points = np.asarray(colours, np.float32)
        stops = np.asarray(self.stops, np.float32)
        position, nearest = np.zeros(points.shape[:-1], np.float32), np.full(points.shape[:-1], np.inf, np.float32)
        for k in (0, 1):
            edge = stops[k + 1] - stops[k]
            along = np.clip((points - stops[k]) @ edge / (edge @ edge), 0, 1)
            squared = np.square(points - stops[k] - along[..., None] * edge).sum(-1)
            closer = squared < nearest
            nearest, position = np.where(closer, squared, nearest), np.where(closer, k + along, position)
        distance = np.sqrt(nearest / stops.shape[1]) / 255
        return self.low + position * np.float32(0.5 * (self.high - self.low)), distance


def pixels(scale: int, size: int = 32) -> tuple[Float[np.ndarray, "n 1"], Float[np.ndarray, " n"]]:
    """Centres (y, x) in px of the cells of a grid with `scale` cells a pixel.

    >>> pixels(2)[1][:2].tolist()
    [0.25, 0.75]
    """
    centres = (np.arange(size * scale) + 0.5) / scale
    return centres[:, None], centres


def coarsening(cells: int, scale: int) -> int:
    """Give how many cells along an axis make a pixel; ValueError where a pixel is finer than a cell or cuts one."""
    if scale < 1 or cells % scale:
        raise ValueError(f"expected scale 1 or {cells} (the solver has {cells} cells a pixel), got {scale}")
    return cells // scale


def pool(field: Num[np.ndarray, "*b h w"], factor: int) -> Num[np.ndarray, "*b h2 w2"]:
    """Average blocks of `factor` x `factor` cells."""
    if factor == 1:
        return field
    *batch, h, w = field.shape
    return field.reshape(*batch, h // factor, factor, w // factor, factor).mean((-3, -1), dtype=field.dtype)


def legible(field: Float[np.ndarray, "t h w"], off: Float[np.ndarray, "t h w"]) -> bool:
    """Say whether a video shows a smooth, uneven field in the ramp's colours (not a constant, not noise)."""
    spread = float(field.var())
    if spread < 1e-5 or float(off.mean()) > LEGIBLE_OFF_MANIFOLD:
        return False
    smooth = ndimage.uniform_filter1d(ndimage.uniform_filter1d(field, 3, 1, mode="nearest"), 3, 2, mode="nearest")
    return bool(smooth.var() > LEGIBLE_SMOOTH * spread)


def scatter(
    rng: np.random.Generator, n: int, *, low: float | int, high: float | int, apart: float | int
) -> Float[np.ndarray, "n 2"]:
    """Draw n points (y, x) in a square, all at least `apart` px from one another, by rejecting whole sets."""
    while True:
        points = rng.uniform(low, high, (n, 2))
        distances = np.linalg.norm(points[:, None] - points, axis=-1)[np.triu_indices(n, 1)]
        if (distances >= apart).all():
            return points


def blobs(mask: Bool[np.ndarray, "h w"], smallest: float | int) -> int:
    """Count the 8-connected components of at least `smallest` cells."""
    labels = np.asarray(ndimage.label(mask, np.ones((3, 3)))[0])  # pyright: ignore[reportIndexIssue]
    return int((np.bincount(labels.ravel())[1:] >= smallest).sum())


def peaks(field: Float[np.ndarray, "h w"], scale: int, *, above: float, apart: float | int) -> int:
    """Count the maxima that are higher than `above` and the highest within `apart` px."""
    smooth = ndimage.gaussian_filter(field, 0.7 * scale, mode="nearest")
    size = 2 * round(apart * scale) + 1
    tops = (smooth == ndimage.maximum_filter(smooth, size, mode="nearest")) & (smooth > above)
    return blobs(tops, 1)
