"""A report draws what the logs say: every panel that there are lines for, readable, one picture by rename."""

import json
import sys

import pytest
from PIL import Image

from trainers import curves, log, report


def lines(steps, scale=1.0, held=True):
    for step in range(10, steps + 1, 10):
        stage = "a" if step <= steps // 2 else "b"
        line = {
            "stage": stage, "step": step, "global_step": step, "lr": 1e-3, "gradient_norm": 1.0, "seconds": 0.05,
            "terms": {"flow": scale / step, "physics": 3.0, "log/note": None if step == 10 else 2.0},
            "ramps": {"physics": step / steps} if stage == "b" else {},
        }  # fmt: skip
        if stage == "b":
            line["recursive"] = {
                "physics": {"average": 1.0, "eta": 5.0 if step > steps // 2 + 20 else None, "resets": 2}
            }
        if held and step % 20 == 0:
            line["held_out"] = {"flow": {f"0.{i}": scale * i / step for i in range(1, 10)}}
        yield line


def run(folder, *args, **rest):
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(*args, **rest)))
    return folder


def drawn(monkeypatch, given, out, *, plot=False):
    """The panels of a report, by title; their curves are drawn where a test looks at the picture."""
    seen, stock = {}, curves._draw

    def draw(axes, panel):
        seen[panel.title] = panel
        if plot:
            stock(axes, panel)

    monkeypatch.setattr(curves, "_draw", draw)
    assert report(given, out) == out
    return seen


def test_a_report_has_a_panel_for_everything_that_the_log_tells(tmp_path, monkeypatch):
    panels = drawn(monkeypatch, run(tmp_path / "run", 200), tmp_path / "plots" / "run.png", plot=True)
    assert list(panels) == [
        "sum of the loss", "physics", "flow", "log/note", "held out: flow, by level", "held out at the end: flow",
        "gradient norm", "learning rate", "ramp physics", "ramp physics: 2 resets", "seconds a step",
    ]  # fmt: skip
    (flow,) = panels["flow"].curves
    assert flow.points == [(float(step), 1 / step) for step in range(10, 201, 10)]
    assert panels["sum of the loss"].curves[0].points[0] == (10.0, 3.1)
    assert [curve.label for curve in panels["held out: flow, by level"].curves] == [f"0.{i}" for i in range(1, 10)]
    (end,) = panels["held out at the end: flow"].curves
    assert end.points == [(i / 10, i / 200) for i in range(1, 10)]
    assert len(panels["log/note"].curves[0].points) == 19  # a null is no point
    norm, eta = panels["ramp physics: 2 resets"].curves
    assert (len(norm.points), len(eta.points)) == (10, 8)
    with Image.open(tmp_path / "plots" / "run.png") as picture:
        assert picture.size[0] > 1500
        assert len(picture.convert("L").getcolors(256)) > 50
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["run.png"]


def test_several_runs_lie_over_one_another_each_in_its_colour(tmp_path, monkeypatch):
    runs = [
        run(tmp_path / "x" / "run", 200),
        run(tmp_path / "y" / "run", 100, 2.0),
        run(tmp_path / "z", 60, held=False),
    ]
    panels = drawn(monkeypatch, runs, tmp_path / "all.png")
    colours = [curve.colour for curve in panels["flow"].curves]
    assert len(set(colours)) == 3
    assert [curve.style for curve in panels["held out: flow, by level"].curves] == ["-", "--", ":"] * 2
    assert [curve.label for curve in panels["held out at the end: flow"].curves] == ["x/run", "y/run"]


def test_a_long_curve_is_smoothed_and_keeps_its_beginning():
    smooth = curves._smooth([1.0] * 500 + [3.0] * 500)
    assert smooth[:500] == [1.0] * 500
    assert 1 < smooth[505] < 3
    assert smooth[-1] == pytest.approx(3.0, abs=1e-6)


def test_many_terms_are_cut_to_the_largest_and_the_rest_is_counted(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    line = next(lines(10)) | {"terms": {f"t{i:02}": float(i) for i in range(20)}}
    (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    panels = drawn(monkeypatch, folder, tmp_path / "run.png")
    assert [title for title in panels if title.startswith("t")][:2] == ["t19", "t18"]
    assert "t08 (8 smaller ones left out)" in panels


def test_a_run_without_a_log_and_a_missing_library_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected a run with a log"):
        report(tmp_path / "nothing", tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'phystrainers\[plots\]'"):
        report(run(tmp_path / "run", 40), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    folder = run(tmp_path / "run", 40)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"stage": "b", "global_st')
    assert [line["global_step"] for line in log.read(folder / "log.jsonl")] == [10, 20, 30, 40]
