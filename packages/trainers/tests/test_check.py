"""Laws of the checks: what is in order passes, and each planted fault is named with its cause."""

import io
import warnings

import numpy as np
import pytest
import torch
from rich.console import Console

from trainers import ClipSpec, RecursiveRamp, check, video

MEAN, STD = (-0.75, 0.5, 1.5), (2.8, 1.5, 0.6)
SPEC = ClipSpec(frames=5, fps=16, height=16, width=16)


def mean_std(x):
    return (x.new_tensor(values).view(1, 3, 1, 1, 1) for values in (MEAN, STD))


def raw(x):
    """An autoencoder that loses nothing, whose own latents have MEAN and STD."""
    mean, std = mean_std(x)
    return x * 2 * std + mean


def encode(x):
    mean, std = mean_std(x)
    return (raw(x) - mean) / std


def decode(z):
    return z / 2


@pytest.fixture
def frames():
    return np.random.default_rng(0).normal(127.5, 60, (4, 5, 16, 16, 3)).clip(0, 255).astype(np.uint8)


def levels(findings):
    return {finding.what: finding.level for finding in findings}


def test_a_sound_autoencoder_passes(frames):
    assert set(levels(check.round_trip(encode, decode, frames, mean=MEAN, std=STD)).values()) == {"ok"}


def decode_raw(z):
    mean, std = mean_std(z)
    return (z - mean) / (2 * std)


def encode_twice(x):
    mean, std = mean_std(x)
    return (encode(x) - mean) / std


@pytest.mark.parametrize(
    ("encode", "decode", "what", "cause"),
    [
        (raw, decode_raw, "latents", "not normalised"),
        (encode_twice, lambda z: z, "latents", "normalised twice"),
        (lambda x: encode((x + 1) / 2), decode, "video -> latent -> video", "a wrong pixel range: 2.00 x + -1.00"),
        (encode, lambda z: (decode(z) + 1) / 2, "video -> latent -> video", "a wrong pixel range"),
        (encode, lambda z: -decode(z), "video -> latent -> video", "a wrong pixel range: -1.00 x"),
        (encode, lambda z: torch.zeros_like(z), "video -> latent -> video", "another autoencoder's weights"),
        (encode, lambda z: decode(z) * float("nan"), "video -> latent -> video", "wants float32"),
        (encode, lambda z: decode(z)[:, :, :-1], "video -> latent -> video", "came back as"),
        (lambda x: 20 * encode(x), lambda z: decode(z / 20), "latents", "another autoencoder's mean"),
    ],
    ids=["raw", "twice", "half range in", "half range out", "negative", "lost", "NaN", "shorter", "scaled"],
)
def test_each_planted_fault_is_named_with_its_cause(frames, encode, decode, what, cause):
    found = check.round_trip(encode, decode, frames, mean=MEAN, std=STD)
    finding = next(f for f in found if f.what == what)
    assert finding.level == "error"
    assert cause in finding.said


def test_a_blurred_picture_is_a_warning_and_not_a_wrong_range(frames):
    noise = 0.13 * torch.randn(4, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    found = check.round_trip(encode, lambda z: decode(z) + noise, frames, mean=MEAN, std=STD)
    assert levels(found) == {"video -> latent -> video": "warn", "latents": "ok"}


def test_a_space_with_mean_0_and_deviation_1_is_not_called_raw(frames):
    one, zero = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
    assert levels(check.round_trip(encode, decode, frames, mean=zero, std=one))["latents"] == "ok"


def test_clips_that_are_short_broken_or_uneven_are_listed_with_their_numbers(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3), dtype=np.uint8)
    even = video.write(tmp_path / "even.mp4", pictures, fps=32)
    film = video.write(tmp_path / "film.mp4", pictures, fps=24)
    short = video.write(tmp_path / "short.mp4", pictures[:3], fps=16)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cuts = check.cut([even, film, short, tmp_path / "broken.mp4"], SPEC)
    clips, times = check.lengths(cuts)
    assert (clips.level, times.level) == ("warn", "warn")
    assert clips.said.startswith("2 of 4; left out: ")
    assert "short.mp4" in clips.said
    assert "broken.mp4" in clips.said
    assert times.said.startswith(f"1 of 2 uneven by more than 5 % ({film}: 33 %)")
    assert levels(check.lengths(cuts[:1])) == {"clips cut": "ok", "frame times": "ok"}
    assert levels(check.lengths(cuts[2:])) == {"clips cut": "error"}


def test_coverage_counts_every_category_and_warns_of_what_is_missing():
    assert check.coverage({"a": 5, "b": 5}, 10) == check.Finding("labels", "a 5, b 5")
    few = check.coverage({"a": 999, "b": 1, "c": 0}, 1000)
    assert (few.level, few.said) == ("warn", "a 999, b 1, c 0; without a clip: c; rare: b")
    assert check.coverage({"a": 0, "b": 0}, 10).level == "error"


def test_a_disk_that_is_too_small_is_an_error(tmp_path):
    root = tmp_path / "not" / "yet" / "there"
    assert check.disk(root, 0).level == "ok"
    assert check.disk(root, 2**70).level == "error"
    assert not (tmp_path / "not").exists()


def test_a_ramp_that_would_start_again_and_again_is_an_error():
    ramp = RecursiveRamp(end=1.0, steps=10, term="log/physics", group="physics", eta=2.0, window=1)
    assert check.resets([1.0] * 50, ramp).level == "ok"
    spiky = check.resets([1.0, 1.0, 3.0] * 20, ramp)
    assert (spiky.level, "raise eta" in spiky.said) == ("error", True)


def test_the_table_says_whether_all_is_well():
    console = Console(width=120, record=True, file=io.StringIO())
    assert check.show([check.Finding("a", "[red]fine"), check.Finding("b", "so so", "warn")], console)
    assert not check.show([check.Finding("a", "bad", "error")], console)
    assert "[red]fine" in console.export_text()


def test_the_rate_that_most_files_give_even_clips_at_is_named(tmp_path):
    grey = np.zeros((40, 16, 16, 3), np.uint8)
    paths = [video.write(tmp_path / f"{fps}.mp4", grey, fps) for fps in (8, 24, 30)]
    (finding,) = check.rates([*paths, tmp_path / "none.mp4"], SPEC)
    assert (finding.level, finding.said) == (
        "warn",
        "3 of 3 files give an even clip with data.fps=8 (0.50 s), 1 with 16",
    )
    assert check.rates(paths, ClipSpec(5, 8, 16, 16)) == []
    assert check.rates([tmp_path / "none.mp4"], SPEC) == []


def test_files_that_are_too_short_at_every_rate_are_no_reason_to_change_it(tmp_path):
    path = video.write(tmp_path / "a.mp4", np.zeros((3, 16, 16, 3), np.uint8), 24)
    assert check.rates([path], SPEC) == []


def test_a_clip_without_labels_is_counted_and_every_clip_says_who_labelled_it():
    labelled = [(f"{n}.mp4", ["fluid"] if n else [], "annotation" if n else "") for n in range(20)]
    finding = check.by_clip(labelled)
    assert finding.level == "warn"
    assert finding.said.startswith("1 of 20 without; 0.mp4: none; 1.mp4: fluid (annotation)")
    assert finding.said.endswith("; and 4 more")
    assert check.by_clip(labelled[1:]).level == "ok"
