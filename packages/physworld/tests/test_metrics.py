"""The metric survives whatever a model draws, and the gate is what its fit says."""

from pathlib import Path

import numpy as np
import pytest

from physworld import MECHANISMS, controls, metrics, simulate, simulate_many
from physworld.metrics import Thresholds

EVEN = dict.fromkeys(("uneven", "stutter", "worst_px", "jolt_px", "gone"), 0.0)
"""The figures of a motion without a fault from frame to frame."""


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", ["black", "noise", "nan", "other"])
def test_a_video_that_shows_something_else_never_passes_and_never_crashes(mechanism: str, kind: str) -> None:
    clip = simulate(mechanism, 0, split="test")
    rng = np.random.default_rng(0)
    other = MECHANISMS[(MECHANISMS.index(mechanism) + 2) % 8]
    video = {
        "black": lambda: np.zeros((17, 32, 32, 3), np.uint8),
        "noise": lambda: rng.integers(0, 256, (17, 64, 64, 3), np.uint8),
        "nan": lambda: np.full((3, 17, 32, 32), np.nan, np.float32),
        "other": lambda: simulate(other, 0).video,
    }[kind]()
    found = metrics.measure(clip, video)
    assert set(found) == set(metrics.measure(clip, clip.video))
    assert all(np.isfinite(value) for value in found.values())
    assert not Thresholds.load().passes(mechanism, found)
    if kind != "other":
        assert found["valid"] == 0.0
        assert Thresholds.load().score(mechanism, found) == 0.0


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_float_video_in_any_order_of_axes_measures_as_the_bytes_do(mechanism: str) -> None:
    clip = simulate(mechanism, 1, split="test")
    expected = metrics.measure(clip.caption, clip.video)
    as_float = clip.video.astype(np.float32) / 127.5 - 1.0
    assert metrics.measure(clip, as_float) == expected
    assert metrics.measure(clip, np.moveaxis(as_float, -1, 0)[None], scale=1) == expected


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_clip_at_64_pixels_passes_as_one_at_32_does(mechanism: str) -> None:
    clips = simulate_many(mechanism, range(4), split="test", scale=2)
    assert sum(Thresholds.load().passes(mechanism, metrics.measure(c, c.video)) for c in clips) >= 3


def test_bad_videos_and_captions_are_refused_with_the_remedy() -> None:
    clip = simulate("thermal", 0)
    with pytest.raises(ValueError, match="resize or crop"):
        metrics.measure(clip, np.zeros((17, 32, 40, 3), np.uint8))
    with pytest.raises(ValueError, match="at scale 2"):
        metrics.measure(clip, clip.video, scale=2)
    with pytest.raises(ValueError, match="VOCABULARY"):
        metrics.measure("a dog runs", clip.video)
    with pytest.raises(ValueError, match="uint8 or float"):
        metrics.measure(clip, clip.video.astype(np.int64))


def test_limits_are_one_and_a_half_times_the_quantile_and_the_gate_three_tenths_of_the_median() -> None:
    rule = {"traj_rms_px": 0.2, "g_relerr": 0.3, "area_cv": 0.1, "off_manifold": 0.01}
    shares = {"valid": 1.0, "dir_ok": 1.0, "perm": 1.0, "scenario": 0.0} | EVEN
    real = [{k: v * s for k, v in rule.items()} | shares | {"motion_px": 10.0 * s} for s in np.linspace(0.5, 1.5, 101)]
    fitted = Thresholds.fit({"rigid_body": real})
    assert fitted.limits["rigid_body/thrown"]["traj_rms_px"].limit == pytest.approx(1.5 * 0.2 * 1.45)
    assert fitted.motion["rigid_body/thrown"] == pytest.approx(3.0)
    assert fitted.passes("rigid_body", real[50])
    for spoilt in (
        {"traj_rms_px": 0.5},
        {"motion_px": 2.9},
        {"dir_ok": 0.0},
        {"perm": 0.7},
        {"g_relerr": float("nan")},
    ):
        assert fitted.why_not("rigid_body", real[50] | spoilt) == [next(iter(spoilt))]


def test_slack_above_the_floor_ends_half_way_to_shuffled_frames_but_never_cuts_the_floor_itself() -> None:
    shares = {"valid": 1.0, "dir_ok": 1.0, "perm": 1.0, "scenario": 0.0, "motion_px": 10.0} | EVEN
    figures = {"traj_rms_px": 1.0, "g_relerr": 0.3, "area_cv": 0.1, "off_manifold": 0.01}
    spread = np.linspace(0.9, 1.1, 101)
    real = [shares | {k: v * s for k, v in figures.items()} for s in spread]
    near = [shares | {k: 1.3 * v for k, v in figures.items()} for _ in spread]
    close = [shares | {k: 1.21 * v for k, v in figures.items()} for _ in spread]
    fitted = Thresholds.fit({"rigid_body": real}, {"rigid_body": near})
    assert fitted.limits["rigid_body/thrown"]["traj_rms_px"].limit == pytest.approx(1.15)
    assert not fitted.passes("rigid_body", near[0])
    held = Thresholds.fit({"rigid_body": real}, {"rigid_body": close})
    assert held.limits["rigid_body/thrown"]["traj_rms_px"].limit == pytest.approx(max(1.105, np.quantile(spread, 0.95)))


def test_the_score_falls_from_one_to_nothing_between_the_floor_and_shuffled_videos() -> None:
    shipped = Thresholds.load()
    clip = simulate("rigid_body", 4, split="test")
    assert shipped.score("rigid_body", metrics.measure(clip, clip.video)) > 0.97
    assert shipped.score("rigid_body", metrics.measure(clip, controls.static(clip.video))) < 0.1
    assert shipped.score("rigid_body", metrics.measure(clip, controls.shuffled(clip.video, 0))) < 0.5


def test_thresholds_come_back_from_json_as_they_were(tmp_path: Path) -> None:
    made = Thresholds.of_world(range(3), mechanisms=["rigid_body", "thermal"])
    made.save(tmp_path / "t.json")
    assert Thresholds.load(tmp_path / "t.json") == made
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]
    with pytest.raises(ValueError, match="fit them"):
        made.passes("fluid", {"scenario": 0.0})


def test_controls_keep_the_frames_and_change_their_order() -> None:
    video = np.arange(17)[:, None, None, None] * np.ones((1, 2, 2, 3))
    assert (controls.static(video) == 0).all()
    assert controls.reversed_(video)[0, 0, 0, 0] == 16
    mixed = controls.shuffled(video, 1)[:, 0, 0, 0]
    assert sorted(mixed) == list(range(17))
    assert (mixed != np.arange(17)).all()
