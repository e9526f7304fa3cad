"""torchcodec and PyAV are one reader: the same frames, the same times, from whatever a camera or a cutter writes."""

import sys
import warnings
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from trainers import TrainingWarning, decode, video
from trainers.decode import _without_torchcodec
from trainers.video import ClipSpec, VideoError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it is there and does not load is the skip's reason
    WITHOUT = _without_torchcodec()
needs_torchcodec = pytest.mark.skipif(bool(WITHOUT), reason=f"torchcodec: {WITHOUT}")


def numbered(t=40, h=48, w=64):
    """Smooth pictures that all differ, with their number in the first row."""
    y, x = np.mgrid[:h, :w]
    frames = np.stack([np.stack([x * 2 + 3 * i, y * 2 + i, x + y + 2 * i], -1) % 200 for i in range(t)])
    frames = frames.astype(np.uint8)
    for i in range(t):
        frames[i, :8, : 8 * 6] = np.repeat([255 * ((i >> bit) & 1) for bit in range(6)], 8)[None, :, None]
    return frames


def number(frame):
    """Read the number back."""
    return sum((frame[4, 8 * bit + 4].mean() > 127) << bit for bit in range(6))


def encode(
    path,
    frames,
    *,
    fps=24,
    codec="libx264",
    pix_fmt="yuv420p",
    stamps=None,
    rotation=0,
    options=None,
    base=None,
    **more,
):
    """A file as cameras make them: B-frames, key frames now and then, a turned picture, times of its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        stream.codec_context.thread_count = 1
        for name, value in more.items():
            setattr(stream.codec_context, name, value)
        stream.codec_context.time_base = base or 1 / Fraction(fps).limit_denominator(1001)
        if rotation:
            stream.set_display_rotation(rotation)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (stamps[i] if stamps else i), stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


KINDS = {
    "plain": ("a.mp4", {}),
    "b-frames and many key frames": ("a.mp4", {"options": {"g": "12", "bf": "3"}}),
    "an open group of pictures": ("a.mp4", {"options": {"g": "12", "bf": "3", "x264-params": "open-gop=1"}}),
    "film rate": ("a.mov", {"fps": Fraction(24000, 1001)}),
    "uneven times": ("a.mp4", {"base": Fraction(1, 1000), "stamps": [37 * i + (i % 3) * 5 for i in range(40)]}),
    "a late start": ("a.mkv", {"base": Fraction(1, 1000), "stamps": [5000 + 40 * i for i in range(40)]}),
    "no announced count": ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}}),
    "avi": ("a.avi", {"codec": "mpeg4"}),
    "turned by a phone": ("a.mp4", {"rotation": 90}),
    "full colour": ("a.mp4", {"pix_fmt": "yuv444p"}),
}


@pytest.fixture(params=KINDS, ids=[kind.replace(" ", "-") for kind in KINDS])
def file(request, tmp_path):
    name, how = KINDS[request.param]
    return encode(tmp_path / name, numbered(), **how)


def test_pyav_gives_every_frame_once_in_order_at_its_own_time(file):
    decoded = video.read(file, decoder="pyav")
    assert decoded.decoder == "pyav"
    turned = decoded.frames.shape[1] == 64
    upright = np.rot90(decoded.frames, 1 if turned and number(np.rot90(decoded.frames[1], 1)) == 1 else 3, (1, 2))
    frames = upright if turned else decoded.frames
    assert [number(frame) for frame in frames] == list(range(40))
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
    assert np.allclose(decoded.times_s, np.array(times) - times[0], atol=1e-12)


@needs_torchcodec
def test_torchcodec_gives_the_same_frames_and_the_same_times(file):
    for from_s, until_s in ((0, None), (0.5, 1.1)):
        ours = video.read(file, from_s=from_s, until_s=until_s, decoder="pyav")
        theirs = video.read(file, from_s=from_s, until_s=until_s, decoder="torchcodec")
        assert theirs.decoder == "torchcodec"
        assert np.array_equal(ours.times_s, theirs.times_s)
        assert np.array_equal(ours.frames, theirs.frames)


@needs_torchcodec
def test_torchcodec_loads_the_same_clips(file):
    spec = ClipSpec(5, 8, 24, 24)
    for share in (0.0, 0.6, 0.99):
        ours = video.load(file, spec, share=share, decoder="pyav", max_jitter=1.0)
        theirs = video.load(file, spec, share=share, decoder="torchcodec", max_jitter=1.0)
        assert np.array_equal(ours.times_s, theirs.times_s)
        assert np.array_equal(ours.frames, theirs.frames)


def test_the_decoder_is_chosen_by_name_and_said(tmp_path):
    path = encode(tmp_path / "a.mp4", numbered(5))
    assert video.read(path).decoder == decode.which()
    assert video.load(path, ClipSpec(1, 8, 24, 24)).decoder == decode.which()
    with pytest.raises(ValueError, match="'auto', 'torchcodec' or 'pyav'"):
        video.read(path, decoder="decord")


def test_torchcodec_by_name_without_torchcodec_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(decode, "_without_torchcodec", lambda: "it is not installed")
    with pytest.raises(ValueError, match=r"phystrainers\[torchcodec\].*decoder='pyav'"):
        video.read(tmp_path / "a.mp4", decoder="torchcodec")
    assert decode.which() == "pyav"


def test_a_torchcodec_that_does_not_load_is_said_once_and_pyav_decodes(tmp_path, monkeypatch):
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("raise RuntimeError('no libavcodec.so')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    _without_torchcodec.cache_clear()
    try:
        with pytest.warns(TrainingWarning, match=r"does not load, so PyAV decodes: no libavcodec\.so"):
            assert decode.which() == "pyav"
        assert decode.which() == "pyav"  # without another word
        with pytest.raises(ValueError, match=r"no libavcodec\.so.*apt-get install ffmpeg"):
            decode.which("torchcodec")
    finally:
        _without_torchcodec.cache_clear()


def test_seeking_into_a_long_file_gives_what_reading_from_its_start_gives(tmp_path):
    """Six seconds at 8 fps with open groups of pictures: the frames before a key frame may need those before it."""
    frames = numbered(48)
    options = {"g": "9", "bf": "3", "x264-params": "open-gop=1"}
    for name in ("a.mp4", "a.mkv"):
        path = encode(tmp_path / name, frames, fps=8, options=options)
        whole = video.read(path, decoder="pyav")
        for from_s in (2.2, 3.5, 4.9, 5.8):
            part = video.read(path, from_s=from_s, until_s=from_s + 0.6, decoder="pyav")
            first = int(np.searchsorted(whole.times_s, from_s))
            assert np.array_equal(part.times_s, whole.times_s[first : first + len(part.times_s)])
            assert np.array_equal(part.frames, whole.frames[first : first + len(part.frames)])


def test_seeking_does_not_decode_what_comes_before(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", numbered(56), fps=4, options={"g": "4", "bf": "0"})
    decoded = []
    stock = decode._opened

    class Counting:
        def __init__(self, container):
            self.seek, self.demux, self.inner = container.seek, container.demux, container

        def decode(self, stream):
            for frame in self.inner.decode(stream):
                decoded.append(frame.pts)
                yield frame

    @contextmanager
    def opened(path):
        with stock(path) as (container, stream):
            yield Counting(container), stream

    monkeypatch.setattr(decode, "_opened", opened)
    part = video.read(path, from_s=12, until_s=12.5, decoder="pyav")
    assert [number(frame) for frame in part.frames] == [48, 49, 50]
    assert len(decoded) <= 3 + 4 + 4  # those wanted, a second before them, and back to a key frame


def test_what_an_edit_list_cuts_away_is_neither_shown_nor_missed(tmp_path):
    """A phone that trims keeps the frames from the last key frame on and tells the player to skip some."""
    path = encode(tmp_path / "a.mp4", numbered(24), options={"bf": "0"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # one entry: duration, then media time in the track's time scale
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
    data[at + 4 : at + 8] = round(8 / 24 / base).to_bytes(4, "big")
    path.write_bytes(data)
    shown = video.read(path, decoder="pyav")
    assert [number(frame) for frame in shown.frames] == list(range(8, 24))
    assert shown.times_s[0] == 0


def test_pixels_that_are_not_square_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(VideoError, match=r"1\.33 times as wide as high.*setsar=1"):
        video.read(encode(tmp_path / "a.mp4", numbered(5), sample_aspect_ratio=Fraction(4, 3)))
    nearly = encode(tmp_path / "b.mp4", numbered(5), sample_aspect_ratio=Fraction(1280, 1279))
    assert len(video.read(nearly).frames) == 5


@pytest.mark.parametrize("seed", range(8))
def test_a_picture_that_bits_were_flipped_in_is_refused_not_made_up(tmp_path, seed):
    path = encode(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8))
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    body = data.index(b"mdat") + 800
    for at in rng.integers(body, data.index(b"moov") - 4, 40):
        data[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"a\.mp4"):
        video.read(path, decoder="pyav")


def test_the_header_tells_size_upright_count_and_rate(file):
    header = video.probe(file)
    decoded = video.read(file, decoder="pyav")
    assert (header.height, header.width) == decoded.frames.shape[1:3]
    assert abs(header.frames - 40) <= 1
    assert header.fps == pytest.approx(decoded.fps, rel=0.05)
    assert header.duration_s == pytest.approx(40 / decoded.fps, rel=0.05)


def test_more_than_the_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", numbered(9))
    monkeypatch.setattr(decode, "_by_pyav", lambda *a, **k: pytest.fail("decoded"))
    with pytest.raises(VideoError, match=r"9 frames of 0\.00 million pixels.*max_bytes"):
        video.read(path, decoder="pyav", max_bytes=9 * 48 * 64 * 3 - 1)


@pytest.mark.parametrize("inside", ["#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{}'\n"])
def test_a_playlist_in_an_mp4s_name_opens_no_other_file(tmp_path, inside):
    encode(tmp_path / "secret.mp4", numbered(5))
    (tmp_path / "a.mp4").write_text(inside.format("secret.mp4"))
    for reader in (video.read, video.probe):
        with pytest.raises(VideoError, match=r"a\.mp4 cannot be decoded"):
            reader(tmp_path / "a.mp4")


def test_a_name_that_is_a_protocol_to_ffmpeg_is_a_file_name_here(tmp_path, monkeypatch):
    encode(tmp_path / "secret.mp4", numbered(5))
    monkeypatch.chdir(tmp_path)
    for name in ("concat:secret.mp4", "file:secret.mp4", "subfile,,start,0,end,0,,:secret.mp4"):
        with pytest.raises(VideoError):
            video.read(name)
    plain = Path("file:b.mp4")
    plain.write_bytes((tmp_path / "secret.mp4").read_bytes())
    assert len(video.read(plain).frames) == 5
