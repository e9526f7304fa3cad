"""What can go wrong before training, looked at before training: each look is a `Finding`, ok, a warning or an error.

The worst faults are silent: latents of another scale, pictures in another range, a category that no clip has, frames
that are not where their numbers say. An app hands in functions and numbers; this module knows no model.
"""

import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.table import Table
from torch import Tensor

from . import video
from .data import Skipped
from .guards import TrainingWarning
from .ramps import RecursiveRamp, expected_resets

__all__ = [
    "FEW",
    "Cut",
    "Finding",
    "by_clip",
    "coverage",
    "cut",
    "disk",
    "few",
    "identity",
    "lengths",
    "rates",
    "read",
    "resets",
    "round_trip",
    "show",
]

T = TypeVar("T")


PSNR_DB = (20.0, 25.0)
"""Below the first a round trip is an error, below the second a warning: our choice (video autoencoders have 28 or
more)."""
BETTER_DB = 6.0
"""A straight line that mends a round trip by so much says that the range is wrong, not the autoencoder: our choice."""
BAND = (0.5, 1.5, 2.0)
"""How far latents may be from a convention, as a root mean square over channels of means in deviations and of log
deviations: within the first of another convention is that one; beyond the second from mean 0 and deviation 1 is a
warning, beyond the third an error. Our choice: sixteen clips of the simulated world lie 1.3 from it, since most of
their pixels are still."""
RARE = 0.01
"""A category with fewer clips than this share is warned about: our choice."""
LISTED = 5
FEW = 16
"""Clips that are cut or made to be looked at: our choice."""


@dataclass(frozen=True)
class Finding:
    """One look: what was looked at, and what was found."""

    what: str
    said: str
    level: Literal["ok", "warn", "error"] = "ok"


@dataclass(frozen=True)
class Cut:
    """A clip cut from a file, or why there is none."""

    path: str
    frames: UInt8[np.ndarray, "t h w 3"] | None = None
    jitter: float = 0.0
    why: str = ""


def round_trip(
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    frames: UInt8[np.ndarray, "n t h w 3"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch: int | None = None,
    device: str = "cpu",
) -> list[Finding]:
    """Encode and decode clips: is the picture still there, and are the latents normalised?

    `encode` takes a video (n, 3, t, h, w) in [-1, 1] and gives *normalised* latents (n, c, t, h, w), `decode` the
    reverse, both on `device` and `batch` clips at once (none: all); `mean` and `std` are those that the latents are
    normalised with. Latents that lie nearer to another convention (not normalised, normalised twice) than to mean 0 and
    deviation 1 are an error, and so is a picture that a straight line through its values would mend: then the range of
    the pixels is wrong.
    """
    pictures = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    size = batch or len(pictures)
    with torch.no_grad():
        latents = torch.cat([encode(part.to(device)) for part in pictures.split(size)])
        again = torch.cat([decode(part) for part in latents.split(size)]).float().cpu()
    return [_picture(pictures, again), _statistics(latents.float().cpu(), mean, std)]


def _picture(pictures: Tensor, again: Tensor) -> Finding:
    what = "video -> latent -> video"
    if again.shape != pictures.shape:
        return Finding(what, f"a clip {tuple(pictures.shape)} came back as {tuple(again.shape)}", "error")
    if not bool(again.isfinite().all()):
        return Finding(what, "it came back with NaN or infinity: the autoencoder wants float32", "error")
    db, x, y = _psnr(pictures, again), again.flatten(), pictures.flatten()
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred).clamp_min(1e-12))
    offset = float(y.mean() - slope * x.mean())
    mended = _psnr(pictures, slope * again + offset)
    said = f"PSNR {db:.1f} dB"
    if db < PSNR_DB[1] and mended > db + BETTER_DB:
        cause = (
            f"a wrong pixel range: {slope:.2f} x + {offset:.2f} makes it {mended:.1f} dB; expected values in [-1, 1]"
        )
        return Finding(what, f"{said}, {cause}", "error")
    if db < PSNR_DB[0]:
        return Finding(what, f"{said}, at least {PSNR_DB[0]:g} expected: another autoencoder's weights?", "error")
    return Finding(what, said, "ok" if db >= PSNR_DB[1] else "warn")


