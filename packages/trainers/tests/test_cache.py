"""The cache keeps what was flushed, knows what is broken, and never mixes up what it was made from."""

import json
import multiprocessing
import os
import signal
import sqlite3

import numpy as np
import pytest
import torch
import toy

from trainers import Cache, Length, Stage, TrainingWarning, cache_index, cache_shard, fit
from trainers.cache import Producer, Source
from trainers.cache_upkeep import drop, gc, held, stale, verify
from trainers.video import ClipSpec

VAE = Producer("vae", "a", dtype="float32", shape="2 t")
NEXT = Producer("vae", "b", dtype="float32", shape="2 t")
FLOW = Producer("raft", dtype="float32", shape="1 t")


def fill(cache, count=5):
    keys = [cache.key(f"clip {i}".encode(), producer="vae") for i in range(count)]
    for i, key in enumerate(keys):
        cache.put(key, {"latent": torch.full((2, 3), float(i)), "mask": torch.tensor([True, False])}, {"number": i})
    return keys


def entries(root):
    """All that a store holds, as a reader sees it."""
    with Cache(root) as cache:
        return {
            key: (cache.meta(key), {name: cache.get(key, name).tolist() for name in cache.names(key)})
            for key in cache.keys()  # noqa: SIM118
        }


def shards(root):
    return sorted(root.glob("*.safetensors"))


def test_what_is_put_comes_back_bit_equal_before_and_after_a_flush_and_from_another_process_view(tmp_path):
    bf16 = torch.randn(3, 4).bfloat16()
    with Cache(tmp_path, shard_items=2) as cache:
        keys = fill(cache)
        cache.put("k", {"text": bf16}, {"caption": "a ball"})
        assert torch.equal(cache.get("k", "text"), bf16)
        assert cache.keys() == [*keys, "k"]
    with Cache(tmp_path) as cache:
        assert cache.keys() == [*keys, "k"]
        assert torch.equal(cache.get("k", "text"), bf16)
        assert cache.meta("k") == {"caption": "a ball"}
        assert [cache.get(key, "latent")[0, 0].item() for key in keys] == [0, 1, 2, 3, 4]
        assert cache.has(keys[0], ["latent", "mask"])
        assert not cache.has(keys[0], ["flow"])
        assert not cache.has("none")
        assert verify(cache) == []
    assert len(shards(tmp_path)) == 3


def test_the_key_changes_with_content_spec_and_producer_and_not_with_the_name_or_the_type_of_a_number(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"same")
    (tmp_path / "b.mp4").write_bytes(b"same")
    (tmp_path / "c.mp4").write_bytes(b"other")
    spec = ClipSpec(17, 16, 32, 32)
    key = Cache.key(tmp_path / "a.mp4", spec=spec, producer="vae-1")
    assert key == Cache.key(tmp_path / "b.mp4", spec=spec, producer="vae-1")
    assert key == Cache.key(b"same", spec=ClipSpec(17, 16.0, 32, 32), producer="vae-1")
    others = [
        Cache.key(tmp_path / "c.mp4", spec=spec, producer="vae-1"),
        Cache.key(tmp_path / "a.mp4", spec=ClipSpec(17, 16, 32, 64), producer="vae-1"),
        Cache.key(tmp_path / "a.mp4", spec=spec, producer="vae-2"),
        Source.of(tmp_path / "a.mp4", spec=spec).key,
    ]
    assert len({key, *others}) == 5
    with pytest.raises(ValueError, match="what JSON holds"):
        Cache.key(b"same", spec={"fps": float("nan")})


