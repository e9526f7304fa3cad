"""The embedded experts, with the constants that they have on films, against the world's exact masks and tracks."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

import physworld
from mmphysvideo.perception import Space, Tracks, planar_points
from mmphysvideo.pipe.background import background_of, foreground_of
from mmphysvideo.pipe.bodies import bodies_of
from mmphysvideo.pipe.camera import camera_of
from mmphysvideo.pipe.consistency import checked
from mmphysvideo.pipe.evidence import Subject
from mmphysvideo.pipe.experts import MotionSegmenter, perceive, without
from mmphysvideo.pipe.seen import Seen
from mmphysvideo.pipe.settings import Checks
from mmphysvideo.pipe.world import judge, textured

SIZE = (72, 96)


def pattern(size=SIZE, seed=0):
    noise = np.random.default_rng(seed).normal(size=(*size, 3)).astype(np.float32)
    return np.clip(110 + 160 * cv2.GaussianBlur(noise, (0, 0), 2), 0, 255).astype(np.float32)


def film(ground, places, size=12, colour=(230, 40, 40)):
    """A square at (y, x) of each frame before a ground."""
    frames = np.repeat(ground[None], len(places), 0)
    for frame, (y, x) in zip(frames, places, strict=True):
        frame[y : y + size, x : x + size] = colour
    return frames.astype(np.uint8)


@pytest.mark.parametrize("mechanism", ["rigid_body", "collision"])
@pytest.mark.parametrize("drawn", ["plain", "textured"])
def test_masks_of_balls_are_right_to_nine_tenths_and_tracks_to_half_a_pixel(mechanism, drawn):
    clips = physworld.simulate_many(mechanism, range(5), split="val", scale=2)
    films = [clip.video if drawn == "plain" else textured(clip, clip.seed) for clip in clips]
    judged = [judge(clip, perceive(film)[0]) for clip, film in zip(clips, films, strict=True)]
    assert np.median([one.iou for one in judged]) >= 0.9
    assert np.median([one.track_px for one in judged]) <= 0.5
    assert min(one.iou for one in judged) >= 0.8


def test_the_judge_fails_a_shifted_mask_and_a_static_track():
    clip = physworld.simulate("rigid_body", 0, split="val", scale=2)
    seen = perceive(clip.video)[0]
    still = replace(seen.tracks, position=np.repeat(seen.tracks.position[:, :1], 17, 1))
    wrong = judge(clip, replace(seen, masks=np.roll(seen.masks, 4, 2), tracks=still))
    assert wrong.iou < 0.65
    assert wrong.track_px > 4


def test_a_body_that_rests_for_most_of_the_clip_is_in_front_all_the_same():
    places = [(30, 20)] * 11 + [(30, 22 + 2 * k) for k in range(8)]
    frames = film(pattern(), places).astype(np.float32)
    everywhere = np.ones(frames.shape[:3], bool)
    front = foreground_of(frames, everywhere, background_of(frames, everywhere))
    shares = []
    for t, (y, x) in enumerate(places):
        body = np.zeros(SIZE, bool)
        body[y : y + 12, x : x + 12] = True
        shares.append((front[t] & body).sum() / (front[t] | body).sum())
    assert np.mean(shares) > 0.85
    assert min(shares) > 0.8  # a row may be lost where body and pattern are alike


def test_a_shadow_is_no_body():
    ground = np.full((*SIZE, 3), (200, 190, 180), np.float32)
    frames = film(ground, [(10, 5 + 4 * k) for k in range(12)])
    for k, frame in enumerate(frames):
        frame[40:55, 5 + 4 * k : 20 + 4 * k] = 0.75 * ground[0, 0]
    bodies = Seen("clip", frames, np.arange(12) / 8).bodies
    assert bodies.max() == 1
    assert not bodies[:, 40:].any()


def test_a_camera_that_pans_is_found_and_the_body_with_it():
    wide = pattern((72, 160))
    frames = np.stack([film(wide[:, 3 * k : 3 * k + 96], [(30, 70 - 5 * k)])[0] for k in range(12)])
    camera = camera_of(frames)
    assert camera.kind == "moving"
    shift = camera.motion[-1, 0, 2] - camera.motion[0, 0, 2]
    assert abs(shift - 33) < 2
    bodies = Seen("clip", frames, np.arange(12) / 8).bodies
    body = np.zeros(SIZE, bool)
    body[30:42, 45:57] = True  # frame 5
    assert (bodies[5] == 1)[body].mean() > 0.8
    assert (bodies[5] > 0).sum() < 1.6 * body.sum()


def test_bodies_that_move_together_over_an_empty_ground_move_no_camera():
    clip = physworld.simulate("collision", 0, split="val", scale=2)
    for seed in range(4):
        assert camera_of(physworld.simulate("collision", seed, split="val", scale=2).video).kind == "static"
    assert camera_of(clip.video[:1]).kind == "static"


def test_many_small_bodies_of_a_kind_are_one_swarm():
    exact = np.full((10, *SIZE, 3), 30, np.float32)
    for k, frame in enumerate(exact):
        for row, y in enumerate((8, 28, 48)):
            for x in (14, 34, 54, 74):
                left = x + (k if row % 2 else -k)
                frame[y : y + 4, left : left + 4] = 220
    seen = np.ones(exact.shape[:3], bool)
    bodies = bodies_of(exact, foreground_of(exact, seen, background_of(exact, seen)), most=6)
    assert (bodies == 1).sum() > 0.8 * (exact[..., 0] > 100).sum()


def test_a_subject_gets_the_body_that_fills_its_box_and_none_where_nothing_moves():
    frames = film(pattern(), [(30, 5 + 5 * k) for k in range(12)])
    clip = Seen("clip", frames, np.arange(12) / 8)

    def subject(number, box):
        return Subject(id=number, name=f"{number}", evidence_frames=[99, 6], box=box, why="it moves")

    there = subject(1, (35 / 96, 30 / 72, 47 / 96, 42 / 72))
    elsewhere = subject(2, (0.8, 0.0, 1.0, 0.2))
    masks = MotionSegmenter().segment(clip, [elsewhere, there])
    assert set(np.unique(masks)) == {0, 2}
    assert (masks[6, 30:42, 35:47] == 2).mean() > 0.9


def test_checks_take_out_the_subject_that_fails_and_number_the_rest_anew():
    clip = physworld.simulate("collision", 0, split="val", scale=2)
    seen = perceive(clip.video)[0]
    assert len(seen.subjects) == 2
    brief = seen.masks.copy()
    brief[2:][brief[2:] == 1] = 0  # the first is seen in two frames only
    kept, found, why = checked(replace(seen, masks=brief), Checks())
    assert why == ""
    assert kept.subjects == seen.subjects[1:]
    assert kept.masks.max() == 1
    assert "life is 0.118, wanted 0.2 to 1" in str(found)
    assert (kept.masks[5] == 1).sum() == (seen.masks[5] == 2).sum()
    nobody, _, why = checked(without(seen, [1, 2]), Checks())
    assert why == "no subject"
    assert not nobody.masks.any()


def test_tracks_that_leave_their_mask_and_a_background_that_wobbles_in_depth_fail():
    clip = physworld.simulate("rigid_body", 0, split="val", scale=2)
    seen = perceive(clip.video)[0]
    away = Tracks(seen.tracks.position + np.float32(20), seen.tracks.visible, seen.tracks.subject)
    assert "agreement" in checked(replace(seen, tracks=away), Checks())[2]
    points = planar_points(17, 64, 64).copy()
    points[..., 2] = np.where(np.arange(17) % 2, 1.0, 2.0)[:, None, None]
    deep = replace(seen, points=points, space=Space.robust(points, 50.0))
    assert checked(deep, Checks())[2].startswith("depth_jitter is 0.3")
