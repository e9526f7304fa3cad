"""Clips as a data set: files on disk, cut to buckets, decoded when they are asked for.

An item is {frames (t h w 3, uint8), times_s (t, float64, true times from 0), caption, labels, annotation, id}. Where in
its file a clip begins, and what takes the place of one that breaks, are pure functions of (seed, epoch, record's id):
neither threads nor a resume change a bit.

What cannot be used is left out and listed with the reason: files without a header or too short for every bucket before
training; files that turn out to be damaged while it runs are replaced by another clip of their bucket (`broken="skip"`)
or end it (`broken="stop"`).
"""

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch

from .buckets import BucketOrder, Buckets
from .decode import Header, VideoError, probe
from .order import derive_seed
from .records import Record, Skipped, list_skipped, number
from .video import load

__all__ = ["Clips"]

TRIES = 8
"""So many broken clips, one in the place of the other, are no accident but a missing folder. Our choice."""


class Clips:
    """A map-style data set of `records`, with an order by buckets of its own (see `feed`).

    `start`: "first" cuts every clip from its file's first frame, "random" anew in each epoch. A clip whose frames are
    spaced more unevenly than `max_jitter` counts as broken. `report` is a file that gets a JSON line for each clip left
    out. `ahead` batches are decoded in the background by `threads` threads. `decoder`: see `video.which`.

    Headers are read at once, unless a record states width, height, fps and frames (or duration). ValueError when no
    clip is left.
    """

    def __init__(
        self,
        records: Sequence[Record],
        buckets: Buckets,
        *,
        start: Literal["first", "random"] = "first",
        seed: int = 0,
        broken: Literal["skip", "stop"] = "skip",
        max_jitter: float | None = None,
        report: str | Path | None = None,
        decoder: str = "auto",
        ahead: int = 2,
        threads: int = 2,
    ) -> None:
        if ahead < 0 or threads < 1:
            raise ValueError(f"expected ahead >= 0 and threads >= 1, got {ahead} and {threads}")
        self.buckets, self.start, self.seed, self.broken = buckets, start, seed, broken
        self.max_jitter, self.report, self.decoder = max_jitter, report, decoder
        self.ahead, self.threads = ahead, threads
        self.skipped: list[Skipped] = []
        self._lock = threading.Lock()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = list(pool.map(self._bucket_of, records))
        self.records = [record for record, bucket in zip(records, found, strict=True) if isinstance(bucket, int)]
        self.bucket = torch.tensor([bucket for bucket in found if isinstance(bucket, int)], dtype=torch.int64)
        for record, why in zip(records, found, strict=True):
            if isinstance(why, str):
                self._leave_out(record, why)
        if not self.records:
            first = "; ".join(f"{item.path}: {item.why}" for item in self.skipped[:3])
            raise ValueError(f"none of the {len(records)} clips can be used ({first})")
        rows = [(record.id, record.path.stat().st_size, record.caption) for record in self.records]
        told = [rows, self.bucket.tolist(), buckets.model_dump(), start, seed, max_jitter]
        self.digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.at(index, 0)

    def order(self, *, batch_size: int, **where: Any) -> BucketOrder:
        """Return the order of its samples, whose batches hold one bucket each."""
        return BucketOrder(self.bucket, batch_size=batch_size, **where)

    def at(self, index: int, epoch: int) -> dict[str, Any]:
        """Return a clip as it is cut in an epoch, or what stands in for it.

        ValueError with the file's path when it is broken and `broken="stop"`, or when eight in a row are.
        """
        spec = self.buckets.specs[int(self.bucket[index])]
        share = self._unit("start", epoch, index) if self.start == "random" else 0.0
        candidate = index
        for attempt in range(TRIES):
            record = self.records[candidate]
            try:
                cut = load(record.path, spec, share=share, max_jitter=self.max_jitter, decoder=self.decoder)
            except ValueError as error:
                if self.broken == "stop":
                    raise VideoError(f"{record.path}, sample {record.id!r}: {error}") from None
                self._leave_out(record, str(error))
                others = torch.nonzero(self.bucket == self.bucket[index]).flatten()
                candidate = int(others[int(self._unit("instead", epoch, index, attempt) * len(others))])
                continue
            about = {"caption": record.caption, "labels": record.labels, "annotation": record.annotation}
            return {**cut.tensors(), **about, "id": record.id}
        raise VideoError(
            f"{TRIES} clips in a row could not be read, the last {self.records[candidate].path}: "
            f"{self.skipped[-1].why}; are the files still there?"
        )

    def _unit(self, what: str, epoch: int, index: int, *more: int) -> float:
        """A number in [0, 1) that depends on the record, not on its place in the list."""
        return (derive_seed(what, self.seed, epoch, self.records[index].id, *more) >> 10) / 2**53

    def _bucket_of(self, record: Record) -> int | str:
        try:
            return self.buckets.nearest(_stated(record) or probe(record.path))
        except ValueError as error:
            return str(error)

    def _leave_out(self, record: Record, why: str) -> None:
        item = Skipped(record.id, why[:500])
        with self._lock:
            if all(item.path != other.path for other in self.skipped):
                self.skipped.append(item)
                if self.report is not None:
                    list_skipped(self.report, [item])


def _stated(record: Record) -> Header | None:
    """The header as the record states it, None when it says too little."""
    width, height, fps, frames, duration = (
        number(record.extra, key) or 0 for key in ("width", "height", "fps", "num_frames", "duration")
    )
    frames = round(frames or duration * fps)
    return Header(round(width), round(height), frames, fps) if min(width, height, fps, frames) >= 1 else None
