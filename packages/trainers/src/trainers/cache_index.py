"""The index of a cache: what the headers of its shards say, in SQLite.

The shards are the store and the index is what was read of them. Whatever happens to it costs time and no entries: it
catches up with shards that it does not know, forgets those that are gone, and is made anew when it is damaged.

One file, `index.sqlite`, serves every process that can lock and write it. A process that cannot (a read-only folder, a
file system without locks, a lock that is not let go) keeps a private index in the machine's temporary folder, filled
from the shared one as far as that can be read. With `private` it does so from the start, and then no lock is asked for
anything but one read: the ranks of a job do, because over NFS without a lock daemon SQLite locks within one machine
only, and two machines would write into one file unawares. One file a rank would need no locks either, but each reader
would have to merge all of them, and shards that say what they hold need no second record.
"""

import json
import os
import sqlite3
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cache_shard import Contents, Damaged, contents, explained
from .guards import TrainingWarning

__all__ = ["Index"]

VERSION = 2
LOCK_S = 20.0
"""How long to wait for another process's lock, which it holds for milliseconds."""
_TABLES = """
create table shards (name text primary key, size int, artefacts int) without rowid;
create table producers (digest text primary key, body text) without rowid;
create table entries (key text, shard text, position int, source text, noted text, primary key (key, shard))
    without rowid;
create table artefacts (key text, name text, producer text, shard text, checksum text,
    primary key (key, name, producer, shard)) without rowid;
create table dropped (shard text, key text, name text, producer text, primary key (shard, key, name, producer))
    without rowid;
create table drops (name text primary key) without rowid;
"""
_TOGETHER = 64
"""Shards whose headers are held in memory before they are written into the index."""


