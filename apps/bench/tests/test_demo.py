"""The demo at toy size: two mechanisms, one clip, two steps, no live training."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import demo, live, plots, report
from bench.cli import app
from bench.generate import Order, Setting, System, carry_out
from physworld.evaluation import Scored
from physworld.paired import by_mechanism


class Tags(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.videos = 0

    def handle_starttag(self, tag, attrs):
        self.videos += tag == "video"
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "poster")]


def test_the_demo_compares_its_systems_and_writes_a_report_that_stands_alone(result, tmp_path):
    page = report.write(result, tmp_path / "out")
    text = page.read_text()
    assert "http:" not in text
    assert "https:" not in text
    tags = Tags()
    tags.feed(text)
    assert tags.videos == 2
    outside = [link for link in tags.links if not link.startswith(("data:video/mp4;base64,", "#"))]
    assert not outside
    assert "demo, not a claim" in text
    assert "currentColor" in text
    figures = json.loads((tmp_path / "out" / "result.json").read_text())
    assert figures["pass_share"]["thermal"]["real"] == 1.0
    assert figures["pass_share"]["thermal"]["static"] == 0.0
    assert {d["all"]["a"] for d in figures["differences"]} == {"nudge"}


def test_the_videos_of_the_report_decode_to_every_panel_side_by_side(result, tmp_path):
    import base64

    from trainers import video

    found = re.search(r'base64,([^"]+)"', report.render(result))
    assert found
    (tmp_path / "strip.mp4").write_bytes(base64.b64decode(found.group(1)))
    frames = video.read(tmp_path / "strip.mp4").frames
    height = 32 * report.ENLARGE
    assert frames.shape[:2] == (17, height)
    assert abs(frames.shape[2] - (3 * 32 + 2) * report.ENLARGE) <= 1
    real = result.videos["rigid_body"]["real"][0].astype(float)
    panel = frames[:, :: report.ENLARGE, -32 * report.ENLARGE :: report.ENLARGE].astype(float)
    assert np.abs(real - panel).mean() < 12  # the last panel is the real clip, up to the codec


def test_systems_share_prompts_and_noise_and_an_adapter_moves_the_clip(result, backbone, nudge):
    setting = result.setting
    again = carry_out(Order(setting, "thermal", System("base")))[0]
    assert np.array_equal(again.videos, result.videos["thermal"]["base"])
    assert not np.array_equal(result.videos["thermal"]["nudge"], result.videos["thermal"]["base"])


def eight(result, shift: float = 0.2):
    """The same result as if there were eight clips a mechanism, the adapter ahead by `shift`."""
    setting = replace(result.setting, clips=8)
    scored = {
        m: {s: Scored(v.passes * 8, v.scores * 8, v.measures * 8) for s, v in by.items()}
        for m, by in result.scored.items()
    }
    rng = np.random.default_rng(0)
    b = {m: list(rng.random(8)) for m in scored}
    a = {m: [x + shift for x in values] for m, values in b.items()}
    videos = {m: {s: v.repeat(8, 0) for s, v in by.items()} for m, by in result.videos.items()}
    compared = (by_mechanism("nudge", "base", a, b),)
    return replace(result, setting=setting, scored=scored, videos=videos, comparisons=compared)


def test_the_report_gives_no_interval_and_no_verdict_for_a_clip_or_two(result):
    few, enough = report.render(result), report.render(eight(result))
    assert "too few for an interval" in few
    assert 'class="interval"' not in few
    assert "nudge scores" not in few
    assert "nudge scores higher than base on these 16 paired clips" in enough
    assert 'class="interval"' in enough
    assert "too few" not in enough


def test_the_report_says_how_many_clips_a_figure_rests_on(result):
    page = report.render(eight(result))
    assert "Each cell: n = 8" in page
    assert "n = 8 a mechanism, 16 in “all”" in page


def test_a_control_that_passes_where_it_should_fail_is_named(result):
    assert "In this run none passes elsewhere" in report.render(result)
    passing = Scored((True,), (1.0,), result.scored["thermal"]["reversed"].measures)
    for mechanism, named in (("thermal", True), ("rigid_body", False)):  # flight runs backwards just as well
        scored = {**result.scored, mechanism: {**result.scored[mechanism], "reversed": passing}}
        changed = replace(result, scored=scored)
        assert report.blind(changed) == ([f"{mechanism}, reversed: 1 of 1"] if named else [])
        assert ("controls pass where they should fail" in report.render(changed)) == named


def test_equal_size_and_steps_are_claimed_only_where_the_bundles_have_them(result):
    def about(steps: int) -> dict:
        return {"kind": "x", "parameters": 10, "stages": [{"name": "s", "steps": steps}]}

    same = replace(result, bundles={"base": {"kind": "frozen"}, "plain": about(60), "PILA": about(60)})
    other = replace(result, bundles={"base": {"kind": "frozen"}, "plain": about(60), "PILA": about(90)})
    assert "plain has the same size as PILA and as many training steps" in report.render(same)
    assert "do not have equal size and steps" in report.render(other)
    assert report.control_of(result) == ""


def test_a_missing_bundle_or_backbone_stops_before_anything_is_trained(backbone, nudge, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("training was started")

    monkeypatch.setattr(live, "run", never)
    setting = Setting(str(backbone), clips=1, split="test", seed=0, steps=2, guidance=1.5)
    with pytest.raises(ValueError, match="lost cannot be compared: expected a bundle folder"):
        demo.run(setting, (System("base"), System("lost", tmp_path / "lost")), workers=1)
    with pytest.raises(ValueError, match="/no/such/backbone"):
        demo.run(replace(setting, backbone="/no/such/backbone"), (System("base"),), workers=1)


def test_an_error_is_one_line_on_stderr_with_its_brackets(monkeypatch):
    def broken():
        raise ValueError("expected [a, b], got [/c]")

    monkeypatch.setattr(demo, "shipped_systems", broken)
    answer = CliRunner().invoke(app, ["demo", "--clips", "1"])
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr == "error: expected [a, b], got [/c]\n"


def test_the_stages_of_a_training_all_look_different():
    assert len({plots.look(i) for i in range(len(plots.COLOURS) * len(plots.MARKERS))}) == 36


def test_a_pair_is_named_with_the_last_system_first():
    assert demo.pairs(["base", "plain", "PILA"]) == [("PILA", "base"), ("plain", "base"), ("PILA", "plain")]
    assert demo.pairs(["base"]) == []


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


def test_a_live_run_that_fails_says_what_it_said(tmp_path):
    with pytest.raises(ValueError, match="no such backbone"):
        live.run([sys.executable, "-c", "raise SystemExit('no such backbone')"], tmp_path / "run", shown="toy")


def test_the_live_command_trains_sixty_steps(tmp_path):
    command = " ".join(live.pila_command(tmp_path, "world", 0))
    assert 3 * live.STEPS["observe.steps"] + 5 * live.STEPS["recover.steps"] + live.STEPS["couple.steps"] == 60
    assert all(f"{key}={value}" in command for key, value in live.STEPS.items())
