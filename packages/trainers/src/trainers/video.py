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
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Float64, UInt8

from .guards import TrainingWarning

__all__ = ["ClipSpec", "Decoded", "VideoError", "clip", "jitter", "load", "read", "write"]

RATIO_TOLERANCE = 0.08
"""A rate within 8 % of an integer multiple counts as that multiple: 29.97 fps gives 14.985 for 16. Our choice: a clip
that is even and a little fast beats one whose spacing varies by half; the true times say what it is."""
JITTER_LIMIT = 0.05
"""Above this spread of the frame spacing, relative to its mean, `clip` warns."""


class VideoError(ValueError):
    """A file that cannot be decoded whole."""


@dataclass(frozen=True)
class Decoded:
    """Frames and their times."""

    frames: UInt8[np.ndarray, "t h w 3"]
    times_s: Float64[np.ndarray, " t"]

    @property
    def fps(self) -> float:
        """Mean rate; 0 for a single frame."""
        return float((len(self.times_s) - 1) / (self.times_s[-1] - self.times_s[0])) if len(self.times_s) > 1 else 0.0


@dataclass(frozen=True)
class ClipSpec:
    """What a model wants: `frames` is 4n+1 (a causal video autoencoder's rule), sizes in pixels."""

    frames: int
    fps: float | int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 4 != 1:
            near = 4 * max(0, (self.frames - 1) // 4) + 1
            raise ValueError(f"expected 4n+1 frames (1, 5, 9, ...), got {self.frames}; use {near} or {near + 4}")
        if not self.fps > 0 or min(self.height, self.width) < 1:
            raise ValueError(f"expected a positive rate and size, got {self}")


def jitter(times_s: Float64[np.ndarray, " t"]) -> float:
    """Return the largest deviation of the frame spacing from its mean, relative to the mean (0: even).

    >>> jitter(np.array([0.0, 0.04, 0.125]))
    0.36
    """
    gaps = np.diff(times_s)
    return round(float(np.abs(gaps - gaps.mean()).max() / gaps.mean()), 6) if len(gaps) else 0.0


def read(path: str | Path, *, from_s: float | int = 0, until_s: float | int | None = None) -> Decoded:
    """Decode the first video stream; VideoError when the file is unreadable, empty, or cut short.

    With `from_s` and `until_s` (seconds from the file's first frame) only the frames between are kept, and nothing
    after them is decoded or checked; their times stay counted from the file's first frame.
    """
    path = Path(path)
    frames, times = [], []
    begin, seen, stopped = None, 0, False
    try:
        with av.open(str(path), options={"err_detect": "explode"}) as container:
            if not container.streams.video:
                raise VideoError(f"{path} has no video stream: expected an mp4, mov, webm or mkv with pictures")
            stream = container.streams.video[0]
            # A pool of threads a file starves on a busy machine and costs a small clip more than its decoding: 19 ms
            # against 69 ms with pools, two loaded cores. To read many files at once, give each a thread of its own.
            stream.codec_context.thread_count = 1
            announced = stream.frames
            for frame in container.decode(stream):
                if frame.pts is None or frame.time_base is None:
                    raise VideoError(
                        f"{path}: frame {seen} has no timestamp; write the file anew (ffmpeg -i in out.mp4)"
                    )
                seen += 1
                time = frame.pts * frame.time_base
                begin = time if begin is None else begin
                if until_s is not None and time - begin > until_s:
                    stopped = True
                    break
                if time - begin >= from_s - 1e-6:
                    frames.append(frame.to_ndarray(format="rgb24", threads=1))
                    times.append(time - begin)
    except (av.FFmpegError, OSError, EOFError) as error:
        raise VideoError(
            f"{path} cannot be decoded ({error}): it is damaged or no video; replace it or leave it out"
        ) from None
    if not frames and not seen:
        raise VideoError(f"{path} holds no frames: replace it or leave it out")
    if announced and seen < announced and not stopped:
        raise VideoError(f"{path} is cut short: it announces {announced} frames and holds {seen}; fetch it again")
    if not frames:
        raise VideoError(f"{path} holds nothing after {from_s:g} s: begin earlier or leave it out")
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError(
            f"{path} changes its picture size midway; write it anew at one size (ffmpeg -i in -vf scale=... out.mp4)"
        )
    times_s = np.array([float(t) for t in times])
    if (np.diff(times_s) <= 0).any():
        raise VideoError(f"{path} has timestamps that do not rise; write the file anew (ffmpeg -i in out.mp4)")
    return Decoded(np.stack(frames), times_s)


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


def clip(decoded: Decoded, spec: ClipSpec, *, start_s: float | int = 0.0) -> Decoded:
    """Cut `spec.frames` frames from `start_s` on, crop to the wanted aspect around the centre, and resize by area.

    The file's rate is a multiple k of `spec.fps` within 8 %: every k-th frame. Otherwise the frame nearest to each
    wanted time, with a TrainingWarning when the spacing is uneven. Either way `times_s` are the frames' true times,
    from 0. ValueError when the file is too short: it is never slowed down to fit.
    """
    times = decoded.times_s
    first = int(np.searchsorted(times, start_s - 1e-6))
    ratio = decoded.fps / spec.fps
    stride = round(ratio)
    if spec.frames == 1:
        picked = np.array([first])
    elif stride >= 1 and abs(ratio - stride) <= RATIO_TOLERANCE * stride and jitter(times) <= JITTER_LIMIT:
        picked = first + stride * np.arange(spec.frames)
    else:
        wanted = times[min(first, len(times) - 1)] + np.arange(spec.frames) / spec.fps
        picked = np.abs(times[None, :] - wanted[:, None]).argmin(axis=1)
        if wanted[-1] > times[-1] + 0.5 / max(decoded.fps, 1e-9) or len(set(picked.tolist())) < spec.frames:
            picked = np.array([len(times)])
    if picked[-1] >= len(times):
        have_s = max(0.0, float(times[-1]) - start_s)
        raise ValueError(
            f"expected {spec.frames} frames at {spec.fps:g} fps ({(spec.frames - 1) / spec.fps:.2f} s), "
            f"got {have_s:.2f} s at {decoded.fps:.4g} fps from {start_s:g} s on: "
            f"ask for fewer frames or leave the file out"
        )
    times = times[picked] - times[picked[0]]
    if (spread := jitter(times)) > JITTER_LIMIT:
        text = (
            f"frame spacing varies by {100 * spread:.0f} % ({decoded.fps:.4g} -> {spec.fps:g} fps): use the true times"
        )
        warnings.warn(text, TrainingWarning, stacklevel=2)
    return Decoded(_resize(decoded.frames[picked], spec.height, spec.width), times)


def load(path: str | Path, spec: ClipSpec, *, start_s: float | int = 0.0) -> Decoded:
    """Read what `clip` needs of a file and no more, and clip it: what to use on long files."""
    # Half a second more than the nominal span times the ratio's tolerance: the last frame wanted may be late.
    span_s = (spec.frames - 1) / spec.fps * (1 + RATIO_TOLERANCE) + 0.5
    return clip(read(path, from_s=start_s, until_s=start_s + span_s), spec, start_s=start_s)


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
