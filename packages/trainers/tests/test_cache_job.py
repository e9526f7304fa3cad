"""A cache job makes every item's artefacts once, whatever fails on the way, and says what it left out."""

import ctypes
import errno
import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from trainers import Cache, ClipSpec, Record, Stopped, TrainingWarning, cache_job, cache_shard, video
from trainers.cache import Producer, Source
from trainers.cache_job import Item, clip_items, make, place, share
from trainers.cache_upkeep import verify

MEAN = Producer("mean", "1", dtype="float32", shape="2")
MADE = {"mean": MEAN}


def load(number):
    return torch.arange(6.0) + number


def items(count=20, load=load):
    return [Item(f"clip-{n:03d}", f"clip {n}".encode(), partial(load, n), {"fps": 16}, {"n": n}) for n in range(count)]


def means(batch):
    return [{"mean": torch.stack((x.mean(), x.std()))} for x in batch]


def build():
    return means


def entries(root):
    with Cache(root) as cache:
        assert verify(cache) == []
        keys = cache.keys()
        assert len(set(keys)) == len(keys)
        return {key: (cache.meta(key), cache.get(key, "mean").tolist()) for key in keys}


def lines(report):
    text = report.path.with_suffix(".jsonl").read_text().splitlines()
    return [json.loads(line) for line in text if line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    make(root, items(), build, MADE, quiet=True)
    return entries(root)


def test_sources_say_where_artefacts_are_and_read_no_file_that_a_job_has_hashed(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(b"clip")
    both = [Item("a", tmp_path / "a.bin", partial(load, 1), {"fps": 16}), *items(1)]
    make(tmp_path / "cache", both, build, MADE, quiet=True)
    monkeypatch.setattr(cache_job.Source, "of", classmethod(forbid_files(Source.of)))
    found = cache_job.sources(tmp_path / "cache", both)
    with Cache(tmp_path / "cache") as cache:
        assert all(cache.has(found[item.id].key, MADE) for item in both)
    with pytest.raises(AssertionError):
        cache_job.sources(tmp_path / "elsewhere", both)


def forbid_files(stock):
    def of(cls, media, *, spec=None):
        assert isinstance(media, bytes)
        return stock(media, spec=spec)

    return of


def test_a_job_makes_what_is_missing_and_nothing_twice(tmp_path, whole):
    calls = []

    def counted():
        calls.append("build")
        return lambda batch: (calls.append(len(batch)), means(batch))[1]

    report = make(tmp_path, items()[:7], counted, MADE, batch=3, quiet=True)
    assert (report.made, report.there, report.failed, report.items) == (7, 0, (), 7)
    assert calls == ["build", 3, 3, 1]
    report = make(tmp_path, items(), counted, MADE, batch=3, quiet=True)
    assert (report.made, report.there) == (13, 7)
    report = make(tmp_path, items(), counted, MADE, batch=3, quiet=True)
    assert (report.made, report.there, calls.count("build")) == (0, 20, 2)  # no model is loaded for nothing
    assert entries(tmp_path) == whole
    assert [line["status"] for line in lines(report)] == ["made"] * 20
    summary = json.loads(report.path.read_text())
    assert (summary["made"], summary["there"], summary["spec"]) == (0, 20, {"fps": 16})


def test_clips_are_decoded_with_their_times_and_a_broken_one_is_listed(tmp_path):
    grey = np.zeros((20, 32, 32, 3), np.uint8)
    video.write(tmp_path / "a.mp4", grey, 16, times_s=np.arange(20) / 16 + 0.001 * (np.arange(20) % 2))
    (tmp_path / "b.mp4").write_bytes(b"no video")
    records = [Record(tmp_path / name, "grey", {}, ("thermal",), name) for name in ("a.mp4", "b.mp4", "none.mp4")]

    def produce():
        return lambda batch: [{"frames": torch.from_numpy(clip.frames)} for clip in batch]

    spec = ClipSpec(5, 16, 16, 16)
    made = {"frames": Producer("decode", dtype="uint8", shape="t 16 16 3")}
    report = make(tmp_path / "cache", clip_items(records, spec), produce, made, quiet=True)
    assert (report.made, [s.path for s in report.failed]) == (1, ["b.mp4", "none.mp4"])
    assert "cannot be decoded" in report.failed[0].why
    assert "No such file" in report.failed[1].why
    with Cache(tmp_path / "cache") as cache:
        (key,) = cache.keys()
        assert key == Cache.key(tmp_path / "a.mp4", spec=spec)
        times = cache.get(key, "times_s")
        assert (times.dtype, times.shape, times[0]) == (torch.float64, (5,), 0)
        assert times[1].item() == pytest.approx(1 / 16 + 0.001, abs=1e-4)  # as they are in the file
        assert cache.meta(key) == {"id": "a.mp4", "caption": "grey", "labels": ["thermal"], "annotation": {}}


def test_what_cannot_be_loaded_or_computed_or_stored_is_listed_with_the_reason_and_tried_again(tmp_path, whole):
    broken = {3, 4, 9, 11}

    def failing(number):
        if number == 3 and 3 in broken:
            raise ValueError("no clip")
        if number == 4 and 4 in broken:
            raise OSError("no disk")
        return torch.full((6,), float("nan")) if number == 9 and 9 in broken else load(number)

    def produce():
        def compute(batch):
            if 11 in broken and any(x[0] == 11 for x in batch):
                raise ValueError("too dark")
            return means(batch)

        return compute

    mine = items(load=failing)
    report = make(tmp_path, mine, produce, MADE, batch=4, quiet=True)
    assert report.made == 16
    assert [(s.path, s.why.split(":")[0]) for s in report.failed] == [
        ("clip-003", "no clip"),
        ("clip-004", "no disk"),
        ("clip-009", f"artefact 'mean' of {Cache.key(b'clip 9', spec={'fps': 16})[:12]} holds NaN or infinity"),
        ("clip-011", "too dark"),
    ]
    assert sum(line["status"] == "failed" for line in lines(report)) == 4
    broken.clear()
    assert make(tmp_path, mine, produce, MADE, batch=4, quiet=True).made == 4
    assert entries(tmp_path) == whole


def test_a_job_of_which_nothing_can_be_used_says_why(tmp_path):
    def bad(_):
        raise ValueError("no clip")

    mine = items(12, load=bad)
    with pytest.raises(ValueError, match=r"none of the 12 items can be used.*\n  clip-000: no clip") as told:
        make(tmp_path, mine, build, MADE, quiet=True)
    assert "and 2 more" in str(told.value)


def test_a_mistake_in_the_code_ends_the_job_and_names_the_items(tmp_path):
    def wrong(batch):
        raise KeyError("a typo")

    with pytest.raises(KeyError) as told:
        make(tmp_path, items(4), lambda: wrong, MADE, batch=2, quiet=True)
    assert told.value.__notes__ == ["while computing clip-000, clip-001"]
    for produce, why in (
        (lambda batch: means(batch)[:1], "a map of artefacts for each of 2 items, got 1"),
        (lambda batch: [{"other": x} for x in batch], "expected artefacts .'mean'. of clip-000, got .'other'."),
    ):
        with pytest.raises(TypeError, match=why):
            make(tmp_path, items(4), lambda produce=produce: produce, MADE, batch=2, quiet=True)
    with pytest.raises(ValueError, match="batch and threads"):
        make(tmp_path, items(4), build, MADE, batch=0, quiet=True)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_where_memory_runs_out_the_batch_is_halved_with_a_warning(tmp_path, whole, error):
    sizes = []

    def tight(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise error
        return means(batch)

    with pytest.warns(TrainingWarning) as said:
        report = make(tmp_path, items(), lambda: tight, MADE, batch=8, quiet=True)
    assert [str(warning.message) for warning in said] == [
        f"memory ran out with {tried} items at once, from clip-000 on: going on with {tried // 2}" for tried in (8, 4)
    ]
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[2:]) == {2}
    assert (report.batch, report.made) == (2, 20)
    assert entries(tmp_path) == whole


def test_what_does_not_fit_into_memory_by_itself_ends_the_job_loudly_and_keeps_what_is_done(tmp_path, whole):
    def hungry(batch):
        if any(x[0] == 13 for x in batch):
            raise MemoryError
        return means(batch)

    with pytest.warns(TrainingWarning), pytest.raises(MemoryError, match="clip-013 does not fit into memory by itself"):
        make(tmp_path, items(), lambda: hungry, MADE, batch=4, quiet=True)
    assert len(entries(tmp_path)) == 13
    make(tmp_path, items(), build, MADE, quiet=True)
    assert entries(tmp_path) == whole


def test_where_loading_runs_out_of_memory_the_rest_of_the_batch_is_loaded_again(tmp_path, whole):
    tries = []

    def heavy(number):
        tries.append(number)
        if number in (2, 3) and tries.count(number) == 1:
            raise MemoryError
        return load(number)

    mine = items(load=heavy)
    with pytest.warns(TrainingWarning, match="going on with 2"):
        report = make(tmp_path, mine, build, MADE, batch=4, quiet=True)
    assert (report.made, report.batch) == (20, 2)
    assert entries(tmp_path) == whole


def test_any_other_runtime_error_is_not_taken_for_memory(tmp_path):
    def wrong(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        make(tmp_path, items(4), lambda: wrong, MADE, batch=2, quiet=True)


def test_a_batch_and_the_next_one_are_all_that_is_held(tmp_path):
    alive = set()

    class Thing:
        def __init__(self, number):
            alive.add(id(self))
            self.value = load(number)

        def __del__(self):
            alive.discard(id(self))

    most = []

    def watching(batch):
        most.append(len(alive))
        return means([thing.value for thing in batch])

    make(tmp_path, items(40, load=Thing), lambda: watching, MADE, batch=4, shard_items=5, quiet=True)
    assert max(most) <= 8


def test_a_file_is_hashed_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    paths = [tmp_path / f"{n}.bin" for n in range(4)]
    for n, path in enumerate(paths):
        path.write_bytes(bytes([n]))
    mine = [Item(path.name, path, partial(load, n)) for n, path in enumerate(paths)]
    make(tmp_path / "cache", mine, build, MADE, quiet=True)
    report = tmp_path / "cache" / "reports" / "cache-00000.jsonl"
    report.write_text(report.read_text()[:-5])  # a kill cut the last line, and with it one hash
    read = []
    stock = Source.of

    def counted(media, *, spec=None):
        read.append(media.name)
        return stock(media, spec=spec)

    monkeypatch.setattr(Source, "of", counted)
    paths[1].write_bytes(b"changed")
    os.utime(paths[2], ns=(0, 0))
    again = make(tmp_path / "cache", mine, build, MADE, quiet=True)
    assert read == ["1.bin", "2.bin", "3.bin"]
    assert (again.made, again.there) == (1, 3)
    read.clear()
    assert make(tmp_path / "cache", mine, build, MADE, quiet=True).there == 4
    assert read == []


def test_another_producer_is_refused_with_what_differs_or_made_beside(tmp_path):
    make(tmp_path, items(3), build, MADE, quiet=True)
    after = {"mean": Producer("mean", "2", dtype="float32", shape="2")}
    with pytest.raises(ValueError, match=r"'mean' of clip-000 is in .* \(revision: \"1\" -> \"2\"\).*stale='add'"):
        make(tmp_path, items(3), build, after, quiet=True)
    assert make(tmp_path, items(3), build, after, stale="add", quiet=True).made == 3
    with Cache(tmp_path) as cache:
        assert len(cache.producers(cache.keys()[0], "mean")) == 2
        assert verify(cache) == []


def test_an_item_whose_content_comes_twice_is_made_once(tmp_path):
    twin = replace(items()[3], id="other name")
    report = make(tmp_path, [*items(5), twin], build, MADE, quiet=True)
    assert (report.made, report.there) == (5, 1)

    def bad():
        raise ValueError("no clip")

    failing = Item("x", b"x", bad)
    report = make(tmp_path, [*items(5), failing, replace(failing, id="y")], build, MADE, quiet=True)
    assert [(s.path, s.why) for s in report.failed] == [("x", "no clip"), ("y", "so did its twin")]


def test_the_ranks_share_out_the_items_whatever_their_order_and_leave_none(tmp_path, whole):
    shares = [[i.id for i in share(reversed(items()), rank, 3)] for rank in range(3)]
    assert shares == [[i.id for i in share(items(), rank, 3)] for rank in range(3)]
    assert sorted(id_ for part in shares for id_ in part) == [i.id for i in items()]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank in range(3):
        report = make(tmp_path, items(), build, MADE, rank=rank, world=3, quiet=True)
        assert (report.made, report.path.name) == (len(shares[rank]), f"cache-{rank:05d}.json")
    assert not (tmp_path / "index.sqlite").exists()  # no rank has asked for a lock
    assert entries(tmp_path) == whole
    assert make(tmp_path, items(), build, MADE, quiet=True).there == 20


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}, (3, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # the batch script itself, beside no other process
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            (1, 2),
        ),  # torchrun in srun
    ],
)
def test_a_process_knows_its_place_from_torchrun_and_from_slurm(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place() == expected
    assert place(5, 6) == (5, 6)
    for wrong in ((2, 2), (-1, 2), (1, None)):
        with pytest.raises(ValueError, match="expected"):
            place(*wrong)


def test_sigterm_keeps_what_is_done_and_ends_with_143_and_the_same_command_goes_on(tmp_path, whole):
    def asking(batch):
        if any(x[0] == 8 for x in batch):
            os.kill(os.getpid(), signal.SIGTERM)
        return means(batch)

    with pytest.raises(Stopped, match="stopped by SIGTERM after 12 of 20 items: run again") as stopped:
        make(tmp_path, items(), lambda: asking, MADE, batch=4, quiet=True)
    assert stopped.value.code == 143
    assert len(entries(tmp_path)) == 12
    assert make(tmp_path, items(), build, MADE, batch=4, quiet=True).there == 12
    assert entries(tmp_path) == whole


def test_sigusr1_closes_the_open_shard(tmp_path, monkeypatch):
    seen = []

    def asking(batch):
        seen.append(len(list(tmp_path.glob("*.safetensors"))))
        if any(x[0] == 0 for x in batch):
            os.kill(os.getpid(), signal.SIGUSR1)
        return means(batch)

    make(tmp_path, items(12), lambda: asking, MADE, batch=4, quiet=True)
    assert seen == [0, 1, 1]
    monkeypatch.setattr(cache_job, "FLUSH_S", 0.0)  # and so does the clock
    seen.clear()
    make(tmp_path / "other", items(4), build, MADE, batch=1, quiet=True)
    assert len(list((tmp_path / "other").glob("*.safetensors"))) == 4


def test_an_interrupt_keeps_what_is_done(tmp_path):
    def interrupted(batch):
        if any(x[0] == 8 for x in batch):
            raise KeyboardInterrupt
        return means(batch)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, items(), lambda: interrupted, MADE, batch=4, quiet=True)
    assert len(entries(tmp_path)) == 8