def _statistics(latents: Float[Tensor, "n c t h w"], mean: Sequence[float], std: Sequence[float]) -> Finding:
    m, s = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4)).clamp_min(1e-6)
    raw_m, raw_s = torch.tensor(mean), torch.tensor(std)
    conventions = {
        "": (torch.zeros_like(m), torch.ones_like(s)),
        "not normalised: subtract the mean and divide by the deviation": (raw_m, raw_s),
        "normalised twice": (-raw_m / raw_s, 1 / raw_s),
    }
    far = {
        cause: math.sqrt(float((((m - a) / b).square() + (s / b).log().square()).mean()))
        for cause, (a, b) in conventions.items()
    }
    said = f"mean {float(m.mean()):+.2f}, deviation {float(s.mean()):.2f} (expected 0 and 1)"
    nearest = min(far, key=lambda cause: far[cause])
    if nearest and far[nearest] < min(BAND[0], far[""] - 1e-6):
        return Finding("latents", f"{said}: {nearest}", "error")
    if far[""] > BAND[1]:
        level = "error" if far[""] > BAND[2] else "warn"
        return Finding("latents", f"{said}: another autoencoder's mean and deviation, or another range?", level)
    return Finding("latents", said)


def few(items: Sequence[T]) -> list[T]:
    """Pick the items to look at, spread evenly from the first to the last.

    >>> few(list(range(31)))
    [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30]
    """
    return [items[i] for i in np.linspace(0, len(items) - 1, min(FEW, len(items))).astype(int)]


def read(found: int, what: str, skipped: Sequence[Skipped], notes: Sequence[Skipped] = ()) -> Finding:
    """Say how many records were found, and name some of those that were left out or have a note."""
    told = [*skipped, *notes]
    listed = "; ".join(f"{s.path}: {s.why}" for s in told[:LISTED])
    listed += f"; and {len(told) - LISTED} more" * (len(told) > LISTED)
    said = f"{found} {what}, {len(skipped)} left out" + (f", {len(notes)} with a note" if notes else "")
    return Finding("records", f"{said}: {listed}" if told else said, "warn" if told else "ok")


def identity(same: bool, what: str, parameters: int) -> Finding:
    """Say whether a fresh adapter changes nothing, bit for bit."""
    said = f"a fresh {what} of {parameters:,} parameters"
    if same:
        return Finding("identity", f"{said} changes nothing, bit for bit")
    return Finding("identity", f"{said} changes the backbone's output: please report this", "error")


def cut(paths: Iterable[str | Path], spec: video.ClipSpec) -> list[Cut]:
    """Cut a clip from each file as training would, and look at its times."""
    found = []
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TrainingWarning)
                decoded = video.load(path, spec)
            found.append(Cut(str(path), decoded.frames, video.jitter(decoded.times_s)))
        except ValueError as error:
            found.append(Cut(str(path), why=str(error)))
    return found


def lengths(cuts: Sequence[Cut]) -> list[Finding]:
    """Say which clips cannot be cut, and how uneven the times of the others are."""
    bad = [c for c in cuts if c.frames is None]
    good = [c for c in cuts if c.frames is not None]
    level = "error" if not good else "warn" if bad else "ok"
    listed = "; ".join(c.why if c.why.startswith(c.path) else f"{c.path}: {c.why}" for c in bad[:LISTED])
    listed += f"; and {len(bad) - LISTED} more" * (len(bad) > LISTED)
    findings = [Finding("clips cut", f"{len(good)} of {len(cuts)}{f'; left out: {listed}' if bad else ''}", level)]
    if good:
        uneven = sorted((c for c in good if c.jitter > video.JITTER_LIMIT), key=lambda c: -c.jitter)
        worst = "; ".join(f"{c.path}: {100 * c.jitter:.0f} %" for c in uneven[:LISTED])
        said = f"{len(uneven)} of {len(good)} uneven by more than {100 * video.JITTER_LIMIT:.0f} %"
        most = max(c.jitter for c in good)
        findings.append(
            Finding("frame times", f"{said} ({worst}): use the true times", "warn")
            if uneven
            else Finding("frame times", f"even within {100 * most:.1f} %")
        )
    return findings