def test_an_entry_gains_artefacts_later_and_what_it_has_is_not_written_again(tmp_path):
    source = Source.of(b"clip", spec={"fps": 16})
    with Cache(tmp_path) as cache:
        times = torch.arange(3, dtype=torch.float64) / 16
        first = {"latent": torch.zeros(2, 3), "latent_logvar": torch.ones(2, 3), "times_s": times}
        cache.put(source, first, {"caption": "a ball"}, producers={"latent": VAE, "latent_logvar": VAE})
    before = shards(tmp_path)[0].read_bytes()
    with Cache(tmp_path) as cache:
        assert not cache.has(source.key, {"latent": VAE, "flow": FLOW})
        assert cache.put(source.key, {"flow": torch.ones(1, 3)}, {"caption": "no", "n": 1}, producers={"flow": FLOW})
        assert not cache.put(source, {"latent": torch.ones(2, 3)}, producers={"latent": VAE})
        assert cache.has(source.key, {"latent": VAE, "flow": FLOW})  # before the flush too
    with Cache(tmp_path) as cache:
        assert cache.names(source.key) == ["flow", "latent", "latent_logvar", "times_s"]
        assert cache.meta(source.key) == {"caption": "a ball", "n": 1}
        assert cache.source(source.key) == source
        assert cache.producers(source.key, "flow") == [FLOW]
        assert cache.producers(source.key, "times_s") == [None]
        assert torch.equal(cache.get(source.key, "latent"), torch.zeros(2, 3))
        assert torch.equal(cache.get(source.key, "times_s"), times)
        assert ("flow", FLOW, 1) in [(row.name, row.producer, row.entries) for row in held(cache)]
    assert shards(tmp_path)[0].read_bytes() == before
    assert len(shards(tmp_path)) == 2


