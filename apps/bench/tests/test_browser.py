"""The report and the server in headless Chromium, over WebDriver: what a reader sees, presses, and hears of errors."""

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from bench import report, results, serve

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)


class Browser:
    """One session; every call is one WebDriver command."""

    def __init__(self, profile: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.driver = subprocess.Popen(
            [str(shutil.which("chromedriver")), f"--port={port}", "--silent"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.root = f"http://127.0.0.1:{port}"
        options = {
            "binary": found(),
            "args": [*FLAGS, f"--user-data-dir={profile}", "--window-size=1280,1000"],
        }
        asked = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        deadline = time.monotonic() + 120
        while True:
            try:
                made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
                break
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline:
                    self.driver.terminate()
                    raise
                time.sleep(0.1)
        self.root += f"/session/{made['sessionId']}"

    def open(self, url: str) -> None:
        self._send("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script; what it returns (or promises) comes back."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, seconds: float = 90) -> Any:
        """Run a script until it returns something true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {script}")
            time.sleep(0.05)
        return value

    def key(self, text: str) -> None:
        """Press and release one key."""
        presses = [{"type": kind, "value": text} for kind in ("keyDown", "keyUp")]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": presses}]})

    def complaints(self) -> list[str]:
        """What the console said since the last call."""
        return [line["message"] for line in self._send("POST", "/se/log", {"type": "browser"})]

    def colours(self, scheme: str) -> None:
        """Let the page believe that the reader prefers light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        self._send("POST", "/goog/cdp/execute", command)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(b64decode(self._send("GET", "/screenshot")))

    def close(self) -> None:
        try:
            self._send("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()

    def _send(self, method: str, place: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.root + place, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None


def found() -> str | None:
    """Find Chromium, or nothing."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser for all tests; skips where there is none."""
    if found() is None or shutil.which("chromedriver") is None:
        pytest.skip("no Chromium with chromedriver is installed (Debian: apt-get install chromium chromium-driver)")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def report_page(folder, tmp_path_factory):
    return report.write([folder], tmp_path_factory.mktemp("page") / "report.html", each=1).as_uri()


IN_STEP = """
const card = document.querySelector(".card"), videos = [...card.querySelectorAll(".panel:not([hidden]) video")];
card.scrollIntoView();
const times = videos.map(v => v.currentTime);
return videos.every(v => v.readyState >= 2 && !v.paused) && Math.min(...times) > 0.2 && Math.max(...times) < 0.9
  ? [Math.max(...times) - Math.min(...times), videos.length] : null;
"""


def test_videos_play_side_by_side_in_step_from_the_file_system(browser, report_page):
    browser.open(report_page)
    apart, count = browser.wait(IN_STEP)
    assert count == 3  # base, nudge and the real clip; floor and controls wait to be asked for
    assert apart < 1.5 / 16  # a frame and a half
    assert browser.run("return document.querySelectorAll('.panel[hidden]').length") == 2 * 4
    assert browser.complaints() == []


def test_a_step_shows_that_frame_of_every_video_and_the_slider_says_so(browser, report_page):
    browser.open(report_page)
    browser.wait("return [...document.querySelectorAll('.card video')].slice(0, 2).every(v => v.readyState >= 2)")
    browser.run("document.querySelector('.card input[type=range]').focus()")
    browser.run("document.querySelector('.card .play').click()")
    browser.run("const s = document.querySelector('.card input'); s.value = 3; s.dispatchEvent(new Event('input'))")
    browser.key("\ue014")  # the right arrow
    assert browser.run("return document.querySelector('.card output').textContent") == "frame 5 / 17"
    times = browser.run("return [...document.querySelector('.card').querySelectorAll('video')].map(v => v.currentTime)")
    assert times == pytest.approx([4.5 / 16] * 7, abs=0.01)
    assert browser.complaints() == []


def test_the_drill_down_draws_paths_quantities_and_figures(browser, report_page):
    browser.open(report_page)
    browser.wait("return document.querySelector('.card video').readyState >= 2")
    browser.run("document.querySelectorAll('.card details').forEach(d => { d.open = true; })")
    browser.wait("return document.querySelectorAll('.card .charts svg').length >= 2")
    said = browser.run("return [...document.querySelectorAll('.card .charts svg')].map(s => s.ariaLabel)")
    assert any(text.startswith("heat, which stays") for text in said)
    assert any("distance from the fitted path" in text for text in said)
    drawn = """
    const canvas = [...document.querySelectorAll('.panel[data-system="real"] canvas')][0];
    if (!canvas.width) return false;
    return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some(v => v > 0);
    """
    browser.wait(drawn)


def test_a_table_sorts_by_keyboard_and_says_how(browser, report_page):
    browser.open(report_page)
    column = "[...document.querySelectorAll('.short tbody tr')].map(r => +r.cells[2].dataset.v)"
    before = browser.run(f"return {column}")
    browser.run("document.querySelector('.short thead th:nth-child(3) button').focus()")
    browser.key("\ue007")  # Enter
    assert browser.run("return document.querySelector('.short thead th:nth-child(3)').ariaSort") == "descending"
    assert browser.run(f"return {column}") == sorted(before, reverse=True)
    browser.key("\ue007")
    assert browser.run(f"return {column}") == sorted(before)
    browser.key("\ue007")
    assert browser.run(f"return {column}") == before


def test_dark_and_light_differ_and_can_be_chosen(browser, report_page):
    ground = "return getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        browser.colours(scheme)
        browser.open(report_page)
        seen[scheme] = browser.run(ground)
    assert seen["light"] != seen["dark"]
    browser.run("document.getElementById('theme').click()")
    assert browser.run(ground) == seen["light"]  # chosen against what the system prefers
    browser.run("document.getElementById('theme').click(); document.getElementById('theme').click()")
    browser.colours("light")


def test_every_control_has_a_name_and_every_id_is_its_own(browser, report_page):
    browser.open(report_page)
    nameless = """
    const named = e => e.textContent.trim() || e.ariaLabel || e.labels?.length || e.title;
    return [...document.querySelectorAll("button, input, select, a, svg[role=img], video, summary")]
      .filter(e => !named(e)).map(e => e.outerHTML);
    """
    assert browser.run(nameless) == []
    ids = browser.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    wide = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0


def test_text_of_data_stays_text_in_a_browser(browser, eight, tmp_path):
    evil = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
    result = eight()
    changed = [s.model_copy(update={"name": f"{s.name} {evil}"}) for s in result.systems]
    named = result.model_copy(update={"title": evil, "notes": (evil,), "systems": tuple(changed)})
    browser.open(report.write([results.write(named, tmp_path)], tmp_path / "report.html").as_uri())
    assert browser.run("return window.hacked") is None
    assert evil in browser.run("return document.querySelector('h1').textContent")
    assert browser.complaints() == []


def test_curves_grow_on_the_page_while_a_training_goes_on(browser, tmp_path):
    (tmp_path / "run").mkdir()
    log = tmp_path / "run" / "log.jsonl"
    line = {"stage": "observe", "global_step": 1, "terms": {"flow": 1.0}, "gradient_norm": 0.5, "lr": 1e-3}
    log.write_text(json.dumps(line) + "\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(serve.application(tmp_path), port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        browser.open(f"http://127.0.0.1:{port}/training/run")
        browser.wait("return document.getElementById('state').textContent === 'stage observe, step 1'")
        with log.open("a") as more:
            more.write(json.dumps(line | {"global_step": 2}) + "\n")
        browser.wait("return document.getElementById('state').textContent === 'stage observe, step 2'")
        assert browser.run("return document.querySelectorAll('#charts svg').length") == 4
        assert browser.complaints() == []
    finally:
        server.should_exit = True
        thread.join()
