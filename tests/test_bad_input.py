"""The catalogue of bad input is literal: each row's command is run, and gives the row's message and an exit code."""

import json
import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "bad-input.md"
ROW = re.compile(
    r"^\| (?:without (?P<lacking>a GPU|\w+): )?`(?P<command>[^`]+)` \| (?P<message>.*?) \| (?P<remedy>.*?)\|$", re.M
)
ROWS = list(ROW.finditer(PAGE.read_text(encoding="utf-8")))
SMALL = "data.clips=8 batch=4 observe.steps=0 recover.steps=0 couple.steps=4 save_every=4"
CLIP = ROOT / "tests" / "data" / "clips" / "apple_bounce.mp4"


def ask(command):
    words = shlex.split(command)
    app = import_module(f"{words[0]}.cli").app
    return CliRunner().invoke(app, words[1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the page speaks of."""
    home = tmp_path_factory.mktemp("bad")
    for name in ("empty", "broken", "mute", "short", "notabundle"):
        (home / name).mkdir()
    texts = {
        "broken/ball.mp4": "no video",
        "broken/ball.txt": "a ball bounces",
        "short/ball.txt": "an apple bounces",
        "notabundle/bundle.json": "{}",
        "typo.yaml": "routing: {kk: 2}\n",
        "twice.yaml": "seed: 1\nseed: 2\n",
        "tabs.yaml": "routing:\n\tk: 2\n",
        "circle.yaml": "extends: circle.yaml\n",
        "half.json": '[{"path": "ball.mp4",',
        "outside.json": json.dumps([{"path": "../secret.mp4", "caption": "a ball falls"}]),
        "absent.json": json.dumps([{"path": "ball.mp4", "caption": "a ball falls"}]),
    }
    for name, text in texts.items():
        (home / name).write_text(text, encoding="utf-8")
    for name in ("mute", "short"):
        shutil.copy(CLIP, home / name / "ball.mp4")
    shutil.copytree(ROOT / "apps" / "pila" / "src" / "pila" / "bundles" / "pila", home / "torn")
    weights = home / "torn" / "bundle.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (home / "apps").symlink_to(ROOT / "apps")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        sets = " ".join(f"--set {one}" for one in SMALL.split())
        done = ask(f"pila train --out trained --cache cache --quiet {sets}")
        assert done.exit_code == 0, done.output
    return home


def test_the_rows_are_found_and_are_all_of_the_page_s():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    heads = sum(line.startswith("| you type") for line in lines)
    assert len(ROWS) == len(lines) - heads >= 55
    assert [row["command"] for row in ROWS if len(row["message"].replace("...", "")) < 10] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["command"])
def test_the_message_of_a_row_is_what_the_command_says(row, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "4000")
    if row["lacking"] == "a GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elif row["lacking"]:
        monkeypatch.setitem(sys.modules, row["lacking"], None)
    done = ask(row["command"])
    said = " ".join(done.output.split())
    assert done.exit_code in (1, 2), said
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    expected = ".*".join(re.escape(part) for part in row["message"].split("..."))
    assert re.search(expected, said), f"expected: {row['message']}\n     got: {said[-1500:]}"
