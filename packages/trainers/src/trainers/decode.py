"""Decoding: chosen frames of a video file and their true times, by torchcodec where it loads, by PyAV otherwise.

Times are presentation times in seconds counted from the first frame of the file, pts * time_base as the packets say,
never frame number / nominal rate. Both decoders give the same bits on sound files (tests/test_decoders.py): the file is
opened, checked and timed by PyAV, and torchcodec only turns packets into pictures. Pictures are RGB, turned upright as
the file's rotation asks.

What surprises: PyAV refuses a picture that its decoder calls damaged; torchcodec cannot be told to, and shows what the
decoder made up in its place.

A file is not trusted: only containers that hold their own pictures are opened (a playlist in an mp4's name would read
other files), and sizes, frame counts and the memory they would take are checked before anything of that size is made.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Float64, UInt8

from . import boxes
from .guards import TrainingWarning

__all__ = ["Decoded", "Header", "VideoError", "choose", "probe", "rate", "read", "which"]

CONTAINERS = "mov,matroska,webm,avi"
"""Every other kind is refused: playlists and image sequences open other files, and more kinds are more to trust."""
MAX_PIXELS = 36_000_000
"""8K (8192 x 4320) and no more, our choice: a header may claim any size."""
MAX_BYTES = 8 * 2**30
"""What `read` decodes at most, our choice: five minutes of 256 x 256, twelve seconds of 4K. `choose` keeps less."""
SQUARE = 0.03
"""Pixels may be this much wider or higher than square. Our choice: encoders write 1280/1279 and the like."""
SEEK_S = 2.0
"""Nearer than this to the start it is cheaper to decode from there than to seek."""
CHUNK = 8
"""Frames that torchcodec decodes at a time."""


class VideoError(ValueError):
    """A file that cannot be decoded whole."""


class _Missing(Exception):
    """A frame that the packets announce did not come out of the decoder."""


@dataclass(frozen=True)
class Decoded:
    """Frames and their times; `decoder` says what decoded them ("" for frames that no file held)."""

    frames: UInt8[np.ndarray, "t h w 3"]
    times_s: Float64[np.ndarray, " t"]
    decoder: str = ""

    @property
    def fps(self) -> float:
        """Mean rate; 0 for a single frame."""
        return rate(self.times_s)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return `frames` (t h w 3, uint8) and `times_s` (t, float64) as tensors: for a batch, or a cache's entry."""
        return {"frames": torch.from_numpy(self.frames), "times_s": torch.from_numpy(self.times_s)}


@dataclass(frozen=True)
class Header:
    """What a file says of itself, and its first frame's size as it is shown (turned upright)."""

    width: int
    height: int
    frames: int
    fps: float | int

    @property
    def duration_s(self) -> float:
        """From the first frame to the end of the last."""
        return self.frames / self.fps


def rate(times_s: Float64[np.ndarray, " t"]) -> float:
    """Return the mean rate of frames at these times; 0 for a single one."""
    return float((len(times_s) - 1) / (times_s[-1] - times_s[0])) if len(times_s) > 1 else 0.0


def which(name: str = "auto") -> str:
    """Return which decoder a name stands for here; ValueError where torchcodec was asked for and does not load."""
    if name not in ("auto", "torchcodec", "pyav"):
        raise ValueError(f"expected the decoder 'auto', 'torchcodec' or 'pyav', got {name!r}")
    if name == "pyav":
        return "pyav"
    why = _without_torchcodec()
    if not why:
        return "torchcodec"
    if name == "torchcodec":
        raise ValueError(
            f"torchcodec does not load ({why}): pip install 'phystrainers[torchcodec]' and FFmpeg's shared libraries "
            f"(apt-get install ffmpeg), or take decoder='pyav'"
        )
    return "pyav"


@cache
def _without_torchcodec() -> str:
    """Why torchcodec cannot be used, "" when it can; said once where it is installed and does not load."""
    try:
        import torchcodec.decoders  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torchcodec":
            return "it is not installed"
        why = str(error)
    except (RuntimeError, OSError) as error:
        why = str(error)
    else:
        return ""
    why = " ".join(why.split())[:200]
    warnings.warn(f"torchcodec is installed but does not load, so PyAV decodes: {why}", TrainingWarning, stacklevel=4)
    return why


def probe(path: str | Path) -> Header:
    """Return size, count and rate from a file's header and its first frame; VideoError when it has none.

    Where a file does not announce its count (webm, mkv) its packets are counted.
    """
    with _opened(path) as (container, stream):
        frame = next(iter(container.decode(stream)), None)
        if frame is None:
            raise VideoError(f"{path} holds no frames: replace it or leave it out")
        fps, frames = float(stream.average_rate or 0), stream.frames
        height, width = frame.height, frame.width
        if frame.rotation % 180:
            height, width = width, height
    if not frames or not fps > 0:
        stamps, base, _ = _timeline(path, look=False)
        frames = len(stamps)
        fps = float((frames - 1) / ((stamps[-1] - stamps[0]) * base)) if frames > 1 else 1.0
    return Header(width, height, frames, fps)


