"""Video files with true timestamps, and clips cut from them without bending time.

Frames are uint8 (t, h, w, 3) RGB; `times_s` are presentation times in seconds counted from the first frame of the file
(clip), pts * time_base as the file says, not frame number / nominal rate. `clip` never spreads frames over a file of
any length: it takes every k-th frame when the file's rate is near k times the wanted one, else the nearest frames, and
then the true times say how uneven that is. Taken as even, 24 fps film read at 16 fps shows a body at constant speed a
false acceleration above g.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from .decode import Decoded, Header, VideoError, choose, probe, rate, read, which
from .guards import TrainingWarning

__all__ = [
    "ClipSpec",
    "Decoded",
    "Header",
    "VideoError",
    "clip",
    "enlarged",
    "even_times",
    "from_bytes",
    "jitter",
    "load",
    "named",
    "pick",
    "probe",
    "read",
    "room",
    "to_bytes",
    "which",
    "write",
]

RATIO_TOLERANCE = 0.08
"""A rate within 8 % of an integer multiple counts as that multiple: 29.97 fps gives 14.985 for 16. Our choice: a clip
that is even and a little fast beats one whose spacing varies by half; the true times say what it is."""
JITTER_LIMIT = 0.05
"""Above this spread of the frame spacing, relative to its mean, `clip` warns."""


@dataclass(frozen=True)
class ClipSpec:
    """What a model wants: sizes in pixels, and a count of frames that is a multiple of `time_stride` and one more (4n+1
    for Wan and CogVideoX, 8n+1 for LTX: a causal video autoencoder's rule)."""

    frames: int
    fps: float | int
    height: int
    width: int
    time_stride: int = 4

    def __post_init__(self) -> None:
        n = self.time_stride
        if n < 1:
            raise ValueError(f"expected time_stride >= 1, got {n}")
        if self.frames < 1 or (self.frames - 1) % n:
            near = n * max(0, (self.frames - 1) // n) + 1
            rule = f"{n}n+1 frames (1, {n + 1}, {2 * n + 1}, ...)"
            raise ValueError(f"expected {rule}, got {self.frames}; use {near} or {near + n}")
        if not self.fps > 0 or min(self.height, self.width) < 1:
            raise ValueError(f"expected a positive rate and size, got {self}")


def jitter(times_s: Float64[np.ndarray, " t"]) -> float:
    """Return the largest deviation of the frame spacing from its mean, relative to the mean (0: even).

    >>> jitter(np.array([0.0, 0.04, 0.125]))
    0.36
    """
    gaps = np.diff(times_s)
    return round(float(np.abs(gaps - gaps.mean()).max() / gaps.mean()), 6) if len(gaps) else 0.0


def write(
    path: str | Path,
    frames: UInt8[np.ndarray, "t h w 3"],
    fps: float | int,
    *,
    lossless: bool = False,
    scale: int = 1,
    crf: int = 12,
    times_s: Sequence[float] | np.ndarray | None = None,
) -> Path:
    """Write an H.264 mp4; the file appears whole or not at all. Returns the path.

    As it stands (yuv420p) it plays in every browser; `scale` enlarges tiny pictures by pixel copies. `lossless` writes
    RGB with quantiser 0, which reads back bit-equal but which browsers do not play. `times_s` gives uneven frames their
    own times.
    """
    path = Path(path)
    if not len(frames) or scale < 1 or not fps > 0:
        raise ValueError(f"expected at least one frame, scale >= 1 and fps > 0, got {len(frames)}, {scale}, {fps}")
    height, width = (size * scale for size in frames.shape[1:3])
    if not lossless:  # yuv420p halves the colour planes: an odd size gets one more row or column of its last one
        height, width = height + height % 2, width + width % 2
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix or '.mp4'}")
    rate = Fraction(fps).limit_denominator(1001)
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
            options = {"qp": "0", "preset": "ultrafast"} if lossless else {"crf": str(crf)}
            stream = container.add_stream("libx264rgb" if lossless else "libx264", rate=rate, options=options)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = width, height
            stream.pix_fmt = "rgb24" if lossless else "yuv420p"
            stream.codec_context.thread_count = 1
            if times_s is not None:
                stream.codec_context.time_base = Fraction(1, 90000)
            for i, picture in enumerate(frames):
                picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
                picture = np.pad(
                    picture, ((0, height - len(picture)), (0, width - picture.shape[1]), (0, 0)), mode="edge"
                )
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts = i if times_s is None else round(90000 * times_s[i])
                frame.time_base = 1 / rate if times_s is None else Fraction(1, 90000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def named(out: str | Path) -> Path:
    """Give the mp4 that `out` asks for: the suffix may be left out; ValueError for a folder or another format.

    >>> named("film").as_posix()
    'film.mp4'
    """
    out = Path(out)
    if out.is_dir() or out.suffix not in ("", ".mp4"):
        raise ValueError(f"expected the name of an mp4 to write, such as {out.with_suffix('')}.mp4, got {out}")
    return out.with_suffix(".mp4")


def to_bytes(films: Float[Tensor, "*b 3 t h w"]) -> UInt8[np.ndarray, "*b t h w 3"]:
    """Turn the models' range [-1, 1], colour first, into bytes, colour last; one film or any batch of them.

    >>> to_bytes(torch.tensor([-1.0, 0.5, 2.0]).reshape(3, 1, 1, 1)).tolist()
    [[[[0, 191, 255]]]]
    """
    pixels = ((films.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.movedim(-4, -1).contiguous().cpu().numpy()


def from_bytes(films: UInt8[np.ndarray, "*b t h w 3"]) -> Float[Tensor, "*b 3 t h w"]:
    """Turn bytes, colour last, into the models' range [-1, 1], colour first; one film or any batch of them.

    >>> from_bytes(np.array([[[[0, 127, 255]]]], np.uint8)).flatten().tolist()
    [-1.0, -0.003921568393707275, 1.0]
    """
    return torch.from_numpy(np.ascontiguousarray(films)).movedim(-1, -4).contiguous().float() / 127.5 - 1


def enlarged(height: int, least: int = 256) -> int:
    """By what factor a tiny video is enlarged so that a player shows it (256 px: our choice).

    >>> enlarged(32), enlarged(480)
    (8, 1)
    """
    return max(1, -(-least // height))


def even_times(frames: int, fps: float | int) -> Float64[np.ndarray, " t"]:
    """Return the times of frames at a constant rate: of a file of which only the header is known."""
    return np.arange(frames, dtype=np.float64) / fps


def room(times_s: Float64[np.ndarray, " t"], spec: ClipSpec) -> int:
    """Return how many frames a clip may begin with: those that leave enough of the file behind them.

    >>> room(np.arange(20) / 32, ClipSpec(5, 16, 8, 8))
    12
    """
    if spec.frames == 1:
        return len(times_s)
    if stride := _stride(times_s, spec):
        return max(0, len(times_s) - stride * (spec.frames - 1))
    if rate(times_s) < spec.fps:
        return 0
    return int((times_s + (spec.frames - 1) / spec.fps <= times_s[-1] + 0.5 / rate(times_s)).sum())


def pick(times_s: Float64[np.ndarray, " t"], spec: ClipSpec, first: int) -> Int64[np.ndarray, " n"]:
    """Return which frames make a clip that begins with frame `first`, for frames at `times_s`.

    Where the file's rate is a multiple k of `spec.fps` within 8 %, every k-th frame; otherwise the frame nearest to
    each wanted time. ValueError where the file ends too soon or is slower than the clip: it is never stretched to fit.
    """
    if first >= room(times_s, spec):
        have_s = max(0.0, float(times_s[-1] - times_s[min(first, len(times_s) - 1)]))
        raise ValueError(
            f"expected {spec.frames} frames at {spec.fps:g} fps ({(spec.frames - 1) / spec.fps:.2f} s), "
            f"got {have_s:.2f} s at {rate(times_s):.4g} fps from {times_s[min(first, len(times_s) - 1)]:g} s on: "
            f"ask for fewer frames or leave the file out"
        )
    if spec.frames == 1:
        return np.array([first])
    if stride := _stride(times_s, spec):
        return first + stride * np.arange(spec.frames)
    wanted = times_s[first] + np.arange(spec.frames) / spec.fps
    picked = np.abs(times_s[None, :] - wanted[:, None]).argmin(axis=1)
    if (np.diff(picked) < 1).any():
        raise ValueError(
            f"expected {spec.frames} frames at {spec.fps:g} fps, got gaps of {np.diff(times_s).max():.2f} s between "
            f"frames: leave the file out"
        )
    return picked


def clip(decoded: Decoded, spec: ClipSpec, *, start_s: float | int = 0.0) -> Decoded:
    """Cut `spec.frames` frames from `start_s` on (see `pick`), crop to the wanted aspect around the centre, and resize
    by area.

    `times_s` are the frames' true times, from 0; a TrainingWarning gives the numbers where they are uneven. ValueError
    when the file is too short.
    """
    picked = pick(decoded.times_s, spec, _first(decoded.times_s, start_s))
    frames = _resize(decoded.frames[picked], spec.height, spec.width)
    return _checked(Decoded(frames, decoded.times_s[picked], decoded.decoder), decoded.fps, spec, None)


def load(
    path: str | Path,
    spec: ClipSpec,
    *,
    start_s: float | int = 0.0,
    share: float | None = None,
    max_jitter: float | None = None,
    decoder: str = "auto",
) -> Decoded:
    """Decode what `clip` needs of a file and no more, and clip it; the memory is that of the clip.

    `share` in [0, 1), instead of `start_s`, is where within what the file has to spare the clip begins: 0 with its
    first frame, nearly 1 so that it ends with its last. Above `max_jitter` (relative spread of the spacing) a clip is
    refused with a ValueError; without it, uneven ones are warned about.
    """
    if share is not None and not 0 <= share < 1:
        raise ValueError(f"expected share in [0, 1), got {share}")
    fps = 0.0

    def picked(times_s: Float64[np.ndarray, " t"]) -> Int64[np.ndarray, " n"]:
        nonlocal fps
        fps = rate(times_s)
        first = _first(times_s, start_s) if share is None else int(share * room(times_s, spec))
        return pick(times_s, spec, first)

    cut = choose(path, picked, each=partial(_resize, height=spec.height, width=spec.width), decoder=decoder)
    return _checked(cut, fps, spec, max_jitter)


def _first(times_s: Float64[np.ndarray, " t"], start_s: float | int) -> int:
    return int(np.searchsorted(times_s, start_s - 1e-6))


def _stride(times_s: Float64[np.ndarray, " t"], spec: ClipSpec) -> int:
    """How many frames of an even file make one of the clip; 0 where no whole number does."""
    ratio = rate(times_s) / spec.fps
    stride = round(ratio)
    even = stride >= 1 and abs(ratio - stride) <= RATIO_TOLERANCE * stride and jitter(times_s) <= JITTER_LIMIT
    return stride if even else 0


def _checked(cut: Decoded, fps: float, spec: ClipSpec, max_jitter: float | None) -> Decoded:
    """The clip with times from 0; says or refuses what is uneven about them."""
    if (spread := jitter(cut.times_s)) > (JITTER_LIMIT if max_jitter is None else max_jitter):
        gaps = 1000 * np.diff(cut.times_s)
        text = (
            f"frame spacing varies by {100 * spread:.0f} % ({fps:.4g} -> {spec.fps:g} fps: {gaps.min():.1f} to "
            f"{gaps.max():.1f} ms, nominal {1000 / spec.fps:.1f} ms)"
        )
        if max_jitter is not None:
            raise ValueError(f"{text}, more than {100 * max_jitter:g} %: leave the file out, or raise max_jitter")
        warnings.warn(f"{text}: use the true times", TrainingWarning, stacklevel=3)
    return replace(cut, times_s=cut.times_s - cut.times_s[0])


def _resize(frames: UInt8[np.ndarray, "t h w 3"], height: int, width: int) -> UInt8[np.ndarray, "t _ _ 3"]:
    """Centre-crop to the aspect of (height, width), then resize: by antialiased interpolation down, bilinear up."""
    _, h, w, _ = frames.shape
    scale = min(h / height, w / width)
    crop_h, crop_w = min(h, max(1, round(height * scale))), min(w, max(1, round(width * scale)))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    frames = frames[:, top : top + crop_h, left : left + crop_w]
    if (crop_h, crop_w) == (height, width):
        return np.ascontiguousarray(frames)
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    if crop_h % height == 0 and crop_w % width == 0:  # whole blocks: the exact mean over each area
        resized = torch.nn.functional.avg_pool2d(pictures, (crop_h // height, crop_w // width))
    else:
        resized = torch.nn.functional.interpolate(pictures, (height, width), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
