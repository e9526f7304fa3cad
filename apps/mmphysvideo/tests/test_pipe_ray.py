"""On Ray the pipeline leaves the same manifest as on one machine, and goes on from what is there."""

import pytest

import physworld
from mmphysvideo.pipe.ray import run_on_ray
from mmphysvideo.pipe.run import run, sources_of
from mmphysvideo.pipe.settings import Cut, Settings
from trainers import video

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns of its own settings
SETTINGS = Settings(cut=Cut(frames=9, fps=16, long_side=32, multiple=8))


@pytest.fixture(scope="module")
def pool():
    ray = pytest.importorskip("ray", reason="needs Ray: uv run --group engines pytest ...")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


def test_without_ray_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'mmphysvideo.ray.'"):
        run_on_ray([], tmp_path, SETTINGS, workers=1)


def test_the_manifest_equals_the_local_one_and_what_is_done_is_not_done_again(tmp_path, pool):
    for seed in range(3):
        clip = physworld.simulate("rigid_body", seed, split="val")
        video.write(tmp_path / "films" / f"{seed}.mp4", clip.video, 16, lossless=True)
    (tmp_path / "films" / "broken.mp4").write_bytes(b"no video")
    sources, skipped = sources_of(tmp_path / "films")
    run(sources, tmp_path / "local", SETTINGS, quiet=True)
    run(sources[:2], tmp_path / "ray", SETTINGS, quiet=True)  # a part is there already
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "ray" / "clips").rglob("*") if p.is_file()}
    manifest = run_on_ray(sources, tmp_path / "ray", SETTINGS, workers=2, skipped=skipped, quiet=True)
    assert manifest["totals"]["kept"] == 3
    assert manifest["totals"]["pending"] == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for name in ("manifest.json", "records.jsonl", "sheet.png"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
