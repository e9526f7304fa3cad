"""The contact sheet: for each clip its frames, what was perceived in them, and the pseudo-RGB video, under its name.

A dropped clip shows its frames and why it was dropped.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from mmphysvideo.colours import NAMES, middle
from mmphysvideo.perception import Perception
from mmphysvideo.pseudo import PseudoRGB
from trainers.atomic import write_bytes

__all__ = ["draw", "strip"]

SHOWN = 5
TILE = 168
"""Height of a frame on the sheet, pixels."""
LINE = 16


def strip(frames: UInt8[np.ndarray, "t h w 3"], perception: Perception | None, pseudo: PseudoRGB | None) -> bytes:
    """A PNG of some frames side by side; below them the subjects' colours and tracks laid over, and the pseudo-RGB."""
    chosen = np.linspace(0, len(frames) - 1, min(SHOWN, len(frames))).round().astype(int)
    rows = [[_tile(frames[k]) for k in chosen]]
    if perception is not None and pseudo is not None:
        rows.append([_laid(frames, perception, pseudo, int(k)) for k in chosen])
        rows.append([_tile(pseudo.frames[k]) for k in chosen])
    picture = np.concatenate([np.concatenate(row, 1) for row in rows], 0)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", optimize=True)
    return file.getvalue()


def draw(path: Path, out: Path, clips: Sequence[Mapping[str, Any]], *, title: str) -> Path:
    """Put the strips of clips (as `process` tells of them) under one another, kept ones first."""
    blocks = [(_lines(clip), clip.get("coding"), _opened(out / "clips" / clip["clip"] / "strip.png")) for clip in clips]
    width = max([640, *(strip.width for *_, strip in blocks if strip)])
    height = 2 * LINE + sum(LINE * (len(lines) + 1) + (strip.height if strip else 0) for lines, _, strip in blocks)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((4, 4), title, fill="black")
    y = 2 * LINE
    for lines, coding, picture in blocks:
        for line in lines:
            pen.text((4, y), line[: width // 6], fill="black")
            y += LINE
        if coding:
            x = 4
            for subject, cell in zip(coding["subjects"], coding["cells"], strict=True):
                colour = tuple(int(c) for c in np.rint(255 * middle(cell)))
                pen.rectangle((x, y - LINE + 2, x + 10, y - LINE + 12), fill=colour, outline="black")
                text = f"{subject} ({NAMES[cell]})"
                pen.text((x + 14, y - LINE), text, fill="black")
                x += 24 + 6 * len(text)
        if picture:
            sheet.paste(picture, (0, y))
            y += picture.height
        y += LINE
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    return write_bytes(path, file.getvalue())


def _lines(clip: Mapping[str, Any]) -> list[str]:
    first = f"{clip['clip']} from {clip['file']} at {clip['start_s']:.2f} s, {clip['fps']:.3g} fps"
    if clip["status"] == "kept":
        process = ", ".join(clip["process"])
        return [first, f"kept: {process}; camera {clip['camera_motion']}; {clip['caption']}", ""]
    return [first, f"{clip['status']} at {clip['stage']}: {clip['why']}"]


def _opened(path: Path) -> Image.Image | None:
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _tile(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    height, width = frame.shape[:2]
    size = round(width * TILE / height), TILE
    how = Image.Resampling.NEAREST if height < TILE else Image.Resampling.BOX
    return np.asarray(Image.fromarray(frame).resize(size, how))


def _laid(
    frames: UInt8[np.ndarray, "t h w 3"], perception: Perception, pseudo: PseudoRGB, k: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A frame with each subject in its colour, and where its points came from."""
    colours = np.stack([np.zeros(3), *(255 * middle(cell) for cell in pseudo.coding.cells)])
    masks = perception.masks[k]
    mixed = np.where(masks[..., None] > 0, 0.4 * frames[k] + 0.6 * colours[masks], 0.8 * frames[k])
    picture = Image.fromarray(_tile(np.rint(mixed).astype(np.uint8)))
    scale = TILE / frames.shape[1]
    pen = ImageDraw.Draw(picture)
    tracks = perception.tracks
    for position, visible in zip(tracks.position[:, : k + 1], tracks.visible[:, : k + 1], strict=True):
        if visible[k]:
            path = position[visible][-8:]
            points = [(float((x + 0.5) * scale), float((y + 0.5) * scale)) for y, x in path]
            if len(points) > 1:
                pen.line(points, fill="white")
    return np.asarray(picture)
