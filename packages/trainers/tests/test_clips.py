"""Clips from files: what an item is, when it is cut, what stands in for a broken one; none of it by chance or by
thread."""

import gc
import json
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from trainers import Length, Order, Stage, VideoError, fit, video
from trainers import clips as clips_module
from trainers.buckets import Buckets
from trainers.clips import Clips
from trainers.feed import Feed
from trainers.records import Record

CPU = torch.device("cpu")
TABLE = Buckets(sizes=((32, 48), (48, 32)), frames=(5, 9), fps=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five wide clips and five tall ones, two of each too short for nine frames; grey tells which frame it is."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(10):
        height, width = (32, 48) if i < 5 else (48, 32)
        grey = (10 + 20 * i + np.arange(8 if i % 3 == 0 else 20)).astype(np.uint8)[:, None, None, None]
        video.write(folder / f"{i}.mp4", np.broadcast_to(grey, (len(grey), height, width, 3)), 8, lossless=True)
    return folder


def records(folder):
    return [
        Record(path, f"grey {path.stem}", {"q0": "none"}, ("light",), path.stem)
        for path in sorted(folder.glob("*.mp4"))
    ]


def clips(folder, **how):
    return Clips(records(folder), TABLE, **{"ahead": 0} | how)


def begins(item):
    """Frame number at which an item begins, from its pixels."""
    return int(item["frames"][0, 0, 0, 0]) - 10 - 20 * int(item["id"])


def test_an_item_holds_frames_true_times_and_what_the_record_says(folder):
    item = clips(folder)[1]
    assert item["frames"].shape == (9, 32, 48, 3)
    assert item["frames"].dtype == torch.uint8
    assert item["times_s"].tolist() == [i / 8 for i in range(9)]
    assert (item["id"], item["caption"], item["labels"], item["annotation"]) == (
        "1",
        "grey 1",
        ("light",),
        {"q0": "none"},
    )


def test_each_clip_goes_to_its_bucket_and_a_batch_holds_one(folder):
    data = clips(folder)
    assert [TABLE.specs[b].frames for b in data.bucket] == [5, 9, 9] * 3 + [5]
    assert [TABLE.specs[b].height for b in data.bucket] == [32] * 5 + [48] * 5
    feed = Feed(data, batch_size=2, seed=0)
    shapes = set()
    for _ in range(9):
        batch = feed.next()
        held = batch.get(CPU)
        shapes.add(tuple(held["frames"].shape))
        assert held["id"] == [str(i) for i in batch.indices.tolist()]
        assert held["times_s"].shape == held["frames"].shape[:2]
    assert shapes == {(2, 5, 32, 48, 3), (2, 9, 32, 48, 3), (2, 5, 48, 32, 3), (2, 9, 48, 32, 3)}


def test_a_random_start_depends_on_seed_epoch_and_clip_alone(folder):
    data = clips(folder, start="random", seed=3)
    starts = [[begins(data.at(i, epoch)) for i in range(1, 9)] for epoch in range(4)]
    assert starts[2:] == [[begins(data.at(i, epoch)) for i in range(1, 9)] for epoch in (2, 3)]
    assert len({tuple(row) for row in starts}) == 4
    every = [start for row in starts for i, start in enumerate(row, 1) if i % 3]
    assert min(every) >= 0
    assert max(every) <= 11  # the last from which nine of twenty fit
    assert len(set(every)) > 6
    fewer = Clips(records(folder)[4:], TABLE, start="random", seed=3, ahead=0)  # another place in the list
    assert [begins(fewer.at(i - 4, 2)) for i in range(4, 9)] == starts[2][3:]
    other = clips(folder, start="random", seed=4)
    assert [begins(other.at(i, 0)) for i in range(1, 9)] != starts[0]
    assert {begins(clips(folder).at(i, epoch)) for i in (1, 8) for epoch in range(2)} == {0}


def broken_copy(folder, tmp_path, *stems):
    """The folder again, with clips that open and then break: their packets are noise."""
    shutil.copytree(folder, tmp_path / "clips")
    for stem in stems:
        path = tmp_path / "clips" / f"{stem}.mp4"
        data = bytearray(path.read_bytes())
        begin = data.index(b"mdat") + 4
        middle = (begin + len(data)) // 2
        data[middle:] = np.random.default_rng(0).integers(0, 255, len(data) - middle, dtype=np.uint8).tobytes()
        path.write_bytes(data)
    return tmp_path / "clips"


def test_a_clip_that_breaks_late_is_replaced_by_one_of_its_bucket_and_listed_once(folder, tmp_path):
    where = broken_copy(folder, tmp_path, "1")
    report = tmp_path / "skipped.jsonl"
    data = clips(where, decoder="pyav", report=report)
    assert len(data) == 10  # its header and first frame are sound
    stand_ins = [data.at(1, epoch)["id"] for epoch in range(6)]
    assert set(stand_ins) == {"2", "4"}  # wide, nine frames
    again = clips(where, decoder="pyav", report=report)
    assert [again.at(1, epoch)["id"] for epoch in reversed(range(6))] == stand_ins[::-1]
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert [line["path"] for line in lines] == ["1"]
    assert "1.mp4" in lines[0]["why"]


def test_a_clip_that_breaks_late_may_stop_the_run_with_its_path(folder, tmp_path):
    data = clips(broken_copy(folder, tmp_path, "1"), decoder="pyav", broken="stop")
    assert data.at(2, 0)["id"] == "2"
    with pytest.raises(VideoError, match=r"clips/1\.mp4, sample '1'"):
        data.at(1, 0)


def test_when_every_clip_is_broken_the_run_ends_and_says_so(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "clips")
    data = clips(tmp_path / "clips")
    shutil.rmtree(tmp_path / "clips")
    with pytest.raises(VideoError, match=r"8 clips in a row could not be read.*still there"):
        data.at(0, 0)


def test_what_cannot_be_used_is_listed_before_training(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "clips")
    (tmp_path / "clips" / "0.mp4").write_bytes(b"no film")
    video.write(tmp_path / "clips" / "5.mp4", np.zeros((3, 32, 48, 3), np.uint8), 8)
    data = clips(tmp_path / "clips", report=tmp_path / "skipped.jsonl")
    assert [record.id for record in data.records] == ["1", "2", "3", "4", "6", "7", "8", "9"]
    assert [(item.path, "cannot be decoded" in item.why, "at least 5 frames" in item.why) for item in data.skipped] == [
        ("0", True, False),
        ("5", False, True),
    ]
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match=r"none of the 1 clips.*0: "):
        Clips(records(tmp_path / "clips")[:1], TABLE)


