"""Looking after a cache: what is in it, what the present config would not make, what is broken, what can be freed."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artefact import Producer, changes, misshapen, plain, unfit
from .cache import Cache
from .cache_shard import Artefact, Contents, Damaged, abandoned, checksum, contents, explained, new_name, placed, write

__all__ = ["Bad", "Held", "Stale", "drop", "gc", "held", "stale", "verify"]


@dataclass(frozen=True)
class Held:
    """One kind of artefact in a store; `producer` is None where nobody said what made it."""

    name: str
    producer: Producer | None
    entries: int


@dataclass(frozen=True)
class Stale:
    """An artefact that the present config would not make: `why` lists `field: old -> new`. `artefact` is "" when the
    whole entry was decoded otherwise."""

    key: str
    artefact: str
    digest: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class Bad:
    """What `verify` found wanting: an artefact, or a shard as a whole (then `key` is "")."""

    key: str
    artefact: str
    digest: str
    why: str


def held(cache: Cache) -> list[Held]:
    """Count the entries that hold each artefact of each producer."""
    cache.flush()
    sql = "select name, producer, count(distinct key) from artefacts group by name, producer order by name, producer"
    made = _producers(cache)
    return [Held(name, made.get(digest), count) for name, digest, count in cache.index.rows(sql)]


def stale(cache: Cache, producers: Mapping[str, Producer], *, spec: Any = None) -> list[Stale]:
    """List what `producers` and `spec` would not make as it is stored, each with what differs, old -> new.

    An artefact counts by its name: one made by another producer than the present one is listed, whether the present
    one's lies beside it or not. With `spec`, so is every entry that was decoded otherwise. Where several recipes
    share a store, what another one uses is listed, too: look before you drop.
    """
    cache.flush()
    found = []
    if spec is not None:
        for key, text in cache.index.rows("select key, source from entries where source != 'null' group by key"):
            if why := changes(json.loads(text)["spec"], plain(spec), "spec"):
                found.append(Stale(key, "", "", tuple(why)))
    made = _producers(cache)
    for name, present in producers.items():
        sql = "select key, producer from artefacts where name = ? and producer != ? group by key, producer"
        for key, digest in cache.index.rows(sql, (name, present.digest)):
            found.append(Stale(key, name, digest, tuple(differences(made.get(digest), present))))
    return found


def differences(old: Producer | None, new: Producer) -> list[str]:
    """List what differs between two producers, as `field: old -> new`.

    >>> differences(Producer("vae", "a"), Producer("vae", "b", dtype="bfloat16"))
    ['revision: "a" -> "b"', 'dtype: "" -> "bfloat16"']
    """
    if old is None:
        return [f"producer: not recorded -> {json.dumps(new.model)}"]
    return [line for line in changes(plain(old), plain(new)) if not line.startswith("shape: ")]


def verify(cache: Cache) -> list[Bad]:
    """Read every flushed artefact: its checksum, finite, at least one element, dtype and shape as its producer says
    and on the same axes as the rest of its entry. Returns what is wrong, damaged shards included.
    """
    cache.flush()
    cache.refresh()
    bad = [Bad("", "", "", why) for _, why in sorted(cache.index.damaged.items())]
    made = _producers(cache)
    axes: dict[str, dict[str, int]] = {}
    for (shard,) in cache.index.rows("select name from shards order by name"):
        try:
            said = contents(cache.root / shard).artefacts
        except (Damaged, OSError) as error:
            bad.append(Bad("", "", "", str(error)))
            continue
        for artefact in said:
            known = "select checksum from artefacts where key = ? and name = ? and producer = ? and shard = ?"
            row = cache.index.rows(known, (artefact.key, artefact.name, artefact.producer, shard))
            if not row:
                continue  # dropped
            if row[0][0] != artefact.checksum:
                bad.append(_bad(artefact, "is not what the index says: run `python -m trainers cache rebuild`"))
                continue
            tensor = cache.read(shard, artefact)
            why = "differs from its checksum" if checksum(tensor) != artefact.checksum else unfit(artefact.name, tensor)
            why = why or misshapen(tensor, made.get(artefact.producer), axes.setdefault(artefact.key, {}))
            if why:
                bad.append(_bad(artefact, why))
    return bad


def drop(cache: Cache, what: Iterable[str | Stale | Bad]) -> int:
    """Forget entries (by key) or artefacts that are stale or bad, so that they can be put again; return how many
    artefacts. Their bytes stay until `gc`.

    That they are forgotten is written beside the shards, so that a new index knows it, too.
    """
    cache.flush()
    rows: list[tuple[str, str, str, str]] = []
    for item in what:
        key, name, digest = (item, "", "") if isinstance(item, str) else (item.key, item.artefact, item.digest)
        sql, values = "select shard, key, name, producer from artefacts where key = ?", (key,)
        if name:
            sql, values = f"{sql} and name = ? and producer = ?", (key, name, digest)
        rows += map(tuple, cache.index.rows(sql, values))
    if rows:
        rows += _bereft(cache, rows)
        name = f"{new_name().removesuffix('.safetensors')}.dropped.json"
        with placed(cache.root, name) as part:
            part.write_text(json.dumps(rows), encoding="utf-8")
        cache.index.drop(rows, name)
    return len({row[1:] for row in rows if row[2]})


def _bereft(cache: Cache, rows: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """What is noted of entries that lose their last artefact, as rows without a name."""
    lost: dict[str, int] = Counter(key for _, key, _, _ in set(rows))
    bereft = [
        k for k, n in lost.items() if cache.index.rows("select count(*) from artefacts where key = ?", (k,))[0][0] == n
    ]
    return [
        (shard, key, "", "")
        for key in bereft
        for (shard,) in cache.index.rows("select shard from entries where key = ?", (key,))
    ]


def gc(cache: Cache) -> int:
    """Free what nothing reads: dropped artefacts, second copies of two writers, damaged shards, what killed writers
    left. Returns the bytes freed.

    A shard that serves some entries still is written anew without the rest. Others may write meanwhile; whoever reads
    should not: what they have mapped may go.
    """
    cache.flush()
    cache.refresh()
    freed = 0
    for folder in abandoned(cache.root):
        freed += sum(file.stat().st_size for file in folder.rglob("*"))
        shutil.rmtree(folder, ignore_errors=True)
    for shard in sorted(cache.index.damaged):
        freed += _remove(cache.root / shard)
    cache.index.damaged.clear()
    for (shard,) in cache.index.rows("select name from shards order by name"):
        said = contents(cache.root / shard)
        live = [artefact for artefact in said.artefacts if _counts(cache, shard, artefact)]
        if live and len(live) == len(said.artefacts):
            continue
        rest = Contents(_noted(cache, shard, said, {artefact.key for artefact in live}), live)
        if rest.entries:
            if not said.artefacts and len(rest.entries) == len(said.entries):
                continue
            tensors = {artefact.tensor: cache.read(shard, artefact) for artefact in live}
            if any(checksum(tensors[artefact.tensor]) != artefact.checksum for artefact in live):
                continue  # for `verify` to name
            rest.producers = {
                artefact.producer: said.producers[artefact.producer] for artefact in live if artefact.producer
            }
            freed -= _rewrite(cache, shard, rest, tensors)
        freed += _remove(cache.root / shard)
        cache.index.forget([shard])
    there = {row[0] for row in cache.index.rows("select name from shards")}
    for path in cache.root.glob("*.dropped.json"):
        if not there & {row[0] for row in json.loads(path.read_text(encoding="utf-8"))}:
            freed += _remove(path)
    return freed


def _rewrite(cache: Cache, shard: str, rest: Contents, tensors: Mapping[str, Any]) -> int:
    """Write what lives of a shard under a name beside its own, which keeps the order of keys; return its bytes."""
    name = f"{shard.partition('-')[0]}-{new_name().partition('-')[2]}"
    write(cache.root, name, rest, tensors)
    size = (cache.root / name).stat().st_size
    cache.index.add({name: (size, rest)})
    return size


def _noted(cache: Cache, shard: str, said: Contents, live: set[str]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """What a shard notes of entries that it serves still, or of which no other shard notes the same."""
    kept = {}
    for key, (source, noted) in said.entries.items():
        rows = cache.index.rows("select shard, source, noted from entries where key = ?", (key,))
        others = [row for row in rows if row[0] != shard]
        fields = {field for *_, text in others for field in json.loads(text)}
        elsewhere = set(noted) <= fields and (source is None or any(row[1] != "null" for row in others))
        if key in live or (len(rows) > len(others) and not elsewhere):
            kept[key] = source, noted
    return kept


def _counts(cache: Cache, shard: str, artefact: Artefact) -> bool:
    """Whether a shard's copy of an artefact is the one that is read: neither dropped nor a second one."""
    first = "select min(shard) from artefacts where key = ? and name = ? and producer = ?"
    return cache.index.rows(first, (artefact.key, artefact.name, artefact.producer))[0][0] == shard


def _producers(cache: Cache) -> dict[str, Producer]:
    return {
        digest: Producer(**json.loads(body))
        for digest, body in cache.index.rows("select digest, body from producers order by digest")
    }


def _bad(artefact: Artefact, why: str) -> Bad:
    return Bad(artefact.key, artefact.name, artefact.producer, why)


def _remove(path: Path) -> int:
    with explained(path.parent):
        size = path.stat().st_size
        path.unlink()
    return size
