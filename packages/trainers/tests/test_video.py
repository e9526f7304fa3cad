"""Laws of reading, writing and clipping video."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from trainers import video
from trainers.guards import TrainingWarning
from trainers.video import ClipSpec, Decoded, VideoError


def noise(t=9, h=16, w=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (t, h, w, 3), dtype=np.uint8)


def moving(fps, seconds=2.0, h=8, w=8):
    """Frames whose grey value is their time: what a body at constant speed looks like to a reader."""
    times = np.arange(round(fps * seconds)) / fps
    frames = np.broadcast_to((times * 100).round().astype(np.uint8)[:, None, None, None], (len(times), h, w, 3))
    return Decoded(np.ascontiguousarray(frames), times)


def test_a_lossless_file_reads_back_bit_equal(tmp_path):
    frames = noise()
    path = video.write(tmp_path / "a.mp4", frames, 16, lossless=True)
    read = video.read(path)
    assert np.array_equal(read.frames, frames)
    assert np.allclose(read.times_s, np.arange(9) / 16, atol=1e-4)


def test_a_browser_file_is_yuv420p_with_even_sizes_and_close_to_what_was_written(tmp_path):
    frames = np.full((5, 7, 9, 3), 120, np.uint8)
    frames[:, 2:5, 3:6] = (200, 40, 90)
    path = video.write(tmp_path / "sub" / "a.mp4", frames, 29.97, scale=3)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 28, 22)
    read = video.read(path)
    assert np.abs(read.frames[:, 1:20:3, 1:26:3].astype(int) - frames).mean() < 6
    assert read.fps == pytest.approx(29.97, rel=1e-3)
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]


def threads():
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").exists() or (os.cpu_count() or 1) < 2, reason="counts Linux threads")
def test_reading_starts_no_threads(tmp_path, monkeypatch):
    path = video.write(tmp_path / "a.mp4", noise(9, 64, 64), 16, lossless=True)  # a decoder has a thread per 16 rows
    counts = [threads()]
    stock = av.open

    class Container:
        def __init__(self, *args, **kwargs):
            self.inner = stock(*args, **kwargs)
            self.streams, self.demux = self.inner.streams, self.inner.demux

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.inner.close()

        def decode(self, stream):
            for frame in self.inner.decode(stream):
                counts.append(threads())
                yield frame

    monkeypatch.setattr(av, "open", Container)
    video.read(path, decoder="pyav")
    assert len(counts) == 10
    assert max(counts) == counts[0]


def test_uneven_times_survive_the_file(tmp_path):
    times = [0.0, 0.1, 0.15, 0.4, 0.5]
    path = video.write(tmp_path / "a.mp4", noise(5), 10, lossless=True, times_s=times)
    assert np.allclose(video.read(path).times_s, times, atol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, share):
    whole = video.write(tmp_path / "a.mp4", noise(17, 32, 32), 16).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        video.read(cut)


def test_a_file_that_is_cut_between_two_frames_is_noticed_too(tmp_path):
    path = video.write(tmp_path / "a.mp4", noise(17, 32, 32), 16)
    with av.open(str(path)) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.pos is not None)
    path.write_bytes(path.read_bytes()[:last])
    with pytest.raises(VideoError, match="announces 17 frames and holds 16"):
        video.read(path)


def test_a_text_file_named_mp4_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.mp4").write_text("not a film")
    with pytest.raises(VideoError, match="replace it or leave it out"):
        video.read(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"none\.mp4"):
        video.read(tmp_path / "none.mp4")


def test_an_integer_ratio_takes_every_kth_frame():
    decoded = moving(32)
    cut = video.clip(decoded, ClipSpec(17, 16, 8, 8))
    assert np.array_equal(cut.frames, decoded.frames[:34:2])
    assert np.allclose(cut.times_s, np.arange(17) / 16)


def test_a_rate_near_a_multiple_stays_even_and_tells_its_true_times():
    decoded = moving(29.97)
    cut = video.clip(decoded, ClipSpec(17, 16, 8, 8))
    assert np.array_equal(cut.frames, decoded.frames[:34:2])
    assert cut.fps == pytest.approx(14.985)


def test_loading_a_part_gives_what_clipping_the_whole_gives(tmp_path):
    path = video.write(tmp_path / "a.mp4", noise(60), 32, lossless=True)
    for start in (0.0, 0.5):
        spec = ClipSpec(13, 16, 8, 8)
        part, whole = video.load(path, spec, start_s=start), video.clip(video.read(path), spec, start_s=start)
        assert np.array_equal(part.frames, whole.frames)
        assert np.allclose(part.times_s, whole.times_s)
    between = video.read(path, from_s=0.5, until_s=1.0)
    assert (len(between.frames), between.times_s[0], between.times_s[-1]) == (17, 0.5, 1.0)
    with pytest.raises(VideoError, match="nothing after 9 s"):
        video.read(path, from_s=9)
    with pytest.raises(ValueError, match="fewer frames"):
        video.load(path, ClipSpec(17, 16, 8, 8), start_s=1.0)


def test_constant_motion_has_no_acceleration_at_the_times_that_the_clip_tells():
    decoded = moving(24)
    with pytest.warns(TrainingWarning, match="frame spacing varies"):
        cut = video.clip(decoded, ClipSpec(17, 16, 8, 8))
    position = cut.times_s + 0.25  # one unit a second, seen at the frames' true times
    t = cut.times_s

    def acceleration(x, t):
        before, after = np.diff(t)[:-1], np.diff(t)[1:]
        return 2 * (np.diff(x)[1:] / after - np.diff(x)[:-1] / before) / (before + after)

    assert np.abs(acceleration(position, t)).max() < 1e-9
    assert np.sqrt((acceleration(position, np.arange(17) / 16) ** 2).mean()) > 5  # taken as even, it accelerates


def test_a_clip_may_start_later_and_its_times_start_at_zero():
    decoded = moving(16)
    cut = video.clip(decoded, ClipSpec(5, 16, 8, 8), start_s=0.5)
    assert np.array_equal(cut.frames, decoded.frames[8:13])
    assert cut.times_s[0] == 0


@pytest.mark.parametrize(("fps", "start"), [(16, 0.0), (24, 0.0), (10, 0.0), (16, 1.9)])
def test_a_file_that_is_too_short_is_refused_not_slowed_down(fps, start):
    with pytest.raises(ValueError, match="fewer frames or leave the file out"):
        video.clip(moving(fps), ClipSpec(41, 16, 8, 8), start_s=start)


def test_a_slow_file_is_refused_rather_than_repeating_frames():
    with pytest.raises(ValueError, match="8 fps"):
        video.clip(moving(8, 4.0), ClipSpec(17, 16, 8, 8))


@pytest.mark.parametrize("frames", [0, 2, 16, 18])
def test_a_frame_count_that_is_not_4n_plus_1_is_refused_with_its_neighbours(frames):
    with pytest.raises(ValueError, match="4n"):
        ClipSpec(frames, 16, 8, 8)


def test_the_aspect_is_cropped_around_the_centre_and_the_area_averaged():
    frames = np.zeros((1, 8, 16, 3), np.uint8)
    frames[:, :, 4:12] = 100
    frames[:, ::2, 4:12] = 50
    cut = video.clip(Decoded(frames, np.zeros(1)), ClipSpec(1, 16, 4, 4))
    assert cut.frames.shape == (1, 4, 4, 3)
    assert (cut.frames == 75).all()
    odd = video.clip(Decoded(noise(1, 37, 53), np.zeros(1)), ClipSpec(1, 16, 32, 32))
    assert odd.frames.shape == (1, 32, 32, 3)


def test_bytes_go_to_the_models_range_and_back_unchanged_whatever_the_batch():
    frames = noise(h=4)
    for films in (frames, frames[None], np.stack([frames, frames[::-1]])[None]):
        signed = video.from_bytes(films)
        assert signed.shape == (*films.shape[:-4], 3, *films.shape[-4:-1])
        assert float(signed.abs().max()) <= 1
        assert np.array_equal(video.to_bytes(signed), films)
    assert video.to_bytes(video.from_bytes(frames).bfloat16()).dtype == np.uint8


def test_an_mp4_is_named_with_or_without_its_suffix_and_nothing_else_is(tmp_path):
    assert video.named(tmp_path / "a") == video.named(tmp_path / "a.mp4") == tmp_path / "a.mp4"
    for wrong in (tmp_path, tmp_path / "a.gif"):
        with pytest.raises(ValueError, match="expected the name of an mp4"):
            video.named(wrong)