def test_two_recipes_keep_both_latents_of_a_clip_in_one_store_and_share_its_flow(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put("k", {"latent": torch.zeros(2, 3), "flow": torch.ones(1, 3)}, producers={"latent": VAE, "flow": FLOW})
        cache.put("k", {"latent": torch.ones(2, 3)}, producers={"latent": NEXT})
        assert cache.get("k", "latent", VAE).sum() == 0
        assert cache.get("k", "latent", NEXT).sum() == 6
        with pytest.raises(ValueError, match="was made by vae a, vae b: say which"):
            cache.get("k", "latent")
        old, new = (cache.view(["k"], {"latent": vae, "flow": FLOW}) for vae in (VAE, NEXT))
        assert old.digest != new.digest
        assert (old[0]["latent"].sum(), new[0]["latent"].sum()) == (0, 6)
        assert verify(cache) == []


def test_what_the_present_config_would_not_make_is_named_with_what_differs(tmp_path):
    spec, other = {"fps": 16, "size": [480, 832]}, {"fps": 8, "size": [480, 832]}
    with Cache(tmp_path) as cache:
        for name, of, vae in (("a", spec, VAE), ("b", other, VAE), ("c", spec, NEXT)):
            cache.put(Source.of(name.encode(), spec=of), {"latent": torch.zeros(2, 3)}, producers={"latent": vae})
        cache.put("d", {"latent": torch.zeros(2, 3)})
        keys = {name: Source.of(name.encode(), spec=of).key for name, of in (("a", spec), ("b", other), ("c", spec))}
        found = {(row.key, row.artefact): row.why for row in stale(cache, {"latent": NEXT}, spec=spec)}
        assert found == {
            (keys["b"], ""): ("spec.fps: 8 -> 16",),
            (keys["a"], "latent"): ('revision: "a" -> "b"',),
            (keys["b"], "latent"): ('revision: "a" -> "b"',),
            ("d", "latent"): ('producer: not recorded -> "vae"',),
        }
        assert stale(cache, {"text": VAE}) == []
        assert drop(cache, stale(cache, {"latent": NEXT}, spec=spec)) == 3
        assert cache.keys() == [keys["c"]]


def test_what_its_producer_would_not_make_is_refused_and_axes_must_agree_within_an_entry(tmp_path):
    with Cache(tmp_path) as cache:
        both = {"latent": VAE, "flow": FLOW}
        for wrong, why in (
            ({"latent": torch.zeros(3, 3), "flow": torch.zeros(1, 3)}, "has shape .3, 3., its producer says '2 t'"),
            ({"latent": torch.zeros(2, 3).half(), "flow": torch.zeros(1, 3)}, "is torch.float16, its prod"),
            ({"latent": torch.zeros(2, 3), "flow": torch.zeros(1, 4)}, "has t = 4 where another artefact has 3"),
            ({"latent": torch.zeros(2, 3), "flow": torch.zeros(3)}, "has shape .3,., its producer"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=why):
                cache.put("k", wrong, producers=both)
        for times in (torch.arange(3.0), torch.zeros(3, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)):
            with pytest.raises(ValueError, match="'times_s' of k must be rising float64 seconds"):
                cache.put("k", {"times_s": times})
        assert not cache.has("k")
    for fields, why in (({"model": ""}, "a producer with a model"), ({"model": "m", "dtype": "float33"}, "a dtype as"),
                        ({"model": "m", "shape": "2 T"}, "expected axes like")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            Producer(**fields)


def test_an_artefact_that_disagrees_with_its_entry_s_axes_is_found_by_verify(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put("k", {"latent": torch.zeros(2, 3)}, producers={"latent": VAE})
        cache.put("k", {"flow": torch.zeros(1, 4)}, producers={"flow": FLOW})  # alone it is as its producer says
        assert [(bad.artefact, bad.why) for bad in verify(cache)] == [
            ("flow", "has t = 4 where another artefact has 3")
        ]


@pytest.mark.parametrize("when", ["before the shard", "between shard and index", "inside the index"])
def test_a_kill_loses_what_is_in_no_shard_yet_and_the_work_goes_on(tmp_path, when):
    child = os.fork()
    if child == 0:
        try:
            cache = Cache(tmp_path, shard_items=2)
            fill(cache, 4)
            cache.put("late", {"latent": torch.ones(1)})

            def die(*_):
                os.kill(os.getpid(), signal.SIGKILL)

            if when == "before the shard":
                cache_shard.sync = die
            elif when == "between shard and index":
                cache.index.add = die
            else:
                cache_index._json = die
            cache.flush()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    lost = when == "before the shard"
    with Cache(tmp_path, shard_items=2) as cache:
        assert len(cache.keys()) == 5 - lost
        assert cache.has("late") is not lost
        assert verify(cache) == []
        cache.put("late", {"latent": torch.ones(1)})
    with Cache(tmp_path) as cache:
        assert cache.has("late")
        assert (gc(cache) > 0) is lost  # the folder that the killed writer left
        assert gc(cache) == 0
        assert verify(cache) == []
    assert not list(tmp_path.glob(".writing-*"))


def test_of_two_writers_of_a_key_the_first_to_close_its_shard_wins_for_every_reader(tmp_path):
    with Cache(tmp_path) as ours, Cache(tmp_path, private_index=True) as theirs:
        ours.put("same", {"latent": torch.zeros(2), "extra": torch.zeros(1)})
        ours.put("mine", {"latent": torch.ones(2)})
        theirs.put("same", {"latent": torch.full((2,), 7.0)}, {"by": "them"})
        theirs.flush()
        ours.flush()
        ours.refresh()
        theirs.refresh()
        for cache in (ours, theirs):
            assert sorted(cache.keys()) == ["mine", "same"]
            assert cache.names("same") == ["extra", "latent"]
            assert cache.get("same", "latent").tolist() == [7.0, 7.0]
            assert cache.get("mine", "latent").tolist() == [1.0, 1.0]
            assert verify(cache) == []
    before = entries(tmp_path)
    with Cache(tmp_path) as cache:
        size = sum(path.stat().st_size for path in shards(tmp_path))
        assert gc(cache) == size - sum(path.stat().st_size for path in shards(tmp_path)) > 0
        assert gc(cache) == 0
    assert entries(tmp_path) == before


def test_an_entry_that_another_writer_flushed_meanwhile_is_left_as_it_is(tmp_path):
    with Cache(tmp_path) as ours, Cache(tmp_path) as theirs:
        assert not ours.has("same")
        theirs.put("same", {"latent": torch.full((2,), 7.0)})
        theirs.flush()
        assert not ours.put("same", {"latent": torch.zeros(2)})
        ours.flush()
        assert torch.equal(ours.get("same", "latent"), torch.full((2,), 7.0))
    assert len(shards(tmp_path)) == 1  # and no bytes are written that nobody will read


def test_what_is_not_finite_or_empty_or_too_much_beside_is_refused_at_the_door(tmp_path):
    with Cache(tmp_path) as cache:
        for wrong in (torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.empty(0)):
            with pytest.raises(ValueError, match=r"'latent' of k (holds NaN|is empty)"):
                cache.put("k", {"latent": wrong})
        with pytest.raises(ValueError, match="make an artefact of it"):
            cache.put("k", {"latent": torch.ones(1)}, {"maps": [0.5] * 300_000})
        with pytest.raises(ValueError, match="no '/' in names"):
            cache.put("k", {"a/b": torch.ones(1)})
        cache.put("k", {"latent": torch.ones(1)})
        with pytest.raises(ValueError, match="already holds"):
            cache.put("k", {"latent": torch.zeros(1)})
    with pytest.raises(ValueError, match="shard_items >= 1"):
        Cache(tmp_path, shard_items=0)


def test_the_open_shard_is_closed_when_it_holds_enough_bytes(tmp_path):
    with Cache(tmp_path, shard_bytes=1000) as cache:
        for i in range(5):
            cache.put(str(i), {"latent": torch.zeros(100)})
            assert cache.waiting <= 2
        assert len(shards(tmp_path)) == 1


def test_verify_finds_flipped_bits_and_a_dropped_artefact_can_be_made_again(tmp_path):
    with Cache(tmp_path, shard_items=2) as cache:
        keys = fill(cache, 4)
    broken = bytearray(shards(tmp_path)[0].read_bytes())
    broken[-1] ^= 1
    shards(tmp_path)[0].write_bytes(broken)
    with Cache(tmp_path) as cache:
        bad = verify(cache)
        assert [item.why for item in bad] == ["differs from its checksum"]
        assert drop(cache, bad) == 1
        assert verify(cache) == []
        (tmp_path / "index.sqlite").unlink()
    with Cache(tmp_path) as cache:  # what was dropped stays so, whatever becomes of the index
        key, name = bad[0].key, bad[0].artefact
        assert not cache.has(key, [name])
        assert cache.put(key, {name: torch.ones(2, 3)}, {"again": True})
    with Cache(tmp_path) as cache:
        assert cache.keys() == keys
        assert cache.meta(key) == {"number": keys.index(key), "again": True}
        assert gc(cache) > 0
        assert cache.keys() == keys
        assert cache.get(key, name).tolist() == torch.ones(2, 3).tolist()
        assert verify(cache) == []
        assert not list(tmp_path.glob("*.dropped.json"))


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "foreign"])
def test_a_shard_that_is_cut_or_gone_is_said_on_opening_and_its_entries_count_as_absent(tmp_path, damage):
    with Cache(tmp_path, shard_items=2) as cache:
        keys = fill(cache, 4)
    shard = shards(tmp_path)[1]
    if damage == "gone":
        shard.unlink()
    elif damage == "foreign":  # as large as it was
        shard.write_bytes(b"x" * shard.stat().st_size)
        (tmp_path / "index.sqlite").unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: -5 if damage == "cut" else 0])
    with pytest.warns(TrainingWarning, match="count") as said:
        cache = Cache(tmp_path)
    with cache:
        assert cache.keys() == keys[:2]
        assert [bad.key for bad in verify(cache)] == ([] if damage == "gone" else [""])
        for key in keys[2:]:
            assert cache.put(key, {"latent": torch.zeros(2, 3)})
        gc(cache)
        assert verify(cache) == []
    assert any(shard.name in str(warning.message) for warning in said)
    assert sorted(entries(tmp_path)) == sorted(keys)
    assert len(shards(tmp_path)) == 2


