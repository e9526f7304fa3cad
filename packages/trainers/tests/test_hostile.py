"""A thousand inputs that mean harm: no crash, no hang, no gigabytes, no step outside the folder; each is reported."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the hostile folder holds a named pipe")
SEED = 0


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What a child process says of each case; in a child, so that a crash or a hang is a failure and no end."""
    home = tmp_path_factory.mktemp("hostile")
    (home / "cwd").mkdir()
    command = [sys.executable, str(Path(__file__).with_name("hostile.py")), str(home / "data"), str(SEED)]
    done = subprocess.run(
        command,
        cwd=home / "cwd",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return home, [line for line in lines if line[0] != "memory"], next(line for line in lines if line[0] == "memory")


def test_each_of_a_thousand_is_reported_or_does_no_harm(tried):
    _, cases, _ = tried
    assert len(cases) == 1000 + 2
    assert [case for case in cases if case[1] not in ("reported", "read")] == []
    assert all(why for _, outcome, why in cases if outcome == "reported")


def test_what_cannot_be_right_is_never_taken(tried):
    """A table may be sound by chance, and a few flipped bits may miss; all else must have been refused."""
    _, cases, _ = tried
    read = Counter(kind for kind, outcome, _ in cases if outcome == "read")
    may_miss = {"film: header", "film: noise", "film: body", "all films at once", "the good film at last"}
    assert {kind for kind in read if not kind.startswith("table")} <= may_miss
    tables = sum(kind.startswith("table") for kind, *_ in cases)
    assert sum(count for kind, count in read.items() if kind.startswith("table")) < tables / 10
    flipped = [outcome for kind, outcome, _ in cases if kind == "film: body"]
    assert flipped.count("reported") > 0.8 * len(flipped)
    assert read["the good film at last"] == read["all films at once"] == 1


def test_nothing_was_written_outside_and_no_command_was_run(tried):
    home, _, _ = tried
    assert list((home / "cwd").iterdir()) == []
    assert sorted(path.name for path in home.iterdir()) == ["cwd", "data", "many", "secret.mp4", "secret.txt"]
    assert (home / "secret.txt").read_text() == "the password"
    assert (home / "secret.mp4").read_bytes() == (home / "data" / "good.mp4").read_bytes()
    left = {path.name for path in (home / "data").iterdir() if not path.name.startswith("case.")}
    assert left == {"good.mp4", "link.mp4", "linked", "loop.mp4", "zero.mp4", "folder.mp4", "pipe.mp4"}


def test_memory_stays_that_of_a_sound_film(tried):
    _, _, (_, before, after) = tried
    if not before:
        pytest.skip("peak memory is read from /proc")
    assert after - before < 80  # MiB; the smallest of the bombs would take a hundred, most of them a thousand
