"""Targets for the routing of tokens: where a phenomenon's question looks and the neutral question does not.

    difference = A_e / mean(A_e) - A_0 / mean(A_0),   divided by max |difference|:   values in [-1, 1]

`A_e` is the attention map of category e's question, `A_0` that of the neutral one, both (t, h, w) over the same clip
and on the same grid of the vision-language model. A `Contrast` holds the differences of one clip with the times of
their cells: it does not depend on the generator, so it is what goes into a cache (`pack`, `unpack`; float16).
`token_targets` lays it on a generator's token grid when that is known:

    values: (e, t, h, w) in [-1, 1], one plane for each category of a vocabulary, zero where there is no map
    mask:   (e, t, h, w) bool, the entries that train: category present in the clip, and value > 0

Space is resized over the whole frame, whatever the two grids (they need not divide); time by the true times of the
cells in seconds, not by index, held beyond the first and the last. Other teachers build a `Contrast` from maps
of their own; `meta` says where maps come from.

References: ProPhy (Wang et al., 2025), the token-level labels and their mask. The normalisation is our choice; the
paper states the difference alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from vlmdistill.questions import PLACELESS, did_you_mean

__all__ = ["Contrast", "Targets", "contrast", "pack", "regrid", "stack", "token_targets", "unpack"]

_FORMAT = 1
_PREFIX = "vlm."


@dataclass(frozen=True)
class Contrast:
    """One clip's maps by category, on one grid (t, h, w), in [-1, 1]; `times_s` are the centres of their t cells.

    `meta` says where they come from (model, layers, questions, ...): plain JSON, kept beside the tensors in a cache.
    """

    maps: dict[str, Float[Tensor, "t h w"]]
    times_s: Float[Tensor, " t"]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_times(self.times_s, "cells")
        for category, values in self.maps.items():
            shape = tuple(next(iter(self.maps.values())).shape)
            if values.ndim != 3 or tuple(values.shape) != shape or shape[0] != len(self.times_s):
                raise ValueError(
                    f"expected maps of one shape (t, h, w) with t = {len(self.times_s)} times, "
                    f"got {tuple(values.shape)} for {category!r}"
                )
            if not bool((values.abs() <= 1).all()):
                raise ValueError(f"expected values in [-1, 1], got others for {category!r}: divide by the largest")


@dataclass(frozen=True)
class Targets:
    """What the router of tokens should say of one clip: `values` in [-1, 1], `mask` true at the entries that train."""

    values: Float[Tensor, "e t h w"]
    mask: Bool[Tensor, "e t h w"]


def contrast(
    phenomenon: Mapping[str, Float[Tensor, "t h w"]],
    neutral: Float[Tensor, "t h w"],
    times_s: Float[Tensor, " t"],
    meta: Mapping[str, Any] | None = None,
) -> Contrast:
    """Subtract the neutral map from each phenomenon's, both of mean one, and divide by the largest magnitude.

    A map that is everywhere the neutral one gives zeros. ValueError where a map is negative, not finite or all zero.

    >>> bright, flat = torch.tensor([[[3.0, 1.0]]]), torch.ones(1, 1, 2)
    >>> contrast({"melting": bright}, flat, torch.zeros(1)).maps["melting"].tolist()
    [[[1.0, -1.0]]]
    """
    background = _mean_one(neutral, "the neutral map")
    differences = {}
    for category, attention in phenomenon.items():
        if attention.shape != neutral.shape:
            raise ValueError(
                f"expected the map of {category!r} on the neutral map's grid {tuple(neutral.shape)}, "
                f"got {tuple(attention.shape)}: ask both questions of the same frames"
            )
        difference = _mean_one(attention, f"the map of {category!r}") - background
        differences[category] = difference / difference.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return Contrast(differences, times_s, dict(meta or {}))


def token_targets(
    maps: Contrast,
    *,
    categories: Sequence[str],
    present: Iterable[str],
    grid: tuple[int, int, int],
    times_s: Float[Tensor, " t"],
) -> Targets:
    """Lay a clip's maps on the (t, h, w) grid of a generator's tokens whose centres in time are `times_s`.

    Plane e belongs to `categories[e]` (a vocabulary, such as `VOCABULARIES["laws"]`). The mask is true where the
    category is among those `present` in the clip and its value is positive. Maps of absent categories give values and
    no mask. ValueError for names outside the vocabulary and for a present category without a map (those of
    `PLACELESS` have none and are masked).

    >>> seen = Contrast({"melting": torch.tensor([[[1.0, -1.0]]])}, torch.zeros(1))
    >>> tokens = token_targets(
    ...     seen, categories=["collision", "melting"], present=["melting"], grid=(1, 1, 2), times_s=torch.zeros(1)
    ... )
    >>> tokens.values.tolist(), tokens.mask.tolist()
    ([[[[0.0, 0.0]]], [[[1.0, -1.0]]]], [[[[False, False]]], [[[True, False]]]])
    """
    present = set(present)
    for name in sorted({*maps.maps, *present} - set(categories)):
        raise ValueError(f"category {name!r} is not in the vocabulary{did_you_mean(name, categories)}")
    if missing := sorted(present - set(maps.maps) - PLACELESS):
        raise ValueError(f"no map for the present categories {missing}: annotate them, or leave them out of `present`")
    device = maps.times_s.device
    values = torch.zeros(len(categories), *grid, device=device)
    if known := [name for name in categories if name in maps.maps]:
        planes = regrid(torch.stack([maps.maps[name] for name in known]), maps.times_s, grid, times_s)
        values[[list(categories).index(name) for name in known]] = planes
    there = torch.tensor([name in present for name in categories], device=device)
    return Targets(values, (values > 0) & there[:, None, None, None])


def regrid(
    maps: Float[Tensor, "e t h w"],
    times_s: Float[Tensor, " t"],
    grid: tuple[int, int, int],
    grid_times_s: Float[Tensor, " T"],
) -> Float[Tensor, "e T H W"]:
    """Resize maps to another grid: bilinear with antialiasing in space, by true times in time; the range is kept.

    In time a map is linear between the centres of its cells and held beyond them. Where the target's cells are as long
    or shorter, its value at the centre counts (the same times change nothing); where they are longer, the mean over as
    much more on both sides. So what grows linearly stays exact between the first and the last time.

    >>> ramp = torch.tensor([0.0, 1.0, 3.0])[None, :, None, None]
    >>> regrid(ramp, torch.tensor([0.0, 1.0, 3.0]), (3, 1, 1), torch.tensor([0.5, 1.5, 2.5])).flatten().tolist()
    [0.5, 1.5, 2.5]
    """
    t, h, w = grid
    if t != len(grid_times_s):
        raise ValueError(f"expected one time for each of the grid's {t} cells, got {len(grid_times_s)}")
    _check_times(times_s, "cells")
    _check_times(grid_times_s, "grid")
    weights = _time_weights(times_s.double(), grid_times_s.to(times_s.device).double()).to(maps.device)
    later = torch.einsum("Tt,ethw->eThw", weights.float(), maps.float())
    return F.interpolate(later, size=(h, w), mode="bilinear", align_corners=False, antialias=True)


def stack(targets: Sequence[Targets]) -> tuple[Float[Tensor, "b n e"], Bool[Tensor, "b n e"]]:
    """Batch targets in the order of tokens, raster (t, h, w): values and mask, as `losses.map_alignment` takes them.

    >>> one = Targets(torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4, dtype=torch.bool))
    >>> [tuple(part.shape) for part in stack([one, one])]
    [(2, 32, 3), (2, 32, 3)]
    """
    values = torch.stack([target.values.flatten(1).mT for target in targets])
    return values, torch.stack([target.mask.flatten(1).mT for target in targets])


def pack(maps: Contrast) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors (float16 maps "vlm.CATEGORY", float32 "vlm.times_s") and plain JSON meta, for a cache.

    >>> tensors, meta = pack(Contrast({"melting": torch.zeros(2, 3, 4)}, torch.tensor([0.5, 1.5]), {"model": "tiny"}))
    >>> sorted(tensors), meta["model"]
    (['vlm.melting', 'vlm.times_s'], 'tiny')
    """
    tensors = {_PREFIX + category: values.to(torch.float16).cpu() for category, values in maps.maps.items()}
    return {**tensors, _PREFIX + "times_s": maps.times_s.float().cpu()}, {**maps.meta, "vlm_format": _FORMAT}


