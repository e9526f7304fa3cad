"""Clips are a pure function of (mechanism, seed, split, scale), and their fields are what the pixels show."""

import json

import numpy as np
import pytest

import physworld
from physworld import FRAMES, MECHANISMS, SIZE, SLOTS, simulate, simulate_many
from physworld.track import follow


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_clip_of_a_batch_equals_the_clip_alone(mechanism: str) -> None:
    batch = simulate_many(mechanism, [5, 2, 9])
    alone = simulate(mechanism, 2)
    assert batch[1].caption == alone.caption == physworld.caption(mechanism, 2)
    assert np.abs(batch[1].video.astype(int) - alone.video).max() <= 1
    for slot in alone.fields:
        np.testing.assert_allclose(batch[1].fields[slot], alone.fields[slot], atol=2e-3)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("scale", [1, 2])
def test_fields_have_the_slots_shapes_masks_and_half_precision(mechanism: str, scale: int) -> None:
    clip = simulate(mechanism, 3, split="test", scale=scale)
    n = SIZE * scale
    assert clip.video.shape == (FRAMES, n, n, 3)
    assert clip.fields
    assert set(clip.fields) == set(clip.valid) <= set(SLOTS)
    for slot, value in clip.fields.items():
        assert value.shape == (FRAMES, n, n, SLOTS[slot])
        assert value.dtype == np.float16
        assert np.isfinite(value).all()
        assert clip.valid[slot].shape == (FRAMES, n, n)
        assert clip.valid[slot].any()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_splits_and_seeds_do_not_share_clips(mechanism: str) -> None:
    clips = [simulate(mechanism, seed, split=split) for split in physworld.SPLITS for seed in (0, 1)]
    assert len({clip.video.tobytes() for clip in clips}) == len(clips)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_only_the_ood_split_is_out_of_distribution_and_it_says_how(mechanism: str) -> None:
    sample = physworld.simulation.module(mechanism).sample
    kinds = {sample(np.random.default_rng(k), "ood")["ood"] for k in range(40)}
    assert kinds == {"combination", "range"}
    assert {sample(np.random.default_rng(k), "train")["ood"] for k in range(40)} == {None}


def test_yellow_and_left_never_meet_before_the_ood_split() -> None:
    for mechanism in ("rigid_body", "elastic"):
        sample = physworld.simulation.module(mechanism).sample
        met = [p for k in range(600) for p in [sample(np.random.default_rng(k), "train")]]
        assert not [p for p in met if p["colour"] == "yellow" and p["direction"] == "left"]
        held = [p for k in range(40) for p in [sample(np.random.default_rng(k), "ood")] if p["ood"] == "combination"]
        assert held
        assert all(p["colour"] == "yellow" and p["direction"] == "left" for p in held)


def test_scale_changes_the_drawing_and_not_the_law() -> None:
    small, large = simulate("rigid_body", 7), simulate("rigid_body", 7, scale=2)
    assert small.caption == large.caption
    assert small.params["g"] == large.params["g"]
    np.testing.assert_allclose(small.params["track"], large.params["track"])


@pytest.mark.parametrize("seed", range(4))
def test_a_thrown_ball_is_drawn_where_its_parabola_is_and_moves_with_its_velocity_field(seed: int) -> None:
    clip = simulate("rigid_body", seed)
    (ball,), _ = follow(clip.video, [clip.params["colour"]], 1)
    np.testing.assert_allclose(ball.position, clip.params["track"], atol=0.05)
    y, x = ball.position.T
    assert np.polyfit(np.arange(FRAMES), y, 2)[0] * 2 == pytest.approx(clip.params["g"], abs=0.003)
    inside = clip.valid["velocity"]
    mean = np.stack([clip.fields["velocity"][t][inside[t]].astype(float).mean(0) for t in range(FRAMES)])
    np.testing.assert_allclose(0.5 * (mean[1:] + mean[:-1]), np.diff(np.stack([y, x], -1), axis=0), atol=0.06)
    assert not clip.fields["velocity"][~inside].any()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_record_is_plain_json_in_the_form_of_wisa(mechanism: str) -> None:
    clip = simulate(mechanism, 1)
    record = json.loads(json.dumps(clip.record()))
    assert {"file", "video_id", "captions", "duration", "width", "text_bbox_num", "physical_annotation"} <= set(record)
    annotation = record["physical_annotation"]
    assert set(annotation) == {"phys_law", "q0", "q1", "q2", "q3", "q4", "quantify_n0", "quantify_n1", "quantify_n2"}
    assert record["captions"] == clip.caption
    assert record["labels"][0] == record["category"] == mechanism
    assert len(record["times_s"]) == FRAMES


def test_a_wrong_name_says_what_was_expected() -> None:
    with pytest.raises(ValueError, match="one of rigid_body"):
        simulate("gravity", 0)
    with pytest.raises(ValueError, match="one of train"):
        simulate("thermal", 0, split="training")
    with pytest.raises(ValueError, match="scale"):
        simulate("thermal", 0, scale=0)
    with pytest.raises(ValueError, match="seeds"):
        simulate("thermal", -1)


def test_planned_clips_are_those_that_are_drawn_and_another_clip_has_another_name_and_content() -> None:
    planned = physworld.spread(11, split="val")
    assert len({c.name for c in planned}) == len({c.content for c in planned}) == 11
    assert [c.seed for c in planned if c.mechanism == "rigid_body"] == [0, 1]
    assert {c.mechanism for c in planned} == set(MECHANISMS)
    for one in planned[::3]:
        clip = one.draw()
        assert (clip.mechanism, clip.seed, clip.split) == (one.mechanism, one.seed, "val")
        assert (clip.caption, clip.labels) == (one.caption, one.labels)
        assert clip.record()["physical_annotation"] == one.annotation
    other = physworld.spread(11, split="val", scale=2)
    assert not {c.content for c in planned} & {c.content for c in other}
