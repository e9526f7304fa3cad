"""Writing and reading a cache against plain files of the same tensors, interleaved in one run.

    OMP_NUM_THREADS=1 uv run python benchmarks/trainers_cache.py [--rounds 9] [--entries 128] [--many 100000]

An entry is what a small recipe keeps of a clip: a latent, its flow and text features (.46 MB). Peers: `torch.save` and
`torch.load(weights_only=True)`, a file an entry; `numpy.save` and `numpy.load`, a file an artefact; safetensors, a file
an entry. The cache checks that everything is finite, takes a checksum and has a whole shard on disk before it goes on;
peers do neither, and "with fsync" are synced file by file, as they would have to be to survive a crash alike. Reads are
in random order out of the page cache, and each tensor is summed, so that mapped pages count. One JSON line a
measurement: ratio of wall time to `torch.save` or `torch.load` in the same round, median and quartiles over the rounds.

`--many` fills a store of that many small entries and times what opening it costs, from its index and from its shards.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.cache import Cache

SHAPES = {"latent": (16, 5, 32, 32), "flow": (2, 5, 32, 32), "text": (64, 512)}
Entries = dict[str, dict[str, Tensor]]


def synced(path: Path) -> None:
    """Have a file on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_cache(root: Path, entries: Entries) -> None:
    """Put everything and close the last shard."""
    with Cache(root) as cache:
        for key, tensors in entries.items():
            cache.put(key, tensors)


def write_torch(root: Path, entries: Entries, *, sync: bool = False) -> None:
    """One file an entry."""
    for key, tensors in entries.items():
        torch.save(tensors, root / f"{key}.pt")
        if sync:
            synced(root / f"{key}.pt")


def write_numpy(root: Path, entries: Entries) -> None:
    """One file an artefact."""
    for key, tensors in entries.items():
        for name, tensor in tensors.items():
            np.save(root / f"{key}.{name}.npy", tensor.numpy())


def write_safetensors(root: Path, entries: Entries) -> None:
    """One file an entry."""
    for key, tensors in entries.items():
        save_file(tensors, root / f"{key}.safetensors")


def read_cache(root: Path, keys: list[str]) -> float:
    """Read through a view, opening included."""
    with Cache(root) as cache:
        view = cache.view(keys, list(SHAPES))
    return sum(float(tensor.sum()) for i in range(len(view)) for tensor in view[i].values())


def read_torch(root: Path, keys: list[str]) -> float:
    """Read file by file."""
    loaded = (torch.load(root / f"{key}.pt", weights_only=True) for key in keys)
    return sum(float(tensor.sum()) for tensors in loaded for tensor in tensors.values())


def read_numpy(root: Path, keys: list[str]) -> float:
    """Read file by file."""
    paths = (root / f"{key}.{name}.npy" for key in keys for name in SHAPES)
    return sum(float(torch.from_numpy(np.load(path)).sum()) for path in paths)


def read_safetensors(root: Path, keys: list[str]) -> float:
    """Read file by file."""
    loaded = (load_file(root / f"{key}.safetensors") for key in keys)
    return sum(float(tensor.sum()) for tensors in loaded for tensor in tensors.values())


def report(what: str, size: float, seconds: dict[str, list[float]], peer: str) -> None:
    """Print a line for each way of doing `what`."""
    for name, taken in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(taken, seconds[peer], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        line = {"what": what, "name": name, "peer": peer, "ratio": round(middle, 3)}
        line |= {"quartiles": [round(low, 3), round(high, 3)], "MB/s": round(size / 1e6 / statistics.median(taken))}
        print(json.dumps(line), flush=True)


def compare(folder: Path, entries: Entries, rounds: int) -> None:
    """Time all writers, then all readers, in an order that rotates."""
    writers: dict[str, Callable[[Path, Entries], None]] = {
        "torch.save": write_torch,
        "torch.save with fsync": lambda root, entries: write_torch(root, entries, sync=True),
        "numpy.save": write_numpy,
        "safetensors": write_safetensors,
        "cache": write_cache,
    }
    readers: dict[str, Callable[[Path, list[str]], float]] = {
        "torch.load": read_torch,
        "numpy.load": read_numpy,
        "safetensors": read_safetensors,
        "cache": read_cache,
    }
    kept = dict(zip(readers, ("torch.save", "numpy.save", "safetensors", "cache"), strict=True))
    size = sum(tensor.nbytes for tensors in entries.values() for tensor in tensors.values())
    writing: dict[str, list[float]] = {name: [] for name in writers}
    reading: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        names = list(writers)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            root = folder / name.replace(" ", "-")
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            start = time.perf_counter()
            writers[name](root, entries)
            writing[name].append(time.perf_counter() - start)
        keys = [list(entries)[i] for i in torch.randperm(len(entries)).tolist()]
        sums, names = set(), list(readers)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            sums.add(round(readers[name](folder / kept[name], keys), 3))
            reading[name].append(time.perf_counter() - start)
        assert len(sums) == 1, sums
    report("write", size, writing, "torch.save")
    report("read", size, reading, "torch.load")


def opening(folder: Path, many: int) -> None:
    """Time what a store of many entries costs to open, and a question to it."""
    root = folder / "many"
    with Cache(root) as cache:
        for i in range(many):
            cache.put(
                f"{i:064x}", {"latent": torch.full((4,), float(i)), "flow": torch.zeros(2)}, {"caption": "a ball"}
            )
    for name, private, lost in (("index", False, False), ("private", True, False), ("shards", False, True)):
        if lost:
            (root / "index.sqlite").unlink()
        start = time.perf_counter()
        cache = Cache(root, private_index=private)
        taken = time.perf_counter() - start
        start = time.perf_counter()
        for i in range(1000):
            assert cache.has(f"{i * (many // 1000):064x}", ["latent", "flow"])
        asked = (time.perf_counter() - start) / 1000
        cache.close()
        line = {"what": "open", "name": name, "entries": many, "s": round(taken, 3), "has_us": round(asked * 1e6, 1)}
        print(json.dumps(line), flush=True)
    print(json.dumps({"what": "size", "index_bytes_per_entry": round((root / "index.sqlite").stat().st_size / many)}))


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--entries", type=int, default=128)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: the temporary folder)")
    given = parser.parse_args()
    torch.manual_seed(0)
    entries = {f"{i:064x}": {n: torch.randn(shape) for n, shape in SHAPES.items()} for i in range(given.entries)}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        compare(Path(folder), entries, given.rounds)
        opening(Path(folder), given.many)


if __name__ == "__main__":
    main()
