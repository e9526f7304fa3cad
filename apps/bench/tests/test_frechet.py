"""The Frechet distance is its closed form, and says what it was measured on."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.linalg import sqrtm
from typer.testing import CliRunner

from bench import frechet, results
from bench.cli import app


def samples(n: int, mean, spread, seed: int) -> np.ndarray:
    """n points whose sample mean and (diagonal) covariance are exactly these."""
    raw = np.random.default_rng(seed).normal(size=(n, len(mean)))
    raw -= raw.mean(0)
    white = np.linalg.qr(raw)[0] * np.sqrt(n - 1)
    return white * np.sqrt(spread) + mean


def test_diagonal_gaussians_have_a_closed_form():
    a, b = samples(50, [0, 1, 2], [1, 4, 9], 0), samples(70, [1, 1, 0], [4, 4, 1], 1)
    closed = 1 + 4 + (2 - 1) ** 2 + 0 + (1 - 3) ** 2
    assert frechet.distance(a, b) == pytest.approx(closed, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (5, 6), (4, 60)])
def test_it_equals_the_matrix_root_whatever_the_number_of_samples(n, m):
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(n, 8)), rng.normal(size=(m, 8)) @ rng.normal(size=(8, 8)) + 1
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    ridge = 1e-12 * np.eye(8)  # sqrtm wants full rank
    root = sqrtm((cov_a + ridge) @ (cov_b + ridge)).real
    whole = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet.distance(a, b) == pytest.approx(whole, rel=1e-4)


def test_a_set_is_at_no_distance_from_itself_and_shifts_add_up():
    a = np.random.default_rng(3).normal(size=(30, 5))
    assert frechet.distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet.distance(a, a + 2.0) == pytest.approx(5 * 4, rel=1e-9)


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.zeros((1, 2)), np.full((3, 2), np.nan)])
def test_features_that_cannot_be_compared_are_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        frechet.distance(np.zeros((3, 2)), bad)


def test_every_kind_of_file_gives_the_same_features(tmp_path):
    values = np.random.default_rng(4).normal(size=(6, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", features=values)
    save_file({"features": values}, tmp_path / "a.safetensors", metadata={"network": "I3D", "other": "x"})
    for name in ("a.npy", "a.npz", "a.safetensors"):
        assert (frechet.load(tmp_path / name).values == values).all()
    assert frechet.load(tmp_path / "a.safetensors").protocol == {"network": "I3D"}


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="expected features"):
        frechet.load(tmp_path / "a.npy")


def test_the_command_records_the_protocol_and_a_floor(tmp_path):
    rng = np.random.default_rng(5)
    for name, shift in (("real", 0), ("made", 1)):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(40, 4)) + shift)
        told = {"network": "I3D-Kinetics-400", "layer": "logits", "frames": 16, "resize": "224", "rate": 8}
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    out = tmp_path / "out.json"
    where = ["frechet", str(tmp_path / "real.npy"), str(tmp_path / "made.npy"), "--out", str(out)]
    assert CliRunner().invoke(app, where).exit_code == 0
    found = results.read(out)
    assert found.rater.name == "I3D-Kinetics-400"
    assert found.rater.settings["frames"] == "16"
    assert not found.notes
    metrics = found.systems[0].metrics
    assert metrics["frechet"].value > metrics["halves of the reference"].value > 0
    (tmp_path / "made.json").write_text(json.dumps({"network": "another"}))
    shown = CliRunner().invoke(app, where)
    assert shown.exit_code == 1
    assert "made alike" in shown.stderr
    (tmp_path / "made.json").unlink()
    assert "not stated by both files: network" in CliRunner().invoke(app, where).stderr
