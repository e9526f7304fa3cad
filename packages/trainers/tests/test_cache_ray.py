"""On Ray a cache job leaves the same store as on one machine, though a worker dies on the way."""

import json
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch

from trainers import Cache, ClipSpec, Record, video
from trainers.cache import Producer
from trainers.cache_job import Item, clip_items, make
from trainers.cache_ray import make_on_ray
from trainers.cache_shard import contents
from trainers.cache_upkeep import verify

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns of its own settings
SPEC = ClipSpec(5, 16, 16, 16)
MADE = {"mean": Producer("mean", "1", dtype="float32", shape="t 3")}


@pytest.fixture(scope="module")
def pool():
    ray = pytest.importorskip("ray", reason="needs Ray: uv run --group engines pytest ...")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


def build_of(marker):
    """What makes the artefacts, as functions that travel by value; the first process to see the third batch dies."""

    def build():
        seen = []

        def means(batch):
            seen.append(len(batch))
            if marker and len(seen) == 2 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return [{"mean": torch.from_numpy(clip.frames).float().mean((1, 2))} for clip in batch]

        return means

    return build


def entries(root):
    with Cache(root) as cache:
        assert verify(cache) == []
        return {
            key: (cache.meta(key), {name: cache.get(key, name).tolist() for name in cache.names(key)})
            for key in cache.keys()  # noqa: SIM118
        }


def held(root):
    return [(a.key, a.name) for path in root.glob("*.safetensors") for a in contents(path).artefacts]


def test_without_ray_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'phystrainers.ray.'"):
        make_on_ray(tmp_path, [], build_of(None), MADE, workers=1)


def test_the_store_equals_the_local_job_s_entry_by_entry_though_a_worker_dies(tmp_path, pool):
    rng = np.random.default_rng(0)
    records = []
    for number in range(8):
        path = tmp_path / f"{number}.mp4"
        video.write(path, rng.integers(0, 255, (6, 16, 16, 3), np.uint8), 16)
        records.append(Record(path, f"clip {number}", {}, (), path.name))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    items = clip_items([*records, Record(tmp_path / "broken.mp4", "none", {}, (), "broken.mp4")], SPEC)
    local = make(tmp_path / "local", items, build_of(None), MADE, batch=2, quiet=True)

    # every entry closes its shard, so that what was made before the death is there when the block is tried again
    settings = {"workers": 2, "batch": 2, "shard_items": 5, "shard_bytes": 1, "quiet": True}
    report = make_on_ray(tmp_path / "ray", items, build_of(tmp_path / "died"), MADE, **settings)
    assert (tmp_path / "died").exists()
    assert entries(tmp_path / "ray") == entries(tmp_path / "local")
    assert sorted(held(tmp_path / "ray")) == sorted(held(tmp_path / "local"))  # and nothing twice
    assert [(s.path, s.why) for s in report.failed] == [(s.path, s.why) for s in local.failed]
    assert report.made + report.there == 8 == local.made
    ours, theirs = (json.loads(r.path.read_text()) for r in (report, local))
    same = ("items", "failed", "batch", "producers", "spec")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


@pytest.mark.slow
def test_a_thousand_items_over_two_workers_come_out_as_locally_though_workers_die(tmp_path, pool):
    def load(number):
        return torch.arange(64.0) + number

    def build_dying(folder):
        def build():
            seen = []

            def means(batch):
                seen.append(len(batch))
                if folder and len(seen) == 9:
                    dead = sorted(folder.glob("*"))
                    if len(dead) < 4:
                        (folder / str(len(dead))).touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                return [{"mean": x.mean()[None]} for x in batch]

            return means

        return build

    items = [Item(f"{i:04d}", str(i).encode(), partial(load, i), noted={"number": i}) for i in range(1000)]
    made = {"mean": Producer("mean")}
    make(tmp_path / "local", items, build_dying(None), made, batch=4, shard_items=50, quiet=True)
    (tmp_path / "dead").mkdir()
    report = make_on_ray(
        tmp_path / "ray", items, build_dying(tmp_path / "dead"), made, workers=2, batch=4, shard_items=50, quiet=True
    )
    assert len(list((tmp_path / "dead").iterdir())) == 4
    assert (report.made + report.there, report.failed) == (1000, ())
    assert entries(tmp_path / "ray") == entries(tmp_path / "local")
    assert sorted(held(tmp_path / "ray")) == sorted(held(tmp_path / "local"))
    again = make_on_ray(tmp_path / "ray", items[:70], build_dying(None), made, workers=2, shard_items=50, quiet=True)
    assert (again.made, again.there) == (0, 70)