def test_a_line_of_the_report_that_a_kill_cut_short_costs_no_other(tmp_path):
    report = make(tmp_path, items(3), build, MADE, quiet=True)
    path = report.path.with_suffix(".jsonl")
    path.write_text(path.read_text()[:-20])
    make(tmp_path, items(5), build, MADE, quiet=True)
    whole_lines = []
    for line in path.read_text().splitlines():
        try:
            whole_lines.append(json.loads(line)["id"])
        except ValueError:
            continue
    assert whole_lines == ["clip-000", "clip-001", "clip-003", "clip-004"]


FULL = r"the disk is full at .*: free some space, or .*; what was flushed is kept, and the same command goes on"


@pytest.mark.parametrize("moment", range(6))
def test_a_disk_that_is_full_at_any_write_gives_one_sentence_and_a_store_to_go_on_from(
    tmp_path, monkeypatch, whole, moment
):
    """The n-th shard does not fit: nothing of it, half of it, all but the syncing, all but the name."""
    written, stock = [], {name: getattr(cache_shard, name) for name in ("save_file", "sync")}
    shard, at = 1 + moment % 2, ("before", "half", "sync")[moment // 2]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_file(tensors, path, metadata):
        written.append(path)
        if len(written) == shard and at != "sync":
            if at == "half":
                stock["save_file"](tensors, path, metadata)
                path.write_bytes(path.read_bytes()[:100])
            full()
        stock["save_file"](tensors, path, metadata)

    monkeypatch.setattr(cache_shard, "save_file", save_file)
    monkeypatch.setattr(
        cache_shard, "sync", lambda path: full() if at == "sync" and len(written) == shard else stock["sync"](path)
    )
    with pytest.raises(OSError, match=FULL) as told:
        make(tmp_path, items(), build, MADE, batch=4, shard_items=4, quiet=True)
    assert told.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert not list(tmp_path.glob(".writing-*"))  # and what did not fit takes no space
    left = entries(tmp_path)
    assert left == {key: whole[key] for key in left}
    make(tmp_path, items(), build, MADE, quiet=True)
    assert entries(tmp_path) == whole


def mounted(root, options, work):
    """Run `work` in a forked process that has a file system of its own at `root`; return its exit code, None where
    the kernel does not let a user have one."""
    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            uid, gid = os.getuid(), os.getgid()
            new = 0x10000000 | 0x00020000  # a user and a mount name space
            if libc.unshare(new) == 0:
                Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
                if libc.mount(b"tmpfs", str(root).encode(), b"tmpfs", 0, options.encode()) == 0:
                    work(libc)
                    code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == 99 else code


def big(batch):
    return [{"mean": x.mean() * torch.ones(50_000)} for x in batch]


BIG = {"mean": Producer("big")}


def test_on_a_real_disk_that_is_full_the_store_stays_loadable_and_goes_on_when_there_is_space(tmp_path):
    def work(libc):
        with pytest.raises(OSError, match=FULL):
            make(tmp_path, items(), lambda: big, BIG, batch=2, shard_items=4, quiet=True)
        kept = entries(tmp_path)
        assert 0 < len(kept) < 20
        assert libc.mount(None, str(tmp_path).encode(), None, 32, b"size=16m") == 0  # remount, larger
        assert make(tmp_path, items(), lambda: big, BIG, batch=2, shard_items=4, quiet=True).there == len(kept)
        assert len(entries(tmp_path)) == 20

    code = mounted(tmp_path, "size=2m", work)
    if code is None:
        pytest.skip("this kernel gives users no name spaces of their own")
    assert code == 0


def test_a_read_only_folder_can_be_read_and_says_so_when_written_to(tmp_path):
    def work(libc):
        make(tmp_path, items(3), build, MADE, quiet=True)
        with Cache(tmp_path, private_index=True) as cache:
            cache.put("late", {"mean": torch.ones(2)})  # which the shared index does not know yet
        assert libc.mount(None, str(tmp_path).encode(), None, 32 | 1, b"") == 0  # remount, read-only
        assert len(entries(tmp_path)) == 4
        with pytest.raises(OSError, match=r"the file system is read-only at .*cache into another folder"):
            make(tmp_path, items(), build, MADE, quiet=True)
        with pytest.raises(OSError, match="the file system is read-only"):
            Cache(tmp_path / "new")
        assert len(entries(tmp_path)) == 4

    code = mounted(tmp_path, "size=2m", work)
    if code is None:
        pytest.skip("this kernel gives users no name spaces of their own")
    assert code == 0


def test_a_folder_that_may_not_be_written_to_is_named_with_the_remedy(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(OSError, match=r"the folder may not be written to at .*: change its permissions"):
        Cache(tmp_path / "new")


def test_the_command_line_lists_names_what_is_stale_verifies_frees_and_rebuilds(tmp_path, capsys):
    from trainers.cli import app

    def said(*words):
        try:
            app(["cache", *map(str, words)], prog_name="trainers")
        except SystemExit as end:
            return end.code or 0, capsys.readouterr().out
        raise AssertionError("a command ends")

    root = tmp_path / "cache"
    report = make(root, items(3), build, MADE, quiet=True)
    code, text = said("ls", root)
    assert (code, "3 entries in 1 shards" in text, "mean: 3  model mean, revision 1" in text) == (0, True, True)
    assert said("stale", root, report.path) == (0, "0 stale\n")
    present = tmp_path / "present.yaml"
    present.write_text(
        yaml.safe_dump(
            {"producers": {"mean": {"model": "mean", "revision": "2", "dtype": "float32"}}, "spec": {"fps": 8}}
        )
    )
    code, text = said("stale", root, present)
    assert code == 0
    assert '3 x mean: revision: "1" -> "2"' in text
    assert "3 x entry: spec.fps: 16 -> 8" in text
    assert said("verify", root) == (0, "0 wrong\n")
    shard = next(root.glob("*.safetensors"))
    body = bytearray(shard.read_bytes())
    body[-1] ^= 1
    shard.write_bytes(body)
    assert said("verify", root)[0] == 1
    code, text = said("verify", root, "--drop")
    assert (code, "1 wrong, 1 dropped" in text) == (1, True)
    assert said("verify", root) == (0, "0 wrong\n")
    assert said("rebuild", root) == (0, "2 entries in 1 shards\n")
    assert "MB freed" in said("gc", root)[1]
    assert "6 stale, 2 dropped" not in said("stale", root, present)[1]
    assert "4 stale, 2 dropped" in said("stale", root, present, "--drop")[1]
    assert "0 entries" in said("ls", root)[1]
    present.write_text("producers: {mean: {modle: x}}")
    assert said("stale", root, present)[0] == 2
