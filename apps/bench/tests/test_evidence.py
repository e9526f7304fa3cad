"""What is shown beside a figure is what is in the film."""

import numpy as np
import pytest

import physworld
from bench.evidence import evidence, motion


def test_the_track_of_a_thrown_ball_is_its_own_and_lies_on_the_law():
    clip = physworld.simulate("rigid_body", 3)
    (track,) = evidence(clip.caption, clip.video)["tracks"]
    truth = np.array(clip.params["track"])[:, ::-1] / physworld.SIZE
    assert np.abs(np.array(track["points"]) - truth).max() < 0.01
    assert np.abs(np.array(track["law"]) - truth).max() < 0.01


def test_two_lines_follow_balls_that_collide():
    clip = physworld.simulate("collision", 1)
    tracks = evidence(clip.caption, clip.video)["tracks"]
    assert len(tracks) == 2
    for track in tracks:
        assert np.abs(np.array(track["points"]) - np.array(track["law"])).max() < 0.03


@pytest.mark.parametrize("mechanism", ["fluid", "compressible_flow", "phase_change", "thermal"])
def test_a_quantity_of_a_real_clip_is_what_its_law_expects(mechanism):
    clip = physworld.simulate(mechanism, 0)
    (series,) = evidence(clip.caption, clip.video)["series"]
    early = slice(0, 5)  # a front leaves the picture later
    assert np.allclose(series["values"][early], series["expects"][early], rtol=0.02)
    assert len(series["values"]) == len(clip.video)


def test_a_ball_that_is_gone_leaves_a_gap_and_no_law():
    clip = physworld.simulate("rigid_body", 3)
    empty = np.full_like(clip.video, 22)
    (track,) = evidence(clip.caption, empty)["tracks"]
    assert track["points"] == [None] * len(empty)
    assert track["law"] is None
    assert evidence("a cat sings", clip.video) == {}


def test_motion_points_where_a_square_goes_and_is_none_where_nothing_moves():
    film = np.zeros((3, 64, 64, 3), np.uint8)
    texture = np.random.default_rng(0).integers(80, 255, (24, 24, 3), np.uint8)
    for t in range(3):
        film[t, 20:44, 10 + 3 * t : 34 + 3 * t] = texture
    flow = motion(film)
    assert flow.shape == (2, 8, 8, 2)
    x, y = flow[0, 3, 2]
    assert x == pytest.approx(3 / 64, rel=0.3)
    assert abs(y) < 0.01
    assert (motion(np.zeros((3, 64, 96, 3), np.uint8)) == 0).all()
