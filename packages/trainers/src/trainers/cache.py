"""A store of what is computed once: artefacts (latents, text features, flow, ...) by the content that they were made
from.

A key hashes the media's bytes and the decode spec: another size is another key, a renamed file is the same. Under a key
lie any number of artefacts, each with its own producer, and more can be added later; a changed model makes another
artefact beside the old one, and `stale` names what differs. Artefacts lie in append-only safetensors shards that
describe themselves; a SQLite index, which can be made anew from them, says what is where. A shard is closed (written,
synced, renamed) when it holds `shard_items` entries or `shard_bytes`, and on `flush`; a kill loses at most the open
shard and leaves nothing half-written that counts.

    vae = Producer("wan-vae", "a1b2", dtype="float32", shape="16 t h w")
    with Cache(root) as cache:
        for path in clips:
            source = Source.of(path, spec=spec)
            if not cache.has(source.key, {"latent": vae}):
                cache.put(source, {"latent": latent, "times_s": times}, {"caption": caption}, producers={"latent": vae})
    data = cache.view(keys, {"latent": vae})     # a map-style data set

Any number of processes may read and write one root. Of two that put the same artefact, the first to close its shard
wins, for every reader. `cache_job.make` is the loop above for many clips and processes; `cache_upkeep` finds what is
stale or broken.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from . import cache_shard
from .artefact import Producer, Source, misshapen, plain, unfit
from .cache_index import Index
from .cache_shard import Artefact, Contents, checksum, explained
from .cache_view import Shards, View

__all__ = ["Cache", "Names", "Producer", "Source", "View"]

NOTED_BYTES = 1 << 20
"""What may be noted beside an entry: it lies in the shard's header, which safetensors limits to 100 MB."""
SHARD_NOTED_BYTES = 32 * NOTED_BYTES

Names = Iterable[str] | Mapping[str, Producer]
"""Names of artefacts, by any producer or by the one given."""