def test_a_header_that_the_record_states_is_not_read_again(folder, monkeypatch):
    stated = {"width": "48", "height": 32, "fps": 8, "duration": 2.5}
    known = [Record(record.path, "x", {}, (), record.id, stated) for record in records(folder)[1:3]]
    monkeypatch.setattr(clips_module, "probe", lambda path: pytest.fail("opened"))
    assert [TABLE.specs[b].frames for b in Clips(known, TABLE).bucket] == [9, 9]


def test_the_digest_names_files_captions_table_and_cut(folder):
    digests = {
        clips(folder).digest,
        Clips(records(folder)[1:], TABLE).digest,
        Clips(records(folder), Buckets(sizes=((32, 48), (48, 32)), frames=(5,), fps=8)).digest,
        clips(folder, start="random").digest,
        clips(folder, start="random", seed=1).digest,
    }
    assert len(digests) == 5
    assert clips(folder, ahead=3, threads=4).digest == clips(folder).digest


class Slow:
    """Items that take the longer the earlier they come; counts how many are under way."""

    ahead, threads = 3, 3

    def __init__(self, fails=()):
        self.made, self.fails, self.lock = [], fails, threading.Lock()

    def __len__(self):
        return 20

    def __getitem__(self, index):
        time.sleep(0.002 * (index % 3))
        if index in self.fails:
            raise VideoError(f"clip-{index}.mp4 is broken")
        with self.lock:
            self.made.append(index)
        return {"x": torch.full((2,), float(index)), "thread": threading.current_thread().name}


