"""Futures of a folder: what is observed is each beginning's end, and what is written is what follows."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import physworld
from phantom.config import load_recipe
from phantom.continuation import beginnings, lengthened, make
from phantom.sample import sample
from trainers import video

SMALL = ["physics.channels=8", "branch.heads=1", "branch.ffn_dim=32", "couple.heads=1", "sampling.steps=1"]
IQ = "perspective-left_trimmed-ball"


@pytest.fixture
def folder(tmp_path):
    """Nine frames each of two clips of the world, one with a number and one without; captions beside them."""
    home = tmp_path / "beginnings"
    home.mkdir()
    for name, seed in (("0007_ball", 0), ("other", 1)):
        clip = physworld.simulate("rigid_body", seed)
        video.write(home / f"{name}.mp4", clip.video[:9], physworld.FPS, lossless=True)
        (home / f"{name}.txt").write_text(clip.caption)
    return home


def test_futures_follow_the_end_of_their_beginning_in_the_official_layout(backbone, make_adapter, folder, tmp_path):
    adapter, out = make_adapter, tmp_path / "out"
    found, skipped = beginnings(folder)
    assert [b.name for b in found] == ["0007_ball.mp4", "0002_other.mp4"]
    assert not skipped
    recipe, kept = lengthened(adapter.recipe, observed=5, seconds=0.75)
    assert (recipe.data.frames, kept) == (17, 12)
    written, unread = make(backbone, adapter, recipe, found, out=out, observed=5, kept=kept, seed=3, quiet=True)
    assert not unread
    assert sorted(p.name for p in out.iterdir()) == ["0002_other.mp4", "0007_ball.mp4"]  # and nothing else
    for path in written:
        made = video.read(path)
        assert len(made.frames) == 12
        assert made.fps == pytest.approx(16)
        assert made.times_s[-1] + 1 / 16 == pytest.approx(0.75, abs=1e-3)
    truth = physworld.simulate("rigid_body", 0)
    seen = video.from_bytes(truth.video[None, 4:9])  # the last five of nine
    wanted = sample(backbone, adapter, [truth.caption], [3], recipe, observed=seen)[0, :, 5:]
    read = video.read(out / "0007_ball.mp4").frames.astype(int)
    assert np.abs(read - video.to_bytes(wanted)).mean() < 4  # mp4 loses a little
    story = json.loads((tmp_path / "out.json").read_text())
    assert (story["observed_frames"], story["frames"], story["shows"]) == (5, 12, "phantom")
    assert story["prompts"]["0007_ball.mp4"] == truth.caption


@pytest.fixture
def make_adapter(make):
    return make(load_recipe(None, SMALL), stirred=True)


def test_the_same_command_goes_on_and_another_is_refused(backbone, make_adapter, folder, tmp_path):
    found, _ = beginnings(folder)
    how = {"out": tmp_path / "out", "observed": 1, "kept": 16, "quiet": True}
    (path, _), _ = make(backbone, None, make_adapter.recipe, found, **how)
    (tmp_path / "out" / "0002_other.mp4").unlink()
    before = path.stat().st_mtime_ns
    written, _ = make(backbone, None, make_adapter.recipe, found, **how)
    assert len(written) == 2
    assert path.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds videos of another bundle or setting"):
        make(backbone, make_adapter, make_adapter.recipe, found, **how)
    (tmp_path / "out" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="a folder for the mp4 files alone"):
        make(backbone, None, make_adapter.recipe, found, **how)


def test_physics_iq_s_table_gives_prompts_by_number_and_one_take_of_each(tmp_path):
    home = tmp_path / "conditioning"
    home.mkdir()
    for take in (1, 2):
        (home / f"0001_conditioning-videos_30FPS_perspective-left_take-{take}_trimmed-ball.mp4").write_bytes(b"")
    (home / "0002_switch-frames_anyFPS_perspective-center_trimmed-ball.jpg").write_bytes(b"")
    (home / "0003_x.mp4").write_bytes(b"")
    table = tmp_path / "descriptions.csv"
    rows = [f'{i:04d}_take-1.mp4,"A ball, and {i}.",Solid Mechanics,{i:04d}_{IQ}.mp4' for i in (1, 2)]
    table.write_text("\n".join(["scenario,description,category,generated_video_name", *rows]) + "\n")
    found, skipped = beginnings(home, table)
    assert [b.prompt for b in found] == ["A ball, and 1.", "A ball, and 2."]
    assert "take-1" in found[0].name
    assert [s.path[:4] for s in skipped] == ["0001", "0003"]
    assert "number 0001 is 0001_conditioning" in skipped[0].why
    assert "expected a prompt in" in skipped[1].why
    table.write_text("name,text\na,b\n")
    with pytest.raises(ValueError, match="expected the columns generated_video_name and description"):
        beginnings(home, table)
    with pytest.raises(ValueError, match="expected a folder of videos or pictures"):
        beginnings(table)
    with pytest.raises(ValueError, match=r"holds nothing to go on from.*expected a prompt beside it"):
        beginnings(home)


def test_pictures_are_first_frames_and_what_cannot_be_read_is_left_out(backbone, make_adapter, tmp_path):
    home = tmp_path / "pictures"
    home.mkdir()
    Image.new("RGB", (64, 64), "red").save(home / "a.png")
    (home / "b.mp4").write_bytes(b"no video")
    for name in "ab":
        (home / f"{name}.txt").write_text("a ball is thrown to the left")
    found, _ = beginnings(home)
    recipe = make_adapter.recipe
    written, unread = make(backbone, None, recipe, found, out=tmp_path / "o", observed=1, kept=16, quiet=True)
    assert [p.name for p in written] == ["0001_a.mp4"]
    assert [s.path for s in unread] == ["b.mp4"]
    first = video.read(written[0]).frames[0]
    assert first[..., 0].mean() > first[..., 1].mean() + 50  # it goes on from red
    _, unread = make(backbone, None, recipe, found, out=tmp_path / "p", observed=5, kept=12, quiet=True)
    assert "expected a video of 5 frames to be observed, got a picture" in unread[0].why


def test_lengths_are_whole_frames_and_fit_the_latents():
    recipe = load_recipe(None, SMALL)
    wan = load_recipe("wan2.2-ti2v-5b")
    assert lengthened(wan, observed=1, seconds=5) == (wan, 120)  # 121 frames: 1 observed, exactly 5 s at 24 fps
    longer, kept = lengthened(wan, observed=45, seconds=5)
    assert (longer.data.frames, kept) == (165, 120)
    assert lengthened(recipe, observed=5, seconds=None) == (recipe, 12)
    assert lengthened(recipe, observed=5, seconds=0.5)[0].data.frames == 13
    for observed, seconds, why in (
        (4, None, r"expected 4m\+1 observed frames"),
        (17, None, "expected fewer observed frames than the 17"),
        (1, 0.3, "expected seconds with a whole number of frames at 16 fps, got 0.3"),
        (1, -1.0, "expected seconds"),
    ):
        with pytest.raises(ValueError, match=why):
            lengthened(recipe, observed=observed, seconds=seconds)


def test_observed_frames_of_a_batch_are_those_of_each_clip(backbone, make_adapter, clips):
    prompts = ["a large blue ball is thrown to the left"] * 2
    both = sample(backbone, make_adapter, prompts, [3, 4], make_adapter.recipe, observed=clips[:, :, :5])
    alone = sample(backbone, make_adapter, prompts[1:], [4], make_adapter.recipe, observed=clips[1:, :, :5])
    assert torch.allclose(both[1:], alone, atol=1e-3)
