"""PhyWorld's errors are those of what is drawn, and a vanished ball is counted."""

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import phyworld, results
from bench.cli import app
from trainers import video

SIDE, FRAMES = 128, 20
COLOURS = ((230, 20, 20), (20, 20, 230))


def drawn(position: np.ndarray, radius, colours=(0, 1)) -> np.ndarray:
    """Discs on white; positions (t, balls, 2) as (x, y) with y up. Centres are means of pixel indices."""
    unit = SIDE / phyworld.WORLD
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    film = np.full((len(position), SIDE, SIDE, 3), 255, np.uint8)
    for t, balls in enumerate(position):
        for (px, py), r, colour in zip(balls, radius, colours, strict=False):
            inside = (x - px * unit) ** 2 + ((SIDE - 1 - y) - py * unit) ** 2 <= (r * unit) ** 2
            film[t][inside] = COLOURS[colour]
    return film


def uniform(v=2.0, r=1.0, x0=1.5) -> phyworld.Truth:
    x = x0 + v * phyworld.DT_S * np.arange(FRAMES)
    return phyworld.Truth(np.stack([x, np.full(FRAMES, 5.0)], -1)[:, None], np.array([r]), np.array([v]), (0,))


def meeting() -> phyworld.Truth:
    """Balls of equal mass that swap their speeds half way between frames 10 and 11."""
    t = np.arange(FRAMES) * phyworld.DT_S
    free, late = np.minimum(t, 1.05), np.maximum(t - 1.05, 0)
    left, right = 2 + 2 * free - 1 * late, 8 - 1 * free + 2 * late
    position = np.stack([np.stack([left, right], -1), np.full((FRAMES, 2), 5.0)], -1)
    return phyworld.Truth(position, np.array([1.0, 1.0]), np.array([2.0, 1.0]), (0, 1))


def test_a_ball_drawn_where_it_should_be_has_hardly_an_error():
    truth = uniform()
    found = phyworld.score(drawn(truth.position, truth.radius), truth, "uniform")
    assert found["vel_error"] < 0.01
    assert found["abs_x_err_avg"] < 0.02
    assert found["abs_y_err_avg"] < 0.02
    assert found["delta_r"] < 0.02
    assert found["vanished"] == 0


def test_a_wrong_speed_is_the_velocity_error():
    truth, drawn_at = uniform(v=2.0), uniform(v=1.5)
    found = phyworld.score(drawn(drawn_at.position, truth.radius), truth, "uniform")
    assert found["vel_error"] == pytest.approx(0.5, abs=0.02)
    assert found["abs_x_vel_err_avg"] == pytest.approx(0.5, abs=0.05)


def test_y_points_up():
    t = np.arange(FRAMES) * phyworld.DT_S
    position = np.stack([1.5 + 2 * t, 8 - 2 * t**2], -1)[:, None]
    truth = phyworld.Truth(position, np.array([1.0]), np.array([2.0]), (1,))
    assert phyworld.score(drawn(position, [1.0], (1,)), truth, "parabola")["abs_y_err_avg"] < 0.03
    upside_down = drawn(position, [1.0], (1,))[:, ::-1]
    assert phyworld.score(upside_down, truth, "parabola")["abs_y_err_avg"] > 1


def test_only_frames_after_the_given_ones_with_the_whole_ball_inside_count():
    truth = uniform(v=4.0, x0=2.0)  # outside from frame 18 on
    film = drawn(truth.position, truth.radius)
    film[:3], film[18:] = 255, 0
    assert phyworld.score(film, truth, "uniform")["abs_x_err_avg"] < 0.03
    film[3] = 255
    assert phyworld.score(film, truth, "uniform")["vanished"] == pytest.approx(1 / 15)


def test_a_vanished_ball_stands_at_the_far_edge_and_is_counted():
    truth = uniform()
    film = drawn(truth.position, truth.radius)
    film[10] = 255
    found = phyworld.score(film, truth, "uniform")
    assert found["vanished"] == pytest.approx(1 / 17)
    missed = 10 - truth.position[10, 0, 0]
    assert found["abs_x_err_avg"] == pytest.approx(missed / 17, abs=0.03)


