"""Constant motion has no acceleration: not in a file, not in a clip, not in a cache's entry, not in a batch."""

import warnings

import numpy as np
import pytest
import torch

from trainers import Cache, TrainingWarning, video
from trainers.buckets import Buckets
from trainers.clips import Clips
from trainers.decode import _without_torchcodec
from trainers.feed import Feed
from trainers.records import Record
from trainers.video import ClipSpec

PX_PER_M = 160
HEIGHT, WIDTH = 32, 480
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it is there and does not load is the skip's reason
    WITHOUT = _without_torchcodec()
needs_torchcodec = pytest.mark.skipif(bool(WITHOUT), reason=f"torchcodec: {WITHOUT}")
DECODERS = ["pyav", pytest.param("torchcodec", marks=needs_torchcodec)]


def film(path, fps=24, seconds=2.6):
    """A light that crosses a dark room at 1 m/s, soft enough for its place to be read to a thousandth of a pixel."""
    times = np.arange(round(fps * seconds)) / fps
    x, y = np.arange(WIDTH) + 0.5, np.arange(HEIGHT)[:, None] + 0.5
    centres = 30 + PX_PER_M * times
    light = np.exp(-((x - centres[:, None, None]) ** 2 + (y - HEIGHT / 2) ** 2) / (2 * 4.0**2))
    frames = (255 * light).round().astype(np.uint8)[..., None].repeat(3, -1)
    return video.write(path, frames, fps, lossless=True)


def positions_m(frames):
    """Where the light is, by its centre of mass: from the pixels alone."""
    weight = np.asarray(frames)[..., 0].astype(np.float64).sum(1)
    pixel_m = WIDTH / weight.shape[1] / PX_PER_M
    return (weight * (np.arange(weight.shape[1]) + 0.5)).sum(1) / weight.sum(1) * pixel_m - 30 / PX_PER_M


def acceleration(x, t):
    """The second difference on uneven times, exact for a parabola."""
    before, after = np.diff(t)[:-1], np.diff(t)[1:]
    return 2 * (np.diff(x)[1:] / after - np.diff(x)[:-1] / before) / (before + after)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def floored(decoded, frames, fps):
    """What loaders for a target rate do: the frame under each wanted time, and times as if that were even."""
    wanted = np.arange(frames) / fps
    picked = np.floor(wanted * decoded.fps + 1e-6).astype(int)
    return decoded.frames[picked], wanted


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2)], ids=["whole", "half"])
def test_film_loaded_for_a_16_fps_model_moves_without_acceleration(tmp_path, decoder, size):
    path = film(tmp_path / "a.mp4")
    for start_s in (0.0, 0.375):
        with pytest.warns(TrainingWarning, match=r"24 -> 16 fps: 41\.7 to 83\.3 ms, nominal 62\.5 ms"):
            clip = video.load(path, ClipSpec(33, 16, *size), start_s=start_s, decoder=decoder)
        x = positions_m(clip.frames)
        assert np.abs(acceleration(x, clip.times_s)).max() < 0.05
        assert np.allclose(x, start_s + clip.times_s, atol=1e-4)  # 1 m/s from where the clip begins
        assert abs(clip.times_s[-1] - 2.0) < 0.5 / 24  # two seconds of it: neither slowed down nor sped up


def test_a_loader_with_floored_times_fails_that(tmp_path):
    frames, times = floored(video.read(film(tmp_path / "a.mp4")), 33, 16)
    assert rms(acceleration(positions_m(frames), times)) == pytest.approx(10.7, abs=0.1)


def test_wrong_frames_at_right_times_fail_that(tmp_path):
    """The check sees both halves: the same times with the floored frames accelerate too."""
    path = film(tmp_path / "a.mp4")
    frames, _ = floored(video.read(path), 33, 16)
    with pytest.warns(TrainingWarning):
        times = video.load(path, ClipSpec(33, 16, HEIGHT, WIDTH)).times_s
    assert np.abs(acceleration(positions_m(frames), times)).max() > 0.05


def test_the_times_go_through_cache_and_batch_as_they_are(tmp_path):
    path = film(tmp_path / "a.mp4")
    with pytest.warns(TrainingWarning):
        clip = video.load(path, ClipSpec(33, 16, HEIGHT, WIDTH))
    with Cache(tmp_path / "cache") as cache:
        key = cache.key(path, producer="frames")
        cache.put(key, clip.tensors())
        cache.flush()
        entry = cache.get(key, "times_s")
    assert entry.dtype == torch.float64
    assert np.array_equal(entry.numpy(), clip.times_s)
    data = Clips(
        [Record(path, "a light", {}, (), "a")],
        Buckets(sizes=((HEIGHT, WIDTH),), frames=(33,), fps=16),
        ahead=0,
    )
    with pytest.warns(TrainingWarning):
        batch = Feed(data, batch_size=1, seed=0).next().get(torch.device("cpu"))
    assert torch.equal(batch["times_s"][0], entry)
    assert np.abs(acceleration(positions_m(batch["frames"][0]), batch["times_s"][0].numpy())).max() < 0.05


