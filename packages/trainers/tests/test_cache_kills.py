"""Killed at any moment, a cache job leaves a store that loads, loses what was in no shard yet, and doubles nothing.

Moments are seeded: before a line of the cache's code, each line being as likely however often it runs, or after a time,
which falls into libraries, too. The children are forked, so that imports are paid once.
"""

import json
import os
import random
import signal
import sys
import traceback
from collections import Counter
from contextlib import suppress
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
        keys = cache.keys()
        assert verify(cache) == []
        assert cache.keys() == keys
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


def traced(before_line):
    """Call `before_line(frame)` before every line of the cache's own code in this thread."""

    def line(frame, event, _):
        if event == "line":
            before_line(frame)
        return line

    sys.settrace(lambda frame, event, _: line if "/trainers/cache" in frame.f_code.co_filename else None)


def killed(root, rng, lines, **rest):
    """Start a job that dies at a random moment if it comes to that; return the child."""
    where, after_s = rng.choice(sorted(lines)), rng.uniform(SHORTEST_S, LONGEST_S)
    left = rng.randrange(lines[where])
    by_line = rng.random() < 0.5

    def die_there(frame):
        nonlocal left
        if (Path(frame.f_code.co_filename).name, frame.f_lineno) == where:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def work():
        if by_line:
            traced(die_there)
        else:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process as it stands
            signal.setitimer(signal.ITIMER_REAL, after_s)
        make(root, items(), build, MADE, **SETTINGS, **rest)

    return forked(work)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an unbroken run leaves, and how often it comes to each line of the cache's code."""
    root = tmp_path_factory.mktemp("whole")
    lines = Counter()

    def work():
        traced(lambda frame: lines.update([(Path(frame.f_code.co_filename).name, frame.f_lineno)]))
        make(root, items(), build, MADE, **SETTINGS)
        sys.settrace(None)
        (root / "lines").write_text(json.dumps([[*where, count] for where, count in lines.items()]))

    assert ended(forked(work)) == 0
    counts = {(file, line): count for file, line, count in json.loads((root / "lines").read_text())}
    files = {file for file, _ in counts}
    assert {"cache.py", "cache_index.py", "cache_job.py", "cache_report.py", "cache_shard.py"} <= files
    return entries(root), counts


def said(root):
    """The keys that the reports call made."""
    for path in root.glob("reports/*.jsonl"):
        for line in path.read_text().splitlines():
            with suppress(ValueError):  # the line that the kill cut
                yield json.loads(line)["key"]


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
        codes = [ended(child) for child in [killed(root, rng, lines, **place) for place in places]]
        assert set(codes) <= {0, -signal.SIGKILL, -signal.SIGALRM}
        deaths += sum(code != 0 for code in codes)
        left = entries(root) if root.exists() else {}
        assert left == {key: expected[key] for key in left}
        assert had <= set(left)  # what was flushed stays
        assert set(said(root)) <= set(left)  # and is called made no sooner
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