def unpack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Contrast:
    """Read what `pack` returned (other entries of the same cache are left alone); maps come back as float32."""
    if meta.get("vlm_format") != _FORMAT:
        raise ValueError(f"expected maps of format {_FORMAT}, got {meta.get('vlm_format')!r}: annotate the clips again")
    ours = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
    if "times_s" not in ours:
        raise ValueError("expected 'vlm.times_s' beside the maps: the entry is not whole, annotate the clip again")
    times_s = ours.pop("times_s")
    rest = {key: value for key, value in meta.items() if key != "vlm_format"}
    return Contrast({category: values.float() for category, values in ours.items()}, times_s, rest)


def _mean_one(attention: Float[Tensor, "t h w"], what: str) -> Float[Tensor, "t h w"]:
    attention = attention.float()
    mean = attention.mean()
    if not bool(torch.isfinite(attention).all()) or bool((attention < 0).any()) or not mean > 0:
        raise ValueError(f"expected {what} to be finite, not negative and not all zero")
    return attention / mean


def _check_times(times_s: Float[Tensor, " t"], what: str) -> None:
    if len(times_s) == 0 or not bool(torch.isfinite(times_s).all()) or bool((times_s.diff() <= 0).any()):
        raise ValueError(f"expected the times of the {what} finite and strictly increasing, got {times_s.tolist()}")


def _time_weights(source: Float[Tensor, " t"], target: Float[Tensor, " T"]) -> Float[Tensor, "T t"]:
    """Mean of every source cell's hat function around every target time."""
    half = torch.zeros_like(target)
    if len(target) > 1 and len(source) > 1:
        gaps = target.diff()
        longer = torch.minimum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]]))
        here = source.diff()[(torch.searchsorted(source, target) - 1).clamp(0, len(source) - 2)]
        half = (longer - here) / 2
    # a point has no width: a neighbourhood far below any spacing gives the value at the point
    half = half.clamp(min=1e-6 * max(1.0, float(target.abs().max())))
    area = _hat_area(target + half, source) - _hat_area(target - half, source)
    return area / area.sum(1, keepdim=True)


def _hat_area(x: Float[Tensor, " T"], knots: Float[Tensor, " t"]) -> Float[Tensor, "T t"]:
    """Area under each knot's hat (one at the knot, zero at its neighbours, held beyond the ends) left of x."""
    gaps = knots.diff()
    area = torch.zeros(len(x), len(knots), dtype=x.dtype, device=x.device)
    part = ((x[:, None] - knots[:-1]) / gaps).clamp(0, 1)
    area[:, 1:] += gaps * part**2 / 2
    area[:, :-1] += gaps * (part - part**2 / 2)
    area[:, 0] += (x - knots[0]).clamp(max=0)
    area[:, -1] += (x - knots[-1]).clamp(min=0)
    return area