def test_a_collision_is_split_at_its_true_impact():
    truth = meeting()
    right = phyworld.score(drawn(truth.position, truth.radius), truth, "collision")
    assert right["pre_vel_error"] < 0.02
    assert right["post_vel_error"] < 0.02
    assert right["post_momentum_error_avg"] < 0.3  # a pixel's jitter
    through = truth.position.copy()  # balls that pass through each other
    t = np.arange(FRAMES) * phyworld.DT_S
    through[..., 0] = np.stack([2 + 2 * t, 8 - t], -1)
    wrong = phyworld.score(drawn(through, truth.radius), truth, "collision")
    assert wrong["pre_vel_error"] < 0.02
    assert wrong["post_vel_error"] > 1


def test_momentum_and_energy_follow_their_formulas():
    truth = phyworld.Truth(meeting().position, np.array([1.0, 0.8]), np.array([2.0, 1.0]), (0, 1))
    x, radius = truth.position[3:, :, 0], np.ones((17, 2))
    found = phyworld._collision(x, radius, x, truth)
    v = np.diff(x, axis=0) / 0.1
    momentum = np.abs(v[:, 0] + 0.64 * v[:, 1] - (2 - 0.64))
    energy = np.abs(v[:, 0] ** 2 / 2 + 0.64 * v[:, 1] ** 2 / 2 - (2 + 0.32))
    assert found["pre_momentum_error_avg"] == pytest.approx(momentum[:7].mean(), abs=1e-9)
    assert found["post_momentum_error_avg"] == pytest.approx(momentum[8:].mean(), abs=1e-9)
    assert found["post_energy_error_avg"] == pytest.approx(energy[8:].mean(), abs=1e-9)
    assert found["pre_vel_error"] == found["post_x_err_avg"] == 0


@pytest.mark.parametrize(
    ("task", "radius", "speed", "group"),
    [
        ("uniform", [1.0], [2.0], "in"),
        ("uniform", [1.5], [2.0], "radius out"),
        ("uniform", [1.0], [5.0], "speed out"),
        ("uniform", [0.65], [5.0], "both out"),
        ("parabola", [1.0], [0.0], "at rest"),
        ("uniform", [0.5], [2.0], ""),
        ("collision", [0.6, 1.5], [1.0, 4.0], "in"),
        ("collision", [0.5, 1.0], [1.0, 4.0], ""),
        ("collision", [0.6, 1.0], [1.0, 4.5], "speed out"),
    ],
)
def test_what_was_trained_on_is_told_apart(task, radius, speed, group):
    nowhere = np.zeros((1, len(radius), 2))
    assert phyworld.group_of(phyworld.Truth(nowhere, np.array(radius), np.array(speed), (0, 1)), task) == group


def test_folders_of_side_by_side_files_are_scored_and_bad_ones_listed(tmp_path):
    videos, truths = tmp_path / "videos", tmp_path / "truths"
    truths.mkdir()
    for name, v, drawn_v in (("00000-00001", 2.0, 2.0), ("00000-00002", 2.0, 1.0), ("00000-00003", 5.0, 5.0)):
        truth = uniform(v=v)
        right, wrong = (drawn(uniform(v=s).position, [1.0]) for s in (v, drawn_v))
        video.write(videos / f"{name}.mp4", np.concatenate([right, right, wrong], 2), 10)
        one_more = np.concatenate([truth.position, truth.position[-1:]])[:, 0]
        np.savez(truths / f"{name}.npz", position=one_more, init=np.array([1.0, v]))
    video.write(videos / "00000-00004.mp4", right, 10)
    np.savez(truths / "00000-00004.npz", position=one_more, init=np.array([1.0, v]))
    video.write(videos / "00000-00005.mp4", np.concatenate([right] * 3, 2), 10)
    out = tmp_path / "out.json"
    where = ["phyworld", "--videos", str(videos), "--truth", str(truths), "--task", "uniform", "--out", str(out)]
    shown = CliRunner().invoke(app, where)
    assert shown.exit_code == 0, shown.stderr
    assert "00000-00004.mp4: expected truth, reconstruction and rollout side by side" in shown.stderr
    assert "00000-00005.mp4: expected an npz" in shown.stderr
    (system,) = results.read(out).systems
    errors = {item.id: item.values["vel_error"] for item in system.items}
    assert errors == pytest.approx({"00000-00001": 0, "00000-00002": 1, "00000-00003": 0}, abs=0.05)
    assert set(system.groups) == {"in", "speed out", "out"}
    assert CliRunner().invoke(app, [*where, "--part", "truth"]).exit_code == 0
    assert max(i.values["vel_error"] for i in results.read(out).systems[0].items) < 0.05
