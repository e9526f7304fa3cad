"""What an mp4 or mov claims to hold, against its size: the box tables are walked before FFmpeg believes them.

FFmpeg makes an index entry of 24 bytes for each sample that a table claims, and a table of constant sample size
(`stsz`), or a fragment's run of samples of the default size (`trun`), claims thirty million of them in twelve bytes.

Reference: ISO/IEC 14496-12, sections 4.2 (boxes), 8.7.3 (`stsz`), 8.8.8 (`trun`).
"""

import struct
from pathlib import Path
from typing import BinaryIO

__all__ = ["Lie", "check"]

FIRST = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"uuid")
FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
COUNT_AT = {b"stsz": 8, b"stz2": 8, b"trun": 4}
"""Where in the box's body the sample count stands."""
MAX_BOXES = 100_000
"""An hour in fragments of a second has 30,000. Our choice."""
MAX_DEPTH = 8


class Lie(ValueError):
    """A header that cannot be true of its file."""


def check(path: Path) -> None:
    """Raise `Lie` for an ISO media file whose tables claim more samples than the file has bytes; others pass."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(4)
        if file.read(4) in FIRST and (claimed := _samples(file, size)) > size:
            raise Lie(f"its header claims {claimed} samples in {size} bytes")


def _samples(file: BinaryIO, size: int) -> int:
    claimed = 0
    spans = [(0, size, 0)]
    walked = 0
    while spans:
        at, end, depth = spans.pop()
        while at + 8 <= end:
            walked += 1
            if walked > MAX_BOXES or depth > MAX_DEPTH:
                raise Lie(f"its header has more than {MAX_BOXES} boxes or {MAX_DEPTH} levels")
            file.seek(at)
            length, kind = struct.unpack(">I4s", file.read(8))
            body = at + 8
            if length == 1:
                length, body = struct.unpack(">Q", file.read(8).ljust(8, b"\0"))[0], at + 16
            elif length == 0:
                length = end - at
            after = at + max(length, body - at)
            if kind in FOLDERS:
                spans.append((body, min(after, end), depth + 1))
            elif kind in COUNT_AT:
                file.seek(body + COUNT_AT[kind])
                claimed += int.from_bytes(file.read(4), "big")
            at = after
    return claimed