def damaged(path, how):
    if how == "gone":
        path.unlink()
    elif how == "no database":
        path.write_bytes(b"not a database, and longer than a header of SQLite" * 100)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "pages":
        body = bytearray(path.read_bytes())
        body[4096:] = bytes(len(body) - 4096)
        body[27] ^= 1  # the counter of changes: without it a connection believes what it has in memory
        path.write_bytes(body)
    else:
        with sqlite3.connect(path) as db:
            sql = "delete from artefacts" if how == "rows" else "pragma user_version = 99"
            db.execute(sql)
        db.close()


@pytest.mark.parametrize("how", ["gone", "no database", "cut", "pages", "rows", "version"])
def test_an_index_that_is_lost_or_damaged_is_made_anew_from_the_shards(tmp_path, how):
    with Cache(tmp_path, shard_items=2) as cache:
        fill(cache)
        cache.put("k", {"latent": torch.zeros(2, 3)}, {"n": 1}, producers={"latent": VAE})
    before = entries(tmp_path)
    damaged(tmp_path / "index.sqlite", how)
    if how in ("gone", "version"):
        assert entries(tmp_path) == before
    else:
        with pytest.warns(TrainingWarning, match="made anew from the shards; no entry is lost"):
            assert entries(tmp_path) == before
    assert entries(tmp_path) == before


