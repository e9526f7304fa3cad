"""A store of what is computed once: artefacts (latents, text features, flow, ...) by the content that they were made
from.

A key hashes the media's bytes, the decode spec and the producer (model, normalisation, code version): another size or
another model is another key, a renamed file is the same. Artefacts lie in append-only safetensors shards, a SQLite
index says what is where and with which checksum. A shard is closed (written, synced, renamed, then indexed in one
transaction) when it holds `shard_items` entries and on `flush`; a kill loses at most the open shard and leaves nothing
half-written that counts.

    with Cache(root) as cache:
        for path in clips:
            key = cache.key(path, spec=spec, producer=backbone.config_hash)
            if not cache.has(key):
                cache.put(key, {"latent": latent, "text": text}, {"caption": caption})
    data = cache.view(keys, ["latent", "text"])     # a map-style data set

Any number of processes may read and write one root: of two that put the same key, the first to close its shard
wins.
"""

import dataclasses
import hashlib
import json
import sqlite3
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import sync
from .data import collate
from .guards import bytes_of

__all__ = ["Bad", "Cache", "View"]


@dataclass(frozen=True)
class Bad:
    """An entry that `verify` found wanting."""

    key: str
    artefact: str
    why: str


class Cache:
    """Artefacts under `root`; use as a context manager, or call `flush` when done."""

    def __init__(self, root: str | Path, *, shard_items: int = 256) -> None:
        if shard_items < 1:
            raise ValueError(f"expected shard_items >= 1, got {shard_items}")
        self.root, self.shard_items = Path(root), shard_items
        self.root.mkdir(parents=True, exist_ok=True)
        self._index = sqlite3.connect(self.root / "index.sqlite", timeout=60, check_same_thread=False)
        with self._index:
            self._index.execute("create table if not exists items (key text primary key, shard text, meta text)")
            self._index.execute(
                "create table if not exists artefacts (key text, name text, checksum text, primary key (key, name))"
            )
        self._open: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        self._put: set[str] = set()
        self._shards: dict[str, Any] = {}

    def __enter__(self) -> "Cache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self.close()

    @staticmethod
    def key(media: str | Path | bytes, *, spec: Any = None, producer: str = "") -> str:
        """Return the key of what `producer` makes of a file (or of bytes) decoded by `spec` (a dataclass or anything
        JSON).

        >>> Cache.key(b"clip", producer="vae-1") == Cache.key(b"clip", producer="vae-2")
        False
        """
        if isinstance(media, bytes):
            content = hashlib.sha256(media)
        else:
            with Path(media).open("rb") as file:
                content = hashlib.file_digest(file, "sha256")
        decode = dataclasses.asdict(spec) if dataclasses.is_dataclass(spec) and not isinstance(spec, type) else spec
        text = json.dumps([content.hexdigest(), decode, producer], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def put(self, key: str, artefacts: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
        """Add an entry; ValueError when a tensor is not finite or the key was put before.

        Where another writer was first the call does nothing: the store is append-only, and a key names its content.
        """
        if self._shard(key) is not None and key not in self._put:
            return
        if key in self._put:
            raise ValueError(
                f"the cache at {self.root} already holds {key[:12]}: ask has(key) before computing it again"
            )
        if not artefacts:
            raise ValueError(f"expected at least one artefact for {key[:12]}, got none")
        for name, tensor in artefacts.items():
            if why := _unfit(tensor):
                raise ValueError(f"artefact {name!r} of {key[:12]} {why}: look at the clip, or leave it out")
        stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in artefacts.items()}
        self._open[key] = (stored, dict(meta or {}))
        self._put.add(key)
        if len(self._open) >= self.shard_items:
            self.flush()

    def flush(self) -> None:
        """Close the open shard: after this, what was put survives a kill."""
        if not self._open:
            return
        shard = f"{uuid.uuid4().hex}.safetensors"
        part = self.root / f".{shard}.tmp"
        save_file({f"{key}/{name}": t for key, (tensors, _) in self._open.items() for name, t in tensors.items()}, part)
        sync(part)
        part.replace(self.root / shard)
        sync(self.root)  # the name must be on disk before the index speaks of it
        with self._index:
            for key, (tensors, meta) in self._open.items():
                row = (key, shard, json.dumps(meta))
                if not self._index.execute("insert or ignore into items values (?, ?, ?)", row).rowcount:
                    continue  # another writer was first, and an entry is never replaced: its bytes wait for `gc`
                rows = [(key, name, _checksum(tensor)) for name, tensor in tensors.items()]
                self._index.executemany("insert into artefacts values (?, ?, ?)", rows)
        self._open = {}

    def close(self) -> None:
        """Let go of the index and of the mapped shards; entries that were not flushed are dropped."""
        self._shards.clear()
        self._index.close()

    def has(self, key: str, artefacts: Iterable[str] = ()) -> bool:
        """Whether the entry is there, with all of `artefacts`."""
        return (key in self._open or self._shard(key) is not None) and set(artefacts) <= set(self.names(key))

    def keys(self) -> list[str]:
        """Return every key, in the order of insertion."""
        return [row[0] for row in self._index.execute("select key from items order by rowid")] + list(self._open)

    def names(self, key: str) -> list[str]:
        """Return the names of an entry's artefacts."""
        if key in self._open:
            return sorted(self._open[key][0])
        return [row[0] for row in self._index.execute("select name from artefacts where key = ? order by name", (key,))]

    def meta(self, key: str) -> dict[str, Any]:
        """Return what was noted beside an entry."""
        if key in self._open:
            return self._open[key][1]
        row = self._index.execute("select meta from items where key = ?", (key,)).fetchone()
        if row is None:
            raise self._missing(key)
        return json.loads(row[0])

    def get(self, key: str, artefact: str) -> Tensor:
        """Return one artefact of an entry."""
        if key in self._open:
            tensors = self._open[key][0]
            if artefact in tensors:
                return tensors[artefact]
            raise self._missing(key, artefact)
        shard = self._shard(key)
        if shard is None:
            raise self._missing(key)
        try:
            return self._mapped(shard).get_tensor(f"{key}/{artefact}")
        except SafetensorError:
            raise self._missing(key, artefact) from None

    def verify(self) -> list[Bad]:
        """Read every flushed artefact: checksum, finite, at least one element. Returns what is wrong."""
        bad = []
        query = "select key, name, checksum from artefacts join items using (key) order by items.rowid, name"
        for key, name, checksum in self._index.execute(query):
            try:
                tensor = self.get(key, name)
            except (ValueError, OSError, SafetensorError) as error:
                bad.append(Bad(key, name, str(error)))
                continue
            why = "differs from its checksum" if _checksum(tensor) != checksum else _unfit(tensor)
            if why:
                bad.append(Bad(key, name, why))
        return bad

    def drop(self, keys: Iterable[str]) -> None:
        """Forget entries (bad or stale ones), so that they can be put again; their bytes stay until `gc`."""
        with self._index:
            for key in keys:
                self._index.execute("delete from artefacts where key = ?", (key,))
                self._index.execute("delete from items where key = ?", (key,))
                self._put.discard(key)

    def gc(self) -> int:
        """Remove shards that no entry uses (a kill before the index, or `drop`); returns the bytes freed.

        Not while another process writes: its newest shard may not be indexed yet.
        """
        used = {row[0] for row in self._index.execute("select distinct shard from items")}
        files = [*self.root.glob("*.safetensors"), *self.root.glob(".*.safetensors.tmp")]
        unused = [file for file in files if file.name not in used]
        freed = sum(file.stat().st_size for file in unused)
        for file in unused:
            self._shards.pop(file.name, None)
            file.unlink()
        return freed

    def view(self, keys: Sequence[str], artefacts: Sequence[str]) -> "View":
        """Return a map-style data set over `keys`; ValueError at once when something is missing."""
        for key in keys:
            if not self.has(key, artefacts):
                raise self._missing(key, *[name for name in artefacts if name not in self.names(key)])
        return View(self, tuple(keys), tuple(artefacts))

    def _shard(self, key: str) -> str | None:
        row = self._index.execute("select shard from items where key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _mapped(self, shard: str) -> Any:
        if shard not in self._shards:
            try:
                self._shards[shard] = safe_open(self.root / shard, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"the shard {self.root / shard} cannot be read ({error}): run verify, drop, and cache anew"
                ) from None
        return self._shards[shard]

    def _missing(self, key: str, *artefacts: str) -> ValueError:
        what = f"{', '.join(map(repr, artefacts))} of {key[:12]}" if artefacts else f"entry {key[:12]}"
        return ValueError(f"the cache at {self.root} has no {what}: run the cache step again with the present config")


class View(torch.utils.data.Dataset[dict[str, Any]]):
    """Chosen artefacts of chosen entries. `digest` names keys and artefacts, so a resume on another cache is
    noticed."""

    def __init__(self, cache: Cache, keys: tuple[str, ...], artefacts: tuple[str, ...]) -> None:
        self.cache, self.keys, self.artefacts = cache, keys, artefacts
        self.digest = hashlib.sha256(json.dumps([keys, artefacts]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = self.keys[index]
        return {name: self.cache.get(key, name) for name in self.artefacts}

    def stacked(self) -> dict[str, Tensor]:
        """Load everything into memory at once (for `InMemory`); every entry must have the same shapes."""
        return collate([self[i] for i in range(len(self))])


def _unfit(tensor: Tensor) -> str | None:
    if not tensor.numel():
        return f"is empty, of shape {tuple(tensor.shape)}"
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        return "holds NaN or infinity"
    return None


def _checksum(tensor: Tensor) -> str:
    hasher = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)} ".encode(), digest_size=16)
    hasher.update(bytes_of(tensor))
    return hasher.hexdigest()
