"""Killed at seeded moments (while beginning, stepping, writing a checkpoint, pruning old ones), a run always leaves a
state that loads, and ends with the bits of an unbroken run and no sample lost or doubled. A disk that is full and a
folder that cannot be written are one sentence, and the last checkpoint stays.

Children are forked from this process, which has done its imports.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import toy

from trainers import EMA, InMemory, Length, Optim, Order, Stage, checkpoint, derive_seed, fit

SAMPLES, BATCH = 13, 3
ZONES = ("begin", "step", "write", "prune")
NAMES = {("checkpoint.py", "save"): "write", ("checkpoint.py", "_prune"): "prune", ("step.py", "make"): "step"}


def parts():
    torch.manual_seed(0)
    return {"encoder": toy.Encoder(), "head": torch.nn.Linear(5, 1)}


def stages(groups, steps, note=lambda progress, ids: None):
    x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(7))
    data = InMemory({"x": x, "y": x.sum(1, keepdim=True), "id": torch.arange(SAMPLES)})
    plain = toy.loss_of(groups)

    def loss(batch, progress):
        note(progress, batch["id"].tolist())
        return plain(batch, progress)

    both, optim = {"encoder": 1.0, "head": 0.5}, Optim(lr=1e-2, schedule="cosine")
    first = Stage("a", both, loss, data, BATCH, Length(steps=steps), optim, accumulate=2, ema=EMA(0.9, apply=True))
    second = Stage("b", both, loss, data, BATCH, Length(steps=steps), optim, handover="keep", ema=EMA(0.8))
    return [first, second]


class Reaper:
    """Kills this process at the n-th call or return of any function, Python's or C's, within a zone of the run."""

    def __init__(self, zone, left):
        self.zone, self.left, self.zones = zone, left, ["begin"]
        self.counts = dict.fromkeys(ZONES, 0)

    def __call__(self, frame, event, argument):
        name = self.name(frame)
        if event == "call" and name:
            self.zones = ["step"] if name == "step" else [*self.zones, name]
        zone = self.zones[-1]
        self.counts[zone] += 1
        if zone == self.zone:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if event == "return" and name in ("write", "prune"):
            self.zones.pop()

    @staticmethod
    def name(frame):
        file = frame.f_code.co_filename.rpartition("trainers/")[2]
        return NAMES.get((file, frame.f_code.co_name))


def in_child(work):
    """Fork, work, and return the exit code (0: it came to its end)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def trained(out, steps, reaper=None):
    """Train, or go on; what the loss sees is noted in a file, step by step, by process."""
    handle = os.open(out.with_suffix(".seen"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(progress, ids):
        os.write(handle, (json.dumps([os.getpid(), progress.global_step, ids]) + "\n").encode())

    groups = parts()
    if reaper is not None:
        sys.setprofile(reaper)
    try:
        fit(stages(groups, steps, note), groups, out=out, seed=3, save_every=2, keep=1, resume=True, quiet=True)
    finally:
        sys.setprofile(None)
        os.close(handle)
    return groups


def files(out):
    saved = checkpoint.load(checkpoint.latest(out / "checkpoints"))
    return {f"{file}/{key}": value for file, part in saved.tensors.items() for key, value in part.items()}


def seen(out):
    """{global step: {process: [samples of each batch]}}."""
    steps = defaultdict(lambda: defaultdict(list))
    for line in out.with_suffix(".seen").read_text().splitlines():
        process, step, ids = json.loads(line)
        steps[step][process].append(ids)
    return steps


def check_samples(out, steps):
    """Whatever was done again was done with the same samples, and what stayed is the order without gap or repeat."""
    executions, stays = seen(out), []
    for step in range(2 * steps):
        full = max(executions[step].values(), key=len)
        assert len(full) == (2 if step < steps else 1)
        assert all(batches == full[: len(batches)] for batches in executions[step].values())
        stays.append([sample for batch in full for sample in batch])
    assert set(executions) == set(range(2 * steps))
    digest = stages(parts(), steps)[0].data.digest
    for index, stage in enumerate((stays[:steps], stays[steps:])):
        stream = [sample for step in stage for sample in step]
        assert stream == Order(SAMPLES, seed=derive_seed(3, index), digest=digest).take(len(stream)).tolist()
        for start in range(0, len(stream) - SAMPLES + 1, SAMPLES):
            assert sorted(stream[start : start + SAMPLES]) == list(range(SAMPLES))


def survive(tmp_path, kills, seed):
    steps = 2 * kills
    whole = trained(tmp_path / "whole", steps)
    counted = Reaper(None, 0)
    trained(tmp_path / "counted", steps, counted)
    saves = steps + 1  # every second of 2 x steps, and the ends of both stages, of which one falls together
    per = {"begin": counted.counts["begin"], "step": counted.counts["step"] // (2 * steps)}
    per |= {zone: counted.counts[zone] // saves for zone in ("write", "prune")}
    reach = {"begin": 0.95, "step": 3, "write": 1.5, "prune": 1.5}  # in units of the whole beginning, steps, saves
    out, draw, reached = tmp_path / "cut", random.Random(seed), 0
    for n in range(kills):
        zone = ZONES[n % len(ZONES)]
        reaper = Reaper(zone, draw.randrange(int(reach[zone] * per[zone])))
        assert in_child(lambda reaper=reaper: trained(out, steps, reaper)) == -signal.SIGKILL, (n, zone, reaper.left)
        folder = checkpoint.latest(out / "checkpoints")  # a warning about a damaged one would be an error here
        before, reached = reached, checkpoint.load(folder).state["global_step"] if folder else 0
        assert reached >= before  # what was saved once is not lost again
    again = trained(out, steps)
    assert toy.equal(toy.state(again), toy.state(whole))
    assert toy.equal(files(out), files(tmp_path / "whole"))
    kept = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    unbroken = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [{**line, "seconds": 0} for line in kept] == [{**line, "seconds": 0} for line in unbroken]
    assert [path.name for path in (out / "checkpoints").iterdir()] == [checkpoint.name_of(2 * steps)]
    check_samples(out, steps)


def test_twelve_kills_at_seeded_moments_change_no_bit_and_lose_no_sample(tmp_path):
    survive(tmp_path, 12, seed=0)


@pytest.mark.slow
def test_fifty_kills_at_seeded_moments_change_no_bit_and_lose_no_sample(tmp_path):
    survive(tmp_path, 50, seed=1)


# ---- disks


def wide(out, before=lambda progress: None, **rest):
    """A run whose checkpoints are larger than its log."""
    torch.manual_seed(0)
    groups = {"wide": torch.nn.Linear(64, 64)}

    def loss(batch, progress):
        before(progress)
        return {"square": groups["wide"](batch["x"]).square().mean()}

    data = InMemory({"x": torch.randn(8, 64, generator=torch.Generator().manual_seed(1))})
    stage = Stage("a", {"wide": 1.0}, loss, data, 4, Length(steps=8))
    fit([stage], groups, out=out, save_every=2, quiet=True, **rest)
    return groups


def said(out, before, first=lambda: None):
    """What a child was told when it could not write."""
    told = out.with_suffix(".told")

    def work():
        first()
        try:
            wide(out, before)
        except OSError as error:
            told.write_text(f"{type(error).__name__}: {error}")

    assert in_child(work) == 0
    return told.read_text()


def test_a_file_that_grows_no_further_is_one_sentence_and_the_last_checkpoint_goes_on(tmp_path):
    """The system's own limit on the size of a file: the write fails in the middle, as on a full disk."""

    def shrink(progress):
        if progress.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    out = tmp_path / "out"
    text = said(out, shrink)
    assert text.startswith("OSError: ")
    assert f"could not write the checkpoint {out}/checkpoints/step-00000006: " in text
    assert text.endswith("complete checkpoints stay: free space or make the folder writable, then resume")
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]
    assert toy.equal(toy.state(wide(out, resume=True)), toy.state(wide(tmp_path / "whole")))


def as_nobody():
    """Leave root's rights behind, before which no folder is read-only."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


@pytest.fixture
def open_folder():
    """A folder that anybody may enter: pytest's own are closed."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    if in_child(as_nobody) != 0:
        pytest.skip("this system lets no process give up root's rights")
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_becomes_read_only_is_one_sentence_and_the_last_checkpoint_goes_on(tmp_path, open_folder):
    out = open_folder / "out"

    def close(progress):
        if progress.step == 5:
            (out / "checkpoints").chmod(0o555)

    text = said(out, close, as_nobody)
    assert text.startswith("PermissionError: ")
    assert "checkpoints/step-00000006: Permission denied; complete checkpoints stay: free space or make" in text
    (out / "checkpoints").chmod(0o777)
    assert toy.equal(toy.state(wide(out, resume=True)), toy.state(wide(tmp_path / "whole")))


@pytest.mark.parametrize("closed", [".", "checkpoints"])
def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(open_folder, closed):
    out = open_folder / "out"
    (out / "checkpoints").mkdir(parents=True)
    out.chmod(0o777)
    (out / closed).chmod(0o555)
    if closed == ".":
        (out / "checkpoints").rmdir()

    def never(progress):
        raise AssertionError("trained before it looked at the folder")

    assert f"could not write into {out}: Permission denied;" in said(out, never, as_nobody)