def test_an_index_that_breaks_under_way_is_made_anew_too(tmp_path):
    with Cache(tmp_path, shard_items=2) as cache:
        keys = fill(cache)
        cache.flush()
        damaged(tmp_path / "index.sqlite", "pages")
        with pytest.warns(TrainingWarning, match="made anew from the shards"):
            assert cache.keys() == keys
        assert verify(cache) == []
        cache.index.rebuild()
        assert cache.keys() == keys


def test_an_index_that_another_process_keeps_locked_is_passed_by_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_index, "LOCK_S", 0.05)
    with Cache(tmp_path, shard_items=2) as cache:
        keys = fill(cache)
    before = entries(tmp_path)
    locker = sqlite3.connect(tmp_path / "index.sqlite")
    locker.execute("begin exclusive")
    with pytest.warns(TrainingWarning, match="locked.*going on with a private one"):
        cache = Cache(tmp_path)
    with cache:
        assert cache.keys() == keys
        cache.put("k", {"latent": torch.zeros(1)})
    locker.close()
    assert entries(tmp_path) == before | {"k": ({}, {"latent": [0.0]})}


def test_an_index_that_is_locked_under_way_costs_no_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_index, "LOCK_S", 0.05)
    with Cache(tmp_path) as cache:
        cache.put("k", {"latent": torch.zeros(1)})
        locker = sqlite3.connect(tmp_path / "index.sqlite")
        locker.execute("begin exclusive")
        with pytest.warns(TrainingWarning, match="going on with a private one"):
            cache.flush()
        assert cache.has("k")
        cache.put("l", {"latent": torch.zeros(1)})
        locker.close()
    assert sorted(entries(tmp_path)) == ["k", "l"]