SPACING = [  # file's fps, wanted fps, milliseconds of the floored loader (least, most, nominal), its false acceleration
    (30, 10, 100, 100, 100, 0.0),
    (30, 8, 100, 133, 125, 1.5),
    (30, 16, 33, 67, 62.5, 4.2),
    (25, 16, 40, 80, 62.5, 9.6),
    (24, 16, 42, 83, 62.5, 10.7),
]


@pytest.mark.parametrize(("fps", "wanted", "least", "most", "nominal", "false"), SPACING)
def test_floored_loaders_accelerate_as_known_and_true_times_do_not(fps, wanted, least, most, nominal, false):
    n = 97
    times = np.arange(20 * fps) / fps
    picked = np.floor(np.arange(n) * fps / wanted + 1e-9).astype(int)
    gaps = 1000 * np.diff(times[picked])
    assert (round(gaps.min()), round(gaps.max()), 1000 / wanted) == (least, most, nominal)
    assert rms(acceleration(times[picked], np.arange(n) / wanted)) == pytest.approx(false, abs=0.05)
    assert np.abs(acceleration(times[picked], times[picked])).max() < 1e-9
    ours = video.pick(times, ClipSpec(n, wanted, 8, 8), 3)
    assert ours[0] == 3
    assert np.abs(acceleration(times[ours], times[ours])).max() < 1e-9


@pytest.mark.parametrize(
    ("file_frames", "least", "most", "nominal", "false"), [(120, 67, 100, 82.6, 4.8), (60, 33, 67, 41.0, 13.3)]
)
def test_a_clip_spread_over_its_file_accelerates_and_ours_is_cut_in_time(file_frames, least, most, nominal, false):
    times = np.arange(file_frames) / 30
    spread = np.floor(np.linspace(0, file_frames - 1, 49) + 1e-9).astype(int)
    even = np.linspace(0, times[-1], 49)
    gaps = 1000 * np.diff(times[spread])
    assert (round(gaps.min()), round(gaps.max()), round(1000 * even[1], 1)) == (least, most, nominal)
    assert rms(acceleration(times[spread], even)) == pytest.approx(false, abs=0.05)
    assert np.abs(acceleration(times[spread], times[spread])).max() < 1e-9
    spec = ClipSpec(49, 16, 8, 8)
    if file_frames == 60:  # two seconds are not three
        with pytest.raises(ValueError, match="fewer frames or leave the file out"):
            video.pick(times, spec, 0)
    else:
        assert video.room(times, spec) == 120 - 96
        assert set(np.diff(video.pick(times, spec, 23))) == {2}


@pytest.mark.parametrize(
    ("fps", "wanted", "ms"),
    [(30, 16, 66.7), (30, 8, 133.3), (29.97, 24, None), (23.976, 24, 41.7), (60, 16, 66.7), (50, 24, 40.0)],
)
def test_a_rate_near_a_whole_ratio_is_taken_evenly(fps, wanted, ms):
    times = np.arange(400) / fps
    gaps = 1000 * np.diff(times[video.pick(times, ClipSpec(41, wanted, 8, 8), 0)])
    if ms is None:  # 1.249: no whole number is near
        assert gaps.max() > 1.9 * gaps.min()
    else:
        assert gaps == pytest.approx(np.full(40, ms), abs=0.05)


@pytest.mark.parametrize("fps", [16, 24, 25, 29.97, 48])
def test_wherever_a_clip_may_begin_it_is_whole_and_one_later_it_is_not(fps):
    times, spec = np.arange(150) / fps, ClipSpec(17, 16, 8, 8)
    room = video.room(times, spec)
    assert 0 < room < 150
    for first in (0, room // 2, room - 1):
        picked = video.pick(times, spec, first)
        assert picked[0] == first
        assert len(set(picked.tolist())) == 17
        assert picked.max() < 150
    with pytest.raises(ValueError, match="fewer frames"):
        video.pick(times, spec, room)


def test_the_share_of_what_is_to_spare_sets_the_start(tmp_path):
    path = film(tmp_path / "a.mp4", fps=16)  # 42 frames
    spec = ClipSpec(17, 16, HEIGHT, WIDTH)
    for share, first in ((0.0, 0), (0.5, 13), (0.9999, 25)):
        clip = video.load(path, spec, share=share)
        assert positions_m(clip.frames)[0] == pytest.approx(first / 16, abs=1e-3)
        assert clip.times_s[0] == 0
    with pytest.raises(ValueError, match=r"share in \[0, 1\)"):
        video.load(path, spec, share=1.0)


def test_more_jitter_than_allowed_is_refused_with_the_numbers(tmp_path):
    path = film(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"33 %.*41\.7 to 83\.3 ms.*more than 20 %"):
        video.load(path, ClipSpec(33, 16, HEIGHT, WIDTH), max_jitter=0.2)
    assert len(video.load(path, ClipSpec(33, 16, HEIGHT, WIDTH), max_jitter=0.5).frames) == 33


def test_a_file_with_a_hole_is_refused_rather_than_repeating_a_frame():
    times = np.concatenate([np.arange(20), 30 + np.arange(20)]) / 24
    with pytest.raises(ValueError, match=r"gaps of 0\.46 s"):
        video.pick(times, ClipSpec(17, 16, 8, 8), 5)