def rates(paths: Sequence[Path], spec: video.ClipSpec) -> list[Finding]:
    """Name the frame rate at which most of the files give an even clip, where it is another than the wanted one.

    Only headers are read; tried are the files' own rates, their half, third and quarter.
    """
    headers = []
    for path in paths:
        try:
            headers.append(video.probe(path))
        except ValueError:
            continue  # `cut` says why
    own = {round(h.fps) / k for h in headers for k in (1, 2, 3, 4)}
    tried = {fps: sum(_fits(h, replace(spec, fps=fps)) for h in headers) for fps in sorted({*own, spec.fps}) if fps > 0}
    best = max(tried, key=lambda fps: (tried[fps], fps == spec.fps, fps), default=spec.fps)
    if best == spec.fps:
        return []
    seconds = (spec.frames - 1) / best
    said = f"{tried[best]} of {len(headers)} files give an even clip with data.fps={best:g} ({seconds:.2f} s)"
    return [Finding("frame rate", f"{said}, {tried[spec.fps]} with {spec.fps:g}", "warn")]


def _fits(header: video.Header, spec: video.ClipSpec) -> bool:
    times_s = video.even_times(header.frames, header.fps)
    if not video.room(times_s, spec):
        return False
    try:
        return video.jitter(times_s[video.pick(times_s, spec, 0)]) <= video.JITTER_LIMIT
    except ValueError:
        return False


def by_clip(labelled: Sequence[tuple[str, Sequence[str], str]]) -> Finding:
    """Say of each clip (name, labels, who gave them) what it is labelled with, and how many have no label.

    >>> by_clip([("a.mp4", ["fluid"], "keywords"), ("b.mp4", [], "")]).said
    '1 of 2 without; a.mp4: fluid (keywords); b.mp4: none'
    """
    without = sum(not names for _, names, _ in labelled)
    told = [f"{clip}: {', '.join(names)} ({by})" if names else f"{clip}: none" for clip, names, by in labelled]
    listed = "; ".join(told[:FEW]) + f"; and {len(told) - FEW} more" * (len(told) > FEW)
    return Finding("labels by clip", f"{without} of {len(labelled)} without; {listed}", "warn" if without else "ok")


def coverage(counts: Mapping[str, int], clips: int) -> Finding:
    """Say how many clips each category has; none or few is a warning, none anywhere an error."""
    if clips < 1:
        raise ValueError(f"expected one clip or more, got {clips}")
    said = ", ".join(f"{name} {n}" for name, n in counts.items())
    absent = [name for name, n in counts.items() if not n]
    rare = [name for name, n in counts.items() if 0 < n < RARE * clips]
    if len(absent) == len(counts):
        return Finding("labels", f"none of {clips} clips has a category", "error")
    if absent or rare:
        why = [f"without a clip: {', '.join(absent)}"] * bool(absent) + [f"rare: {', '.join(rare)}"] * bool(rare)
        return Finding("labels", f"{said}; {'; '.join(why)}", "warn")
    return Finding("labels", said)


def disk(root: str | Path, wanted: int) -> Finding:
    """Say whether `wanted` bytes fit where a cache will lie; over nine tenths of what is free is a warning."""
    place = Path(root).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    said = f"{wanted / 1e9:.2f} GB of {free / 1e9:.1f} GB free at {place}"
    return Finding("disk for the cache", said, "error" if wanted > free else "warn" if wanted > 0.9 * free else "ok")


def resets(norms: Sequence[float], ramp: RecursiveRamp) -> Finding:
    """Say how often a recursive ramp would start again on recorded norms; more than once a ramp is an error."""
    try:
        expected = expected_resets(norms, ramp)
    except ValueError as error:
        return Finding("resets of the ramp", str(error), "error")
    return Finding("resets of the ramp", f"{expected:.2f} expected in {ramp.steps} steps")


def show(findings: Sequence[Finding], console: Console) -> bool:
    """Print findings as one table; whether there is no error among them."""
    styles = {"ok": "green", "warn": "yellow", "error": "bold red"}
    table = Table("looked at", "", "found")
    for finding in findings:
        table.add_row(finding.what, f"[{styles[finding.level]}]{finding.level}[/]", finding.said.replace("[", r"\["))
    console.print(table)
    return all(finding.level != "error" for finding in findings)


def _psnr(wanted: Tensor, got: Tensor) -> float:
    """In dB, of values in [-1, 1]."""
    return 10 * math.log10(4 / max(float((wanted - got).square().mean()), 1e-12))