def test_loading_ahead_changes_neither_order_nor_bits(folder):
    def batches(ahead, threads=2):
        feed = Feed(clips(folder, start="random", ahead=ahead, threads=threads), batch_size=2, seed=5)
        held = [(feed.next(), feed.state()) for _ in range(12)]
        made = [(batch.indices.tolist(), batch.get(CPU), state) for batch, state in held]
        feed.close()
        return made

    plain = batches(0)
    for ahead, threads in ((1, 1), (3, 4)):
        for (indices, batch, state), (other, held, there) in zip(plain, batches(ahead, threads), strict=True):
            assert (indices, state) == (other, there)
            assert batch["id"] == held["id"]
            assert torch.equal(batch["frames"], held["frames"])
            assert torch.equal(batch["times_s"], held["times_s"])


def test_no_more_is_made_ahead_than_asked_for():
    data = Slow()
    feed = Feed(data, batch_size=2, seed=0)
    for n in range(1, 6):
        feed.next().get(CPU)
        deadline = time.monotonic() + 5
        while len(data.made) < 2 * (n + 3) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(data.made) == 2 * (n + 3)  # the batch at hand and three more
    feed.close()
    assert all(name.startswith("trainers-feed") for name in Feed(data, batch_size=4, seed=0).next().get(CPU)["thread"])


def test_a_batch_at_hand_is_made_though_its_feed_is_dropped():
    data = Slow()
    data.threads = 1
    batch = Feed(data, batch_size=8, seed=0).next()
    gc.collect()
    assert len(batch.get(CPU)["thread"]) == 8


def test_data_that_does_not_ask_is_loaded_by_the_thread_that_trains():
    data = Slow()
    data.ahead = 0
    assert set(Feed(data, batch_size=4, seed=0).next().get(CPU)["thread"]) == {"MainThread"}
    assert len(data.made) == 4


@pytest.mark.parametrize("ahead", [0, 3])
def test_an_error_comes_at_its_own_batch_and_names_file_and_sample(ahead):
    data = Slow(fails={int(Order(20, seed=0).take(20)[9])})
    data.ahead = ahead
    feed = Feed(data, batch_size=4, seed=0)
    feed.next().get(CPU)
    feed.next().get(CPU)
    with pytest.raises(VideoError, match=r"clip-\d+\.mp4 is broken") as caught:
        feed.next().get(CPU)
    assert caught.value.__notes__ == [f"while sample {min(data.fails)} was loaded"]


def trained(folder, out, *, steps=7, stop_at=None, seed=0, **how):
    torch.manual_seed(0)
    net = nn.Linear(3, 1)

    class Killed(Exception):
        pass

    seen = []

    def loss(batch, progress):
        if progress.step == stop_at:
            raise Killed
        seen.append(
            (batch["id"], [begins({"frames": f, "id": i}) for f, i in zip(batch["frames"], batch["id"], strict=True)])
        )
        weight = torch.exp(-batch["times_s"]).float()[..., None]
        return {"fit": net((batch["frames"].float().mean((2, 3)) / 255 * weight).mean(1)).square().mean()}

    data = clips(folder, start="random", **how)
    stage = Stage("a", {"net": 1.0}, loss, data, batch_size=2, accumulate=2, length=Length(steps=steps))
    try:
        fit([stage], {"net": net}, out=out, seed=seed, resume=True, save_every=2, quiet=True)
    except Killed:
        return None, seen
    return net.weight.detach().clone(), seen


def test_training_on_clips_ends_in_the_same_bits_ahead_or_not_killed_or_not_though_clips_break(folder, tmp_path):
    where, report = broken_copy(folder, tmp_path, "1", "7"), tmp_path / "skipped.jsonl"
    how = {"decoder": "pyav", "report": report}
    straight, seen = trained(where, tmp_path / "a", ahead=0, **how)
    ahead, seen_ahead = trained(where, tmp_path / "b", ahead=3, threads=3, stop_at=5, **how)
    assert ahead is None
    assert seen_ahead == seen[:10]
    resumed, rest = trained(where, tmp_path / "b", ahead=2, **how)
    assert rest == seen[8:]  # from the checkpoint at step 4, two batches a step
    assert torch.equal(straight, resumed)
    assert {json.loads(line)["path"] for line in report.read_text().splitlines()} == {"1", "7"}
