"""A cache job: artefacts of many items, made by any number of processes, each its share, until none is missing.

Items are sorted by id and dealt out over the processes, so that each knows its share without asking the others (`RANK`
and `WORLD_SIZE` as torchrun sets them, or what Slurm's `srun` sets). What the store holds is skipped: a job that was
killed, or lost a machine, goes on when the same command is run again, with as many processes or others. An item that
cannot be used is listed with the reason (see `cache_report`) and tried again by the next run.

    def build():
        vae = load_my_vae()                               # once a process, and only when something is missing
        return lambda clips: [{"latent": z} for z in vae.encode(stack(clips))]

    make("cache", clip_items(records, spec), build, {"latent": Producer("my-vae", "a1b2")}, batch=8)
"""

import gc
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from . import show, signals, video
from .artefact import Producer, Source, plain
from .cache import Cache
from .cache_report import Hashed, Outcome, Report, Reporter, hashes
from .cache_upkeep import differences
from .guards import TrainingWarning
from .records import Record

__all__ = ["Build", "Item", "Produce", "Report", "Stale", "Worker", "clip_items", "make", "place", "share", "sources"]

Produce = Callable[[list[Any]], Sequence[Mapping[str, Tensor]]]
"""Makes artefacts: of what the items of a batch load to, a map for each. A ValueError leaves the item out."""
Build = Callable[[], Produce]
Stale = Literal["refuse", "add"]
FLUSH_S = 60.0
"""A kill loses no more seconds of work than this and one batch: our choice."""


@dataclass(frozen=True)
class Item:
    """One thing to be cached: its content (a file, or bytes), what gets it as `spec` says, and what to note beside it.

    It is hashed and loaded when its turn has come; a ValueError or OSError of either leaves it out. Of what loads to
    something with `times_s` (a clip) these are stored, too.
    """

    id: str
    media: str | Path | bytes
    load: Callable[[], Any]
    spec: Any = None
    noted: Mapping[str, Any] = field(default_factory=dict)


_Loading = tuple[Item, Source, "Future[Any]"]
_Loaded = tuple[Item, Source, Any]


def clip_items(records: Iterable[Record], spec: video.ClipSpec) -> list[Item]:
    """Return the items of video clips, decoded by `spec`; caption, labels, annotation, film are noted beside them."""
    return [
        Item(
            record.id,
            record.path,
            partial(video.load, record.path, spec),
            spec,
            {
                "id": record.id,
                "caption": record.caption,
                "labels": list(record.labels),
                "annotation": record.annotation,
            }
            | ({"film": record.source} if record.source else {}),
        )
        for record in records
    ]


