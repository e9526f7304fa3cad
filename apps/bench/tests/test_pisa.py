"""PISA's three figures follow their formulas, and an object that is lost is not forgotten."""

import json

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from typer.testing import CliRunner

from bench import pisa, results
from bench.cli import app

SIDE = 40


def falling(frames: int, speed: float, x: int = 20) -> np.ndarray:
    """A square that falls `speed` pixels a frame."""
    masks = np.zeros((frames, SIDE, SIDE), bool)
    for t, top in enumerate((speed * np.arange(frames)).astype(int)):
        masks[t, top : top + 5, x - 2 : x + 3] = True
    return masks


def test_the_figures_follow_their_formulas():
    true, made = falling(12, 2), falling(12, 1.5, x=23)
    found = pisa.score(true, made)
    unit = np.sqrt(2) * SIDE
    l2, chamfer, iou = [], [], []
    for a, b in zip(true, made, strict=True):
        p, q = np.argwhere(a), np.argwhere(b)
        l2 += list(np.abs(p.mean(0) - q.mean(0)))
        distance = cdist(p, q)
        chamfer.append(distance.min(0).mean() + distance.min(1).mean())
        iou.append((a & b).sum() / (a | b).sum())
    assert found["l2"] == pytest.approx(np.mean(l2) / unit, abs=1e-12)
    assert found["chamfer"] == pytest.approx(np.mean(chamfer) / unit, abs=1e-12)
    assert found["iou"] == pytest.approx(np.mean(iou), abs=1e-12)
    assert (found["l2_counted"], found["chamfer_counted"]) == pytest.approx((found["l2"], found["chamfer"]), abs=1e-12)


def test_a_lost_object_leaves_the_official_figures_and_worsens_the_counted_ones():
    true, made = falling(12, 2), falling(12, 2)
    made[6:] = False
    found = pisa.score(true, made)
    assert (found["l2"], found["chamfer"], found["vanished"]) == (0, 0, 0.5)
    assert found["l2_counted"] == pytest.approx(0.5 / np.sqrt(2))
    assert (found["chamfer_counted"], found["iou"]) == (1, 0.5)


def test_nothing_where_nothing_should_be_is_right():
    true, made = falling(12, 2), falling(12, 2)
    true[9:] = made[9:] = False
    found = pisa.score(true, made)
    assert (found["iou"], found["l2_counted"], found["vanished"], found["made_up"]) == (1, 0, 0, 0)
    made[9:, 0, 0] = True
    assert pisa.score(true, made)["made_up"] == 0.25


def test_the_highest_positive_point_names_the_dropped_object(tmp_path):
    points = [{"positive": [[3, 30], [4, 12]]}, {"positive": [[9, 8]], "negative": [[0, 0]]}, {"positive": [[1, 20]]}]
    (tmp_path / "said.json").write_text(json.dumps({"points": points}))
    assert pisa.dropped(tmp_path / "said.json") == 1


def table(folder, *rows) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_an_official_table_is_scored_at_the_prediction_s_rate(tmp_path):
    table_top = np.zeros((96, 1, SIDE, SIDE), bool)
    table_top[:, :, 35:] = True
    filmed = np.concatenate([falling(96, 0.25)[:, None], table_top], 1)  # 120 fps, the drop first
    np.savez(tmp_path / "true.npz", mask=filmed)
    np.savez(tmp_path / "made.npz", mask=filmed[::5])  # 24 fps
    np.savez(tmp_path / "simulated.npz", mask=falling(20, 1))
    np.savez(tmp_path / "grey.npz", mask=255 * falling(20, 1).astype(np.uint8))
    (tmp_path / "said.json").write_text(json.dumps({"points": [{"positive": [[20, 2]]}, {"positive": [[9, 36]]}]}))
    drop = {"gt_mask": "true.npz", "gt_fps": 120, "pd_mask": "made.npz", "pd_fps": 24, "gt_annotation": "said.json"}
    simulated = {"gt_mask": "simulated.npz", "gt_fps": 16, "pd_mask": "simulated.npz", "pd_fps": 16}
    path = table(
        tmp_path, drop, simulated, {**simulated, "pd_mask": "absent.npz"}, {**simulated, "pd_mask": "grey.npz"}
    )
    shown = CliRunner().invoke(app, ["pisa", "--pairs", path, "--out", str(tmp_path / "out.json")])
    assert shown.exit_code == 0, shown.stderr
    assert "left out absent.npz" in shown.stderr
    assert "masks of 0 and 1" in shown.stderr
    (system,) = results.read(tmp_path / "out.json").systems
    assert [item.group for item in system.items] == ["filmed", "simulated"]
    assert all(item.values["l2"] == 0 and item.values["iou"] == 1 for item in system.items)


def test_paths_stay_in_the_table_s_folder(tmp_path):
    row = {"gt_mask": "../true.npz", "gt_fps": 16, "pd_mask": "made.npz", "pd_fps": 16}
    with pytest.raises(ValueError, match="leads out"):
        pisa.pairs(tmp_path.__class__(table(tmp_path, row)))