class Index:
    """Rows of the shards and of the drops under `root`; `damaged` names files that could not be read, and why."""

    def __init__(self, root: Path, *, private: bool = False) -> None:
        self.root, self.path = root, root / "index.sqlite"
        self.damaged: dict[str, str] = {}
        self._inherited: list[sqlite3.Connection] = []
        self._open(private)

    def _open(self, private: bool) -> None:
        self.private, self._process = private, os.getpid()
        self._db = self._privately() if private else self._shared()
        self.refresh()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        return self._do(lambda db: db.execute(sql, values).fetchall())

    def refresh(self) -> None:
        """Catch up with the folder: read shards and drops that are new, forget shards that are gone or were cut."""
        with os.scandir(self.root) as files:
            sizes = {file.name: file for file in files if not file.name.startswith(".")}
        shards = {name: file.stat().st_size for name, file in sizes.items() if name.endswith(".safetensors")}
        known = dict(self.rows("select name, size from shards"))
        gone = [name for name, size in known.items() if shards.get(name) != size]
        if gone:
            self.forget(gone)
            warnings.warn(
                f"{len(gone)} shards of the cache at {self.root} are gone or have another size than was written "
                f"({gone[0]}): what they held counts as absent, run the cache step again to make it anew",
                TrainingWarning,
                stacklevel=3,
            )
        read = {row[0] for row in self.rows("select name from drops")}
        for name in sorted(name for name in sizes if name.endswith(".dropped.json") and name not in read):
            self._take_in_drop(name)
        fresh = sorted(set(shards) - (set(known) - set(gone)))
        new = [name for name in fresh if name not in self.damaged]
        for start in range(0, len(new), _TOGETHER):
            held = {}
            for name in new[start : start + _TOGETHER]:
                try:
                    held[name] = contents(self.root / name)
                except Damaged as error:
                    self.damaged[name] = str(error)
                except FileNotFoundError:
                    continue  # another process's gc was faster
            self.add({name: (shards[name], what) for name, what in held.items()})
        if bad := [self.damaged[name] for name in new if name in self.damaged]:
            warnings.warn(
                f"{len(bad)} shards of the cache at {self.root} cannot be read and count as absent ({bad[0]}): "
                "run the cache step again to make what they held, and `python -m trainers cache gc` to remove them",
                TrainingWarning,
                stacklevel=3,
            )

    def add(self, shards: Mapping[str, tuple[int, Contents]]) -> None:
        """Take in what shards hold, by name: (bytes, contents)."""

        def insert(db: sqlite3.Connection) -> None:
            for name, (size, held) in shards.items():
                if not db.execute(
                    "insert or ignore into shards values (?, ?, ?)", (name, size, len(held.artefacts))
                ).rowcount:
                    continue  # another process took it in meanwhile
                bodies = [(digest, _json(body)) for digest, body in held.producers.items()]
                db.executemany("insert or ignore into producers values (?, ?)", bodies)
                dropped = set(db.execute("select key, name, producer from dropped where shard = ?", (name,)))
                entries = [
                    (key, name, position, _json(source), _json(noted))
                    for position, (key, (source, noted)) in enumerate(held.entries.items())
                    if (key, "", "") not in dropped
                ]
                db.executemany("insert into entries values (?, ?, ?, ?, ?)", entries)
                rows = [
                    (a.key, a.name, a.producer, name, a.checksum)
                    for a in held.artefacts
                    if (a.key, a.name, a.producer) not in dropped
                ]
                db.executemany("insert into artefacts values (?, ?, ?, ?, ?)", rows)

        self._do(insert)

    def drop(self, rows: Iterable[tuple[str, str, str, str]], file: str) -> None:
        """Forget (shard, key, name, producer) as the drop file says; with "" for a name, what is noted of the entry."""
        rows = list(rows)

        def delete(db: sqlite3.Connection) -> None:
            db.execute("insert or ignore into drops values (?)", (file,))
            db.executemany("insert or ignore into dropped values (?, ?, ?, ?)", rows)
            db.executemany("delete from artefacts where shard = ? and key = ? and name = ? and producer = ?", rows)
            noted = [(shard, key) for shard, key, name, _ in rows if not name]
            db.executemany("delete from entries where shard = ? and key = ?", noted)

        self._do(delete)

    def forget(self, shards: Iterable[str]) -> None:
        """Forget shards that are gone."""
        names = json.dumps(list(shards))

        def delete(db: sqlite3.Connection) -> None:
            for table, column in (("artefacts", "shard"), ("entries", "shard"), ("shards", "name")):
                db.execute(f"delete from {table} where {column} in (select value from json_each(?))", (names,))

        self._do(delete)

    def rebuild(self) -> None:
        """Throw the index away and read every shard again."""
        self._db.close()
        self.damaged = {}
        if not self.private:
            self._remove()
        self._db = self._privately(copy=False) if self.private else self._shared()
        self.refresh()

    def close(self) -> None:
        """Let go of the file."""
        if self._process == os.getpid():
            self._db.close()

    def _do(self, work: Any) -> Any:
        """Run `work` in a transaction; if the index proves damaged or barred, once more on a new or a private one."""
        if self._process != os.getpid():
            self._inherited.append(self._db)  # SQLite's handles must not be used, or closed, behind a fork
            self._open(self.private)
        try:
            with self._db:
                return work(self._db)
        except sqlite3.OperationalError as error:
            if self.private:
                raise OSError(
                    f"the private index of {self.root} cannot be kept ({error}): set TMPDIR to a folder with space"
                ) from None
            self._retreat(error)
        except sqlite3.DatabaseError as error:
            _warn(f"the index {self.path} is damaged ({error}) and was made anew from the shards; no entry is lost")
            self.rebuild()
        with self._db:
            return work(self._db)

    def _shared(self) -> sqlite3.Connection:
        """Open `index.sqlite`, made anew when it is damaged or of another version; a private one when it is barred."""
        for attempt in range(2):
            try:
                if not os.access(self.root, os.W_OK):
                    self.private = True
                    return self._privately()
                db = sqlite3.connect(self.path, timeout=LOCK_S, check_same_thread=False)
                _create(db)
                if (why := _unsound(db)) is None:
                    return db
                db.close()
            except sqlite3.OperationalError as error:
                return self._barred(error)
            except sqlite3.DatabaseError as error:
                why = str(error)
            if attempt:
                break
            _warn(f"the index {self.path} is damaged ({why}) and was made anew from the shards; no entry is lost")
            self._remove()
        raise OSError(f"the index {self.path} is damaged again after it was made anew: check the disk")

    def _barred(self, error: sqlite3.Error) -> sqlite3.Connection:
        self.private = True
        _warn(
            f"the index {self.path} cannot be used ({error}): going on with a private one, read from the shards; "
            "if no other process is at work there, the file system has no locks that SQLite can use"
        )
        return self._privately()

    def _retreat(self, error: sqlite3.Error) -> None:
        self._db.close()
        self._db = self._barred(error)
        self.refresh()

    def _privately(self, *, copy: bool = True) -> sqlite3.Connection:
        """Open an index in a temporary file of SQLite's, filled from the shared one if that is sound."""
        db = sqlite3.connect("", check_same_thread=False)
        if copy and self.path.exists():
            try:
                shared = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)
                try:
                    shared.execute("begin")
                    if _prepared(shared):  # a lock is held from here on, without which `backup` would wait for ever
                        shared.backup(db)
                finally:
                    shared.close()
                if _prepared(db) and _unsound(db) is None:
                    return db
            except sqlite3.DatabaseError:
                pass  # the headers say the same
            db.close()
            db = sqlite3.connect("", check_same_thread=False)
        _create(db)
        return db

    def _remove(self) -> None:
        with explained(self.root):
            for suffix in ("", "-journal", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _take_in_drop(self, name: str) -> None:
        try:
            rows = [tuple(map(str, row)) for row in json.loads((self.root / name).read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return
        except (ValueError, TypeError) as error:
            _warn(f"{self.root / name} cannot be read ({error}): what it dropped counts as there again")
            return
        self.drop([(shard, key, artefact, producer) for shard, key, artefact, producer in rows], name)


def _prepared(db: sqlite3.Connection) -> bool:
    return db.execute("pragma user_version").fetchone()[0] == VERSION


def _create(db: sqlite3.Connection) -> None:
    """Make the tables, in place of those of another version."""
    if _prepared(db):
        return
    db.execute("begin immediate")
    with db:
        if _prepared(db):  # by another process, while this one waited
            return
        for (name,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
            db.execute(f'drop table "{name}"')
        for statement in _TABLES.split(";"):
            db.execute(statement)
        db.execute(f"pragma user_version = {VERSION}")


def _unsound(db: sqlite3.Connection) -> str | None:
    verdict = db.execute("pragma quick_check(1)").fetchone()[0]
    if verdict != "ok":
        return verdict
    row = db.execute(
        """select shards.name from shards
        left join (select shard, count(*) n from artefacts group by shard) a on a.shard = shards.name
        left join (select shard, count(*) n from dropped where name != '' group by shard) d on d.shard = shards.name
        where artefacts != coalesce(a.n, 0) + coalesce(d.n, 0) limit 1"""
    ).fetchone()
    return f"it lacks rows of {row[0]}" if row else None


def _json(tree: Any) -> str:
    return json.dumps(tree, sort_keys=True)


def _warn(text: str) -> None:
    warnings.warn(text, TrainingWarning, stacklevel=4)
