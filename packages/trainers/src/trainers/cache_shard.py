"""Shards of a cache: safetensors files that describe themselves, and that are there whole or not at all.

The header of a shard says of every tensor its key, name, producer and checksum, and of every entry its source and what
was noted. So the shards are the store, and any index of them can be made anew. A shard's name begins with the time at
which it was closed; of two that hold the same artefact the one with the smaller name counts, for every reader.

A shard is written in a folder of its own, synced, and renamed into the store; a kill leaves that folder, whose name
tells whether its writer still lives.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import sync
from .guards import bytes_of

__all__ = [
    "Artefact",
    "Contents",
    "Damaged",
    "abandoned",
    "checksum",
    "contents",
    "explained",
    "new_name",
    "placed",
    "write",
]

FORMAT = "trainers-cache-1"
_ABANDONED_S = 86400.0
"""A folder of another machine's writer counts as left behind when nothing happened in it for a day: our choice."""


@dataclass(frozen=True)
class Artefact:
    """One tensor of a shard; `producer` is a digest, "" when nobody said what made it."""

    key: str
    name: str
    producer: str
    checksum: str

    @property
    def tensor(self) -> str:
        """Its name in the file."""
        return "/".join(filter(None, (self.key, self.name, self.producer)))


@dataclass
class Contents:
    """What a shard's header says: `entries[key] = (source, noted)`, `producers[digest]` as JSON trees."""

    entries: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    artefacts: list[Artefact] = field(default_factory=list)
    producers: dict[str, Any] = field(default_factory=dict)


class Damaged(ValueError):
    """A shard whose header cannot be read, or that is shorter or longer than its header says."""


def new_name(after: str = "") -> str:
    """Return a shard's name that sorts behind `after` and, but for the clocks, behind every shard closed before."""
    stamp = max(time.time_ns(), int(after.partition("-")[0] or "0", 16) + 1)
    return f"{stamp:016x}-{uuid.uuid4().hex[:12]}.safetensors"


def write(root: Path, name: str, held: Contents, tensors: Mapping[str, Tensor]) -> None:
    """Write `root/name`; `tensors` by `Artefact.tensor`. OSError with the remedy when the disk does not take it."""
    body = {
        "entries": [[key, *rest] for key, rest in held.entries.items()],
        "artefacts": [[a.key, a.name, a.producer, a.checksum] for a in held.artefacts],
        "producers": held.producers,
    }
    with placed(root, name) as part:
        save_file(dict(tensors), part, metadata={"format": FORMAT, "cache": json.dumps(body)})
        # safetensors writes a private file; a store is shared with whom its folder is shared with
        part.chmod(part.parent.stat().st_mode & 0o666)


@contextmanager
def placed(root: Path, name: str) -> Iterator[Path]:
    """Let a file be written elsewhere and place it at `root/name` whole; OSError with the remedy when the disk is
    full."""
    folder = root / f".writing-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        with explained(root):
            folder.mkdir()
            yield folder / name
            sync(folder / name)
            (folder / name).replace(root / name)
            sync(root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def contents(path: Path) -> Contents:
    """Read a shard's header; Damaged when the file is not whole or is no shard of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            about, names = file.metadata() or {}, set(file.keys())
    except SafetensorError as error:
        raise Damaged(f"{path.name} is damaged ({error})") from None
    if about.get("format") != FORMAT:
        raise Damaged(f"{path.name} is not of this version's format {FORMAT} (it says {about.get('format')!r})")
    try:
        body = json.loads(about["cache"])
        held = Contents(
            {key: (source, noted) for key, source, noted in body["entries"]},
            [Artefact(*row) for row in body["artefacts"]],
            body["producers"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path.name} has a header that cannot be read ({error})") from None
    if {artefact.tensor for artefact in held.artefacts} != names:
        raise Damaged(f"{path.name} holds other tensors than its header says")
    return held


def checksum(tensor: Tensor) -> str:
    """Return a hash of a tensor's dtype, shape and bytes."""
    hasher = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)} ".encode(), digest_size=16)
    hasher.update(bytes_of(tensor))
    return hasher.hexdigest()


def abandoned(root: Path) -> list[Path]:
    """List the folders that writers left behind when they were killed."""
    left = []
    for folder in root.glob(".writing-*"):
        host, pid, _ = folder.name.removeprefix(".writing-").rsplit("-", 2)
        if host == socket.gethostname():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                left.append(folder)
            except PermissionError:
                continue  # it lives, under another user
        elif time.time() - folder.stat().st_mtime > _ABANDONED_S:
            left.append(folder)
    return left


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn what a disk says when it is full or read-only into an OSError of one sentence with the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else next(
            (n for n in _REMEDIES if f"(os error {n})" in str(error)), None
        )  # fmt: skip
        if number not in _REMEDIES:
            raise
        what, remedy = _REMEDIES[number]
        raise OSError(
            number, f"{what} at {root}: {remedy}; what was flushed is kept, and the same command goes on from there"
        ) from None


_REMEDIES = {
    errno.ENOSPC: ("the disk is full", "free some space, or run `python -m trainers cache gc` on it"),
    errno.EDQUOT: ("the quota is used up", "free some space, or ask for more"),
    errno.EROFS: ("the file system is read-only", "mount it writable, or cache into another folder"),
    errno.EACCES: ("the folder may not be written to", "change its permissions, or cache into another folder"),
    errno.EPERM: ("the folder may not be written to", "change its permissions, or cache into another folder"),
}
