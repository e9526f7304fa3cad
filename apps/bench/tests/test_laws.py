"""Laws read from tracks give back what was put in, and controls that break them are told apart."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import physworld
from bench import invariance, law_results, laws, results, tracks
from bench.cli import app
from physworld import controls, disk
from trainers import video

T = np.arange(60) / 30


def thrown(a=90.0, u=-12.0) -> np.ndarray:
    return np.stack([100 - 60 * T + a * T**2 / 2, 80 + u * T], -1)


def bouncing(e=0.7, g=100.0, fps=60) -> tracks.Tracks:
    """A ball dropped from 50 px onto a floor at y = 200, exact at every frame, until its third impact but one frame."""
    fall = np.sqrt(2 * 50 / g)
    t = np.arange(int(fps * fall * (1 + 2 * e + 2 * e**2 + e**3))) / fps
    y, start, up, floor = np.empty_like(t), 0.0, 0.0, 200.0
    first = np.sqrt(2 * 50 / g)
    for i, now in enumerate(t):
        if now <= first:
            y[i] = floor - 50 + g * now**2 / 2
            continue
        if not start:
            start, up = first, e * g * first
        while now > start + 2 * up / g:
            start, up = start + 2 * up / g, e * up
        y[i] = floor - (up * (now - start) - g * (now - start) ** 2 / 2)
    return tracks.Tracks(np.stack([y, 20 + 30 * t], -1)[:, None], t)


def swinging(period=1.2, turns=4.0, fade=0.0) -> tracks.Tracks:
    t = np.arange(0, turns * period, 1 / 60)
    angle = 0.3 * np.cos(2 * np.pi * t / period) * np.exp(-fade * t)
    return tracks.Tracks(np.stack([50 + 120 * np.cos(angle), 160 + 120 * np.sin(angle)], -1)[:, None], t)


def meeting(e=1.0, masses=(1.0, 2.0)) -> tracks.Tracks:
    """Two bodies on one line; speeds after the impact from momentum and restitution."""
    (m1, m2), (u1, u2) = masses, (40.0, -10.0)
    shared, closing = m1 * u1 + m2 * u2, u1 - u2
    v1, v2 = (shared - m2 * e * closing) / (m1 + m2), (shared + m1 * e * closing) / (m1 + m2)
    before, after = np.minimum(T, 1.0), np.maximum(T - 1.0, 0)
    x = np.stack([60 + u1 * before + v1 * after, 130 + u2 * before + v2 * after], -1)
    return tracks.Tracks(np.stack([np.full_like(x, 50.0), x], -1), T)


# Invariance


def test_the_morpheus_rule_has_its_three_cases():
    rng = np.random.default_rng(0)
    zero_mean = rng.normal(size=100)
    zero_mean = (zero_mean - zero_mean.mean()) / zero_mean.std()
    assert invariance.invariance(np.full(5, -7.0)) == 1
    assert invariance.invariance(2 * zero_mean) == pytest.approx(1 / 3)
    assert invariance.invariance(20 + 4 * zero_mean) == pytest.approx(1 / (1 + 4 / 20))  # |mean| >= 10
    assert invariance.invariance(2 + 0.05 * zero_mean) == pytest.approx(1 / (1 + 0.05 / 2))  # |mean| >= 10 std
    assert invariance.invariance(2 + 0.5 * zero_mean) == pytest.approx(1 / 1.5)  # neither: absolute


def test_the_best_window_counts_and_the_whole_clip_is_stricter():
    q = np.concatenate([np.linspace(0, 5, 60), np.full(20, 5.0)])
    assert invariance.best_window(q) == 1
    assert invariance.invariance(q) < 0.5


def test_six_even_frames_make_the_invariance_score_of_newtongen():
    q = np.arange(26, dtype=float)
    six = np.array([0, 5, 10, 15, 20, 25.0])
    assert invariance.pis(q) == pytest.approx(1 / (1 + six.std() / (12.5 + 1e-8)))


def test_velocity_is_exact_on_lines_and_parabolas():
    x = 3 + 2 * T - 5 * T**2
    assert invariance.velocity(x, 1 / 30)[4:-4] == pytest.approx((2 - 10 * T)[4:-4], abs=1e-9)


def test_velocity_mixes_a_line_fit_and_a_difference_seven_to_three():
    h = 1 / 30
    line, difference = 3 * T**2 + 3.4 * h**2, 3 * T**2 + h**2  # of t^3, whose bias tells them apart
    assert invariance.velocity(T**3, h)[4:-4] == pytest.approx((0.7 * line + 0.3 * difference)[4:-4], abs=1e-9)


def test_a_true_throw_keeps_acceleration_and_momentum_and_a_shuffled_one_does_not():
    track = tracks.Tracks(thrown()[:, None], T)
    true = invariance.score(track, "ballistic")
    mixed = invariance.score(tracks.Tracks(controls.shuffled(track.position, 0), T), "ballistic")
    assert true.best["acceleration"] > 0.999
    assert true.best["momentum"] > 0.999
    assert mixed.strict < 0.5 < true.strict
    assert mixed.score < true.score


def test_energy_is_conserved_in_the_units_of_the_scorer():
    g_px = 9.8 * 400 * 0.01**2  # px / frame^2
    n = np.arange(60.0)
    track = tracks.Tracks(np.stack([300 - 8 * n + g_px * n**2 / 2, 5 * n], -1)[:, None], T)
    found = invariance.score(track, "ballistic")
    assert found.best["energy"] > 0.9999
    assert found.whole["energy"] > 0.9  # the ends' velocities are one-sided
    slow = tracks.Tracks(track.position * np.array([0.5, 1.0]), T)  # as if g were half
    assert invariance.score(slow, "ballistic").whole["energy"] < found.whole["energy"]


def test_a_pendulum_keeps_its_length_and_period():
    found = invariance.score(swinging(), "pendulum", pivot=(50.0, 160.0))
    assert found.best["length"] > 0.9999
    assert found.best["period"] > 0.999
    around = invariance.score(swinging(), "pendulum")  # the pivot from the best circle
    assert around.whole["length"] > 0.9999


def test_a_collision_of_equal_masses_keeps_momentum():
    found = invariance.quantities(meeting(masses=(1.0, 1.0)), "collision")
    assert np.ptp(found["momentum"]) < 0.01 * abs(found["momentum"].mean())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda p: np.where(np.arange(60)[:, None, None] == 30, np.nan, p), "vanishes"),
        (lambda p: np.repeat(p[:1], 60, 0), "nothing moves"),
        (lambda p: p[:8], "frames"),
    ],
)
def test_clips_that_tell_nothing_are_discarded(change, why):
    position = change(thrown()[:, None])
    found = invariance.score(tracks.Tracks(position, T[: len(position)]), "ballistic")
    assert why in found.discarded
    assert found.score is None


# Textbook laws


def test_free_fall_gives_back_its_constant_and_spots_a_wrong_law():
    fall = laws.free_fall(thrown(), T)
    assert (fall.acceleration, fall.sideways) == pytest.approx((90, -12))
    assert fall.relative < 1e-9
    cubic = np.stack([40 * T**3, 80 - 12 * T], -1)
    assert laws.free_fall(cubic, T).relative > 0.05
    assert laws.free_fall(controls.shuffled(thrown(), 1), T).relative > 0.5


def test_free_fall_leaves_out_frames_without_the_body():
    holes = thrown()
    holes[10:20] = np.nan
    assert laws.free_fall(holes, T).acceleration == pytest.approx(90)


@pytest.mark.parametrize("e", [0.5, 0.8])
def test_bounces_give_back_their_restitution(e):
    ball = bouncing(e)
    found = laws.bounces(ball.position[:, 0, 0], ball.times_s)
    assert len(found.restitution) >= 2
    assert found.restitution[:2] == pytest.approx([e, e], abs=0.02)
    assert found.gains == 0


@pytest.mark.parametrize("fps", [24, 30, 37])
def test_an_impact_between_two_frames_is_found_where_the_arcs_meet(fps):
    t, g, e = np.arange(0, 2.3, 1 / fps), 200.0, 0.8
    hits = np.sqrt(2 * 90 / g)
    y = np.where(t <= hits, 10 + g * t**2 / 2, 100 - e * g * hits * (t - hits) + g * (t - hits) ** 2 / 2)
    assert laws.bounces(y, t).restitution == pytest.approx((e,), abs=1e-6)


def test_a_ball_that_jumps_higher_each_time_gains_energy():
    ball = bouncing(0.7)
    found = laws.bounces(ball.position[::-1, 0, 0], ball.times_s)
    assert found.gains >= 2
    assert found.mean > 1.2


def test_a_swing_gives_back_its_period_and_shows_fading():
    even, fading = swinging(1.2), swinging(1.2, fade=0.5)
    found = laws.swing(even.position[:, 0], even.times_s)
    assert found.period_s == pytest.approx(1.2, rel=1e-3)
    assert found.spread < 1e-3
    assert found.reach == pytest.approx(1, abs=0.02)
    assert laws.swing(fading.position[:, 0], fading.times_s).reach < 0.6


@pytest.mark.parametrize("e", [0.0, 0.5, 1.0])
def test_a_collision_keeps_momentum_and_shows_its_restitution(e):
    two = meeting(e)
    found = laws.collision(two.position, two.times_s, masses=(1.0, 2.0))
    assert found.momentum_error < 1e-9
    assert found.restitution == pytest.approx(e, abs=1e-9)
    u, v = [40.0, -10.0], [40 - 2 / 3 * (1 + e) * 50, -10 + 1 / 3 * (1 + e) * 50]
    assert found.energy_ratio == pytest.approx((v[0] ** 2 + 2 * v[1] ** 2) / (u[0] ** 2 + 2 * u[1] ** 2), abs=1e-9)
    wrong = laws.collision(two.position, two.times_s, masses=(1.0, 1.0))
    assert wrong.momentum_error > 0.1


def test_bodies_at_rest_have_no_law():
    still = np.ones((60, 2))
    with pytest.raises(ValueError, match="at rest"):
        laws.free_fall(still, T)
    with pytest.raises(ValueError, match="that move"):
        laws.collision(np.ones((60, 2, 2)), T)
    with pytest.raises(ValueError, match="whole period"):
        laws.swing(thrown(), T)


# The simulated world, real and controls


@pytest.fixture(scope="module")
def world() -> list[tuple[physworld.Clip, tuple[int, int, int]]]:
    clips = [physworld.simulate("rigid_body", seed, split="test") for seed in range(6)]
    return [(clip, disk.COLOURS[clip.params["colour"]]) for clip in clips]


def test_real_throws_obey_and_their_controls_do_not(world):
    for clip, colour in world:
        film = {"real": clip.video, "static": controls.static(clip.video), "mixed": controls.shuffled(clip.video, 0)}
        found = {name: tracks.by_colour(frames, [colour], fps=16) for name, frames in film.items()}
        fall = laws.free_fall(found["real"].position[:, 0], np.arange(17.0))
        assert fall.relative < 0.03
        assert fall.acceleration == pytest.approx(clip.params["g"], rel=0.15)
        assert laws.free_fall(found["mixed"].position[:, 0], np.arange(17.0)).relative > 0.3
        figures = {name: law_results.track_figures(track, "fall")[0] for name, track in found.items()}
        assert figures["static"]["discarded"] == 1
        assert figures["static"]["invariance"] is None
        assert figures["real"]["invariance_whole"] > figures["mixed"]["invariance_whole"]


# Files and commands


def test_tracks_are_read_from_npz_and_csv_alike(tmp_path):
    np.savez(tmp_path / "a.npz", position=thrown(), fps=30)
    rows = "\n".join(f"{n},{y!r},{x!r}" for n, (y, x) in enumerate(thrown().tolist()))
    (tmp_path / "b.csv").write_text(f"frame,y,x\n{rows}\n60,,\n")
    npz, from_csv = tracks.read(tmp_path / "a.npz"), tracks.read(tmp_path / "b.csv", fps=30)
    assert from_csv.position[:60] == pytest.approx(npz.position)
    assert np.isnan(from_csv.position[60]).all()
    assert from_csv.times_s[:60] == pytest.approx(npz.times_s)
    with pytest.raises(ValueError, match="--fps"):
        tracks.read(tmp_path / "b.csv")


def test_two_bodies_of_a_csv_are_told_apart(tmp_path):
    two = meeting()
    rows = [
        f"{t!r},{n},{y!r},{x!r}"
        for t, at in zip(T.tolist(), two.position, strict=True)
        for n, (y, x) in enumerate(at.tolist())
    ]
    (tmp_path / "two.csv").write_text("time_s,body,y,x\n" + "\n".join(rows))
    assert tracks.read(tmp_path / "two.csv").position == pytest.approx(two.position)


def test_the_command_scores_a_folder_of_tracks(tmp_path):
    for name, track in (("true", thrown()), ("mixed", controls.shuffled(thrown(), 0)), ("still", np.ones((60, 2)))):
        np.savez(tmp_path / f"{name}.npz", position=track, fps=30)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    out = tmp_path / "out.json"
    shown = CliRunner().invoke(app, ["laws", "--tracks", str(tmp_path), "--law", "fall", "--out", str(out)])
    assert shown.exit_code == 0, shown.stderr
    assert "left out bad.csv" in shown.stderr
    (system,) = results.read(out).systems
    items = {item.id: item.values for item in system.items}
    assert items["true"]["acceleration_px_s2"] == pytest.approx(90)
    assert items["true"]["fall_residual"] < 1e-6 < items["mixed"]["fall_residual"]
    assert items["still"]["discarded"] == 1
    assert system.metrics["discarded"].value == pytest.approx(1 / 3)
    assert system.metrics["invariance"].n_valid == 2


def test_the_command_scores_films_by_colour(tmp_path, world):
    for n, (clip, _) in enumerate(world[:2]):
        video.write(tmp_path / "films" / f"{n}.mp4", clip.video, 16, scale=4)
    colours = [option for c in world[0][1] for option in (str(c),)]
    where = ["laws", "--videos", str(tmp_path / "films"), "--law", "fall", "--colour", ",".join(colours)]
    shown = CliRunner().invoke(app, [*where, "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.stderr
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    values = written["systems"][0]["items"][0]["values"]
    assert values["fall_residual"] < 0.03
    assert values["acceleration_px_s2"] == pytest.approx(world[0][0].params["g"] * 4 * 16**2, rel=0.15)
    assert values["motion_px"] > 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "either --tracks or --videos"),
        (["--tracks", "."], "--law"),
        (["--videos", ".", "--colour", "1,2"], "R,G,B"),
        (["--videos", ".", "--colour", "1,2,300"], "0 to 255"),
    ],
)
def test_a_wrong_command_line_is_one_line(options, said):
    shown = CliRunner().invoke(app, ["laws", *options])
    assert shown.exit_code == 1
    assert said in shown.stderr
