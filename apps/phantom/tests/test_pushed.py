"""Pushed balls: a force says what the pixels do, and what does not follow it is found out."""

import math

import numpy as np
import pytest

import physworld
from phantom.config import load_recipe
from phantom.force import Point, Wind
from phantom.pushed import MECHANISM, SPEEDS, _spearman, followed, force_of, pushed_items

COUNT = 24


@pytest.fixture(scope="module")
def balls():
    return physworld.simulate_many(MECHANISM, range(COUNT), split="val")


@pytest.fixture(scope="module")
def forces():
    return [force_of(seed, split="val") for seed in range(COUNT)]


def colours(clips):
    return [c.params["colour"] for c in clips]


def test_a_force_begins_where_the_ball_is_and_points_where_it_goes(balls, forces):
    for clip, force in zip(balls[:6], forces[:6], strict=True):
        ball = np.abs(clip.video.astype(float) - clip.video[0, 0, 0]).sum(-1)[..., None]  # what is no background
        places = np.indices((32, 32)).transpose(1, 2, 0)
        centre = [(ball[t] * places).sum((0, 1)) / ball[t].sum() for t in (0, 1)]
        y, x = centre[0] + 0.5
        assert (force.x * 32, (1 - force.y) * 32) == pytest.approx((x, y), abs=0.6)
        vy, vx = centre[1] - centre[0]
        turn = math.degrees(math.atan2(-vy, vx)) - force.angle  # up is 90 degrees, y points down
        assert abs((turn + 180) % 360 - 180) < 15
        speed = SPEEDS[0] + force.strength * (SPEEDS[1] - SPEEDS[0])
        assert speed == pytest.approx(math.hypot(vy, vx), abs=0.25)


def test_true_clips_follow_their_pushes_and_others_do_not(balls, forces):
    videos = [c.video for c in balls]
    true = followed(videos, forces, colours(balls))
    assert (true.n, true.of) == (COUNT, COUNT)
    assert true.permanence > 0.98
    assert true.angle_error < 3
    assert true.speed_rank > 0.95
    shuffled = followed(videos, [*forces[1:], forces[0]], colours(balls))
    assert shuffled.angle_error > 10 * true.angle_error
    assert abs(shuffled.speed_rank) < 0.6


def test_a_ball_that_breaks_is_left_out_and_counted(balls, forces):
    videos = [c.video.copy() for c in balls[:6]]
    for film in videos[:2]:
        film[4:] = film[0, 0, 0]  # gone
    videos[2] = np.maximum(videos[2], videos[2][:, ::-1])  # twice
    found = followed(videos, forces[:6], colours(balls[:6]))
    assert (found.n, found.of) == (3, 6)
    assert found.permanence < 0.8
    nothing = followed([np.zeros_like(v) for v in videos], forces[:6], colours(balls[:6]))
    assert nothing.n == 0
    assert math.isnan(nothing.angle_error)
    assert math.isnan(nothing.speed_rank)


def test_a_rank_correlation_knows_ties_and_says_nothing_without_spread():
    assert _spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 4, 9, 16])) == pytest.approx(1)
    assert _spearman(np.array([1.0, 1, 2]), np.array([5.0, 5, 7])) == pytest.approx(1)
    assert _spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 4])) == pytest.approx(0.9486833)
    for a in ([1.0, 1, 1], [1.0, 2]):
        assert math.isnan(_spearman(np.array(a), np.arange(len(a), dtype=float)))


def test_pushed_clips_are_the_world_s_throws_or_a_table_s_rows(tmp_path):
    recipe = load_recipe(None, ["force.kind=point", "force.clips=2"])
    found = list(pushed_items(recipe, []))
    assert [item.id for item, _ in found] == ["train-rigid_body-000000", "train-rigid_body-000001"]
    assert all(isinstance(force, Point) for _, force in found)
    with pytest.raises(ValueError, match="nothing blows in the simulated world"):
        list(pushed_items(load_recipe(None, ["force.kind=wind"]), []))
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "wind.csv").write_text("video,angle,speed,caption\na.mp4,90,3,a flag\nb.mp4,90,3,a flag\n")
    skipped = []
    recipe = load_recipe(None, ["force.kind=wind", f"force.table={tmp_path / 'wind.csv'}"])
    ((item, force),) = pushed_items(recipe, skipped)
    assert (item.id, force) == ("a.mp4", Wind(90.0, 0.5))
    assert "there is no file" in skipped[0].why


def test_a_table_of_the_other_kind_of_force_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "wind.csv").write_text("video,angle,speed,caption\na.mp4,90,3,a flag\n")
    recipe = load_recipe(None, ["force.kind=point", f"force.table={tmp_path / 'wind.csv'}"])
    with pytest.raises(ValueError, match=r"expected point forces in .*wind.csv.*, got wind"):
        list(pushed_items(recipe, []))


def test_the_caption_of_a_push_leaves_the_direction_to_it_and_keeps_what_it_does_not_say():
    recipe = load_recipe(None, ["force.kind=point", f"force.clips={COUNT}"])
    captions = [item.noted["caption"] for item, _ in pushed_items(recipe, [])]
    for seed, caption in enumerate(captions):
        p = physworld.parameters(MECHANISM, seed)
        promised = physworld.captions.parse(caption)
        assert promised is not None
        assert promised.mechanism == MECHANISM
        assert "direction" not in promised.parameters
        assert (promised.parameters["colour"], promised.parameters["size"]) == (p["colour"], p["size"])
        low, high = promised.parameters["g"]
        assert low <= p["g"] <= high


def test_clips_are_told_one_by_one_and_a_broken_ball_by_none(balls, forces):
    films = [c.video.copy() for c in balls[:4]]
    films[1][4:] = films[1][0, 0, 0]
    found = followed(films, forces[:4], colours(balls[:4]))
    assert [ball is None for ball in found.balls] == [False, True, False, False]
    for ball, force in zip(found.balls, forces[:4], strict=True):
        if ball is not None:
            assert ball.strength == force.strength
            assert ball.speed == pytest.approx(SPEEDS[0] + force.strength * (SPEEDS[1] - SPEEDS[0]), abs=0.25)
