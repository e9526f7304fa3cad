"""The demo at toy size: two mechanisms, one clip, two steps, no live training."""

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from bench import demo, live, report
from bench.generate import Order, System, carry_out, noise_seeds


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
    seeds = [seed for m in result.scored for seed in noise_seeds(setting, m)]
    assert len(set(seeds)) == len(seeds)


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
