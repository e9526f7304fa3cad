"""Collisions conserve what they should, and the metric sees when they do not."""

import numpy as np
import pytest

from physworld import collision, disk, simulate_many
from physworld.track import UNFIT


def test_momentum_is_conserved_and_energy_only_where_balls_bounce() -> None:
    for clip in simulate_many("collision", range(24)):
        p = clip.params
        m, u, v = p["mass"][:, None], p["before"], p["after"]
        np.testing.assert_allclose((m * u).sum(0), (m * v).sum(0), atol=1e-9)
        before, after = (m * u**2).sum(), (m * v**2).sum()
        assert after == pytest.approx(before) if clip.scenario == "bounces" else after < before
        assert 4.0 <= p["contact"] <= 10.0
        gap = np.linalg.norm(p["track"][:, 0] - p["track"][:, 1], axis=-1) - p["radii"].sum()
        assert gap.min() > -1e-9


def test_the_impulse_field_is_what_changes_each_ball_and_sums_to_zero() -> None:
    for clip in simulate_many("collision", range(6)):
        impulse = clip.fields["impulse"].astype(float)
        when = int(np.ceil(clip.params["contact"]))
        assert set(np.flatnonzero(np.abs(impulse).sum((1, 2, 3)))) == {when}
        values = np.unique(impulse[when][clip.valid["impulse"][when]], axis=0)
        assert len(values) == 2
        assert np.abs(values.sum(0)).max() < 0.05


def ghost(change: str) -> dict[str, float]:
    """Measures of a drawn pair that breaks one law."""
    t = np.arange(17.0)[:, None]
    u0, u1 = np.array([0.0, 0.8]), np.array([0.0, 0.0])
    v0, v1 = {"law": (u1, u0), "momentum": (u1, 0.4 * u0), "through": (u0, u1)}[change]
    met = np.array([16.0, 14.0])
    first = met + np.minimum(t - 6.5, 0) * u0 + np.maximum(t - 6.5, 0) * v0
    second = met + np.array([0.0, 6.0]) + np.minimum(t - 6.5, 0) * u1 + np.maximum(t - 6.5, 0) * v1
    video = disk.paint(disk.disks(np.stack([first, second], 1), np.array([3.0, 3.0]), 1), disk.rgb("red", "blue"))
    said = "a small red ball going right hits a small blue ball and bounces"
    return collision.measure(video, collision.expect(said.split()), 1)


def test_a_lost_share_of_momentum_is_measured_as_that_share() -> None:
    assert ghost("law")["mom_relerr"] < 0.02
    assert ghost("law")["rest_err"] < 0.02
    assert ghost("momentum")["mom_relerr"] == pytest.approx(0.6, abs=0.03)


def test_balls_that_pass_through_one_another_overlap_and_do_not_bounce() -> None:
    found = ghost("through")
    assert found["overlap_px"] > 2.0
    assert found["rest_err"] > 1.0


def test_a_missing_ball_makes_the_collision_unreadable() -> None:
    video = disk.paint(disk.disks(np.full((17, 1, 2), 16.0), np.array([3.0]), 1), disk.rgb("red"))
    said = "a small red ball going right hits a small blue ball and bounces"
    found = collision.measure(video, collision.expect(said.split()), 1)
    assert found["valid"] == 0.0
    assert found["mom_relerr"] == UNFIT