def place(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """Return this process's rank and how many there are: as given, as torchrun or `srun` says, or alone.

    >>> place(3, 8)
    (3, 8)
    """
    if (rank is None) != (world is None):
        raise ValueError(f"expected rank and world together, got {rank} and {world}")
    if rank is None or world is None:
        # Of Slurm, what a step sets: in the batch script itself SLURM_NTASKS counts processes that are not there.
        pairs = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
        said = [pair for pair in pairs if all(name in os.environ for name in pair)]
        rank, world = (int(os.environ[name]) for name in said[0]) if said else (0, 1)
    if not 0 <= rank < world:
        raise ValueError(f"expected 0 <= rank < world, got rank {rank} of {world}")
    return rank, world


def share(items: Iterable[Item], rank: int, world: int) -> list[Item]:
    """Return the items of one process: every `world`-th by id, each id once, in whatever order they come."""
    by_id = {item.id: item for item in items}
    return [by_id[id_] for id_ in sorted(by_id)[rank::world]]


class Worker:
    """Makes what a cache lacks, batch by batch. `batch` is halved when memory runs out, and stays so."""

    def __init__(
        self,
        cache: Cache,
        build: Build,
        producers: Mapping[str, Producer],
        *,
        batch: int,
        threads: int = 2,
        stale: Stale = "refuse",
    ) -> None:
        if batch < 1 or threads < 1 or not producers:
            raise ValueError(f"expected batch and threads >= 1 and producers, got {batch}, {threads}, {producers}")
        self.cache, self.build, self.producers = cache, build, dict(producers)
        self.batch, self.threads, self.stale = batch, threads, stale
        self.specs: set[str] = set()  # of the items so far, as JSON
        self.hashed: dict[str, Hashed] = {}  # by the item's id, what was hashed anew
        self._known = hashes(cache.root)
        self._produce: Produce | None = None
        self._flushed = time.monotonic()

    def run(self, items: Iterable[Item], asked: signals.Asked | None = None) -> Iterator[Outcome]:
        """Yield what became of each item, once it is on disk. Ends between two batches when `asked` to.

        Items with the content of an earlier one wait for it to be done.
        """
        asked = asked or signals.Asked()
        waiting: list[Outcome] = []
        twins: list[tuple[Item, str]] = []
        try:
            with ThreadPoolExecutor(self.threads) as self._pool:
                todo = self._todo(items, waiting, twins)
                ahead = self._load(todo)
                while ahead and not asked.stop:
                    group, ahead = ahead, self._load(todo)  # loads while the group is computed
                    waiting += self._made(group)
                    if asked.taken() or time.monotonic() - self._flushed > FLUSH_S:
                        self.cache.flush()
                        self._flushed = time.monotonic()
                    if not self.cache.waiting:
                        yield from waiting
                        waiting.clear()
                for *_, future in ahead:
                    future.cancel()
        finally:
            self.cache.flush()
        for item, key in () if asked.stop else twins:
            made = self.cache.has(key, self.producers)
            waiting.append(Outcome(item.id, key, "there" if made else "failed", "" if made else "so did its twin"))
        yield from waiting

    def _todo(
        self, items: Iterable[Item], waiting: list[Outcome], twins: list[tuple[Item, str]]
    ) -> Iterator[tuple[Item, Source]]:
        """What lacks something, as it is come to; what is known of the rest goes to the lists."""
        taken: set[str] = set()
        for item in items:
            try:
                source = self._source(item)
            except (ValueError, OSError) as error:
                waiting.append(_failed(item, "", error))
                continue
            self.specs.add(json.dumps(source.spec, sort_keys=True))
            if (key := source.key) in taken:
                twins.append((item, key))
            elif self.cache.has(key, self.producers):
                waiting.append(Outcome(item.id, key, "there"))
            else:
                self._compare(item, key)
                taken.add(key)
                yield item, source

    def _source(self, item: Item) -> Source:
        source, hashed = _hashed(item, self._known)
        if hashed is not None:
            self.hashed[item.id] = hashed
        return source

    def _compare(self, item: Item, key: str) -> None:
        """Refuse to make beside what is there, by another producer, unless that is wanted."""
        for name, producer in self.producers.items() if self.stale == "refuse" else ():
            others = self.cache.producers(key, name)
            if others and producer not in others:
                raise ValueError(
                    f"{name!r} of {item.id} is in {self.cache.root} as another producer made it "
                    f"({'; '.join(differences(others[0], producer))}): set back what changed, or say stale='add' to "
                    "make the present one beside it; `python -m trainers cache stale` lists all"
                )

    def _load(self, todo: Iterator[tuple[Item, Source]]) -> list[_Loading]:
        group = [pair for _, pair in zip(range(self.batch), todo, strict=False)]
        return [(item, source, self._pool.submit(item.load)) for item, source in group]

    def _made(self, group: list[_Loading]) -> Iterator[Outcome]:
        """Compute a group that is being loaded; what did not fit into memory is loaded again, one by one."""
        loaded: list[_Loaded] = []
        tight: list[tuple[Item, Source]] = []
        for item, source, future in group:
            try:
                loaded.append((item, source, future.result()))
            except (ValueError, OSError) as error:
                yield _failed(item, source.key, error)
            except (MemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
                tight.append((item, source))
        if tight:
            self._halve(len(group), tight[0][0])
        group.clear()  # the futures hold what they loaded
        yield from self._computed(loaded)
        for item, source in tight:
            yield from self._made([(item, source, self._pool.submit(item.load))])

    def _computed(self, loaded: list[_Loaded]) -> Iterator[Outcome]:
        """Compute what is loaded, `batch` at a time, and empty the list."""
        while loaded:
            part = loaded[: self.batch]
            try:
                results = self._results(part)
            except ValueError as error:
                if len(part) == 1:
                    yield _failed(part[0][0], part[0][1].key, error)
                else:  # one of them is to blame
                    for single in part:
                        yield from self._computed([single])
                del loaded[: len(part)]
                continue
            except (MemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
                results = None
            if results is None:  # after the block, where the tensors of the attempt are let go of
                self._halve(len(part), part[0][0])
                continue
            del loaded[: len(part)]
            for (item, source, thing), artefacts in zip(part, results, strict=True):
                yield self._put(item, source, thing, artefacts)

    def _results(self, part: list[_Loaded]) -> Sequence[Mapping[str, Tensor]]:
        if self._produce is None:
            self._produce = self.build()
        try:
            results = self._produce([thing for *_, thing in part])
        except Exception as error:
            error.add_note(f"while computing {', '.join(item.id for item, *_ in part)}")
            raise
        if len(results) != len(part):
            raise TypeError(f"expected a map of artefacts for each of {len(part)} items, got {len(results)}")
        return results

    def _put(self, item: Item, source: Source, thing: Any, artefacts: Mapping[str, Tensor]) -> Outcome:
        artefacts = dict(artefacts)
        if set(artefacts) != set(self.producers):
            raise TypeError(f"expected artefacts {sorted(self.producers)} of {item.id}, got {sorted(artefacts)}")
        if (times := getattr(thing, "times_s", None)) is not None:
            artefacts.setdefault("times_s", torch.as_tensor(times, dtype=torch.float64))
        try:
            self.cache.put(source, artefacts, item.noted, producers=self.producers)
        except ValueError as error:
            return _failed(item, source.key, error)
        return Outcome(item.id, source.key, "made")

    def _halve(self, tried: int, item: Item) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if tried == 1:
            raise MemoryError(
                f"{item.id} does not fit into memory by itself: cache smaller or shorter clips, or free memory; what "
                "is done is kept"
            )
        self.batch = max(1, min(self.batch, tried) // 2)
        text = f"memory ran out with {tried} items at once, from {item.id} on: going on with {self.batch}"
        warnings.warn(text, TrainingWarning, stacklevel=2)


def sources(root: str | Path, items: Iterable[Item]) -> dict[str, Source]:
    """Say what each item is, by its id: where its artefacts are found (`Source.key`). Files that a job under `root` has
    hashed are not read again.
    """
    known = hashes(Path(root))
    return {item.id: _hashed(item, known)[0] for item in items}


def make(
    root: str | Path,
    items: Iterable[Item],
    build: Build,
    producers: Mapping[str, Producer],
    *,
    name: str = "cache",
    batch: int = 8,
    threads: int = 2,
    rank: int | None = None,
    world: int | None = None,
    stale: Stale = "refuse",
    shard_items: int = 256,
    shard_bytes: int = 512 * 2**20,
    quiet: bool = False,
) -> Report:
    """Fill the cache at `root` with the artefacts of `producers` for this process's share of `items`.

    `batch` items are computed at once while as many are loaded by `threads`: that and the open shard (`shard_bytes`)
    bound the memory. Where memory runs out the batch is halved with a warning; an item that does not fit by itself ends
    the job with MemoryError. SIGUSR1 closes the open shard; SIGTERM does, too, and ends the process with 143.

    An entry that holds one of the artefacts by another producer is refused, or (`stale="add"`) gets the present one
    beside it. ValueError when no item of the share can be used.
    """
    rank, world = place(rank, world)
    own = share(items, rank, world)
    with Cache(root, shard_items=shard_items, shard_bytes=shard_bytes, private_index=world > 1) as cache:
        worker = Worker(cache, build, producers, batch=batch, threads=threads, stale=stale)
        reporter = Reporter(cache.root, name, rank=rank, world=world, items=len(own))
        try:
            with signals.caught() as asked, show.bar(f"{name} {rank}/{world}", len(own), quiet=quiet) as bar:
                for done, outcome in enumerate(worker.run(own, asked), 1):
                    reporter.add(outcome, worker.hashed.pop(outcome.id, None))
                    bar.skip(outcome.status == "there")
                    bar.update(done)
        finally:
            report = reporter.close(batch=worker.batch, producers=worker.producers, specs=worker.specs)
    if asked.stop:
        raise signals.Stopped(f"stopped by SIGTERM after {report.made} of {len(own)} items: run again to go on")
    if (why := reporter.none_left()) is not None:
        raise ValueError(why)
    return report


def _hashed(item: Item, known: Mapping[str, Hashed]) -> tuple[Source, Hashed | None]:
    """What an item is, and the hash of its file where it was taken now."""
    if isinstance(item.media, bytes):
        return Source.of(item.media, spec=item.spec), None
    path = Path(item.media).absolute()
    like = path.stat()  # before it is read: a file that changes meanwhile must not pass for the new one
    before = known.get(str(path))
    if before and (before.size, before.mtime_ns) == (like.st_size, like.st_mtime_ns):
        return Source(before.content, plain(item.spec)), None
    source = Source.of(path, spec=item.spec)
    return source, Hashed(str(path), like.st_size, like.st_mtime_ns, source.content)


def _failed(item: Item, key: str, error: BaseException) -> Outcome:
    return Outcome(item.id, key, "failed", str(error) or type(error).__name__)


def _is_memory(error: BaseException) -> bool:
    """A GPU's allocator has a class of its own; the CPU's raises a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(text in str(error) for text in ("can't allocate memory", "not enough memory", "out of memory"))
