"""The demo at toy size: two mechanisms, one clip, two steps, no live training."""

import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from bench import demo, live, results
from bench.cli import app
from bench.generate import System


def test_the_demo_says_that_it_is_one_and_what_it_cannot_show(folder):
    result = results.read(folder)
    assert result.settings["badge"] == "demo, not a claim"
    assert any("cannot show that a physics structure helps" in note for note in result.notes)
    assert [table.row_count for table in demo.tables(result)] == [4, 3]


def test_nothing_is_trained_for_a_bundle_or_backbone_that_is_missing(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "run", lambda *_, **__: pytest.fail("training was started"))
    with pytest.raises(ValueError, match="lost cannot be compared: expected a bundle folder"):
        demo.run(setting, (System("base"), System("lost", (tmp_path / "lost",))), tmp_path / "out", workers=1)
    with pytest.raises(ValueError, match="/no/such/backbone"):
        demo.run(replace(setting, backbone="/no/such/backbone"), (System("base"),), tmp_path / "out", workers=1)


def test_equal_size_and_steps_are_claimed_only_where_the_bundles_have_them(folder):
    result = results.read(folder)

    def said(**steps: int) -> str:
        base = result.system("base")
        trained = [base.model_copy(update={"name": n, "parameters": 10, "steps": s}) for n, s in steps.items()]
        return demo.control_of(result.model_copy(update={"systems": (base, *trained)}))

    assert "plain has the same size as PILA and as many training steps" in said(plain=60, PILA=60)
    assert "PILA and plain do not have equal size and steps" in said(plain=60, PILA=90)
    both = said(plain=60, PILA=60, prophy=90)
    assert "same size as PILA" in both
    assert "prophy and plain do not have" in both
    assert demo.control_of(result) == ""


def test_an_error_is_one_line_on_stderr_with_its_brackets(monkeypatch):
    def broken(_):
        raise ValueError("expected [a, b], got [/c]")

    monkeypatch.setattr(demo, "shipped_systems", broken)
    answer = CliRunner().invoke(app, ["demo", "--clips", "1"])
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr == "error: expected [a, b], got [/c]\n"


def test_a_bundle_that_nobody_ships_is_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"expected --also among .*all, got nonsense"):
        demo.shipped_systems(["nonsense"])
    assert [s.name for s in demo.shipped_systems()] == ["base", "plain", "PILA"]
    also = demo.further()
    assert [s.name for s in demo.shipped_systems(["all"])] == ["base", "plain", "PILA", *also]


def test_a_live_run_is_followed_through_its_log(tmp_path):
    log = tmp_path / "run" / "log.jsonl"
    script = (
        "import json, pathlib\n"
        f"p = pathlib.Path({str(log)!r})\n"
        "rows = [{'stage': 'a', 'global_step': 1, 'terms': {'x': 2.0, 'log/y': 9.0}},"
        " {'stage': 'b', 'global_step': 2, 'terms': {'x': 1.0, 'z': 0.5}}]\n"
        "p.write_text(''.join(json.dumps(r) + chr(10) for r in rows))\n"
    )
    trained = live.run([sys.executable, "-c", script], tmp_path / "run", shown="toy")
    assert trained.steps == 2
    assert trained.stages == (("a", (1,), (2.0,)), ("b", (2,), (1.5,)))
    charts = {chart["title"]: chart for chart in live.curves(live.read_log(log))}
    assert charts["loss"]["lines"] == [{"name": "a", "x": [1], "y": [2.0]}, {"name": "b", "x": [2], "y": [1.5]}]
    assert [line["name"] for line in charts["z"]["lines"]] == ["b"]


def test_a_live_run_that_fails_says_what_it_said(tmp_path):
    with pytest.raises(ValueError, match="no such backbone"):
        live.run([sys.executable, "-c", "raise SystemExit('no such backbone')"], tmp_path / "run", shown="toy")


def test_the_live_command_trains_sixty_steps(tmp_path):
    command = " ".join(live.pila_command(tmp_path, "world", 0))
    assert 3 * live.STEPS["observe.steps"] + 5 * live.STEPS["recover.steps"] + live.STEPS["couple.steps"] == 60
    assert all(f"{key}={value}" in command for key, value in live.STEPS.items())
