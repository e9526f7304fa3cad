"""The cache keeps what was flushed, knows what is broken, and never mixes up what it was made from."""

import os
import signal

import pytest
import torch
import toy

from trainers import Cache, Length, Stage, fit
from trainers.video import ClipSpec


def fill(cache, count=5):
    keys = [cache.key(f"clip {i}".encode(), producer="vae") for i in range(count)]
    for i, key in enumerate(keys):
        cache.put(key, {"latent": torch.full((2, 3), float(i)), "mask": torch.tensor([True, False])}, {"number": i})
    return keys


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
        assert cache.verify() == []
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_the_key_changes_with_content_spec_and_producer_and_not_with_the_name(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"same")
    (tmp_path / "b.mp4").write_bytes(b"same")
    (tmp_path / "c.mp4").write_bytes(b"other")
    spec = ClipSpec(17, 16, 32, 32)
    key = Cache.key(tmp_path / "a.mp4", spec=spec, producer="vae-1")
    assert key == Cache.key(tmp_path / "b.mp4", spec=spec, producer="vae-1")
    others = [
        Cache.key(tmp_path / "c.mp4", spec=spec, producer="vae-1"),
        Cache.key(tmp_path / "a.mp4", spec=ClipSpec(17, 16, 32, 64), producer="vae-1"),
        Cache.key(tmp_path / "a.mp4", spec=spec, producer="vae-2"),
    ]
    assert len({key, *others}) == 4


@pytest.mark.parametrize("when", ["before the shard", "between shard and index", "inside the index"])
def test_a_kill_loses_the_open_shard_alone_and_the_work_goes_on(tmp_path, monkeypatch, when):
    child = os.fork()
    if child == 0:
        try:
            cache = Cache(tmp_path, shard_items=2)
            fill(cache, 4)
            cache.put("late", {"latent": torch.ones(1)})

            def die(*_):
                os.kill(os.getpid(), signal.SIGKILL)

            if when == "before the shard":
                die()
            from trainers import cache as module

            if when == "between shard and index":
                calls = []
                module.sync = lambda path: die() if calls else calls.append(path)
            else:
                module._checksum = die
            cache.flush()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with Cache(tmp_path, shard_items=2) as cache:
        assert len(cache.keys()) == 4
        assert not cache.has("late")
        assert cache.verify() == []
        cache.put("late", {"latent": torch.ones(1)})
    with Cache(tmp_path) as cache:
        assert cache.has("late")
        lost = len(list(tmp_path.glob("*.safetensors"))) - 3
        assert (cache.gc() > 0) == (lost > 0) == (when != "before the shard")
        assert cache.verify() == []


def test_a_key_that_another_writer_indexed_first_keeps_its_entry_and_costs_no_other(tmp_path):
    with Cache(tmp_path) as ours, Cache(tmp_path) as theirs:
        ours.put("same", {"latent": torch.zeros(2), "extra": torch.zeros(1)})
        ours.put("mine", {"latent": torch.ones(2)})
        theirs.put("same", {"latent": torch.full((2,), 7.0)})
        theirs.flush()
        ours.flush()
    with Cache(tmp_path) as cache:
        assert sorted(cache.keys()) == ["mine", "same"]
        assert cache.names("same") == ["latent"]
        assert cache.get("same", "latent").tolist() == [7.0, 7.0]
        assert cache.get("mine", "latent").tolist() == [1.0, 1.0]
        assert cache.verify() == []


def test_an_entry_that_another_writer_flushed_meanwhile_is_left_as_it_is(tmp_path):
    with Cache(tmp_path) as ours, Cache(tmp_path) as theirs:
        assert not ours.has("same")
        theirs.put("same", {"latent": torch.full((2,), 7.0)})
        theirs.flush()
        ours.put("same", {"latent": torch.zeros(2)})
        ours.flush()
        assert torch.equal(ours.get("same", "latent"), torch.full((2,), 7.0))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # and no bytes are written that nobody will read


def test_what_is_not_finite_or_empty_is_refused_at_the_door(tmp_path):
    with Cache(tmp_path) as cache:
        for wrong in (torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.empty(0)):
            with pytest.raises(ValueError, match=r"'latent' of k (holds NaN|is empty)"):
                cache.put("k", {"latent": wrong})
        cache.put("k", {"latent": torch.ones(1)})
        with pytest.raises(ValueError, match="already holds"):
            cache.put("k", {"latent": torch.zeros(1)})


def test_verify_finds_flipped_bits_and_lost_shards_and_drop_lets_them_be_made_again(tmp_path):
    with Cache(tmp_path, shard_items=2) as cache:
        keys = fill(cache, 4)
    first, second = (next(iter(part)) for part in _shards_by_key(tmp_path, keys))
    broken = bytearray(first.read_bytes())
    broken[-1] ^= 1
    first.write_bytes(broken)
    second.write_bytes(b"")
    with Cache(tmp_path) as cache:
        bad = cache.verify()
        assert {(item.key, item.artefact) for item in bad if item.key in keys[2:]} == {
            (key, name) for key in keys[2:] for name in ("latent", "mask")
        }
        assert [item.why for item in bad if item.key in keys[:2]] == ["differs from its checksum"]
        cache.drop({item.key for item in bad})
        assert len(cache.keys()) == 1
        assert cache.gc() == 0  # the first shard still serves one entry; the second is empty
    assert not second.exists()


def _shards_by_key(root, keys):
    with Cache(root) as cache:
        return [{root / cache._shard(key)} for key in (keys[0], keys[2])]


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
        parts = toy.groups()

        def loss(batch, progress):
            return {"mse": (parts["head"].weight.sum() - batch["latent"]).square().mean()}

        stage = Stage("a", {"head": 1.0}, loss, view, 2, Length(steps=3))
        assert fit([stage], parts, out=tmp_path / "run", quiet=True).global_step == 3
