"""Killed at any moment, a cache job leaves a store that loads, loses what was in no shard yet, and doubles nothing.

Moments are seeded: before a line of the cache's code (every line that runs in the main thread is counted), or after a
time, which falls into libraries, too. The children are forked, so that imports are paid once.
"""

import os
import random
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

import pytest
import torch

from trainers import Cache
from trainers.cache import Producer
from trainers.cache_job import Item, make
from trainers.cache_shard import contents
from trainers.cache_upkeep import gc, verify

MADE = {"mean": Producer("mean", dtype="float32", shape="2"), "all": Producer("copy", dtype="float32", shape="6")}
SETTINGS = {"batch": 3, "shard_items": 4, "threads": 1, "quiet": True}
SLOW = 50
CI = 12
SHORTEST_S, LONGEST_S = 0.002, 0.25


def load(number):
    return torch.arange(6.0) + number


def items():
    return [Item(f"{n:02d}", f"clip {n}".encode(), partial(load, n), {"fps": 16}, {"n": n}) for n in range(24)]


def build():
    return lambda batch: [{"mean": torch.stack((x.mean(), x.std())), "all": x} for x in batch]


def entries(root):
    """What the store holds; nothing in it is broken, and nothing lies in it twice."""
    with Cache(root) as cache:
        assert verify(cache) == []
        keys = cache.keys()
        assert len(set(keys)) == len(keys)
        found = {key: (cache.meta(key), {n: cache.get(key, n).tolist() for n in cache.names(key)}) for key in keys}
    rows = [(a.key, a.name) for path in root.glob("*.safetensors") for a in contents(path).artefacts]
    assert sorted(rows) == sorted((key, name) for key in found for name in MADE)
    return found


def forked(work):
    """Fork a child that does `work`; return its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def traced(at_line, then):
    """Call `then` before the `at_line`-th line of the cache's own code."""
    count = 0

    def line(frame, event, _):
        nonlocal count
        if event == "line":
            count += 1
            if count == at_line:
                then()
        return line

    def call(frame, event, _):
        return line if "/trainers/cache" in frame.f_code.co_filename else None

    sys.settrace(call)
    return lambda: count


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed(root, rng, lines, **rest):
    """Start a job that dies at a random moment if it lasts so long; return the child."""
    at_line, after_s = rng.randrange(1, lines), rng.uniform(SHORTEST_S, LONGEST_S)
    by_line = rng.random() < 0.5

    def work():
        if by_line:
            traced(at_line, die)
        else:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process as it stands
            signal.setitimer(signal.ITIMER_REAL, after_s)
        make(root, items(), build, MADE, **SETTINGS, **rest)

    return forked(work)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an unbroken run leaves, and how many lines it takes."""
    root = tmp_path_factory.mktemp("whole")
    counted = root / "lines"

    def work():
        count = traced(0, die)
        make(root, items(), build, MADE, **SETTINGS)
        counted.write_text(str(count()))

    assert ended(forked(work)) == 0
    return entries(root), int(counted.read_text())


@pytest.mark.parametrize("kills", [CI, pytest.param(SLOW, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_jobs_that_are_killed_again_and_again_end_as_one_that_never_was(tmp_path, whole, ranks, kills):
    """The ranks run at once. A store that is finished is left for a new one: it has no moments left."""
    expected, lines = whole
    rng = random.Random(f"{ranks} {kills}")
    deaths, roots = 0, 1
    had = set()
    while deaths < kills:
        root = tmp_path / str(roots)
        places = [{"rank": rank, "world": ranks} for rank in range(ranks)]
        codes = [ended(child) for child in [killed(root, rng, lines // ranks, **place) for place in places]]
        assert set(codes) <= {0, -signal.SIGKILL, -signal.SIGALRM}
        deaths += sum(code != 0 for code in codes)
        left = entries(root) if root.exists() else {}
        assert left == {key: expected[key] for key in left}
        assert had <= set(left)  # what was flushed stays
        had = set(left)
        if not any(codes):
            assert left == expected
            roots, had = roots + 1, set()
    for place in places:
        make(root, items(), build, MADE, **SETTINGS, **place)
    assert entries(root) == expected
    with Cache(root) as cache:
        gc(cache)
    assert not list(root.glob(".writing-*"))
    assert entries(root) == expected


def test_the_count_of_lines_reaches_every_file_of_the_cache(tmp_path):
    files = set()

    def work():
        def call(frame, event, _):
            files.add(Path(frame.f_code.co_filename).name)

        sys.settrace(call)
        make(tmp_path, items(), build, MADE, **SETTINGS)
        sys.settrace(None)
        (tmp_path / "files").write_text("\n".join(sorted(files)))

    assert ended(forked(work)) == 0
    traced_files = set((tmp_path / "files").read_text().splitlines())
    assert {"cache.py", "cache_index.py", "cache_job.py", "cache_report.py", "cache_shard.py"} <= traced_files