class Cache:
    """Artefacts under `root`; use as a context manager, or call `flush` when done.

    `private_index`: write shards and leave the shared index alone (see `cache_index`), as the ranks of a job do.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        shard_items: int = 256,
        shard_bytes: int = 512 * 2**20,
        private_index: bool = False,
    ) -> None:
        if shard_items < 1 or shard_bytes < 1:
            raise ValueError(f"expected shard_items >= 1 and shard_bytes >= 1, got {shard_items} and {shard_bytes}")
        self.root, self.shard_items, self.shard_bytes = Path(root), shard_items, shard_bytes
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        self.index = Index(self.root, private=private_index)
        self._shards = Shards(self.root)
        self._renew()

    def _renew(self) -> None:
        self._open, self._tensors = Contents(), dict[tuple[str, str, str], Tensor]()
        self._bytes, self._noted = 0, 0

    def __enter__(self) -> "Cache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        except OSError:
            if not isinstance(error, OSError):  # else it is the one that ended the block, again
                raise
        finally:
            self.close()

    @staticmethod
    def key(media: str | Path | bytes, *, spec: Any = None, producer: str = "") -> str:
        """Return the key of a file (or of bytes) decoded by `spec` (a dataclass or anything JSON).

        With `producer` the whole entry is bound to it, and another one is another key.

        >>> Cache.key(b"clip", producer="vae-1") == Cache.key(b"clip", producer="vae-2")
        False
        """
        return Source.of(media, spec=spec).keyed(producer)

    def put(
        self,
        key: str | Source,
        artefacts: Mapping[str, Tensor],
        meta: Mapping[str, Any] | None = None,
        *,
        producers: Mapping[str, Producer] | None = None,
    ) -> bool:
        """Add artefacts to an entry, a new one or one that is there; return whether there was anything to add.

        What the store holds already is left as it is: it is append-only, and a key names its content. `meta` (JSON) is
        noted beside the entry; of a field that is noted already the first value stays. ValueError when a tensor is
        empty, not finite or not what its producer says, or waits in the open shard already.
        """
        source, key = (key, key.key) if isinstance(key, Source) else (None, key)
        made = {name: (producers or {}).get(name) for name in artefacts}
        if not artefacts or set(producers or ()) - set(artefacts) or any("/" in text for text in (key, *artefacts)):
            raise ValueError(
                f"expected artefacts for {key[:12]}, no '/' in names and producers of these alone, "
                f"got {sorted(artefacts)} and producers of {sorted(producers or ())}"
            )
        axes: dict[str, int] = {}
        for name, tensor in artefacts.items():
            if why := unfit(name, tensor) or misshapen(tensor, made[name], axes):
                raise ValueError(f"artefact {name!r} of {key[:12]} {why}: look at the clip, or leave it out")
        text = json.dumps(dict(meta or {}), allow_nan=False)
        if len(text) > NOTED_BYTES:
            raise ValueError(f"expected at most {NOTED_BYTES} bytes noted beside {key[:12]}, got {len(text)}: make an "
                             "artefact of it")  # fmt: skip
        digests = {name: producer.digest if producer else "" for name, producer in made.items()}
        if waiting := [name for name, digest in digests.items() if (key, name, digest) in self._tensors]:
            raise ValueError(
                f"the cache at {self.root} already holds {waiting[0]!r} of {key[:12]}: ask has(key) before computing it"
            )
        there = self._flushed(key)
        added = [name for name, digest in digests.items() if digest not in there.get(name, ())]
        for name in added:
            stored = artefacts[name].detach().cpu().contiguous().clone()
            self._tensors[key, name, digests[name]] = stored
            self._open.artefacts.append(Artefact(key, name, digests[name], checksum(stored)))
            if (producer := made[name]) is not None:
                self._open.producers[digests[name]] = plain(producer)
            self._bytes += stored.nbytes
        if added:
            from_, noted = self._open.entries.get(key, (None, {}))
            self._open.entries[key] = (from_ or (plain(source) if source else None), {**json.loads(text), **noted})
            self._noted += len(text)
        full = len(self._open.entries) >= self.shard_items or self._bytes >= self.shard_bytes
        if full or self._noted >= SHARD_NOTED_BYTES:
            self.flush()
        return bool(added)

    @property
    def waiting(self) -> int:
        """How many entries the open shard holds, which a kill would lose."""
        return len(self._open.entries)

    def flush(self) -> None:
        """Close the open shard: after this, what was put survives a kill.

        OSError with the remedy when the disk is full; then what was put waits, and may be flushed again.
        """
        if not self._open.entries:
            return
        last = self.index.rows("select max(name) from shards")[0][0]
        name = cache_shard.new_name(last or "")
        tensors = {a.tensor: self._tensors[a.key, a.name, a.producer] for a in self._open.artefacts}
        cache_shard.write(self.root, name, self._open, tensors)
        held = self._open
        self._renew()
        self.index.add({name: ((self.root / name).stat().st_size, held)})

    def close(self) -> None:
        """Let go of the index and of the mapped shards; entries that were not flushed are dropped."""
        self._renew()
        self._shards = Shards(self.root)
        self.index.close()

    def refresh(self) -> None:
        """Take in what other processes have flushed meanwhile."""
        self.index.refresh()

    def has(self, key: str, artefacts: Names = ()) -> bool:
        """Whether the entry is there, with all of `artefacts`."""
        held = self._held(key)
        return bool(held) and all(_among(held, name, digest) for name, digest in _digests(artefacts).items())

    def keys(self) -> list[str]:
        """Return every key, in the order of insertion."""
        rows = self.index.rows(
            "select key, min(shard), position from entries e"
            " where exists (select 1 from artefacts a where a.key = e.key) group by key order by 2, 3"
        )
        return list(dict.fromkeys([*(row[0] for row in rows), *self._open.entries]))

    def names(self, key: str) -> list[str]:
        """Return the names of an entry's artefacts."""
        return sorted(self._held(key))

    def meta(self, key: str) -> dict[str, Any]:
        """Return what was noted beside an entry."""
        return {field: value for _, noted in reversed(self._entries(key)) for field, value in noted.items()}

    def source(self, key: str) -> Source | None:
        """Return what an entry was made from, None where nobody said."""
        return next((Source(**tree) for tree, _ in self._entries(key) if tree), None)

    def producers(self, key: str, artefact: str) -> list[Producer | None]:
        """Return what made the artefact of an entry, once for each stored form; None where nobody said."""
        return [self._producer(digest) for digest in sorted(self._held(key).get(artefact, ()))]

    def get(self, key: str, artefact: str, producer: Producer | None = None) -> Tensor:
        """Return one artefact of an entry; ValueError where several producers have made it and none is named."""
        digest = self._digest_of(key, artefact, producer.digest if producer else None)
        if (tensor := self._tensors.get((key, artefact, digest))) is not None:
            return tensor
        return self._shards.read(*self._place(key, artefact, digest))

    def read(self, shard: str, artefact: Artefact) -> Tensor:
        """Return what a shard holds of an artefact, whether it counts or not."""
        return self._shards.read(shard, artefact.tensor)

    def view(self, keys: Sequence[str], artefacts: Names) -> View:
        """Return a map-style data set over `keys`; ValueError at once when something is missing."""
        self.flush()
        wanted = _digests(artefacts)
        places = [
            {name: self._place(key, name, self._digest_of(key, name, digest)) for name, digest in wanted.items()}
            for key in keys
        ]
        named = json.dumps([list(keys), wanted if isinstance(artefacts, Mapping) else list(wanted)])
        return View(Shards(self.root), tuple(keys), places, hashlib.sha256(named.encode()).hexdigest())

    def _held(self, key: str) -> dict[str, set[str]]:
        """The digests of the producers of each artefact of an entry, open shard included."""
        held = self._flushed(key)
        if key in self._open.entries:
            for artefact in self._open.artefacts:
                if artefact.key == key:
                    held.setdefault(artefact.name, set()).add(artefact.producer)
        return held

    def _flushed(self, key: str) -> dict[str, set[str]]:
        held: dict[str, set[str]] = {}
        for name, digest in self.index.rows("select name, producer from artefacts where key = ?", (key,)):
            held.setdefault(name, set()).add(digest)
        return held

    def _entries(self, key: str) -> list[tuple[Any, dict[str, Any]]]:
        rows = self.index.rows("select source, noted from entries where key = ? order by shard", (key,))
        found = [(json.loads(source), json.loads(noted)) for source, noted in rows]
        found += [self._open.entries[key]] if key in self._open.entries else []
        if not found:
            raise self._missing(key)
        return found

    def _producer(self, digest: str) -> Producer | None:
        if not digest:
            return None
        body = self._open.producers.get(digest)
        body = body or json.loads(self.index.rows("select body from producers where digest = ?", (digest,))[0][0])
        return Producer(**body)

    def _digest_of(self, key: str, artefact: str, wanted: str | None) -> str:
        """The digest of the producer meant: the one asked for, or the only one there is."""
        held = self._held(key)
        if not held:
            raise self._missing(key)
        if not _among(held, artefact, wanted):
            raise self._missing(key, artefact)
        if wanted is None and len(held[artefact]) > 1:
            made = sorted(f"{p.model} {p.revision}".strip() if p else "?" for p in self.producers(key, artefact))
            raise ValueError(f"{artefact!r} of {key[:12]} was made by {', '.join(made)}: say which producer you want")
        return next(iter(held[artefact])) if wanted is None else wanted

    def _place(self, key: str, artefact: str, digest: str) -> tuple[str, str]:
        where = "select min(shard) from artefacts where key = ? and name = ? and producer = ?"
        shard = self.index.rows(where, (key, artefact, digest))[0][0]
        return shard, Artefact(key, artefact, digest, "").tensor

    def _missing(self, key: str, *artefacts: str) -> ValueError:
        what = f"{', '.join(map(repr, artefacts))} of {key[:12]}" if artefacts else f"entry {key[:12]}"
        return ValueError(f"the cache at {self.root} has no {what}: run the cache step again with the present config")


def _digests(artefacts: Names) -> dict[str, str | None]:
    if isinstance(artefacts, Mapping):
        return {name: producer.digest for name, producer in artefacts.items()}
    return dict.fromkeys(artefacts)


def _among(held: Mapping[str, set[str]], name: str, digest: str | None) -> bool:
    return name in held and (digest is None or digest in held[name])
