"""Clips with one planted fault, made from the frames of a true clip, and who notices.

`BY_SHIPPED` are the faults that the shipped limits catch on every clip; they were fitted to what an autoencoder leaves
of true clips, so they are wide. `BY_FIGURES` are those that the figures themselves tell from a true clip, under limits
of uncompressed ones. A fault that is in neither list passes on some clips; the largest holes: waves and swinging balls
that are mirrored or flash to another moment, for the autoencoder blurs these most, and mirrored scenes that are nearly
symmetric.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from physworld import MECHANISMS, Clip, metrics, simulate_many
from physworld.mechanism import module
from physworld.metrics import Thresholds

CLIPS = range(6)
FLOOR = range(2000, 2024)


def ground(video: np.ndarray) -> np.ndarray:
    return np.median(video.reshape(-1, 3), axis=0)


def emptied(video: np.ndarray, frames: slice) -> np.ndarray:
    out = video.copy()
    out[frames] = ground(video).astype(np.uint8)
    return out


def mirrored(video: np.ndarray, frames: slice) -> np.ndarray:
    out = video.copy()
    out[frames] = video[frames, :, ::-1]
    return out


def recoloured(video: np.ndarray) -> np.ndarray:
    out = video.copy()
    out[9:] = video[9:, :, :, [1, 2, 0]]
    return out


def faded(video: np.ndarray) -> np.ndarray:
    share = np.linspace(0, 0.6, len(video))[:, None, None, None]
    return np.rint(video + share * (ground(video) - video)).astype(np.uint8)


FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flashes forward": lambda v: v[[*range(8), 15, *range(9, 17)]],
    "flashes back": lambda v: v[[*range(8), 2, *range(9, 17)]],
    "freezes, then jumps": lambda v: v[[0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 11, 12, 13, 14, 15, 16]],
    "stops": lambda v: v[[*range(9), *[8] * 8]],
    "starts late": lambda v: v[[*[0] * 8, *range(9)]],
    "skips ahead": lambda v: v[[*range(8), *range(11, 17), 16, 16, 16]],
    "runs back": lambda v: v[[*range(9), *range(7, -1, -1)]],
    "vanishes": lambda v: emptied(v, slice(9, None)),
    "blinks": lambda v: emptied(v, slice(8, 9)),
    "changes colour": recoloured,
    "is mirrored half way": lambda v: mirrored(v, slice(9, None)),
    "is mirrored once": lambda v: mirrored(v, slice(8, 9)),
    "fades": faded,
}
ALL = set(FAULTS)
MIRRORED = {"is mirrored half way", "is mirrored once"}
FLASHES = {"flashes forward", "flashes back"}

BY_SHIPPED = {
    "rigid_body/thrown": ALL - {"is mirrored once"},
    "elastic/spring": ALL - {*MIRRORED, *FLASHES, "fades", "runs back", "skips ahead", "stops", "starts late"},
    "elastic/lattice": ALL,
    "fluid/pair": ALL - {*MIRRORED, "flashes forward"},
    "fluid/vortex": ALL,
    "compressible_flow/blast": ALL - {"fades"},
    "phase_change/melt": ALL - {"blinks", "flashes forward", "is mirrored half way"},
    "phase_change/grow": ALL - MIRRORED,
    "collision/bounces": ALL - {"flashes back"},
    "collision/sticks": ALL - {"flashes forward", "is mirrored half way", "skips ahead", "stops"},
    "thermal/spots": ALL,
    "optical/ripple": ALL - {"is mirrored half way"},
    "optical/slit": ALL - {*MIRRORED, *FLASHES, "fades"},
}
BY_FIGURES = dict.fromkeys(BY_SHIPPED, ALL) | {
    "compressible_flow/blast": ALL - {"fades"},
    "optical/slit": ALL - MIRRORED,
}


@cache
def clips(mechanism: str) -> list[Clip]:
    return simulate_many(mechanism, CLIPS, split="test")


def passing(limits: Thresholds, mechanism: str, wanted: dict[str, set[str]]) -> tuple[list[str], int]:
    """The faults of `wanted` that passed nevertheless, and how many true clips passed."""
    through, whole = [], 0
    assert {clip.params["scenario"] for clip in clips(mechanism)} == set(module(mechanism).SCENARIOS)
    for clip in clips(mechanism):
        if not limits.passes(mechanism, metrics.measure(clip, clip.video)):
            continue
        whole += 1
        through += [
            f"{fault} ({clip.caption})"
            for fault in sorted(wanted[f"{mechanism}/{clip.params['scenario']}"])
            if limits.passes(mechanism, metrics.measure(clip, FAULTS[fault](clip.video)))
        ]
    return through, whole


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_shipped_limits_catch_these_faults_on_every_clip(mechanism: str) -> None:
    through, whole = passing(Thresholds.load(), mechanism, BY_SHIPPED)
    assert through == []
    assert whole >= 5


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_figures_tell_these_faults_from_a_true_clip(mechanism: str) -> None:
    limits = Thresholds.of_world(FLOOR, mechanisms=[mechanism])
    through, whole = passing(limits, mechanism, BY_FIGURES)
    assert through == []
    assert whole >= 4
