"""The cache job of `cache_job` as a Ray Data pipeline, for pools larger than one machine (extra `ray`).

The same `Worker` runs in every actor of a pool: the same keys, shards, lines and summary. What reaches an actor is a
block of `shard_items` items, which it makes in batches and whose shard it closes before it answers; so a block that is
tried again, because its actor or its machine died, finds what was closed and makes the rest. No entry comes twice.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .artefact import Producer
from .cache import Cache
from .cache_job import Build, Item, Stale, Worker, share
from .cache_report import Hashed, Outcome, Report, Reporter
from .show import bar

__all__ = ["make_on_ray"]


def make_on_ray(
    root: str | Path,
    items: Iterable[Item],
    build: Build,
    producers: Mapping[str, Producer],
    *,
    workers: int,
    name: str = "cache",
    batch: int = 8,
    threads: int = 2,
    num_gpus: float | int = 0,
    stale: Stale = "refuse",
    shard_items: int = 256,
    shard_bytes: int = 512 * 2**20,
    quiet: bool = False,
) -> Report:
    """Fill the cache at `root`, a folder that every machine of the pool sees, as `cache_job.make` does, with `workers`
    actors of `num_gpus` GPUs each.

    Ray is started on this machine unless `ray.init` was called or RAY_ADDRESS names a cluster. A restarted actor builds
    its models anew. ValueError without Ray, and when no item can be used.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("a cache job on Ray needs Ray Data: pip install 'phystrainers[ray]'") from None
    if workers < 1:
        raise ValueError(f"expected workers >= 1, got {workers}")
    todo = share(items, 0, 1)
    if not ray.is_initialized():
        ray.init()
    options: dict[str, Any] = {"batch": batch, "threads": threads, "stale": stale}
    store = {"root": str(Path(root).absolute()), "shard_items": shard_items, "shard_bytes": shard_bytes}
    with Cache(root) as cache:
        reporter = Reporter(cache.root, name, rank=0, world=1, items=len(todo))
        # from_items, because a task that reads them would wait for a core that an actor holds, and that for the task
        numbers = ray.data.from_items(
            [{"number": number} for number in range(len(todo))], override_num_blocks=-(-len(todo) // shard_items) or 1
        )
        rows = numbers.map_batches(
            _Actor,
            fn_constructor_args=(ray.put(todo), build, dict(producers), options, store),
            batch_size=shard_items,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=num_gpus or None,
        )
        rows.context.enable_progress_bars = False  # there is one here
        least, specs = batch, set[str]()
        try:
            with bar(f"{name} on Ray", len(todo), quiet=quiet) as shown:
                for done, row in enumerate(rows.iter_rows(), 1):
                    file = json.loads(row["file"])
                    outcome = Outcome(row["id"], row["key"], row["status"], row["why"])
                    reporter.add(outcome, Hashed(**file) if file else None)
                    least, specs = min(least, row["batch"]), specs.union(row["specs"])
                    shown.skip(outcome.status == "there")
                    shown.update(done)
        finally:
            report = reporter.close(batch=least, producers=producers, specs=specs)
        cache.refresh()
    if (why := reporter.none_left()) is not None:
        raise ValueError(why)
    return report


class _Actor:
    """One process of the pool, with its models and its own view of the store."""

    def __init__(
        self,
        items: Any,
        build: Build,
        producers: Mapping[str, Producer],
        options: dict[str, Any],
        store: dict[str, Any],
    ) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        self.items: list[Item] = ray.get(items) if isinstance(items, ray.ObjectRef) else items
        self.worker = Worker(Cache(**store, private_index=True), build, producers, **options)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[Any]]:
        """Make the items whose numbers a block holds; return a row for each."""
        self.worker.cache.refresh()
        made = list(self.worker.run([self.items[number] for number in block["number"]]))
        fields = ("id", "key", "status", "why")
        rows = {field: [getattr(outcome, field) for outcome in made] for field in fields}
        files = [self.worker.hashed.pop(outcome.id, None) for outcome in made]
        rows["file"] = [json.dumps(asdict(file) if file else None) for file in files]
        return rows | {"batch": [self.worker.batch] * len(made), "specs": [sorted(self.worker.specs)] * len(made)}
