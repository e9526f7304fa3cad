"""What moves in a clip, frame by frame: where the picture differs from its own running average.

Pictures are uint8 (h, w, 3) BGR as OpenCV decodes them, masks uint8 (h, w) with 0 and 255. Everything is a stream: one
frame is held at a time, whatever the clip's length.

What surprises: the official script stores masks as mp4v video, which is lossy, and cuts them again at 127. `lossy`
does the same for whom it matters; without it masks are exact.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

__all__ = ["blended", "frames_of", "lossy", "motion_masks"]

Picture = UInt8[np.ndarray, "h w 3"]
Mask = UInt8[np.ndarray, "h w"]

RATE = 0.3  # of the running average
THRESHOLD = 10  # grey levels
KERNEL = np.ones((5, 5), np.uint8)  # of opening and closing


def motion_masks(frames: Iterable[Picture]) -> Iterator[Mask]:
    """Yield a mask a frame: |x - round(a)| > 10 for blurred grey x and a <- .7 a + .3 x, opened, then closed.

    a begins as the first frame, whose mask is empty. The blur is Gaussian 5 x 5, opening and closing take 5 x 5 ones.

    References: Physics-IQ's binary_mask_generator.py.

    >>> still = [np.full((16, 16, 3), 90, np.uint8)] * 3
    >>> [int(mask.max()) for mask in motion_masks(still)]
    [0, 0, 0]
    """
    average = None
    for frame in frames:
        grey = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (5, 5), 0)
        if average is None:
            average = grey.astype(np.float64)
            yield np.zeros_like(grey)
            continue
        cv2.accumulateWeighted(grey, average, RATE)
        difference = cv2.absdiff(grey, cv2.convertScaleAbs(average))
        _, moving = cv2.threshold(difference, THRESHOLD, 255, cv2.THRESH_BINARY)
        opened = cv2.morphologyEx(moving, cv2.MORPH_OPEN, KERNEL)
        yield cv2.morphologyEx(opened, cv2.MORPH_CLOSE, KERNEL).astype(np.uint8)


def blended(frames: Iterable[Picture], *, have: int, want: int) -> Iterator[Picture]:
    """Yield `want` frames of `have` by blending neighbours: frame j stands at j (have - 1) / (want - 1), cut down to
    whole grey levels.

    As the official script makes the rates that were not filmed; a fast ball becomes two ghosts.

    >>> ramp = [np.full((1, 1, 3), level, np.uint8) for level in (0, 10, 20)]
    >>> [int(frame[0, 0, 0]) for frame in blended(ramp, have=3, want=5)]
    [0, 5, 10, 15, 20]
    """
    if have < 1 or want < 2:
        raise ValueError(f"expected at least one frame and two wanted ones, got {have} and {want}")
    source = iter(frames)
    held: list[Picture] = [next(source)]
    first = 0  # index of held[0]
    for j in range(want):
        at = j * (have - 1) / (want - 1)
        index = int(at)
        share = at - index
        while first + len(held) <= min(index + 1, have - 1):
            held.append(next(source))
        held, first = held[index - first :], index
        here, after = held[0], held[min(1, len(held) - 1)]
        mixed = np.multiply(here, 1 - share, dtype=np.float32)
        mixed += np.multiply(after, share, dtype=np.float32)
        yield mixed.astype(np.uint8)


def frames_of(path: Path, count: int) -> Iterator[Picture]:
    """Yield the first `count` frames of a video as OpenCV decodes them; ValueError where it holds fewer."""
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        for index in range(count):
            there, frame = capture.read()
            if not there:
                raise ValueError(f"expected {count} frames in {path}, got {index}: it is damaged; make it anew")
            yield frame.astype(np.uint8, copy=False)
    finally:
        capture.release()


def lossy(masks: Iterable[Mask], *, fps: float | int) -> Iterator[Mask]:
    """Yield masks as they come back from an mp4v video, which is how the official script keeps them: grey values near
    0 and 255, to be cut at 127."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.mp4"
        count, writer = 0, None
        for mask in masks:
            if writer is None:
                height, width = mask.shape
                if height % 2 or width % 2:
                    raise ValueError(f"mp4v masks need an even size, got {width} x {height}: take exact ones")
                code = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(path), code, float(fps), (width, height), isColor=False)
                if not writer.isOpened():
                    raise ValueError("this OpenCV has no mp4v encoder: take exact masks")
            writer.write(mask)
            count += 1
        if writer is not None:
            writer.release()
        for frame in frames_of(path, count) if count else ():
            yield frame[..., 0]