def read(
    path: str | Path,
    *,
    from_s: float | int = 0,
    until_s: float | int | None = None,
    decoder: str = "auto",
    max_bytes: int = MAX_BYTES,
) -> Decoded:
    """Decode the first video stream; VideoError when the file is unreadable, empty, damaged, or cut short.

    With `from_s` and `until_s` (seconds from the file's first frame) only the frames between are decoded; their times
    stay counted from the file's first frame.
    """

    def between(times_s: Float64[np.ndarray, " t"]) -> np.ndarray:
        inside = times_s >= from_s - 1e-6
        if until_s is not None:
            inside &= times_s <= until_s
        if not inside.any():
            raise VideoError(f"{path} holds nothing after {from_s:g} s: begin earlier or leave it out")
        return np.flatnonzero(inside)

    return choose(path, between, decoder=decoder, max_bytes=max_bytes)


def choose(
    path: str | Path,
    pick: Callable[[Float64[np.ndarray, " t"]], np.ndarray],
    *,
    each: Callable[[UInt8[np.ndarray, "t h w 3"]], UInt8[np.ndarray, "t _ _ 3"]] | None = None,
    decoder: str = "auto",
    max_bytes: int = MAX_BYTES,
) -> Decoded:
    """Decode the frames that `pick` names and no other, and put each through `each` at once (a resize, say).

    `pick` gets the times of all frames of the file and returns rising indices into them. Only what `each` makes of a
    frame is kept, so that the memory is that of the result.
    """
    name = which(decoder)
    stamps, base, size = _timeline(path, look=name == "torchcodec")

    def chosen(stamps: Sequence[int]) -> Decoded:
        times_s = np.array([(stamp - stamps[0]) * base.numerator / base.denominator for stamp in stamps])
        indices = [int(i) for i in pick(times_s)]
        if each is None and len(indices) * 3 * size > max_bytes:
            raise _too_large(path, len(indices), size)
        wanted = [stamps[i] for i in indices]
        late = (wanted[0] - stamps[0]) * base > SEEK_S
        frames = (
            _by_torchcodec(path, wanted, indices, base) if name == "torchcodec" else _by_pyav(path, wanted, seek=late)
        )
        parts = []
        for frame in frames:
            if each is None and len(indices) * frame[0].nbytes > max_bytes:
                raise _too_large(path, len(indices), frame[0].nbytes // 3)
            parts.append(frame if each is None else each(frame))
        if len({part.shape[1:] for part in parts}) > 1:
            raise VideoError(
                f"{path} changes its picture size midway; write it anew at one size (ffmpeg -i in -vf scale=... out)"
            )
        return Decoded(np.concatenate(parts), times_s[indices], name)

    try:
        return chosen(stamps)
    except _Missing:  # packets that are no frames of their own: what comes out of the decoder counts
        stamps = _decoded_stamps(path)
    try:
        return chosen(stamps)
    except _Missing:
        text = f"{path} does not decode to the same frames twice: replace it or leave it out"
        raise VideoError(text) from None


def _too_large(path: str | Path, frames: int, pixels: int) -> VideoError:
    return VideoError(
        f"{path} would take {frames * pixels * 3 / 2**30:.1f} GiB ({frames} frames of {pixels / 1e6:.2f} million "
        f"pixels): read a part of it (from_s, until_s), or raise max_bytes"
    )


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream, strict; every error of FFmpeg becomes a VideoError that names the
    file."""
    path = Path(path)
    try:
        boxes.check(path)
        limits = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
        # An absolute path: a name such as "concat:a|b" would be taken for a protocol.
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", **limits}
        with av.open(str(path.absolute()), options=options) as container:
            if not container.streams.video:
                raise VideoError(f"{path} has no video stream: expected an mp4, mov, webm or mkv with pictures")
            stream = container.streams.video[0]
            context = stream.codec_context
            if context is None:
                raise VideoError(f"{path} is coded in a way that no decoder here knows; write it anew as H.264")
            if context.width * context.height > MAX_PIXELS:
                raise VideoError(
                    f"{path} claims pictures of {context.width} x {context.height} px, above {MAX_PIXELS / 1e6:g} "
                    f"million: shrink it or leave it out"
                )
            shape = stream.sample_aspect_ratio or 1
            if abs(shape - 1) > SQUARE:
                raise VideoError(
                    f"{path} has pixels {float(shape):.3g} times as wide as high, which makes a circle an ellipse: "
                    f"write it anew (ffmpeg -i in -vf scale=iw*sar:ih,setsar=1 out.mp4) or leave it out"
                )
            # A pool of threads a file starves on a busy machine and costs a small clip more than its decoding: 19 ms
            # against 69 ms with pools, two loaded cores. To read many files at once, give each a thread of its own.
            context.thread_count = 1
            context.options = limits  # those above reach the demuxer and its look at the first packets, not the decoder
            yield container, stream
    except (av.FFmpegError, OSError, EOFError, UnicodeError, boxes.Lie) as error:
        raise VideoError(
            f"{path} cannot be decoded ({error}): it is damaged or no video; replace it or leave it out"
        ) from None


def _timeline(path: str | Path, *, look: bool) -> tuple[list[int], Fraction, int]:
    """Presentation stamps of all frames in order, from the packets alone; the time base; pixels of a picture (0: not
    known before decoding).

    `look`: decode the first frame, under the limits that PyAV sets and torchcodec does not know.
    """
    with _opened(path) as (container, stream):
        stamps: list[int | None] = []
        held = 0
        for packet in container.demux(stream):
            if not packet.size:
                continue  # the end
            if packet.is_corrupt:
                raise VideoError(f"{path} is cut short in packet {held}; fetch it again")
            held += 1
            look = look and not packet.decode()
            if not packet.is_discard:  # what an edit list cuts away is there and is not shown
                stamps.append(packet.pts)
        if stream.frames and held < stream.frames:
            text = f"{path} is cut short: it announces {stream.frames} frames and holds {held}; fetch it again"
            raise VideoError(text)
        base, size = stream.time_base, stream.codec_context.width * stream.codec_context.height
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) < len(stamps):
        known = _decoded_stamps(path)
    return _rising(path, sorted(known)), base, size


def _decoded_stamps(path: str | Path) -> list[int]:
    """The stamps of the frames that the decoder gives."""
    with _opened(path) as (container, stream):
        stamps = []
        for frame in container.decode(stream):
            if frame.pts is None:
                raise VideoError(
                    f"{path}: frame {len(stamps)} has no timestamp; write the file anew (ffmpeg -i in out.mp4)"
                )
            stamps.append(frame.pts)
    return _rising(path, stamps)


def _rising(path: str | Path, stamps: list[int]) -> list[int]:
    if not stamps:
        raise VideoError(f"{path} holds no frames: replace it or leave it out")
    if any(after <= before for before, after in pairwise(stamps)):
        raise VideoError(f"{path} has timestamps that do not rise; write the file anew (ffmpeg -i in out.mp4)")
    return stamps


def _by_pyav(path: str | Path, wanted: Sequence[int], *, seek: bool) -> Iterator[UInt8[np.ndarray, "1 h w 3"]]:
    given = 0
    try:
        with _opened(path) as (container, stream):
            if seek:  # one second early: an index by decoding times may point behind the frame that is wanted
                container.seek(wanted[0] - round(1 / stream.time_base), stream=stream, backward=True)
            for number, frame in enumerate(container.decode(stream)):
                if seek and number == 0 and (frame.pts is None or frame.pts > wanted[0]):
                    break
                if frame.is_corrupt and not (seek and frame.pts < wanted[0]):
                    raise VideoError(f"{path}: frame {number} is damaged; replace the file or leave it out")
                if frame.pts is not None and frame.pts > wanted[given]:
                    raise _Missing
                if frame.pts == wanted[given]:
                    picture = frame.to_ndarray(format="rgb24", threads=1)
                    yield np.ascontiguousarray(np.rot90(picture, frame.rotation // 90 % 4))[None]
                    given += 1
                    if given == len(wanted):
                        return
    except VideoError:
        if not seek or given:
            raise
    if not seek or given:
        raise _Missing
    yield from _by_pyav(path, wanted, seek=False)  # no clean entry there: from the start


def _by_torchcodec(
    path: str | Path, wanted: Sequence[int], indices: Sequence[int], base: Fraction
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    try:
        whole = str(Path(path).absolute())
        video = VideoDecoder(whole, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        left = iter(zip(indices, wanted, strict=True))
        while chunk := list(islice(left, CHUNK)):
            if chunk[-1][0] >= len(video):
                raise _Missing
            batch = video.get_frames_at([index for index, _ in chunk])
            if [round(t / base) for t in batch.pts_seconds.tolist()] != [stamp for _, stamp in chunk]:
                raise _Missing
            yield batch.data.numpy()
    except (RuntimeError, OSError, IndexError) as error:  # torchcodec raises RuntimeError for all that FFmpeg refuses
        why = " ".join(str(error).split())[:300]
        raise VideoError(f"{path} cannot be decoded ({why}): replace it or leave it out") from None