def test_a_private_index_leaves_the_shared_one_alone_and_the_next_reader_catches_up(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put("k", {"latent": torch.zeros(1)})
    before = (tmp_path / "index.sqlite").read_bytes()
    with Cache(tmp_path, private_index=True) as cache:
        assert cache.has("k")
        cache.put("l", {"latent": torch.zeros(1)})
    assert (tmp_path / "index.sqlite").read_bytes() == before
    assert sorted(entries(tmp_path)) == ["k", "l"]


def test_a_drop_that_cannot_be_read_is_said(tmp_path):
    with Cache(tmp_path) as cache:
        fill(cache, 1)
    (tmp_path / "0.dropped.json").write_text("[[1,")
    with pytest.warns(TrainingWarning, match="counts as there again"):
        assert len(entries(tmp_path)) == 1


def test_what_is_noted_survives_the_artefact_that_it_came_with(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put("k", {"latent": torch.zeros(2, 3)}, {"caption": "a ball"}, producers={"latent": VAE})
        cache.flush()
        cache.put("k", {"flow": torch.zeros(1, 3)}, producers={"flow": FLOW})
        drop(cache, stale(cache, {"latent": NEXT}))
        gc(cache)
        assert (cache.names("k"), cache.meta("k")) == (["flow"], {"caption": "a ball"})
        gc(cache)
        cache.index.rebuild()
        assert (cache.names("k"), cache.meta("k")) == (["flow"], {"caption": "a ball"})
        drop(cache, ["k"])
        assert cache.keys() == []
        cache.put("k", {"flow": torch.zeros(1, 3)}, {"caption": "a cube"})
        assert cache.meta("k") == {"caption": "a cube"}
        gc(cache)
        assert cache.meta("k") == {"caption": "a cube"}
    assert len(shards(tmp_path)) == 1


def test_gc_leaves_what_a_living_writer_is_at(tmp_path):
    with Cache(tmp_path) as cache:
        writing = tmp_path / f".writing-{cache_shard.socket.gethostname()}-{os.getpid()}-0"
        elsewhere = tmp_path / ".writing-other-host-1-0"
        for folder in (writing, elsewhere):
            folder.mkdir()
        gc(cache)
        assert writing.exists()
        assert elsewhere.exists()
        os.utime(elsewhere, (0, 0))
        gc(cache)
        assert not elsewhere.exists()


def test_shards_are_for_whom_the_folder_is(tmp_path):
    before = os.umask(0o027)
    try:
        with Cache(tmp_path) as cache:
            fill(cache, 1)
    finally:
        os.umask(before)
    assert shards(tmp_path)[0].stat().st_mode & 0o777 == 0o640


def test_a_view_is_a_data_set_that_trains_and_names_what_is_missing(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        keys = fill(cache)
        cache.flush()
        view = cache.view(keys[1:], ["latent"])
        assert len(view) == 4
        assert torch.equal(view[0]["latent"], torch.ones(2, 3))
        assert view.stacked()["latent"].shape == (4, 2, 3)
        assert view.digest != cache.view(keys, ["latent"]).digest
        with pytest.raises(ValueError, match=r"has no 'flow'.*run the cache step"):
            cache.view(keys, ["latent", "flow"])
        with pytest.raises(ValueError, match="has no"):
            cache.get("nothing", "latent")
        with pytest.raises(ValueError, match="has no"):
            cache.meta("nothing")
        parts = toy.groups()

        def loss(batch, progress):
            return {"mse": (parts["head"].weight.sum() - batch["latent"]).square().mean()}

        stage = Stage("a", {"head": 1.0}, loss, view, 2, Length(steps=3))
        assert fit([stage], parts, out=tmp_path / "run", quiet=True).global_step == 3


def _first(view, queue):
    queue.put(view[0]["latent"].numpy())


def test_a_view_and_a_store_go_on_in_a_forked_process(tmp_path):
    with Cache(tmp_path) as cache:
        keys = fill(cache)
        view = cache.view(keys[1:], ["latent"])
        view[1]
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=lambda: queue.put((view[0]["latent"].sum().item(), cache.has(keys[0]))))
        child.start()
        assert queue.get(timeout=20) == (6.0, True)
        child.join()
        assert cache.keys() == keys
    loader = torch.utils.data.DataLoader(view, batch_size=2)
    assert [batch["latent"][:, 0, 0].tolist() for batch in loader] == [[1.0, 2.0], [3.0, 4.0]]


def test_a_view_can_be_pickled_for_a_spawned_worker(tmp_path):
    from multiprocessing.reduction import ForkingPickler

    with Cache(tmp_path) as cache:
        view = cache.view(fill(cache), ["latent"])
        view[0]
    again = ForkingPickler.loads(ForkingPickler.dumps(view))
    assert np.array_equal(again[1]["latent"], view[1]["latent"])
    assert again.digest == view.digest


def test_what_is_noted_is_json_and_comes_back_as_it_is_before_and_after_the_flush(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put("k", {"latent": torch.zeros(1)}, {"labels": ("a", "b")})
        before = cache.meta("k")
        cache.flush()
        assert cache.meta("k") == before == {"labels": ["a", "b"]}
        with pytest.raises(ValueError, match="JSON"):
            cache.put("l", {"latent": torch.zeros(1)}, {"x": float("nan")})
        assert json.loads(json.dumps(before)) == before
