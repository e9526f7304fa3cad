"""docs/own-clips.md, followed to the letter on five licensed films: every command before its GPU section, in order.

What is left out asks for a model of the reader's (`NEEDS`); what is added makes it small (`SMALL`), and no more.
"""

import json
import re
import shlex
import shutil
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trainers import video

ROOT = Path(__file__).parents[1]
FILMS = ROOT / "tests" / "data" / "clips"
PAGE = (ROOT / "docs" / "own-clips.md").read_text(encoding="utf-8").split("## On a GPU")[0]
LINES = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.S | re.M) for line in block.splitlines()]
NEEDS = "witness.kind=server", "witness.kind=local", "targets.vlm="
SMALL = {
    "pila train": "observe.steps=1 recover.steps=1 couple.steps=2",
    "prophy train": "steps=2 semantic.first_steps=2 semantic.reworded=false",
    "phantom train": "steps=2",
    "mmphysvideo train": "teacher.steps=2 student.steps=2",
    "generate": "sampling.steps=2",
}
RECIPES = ["pila", "prophy", "phantom", "student"]


def follow(line):
    """Run a line of the page; its result, which must not be an error."""
    words = shlex.split(line)
    assert words[:2] == ["uv", "run"], line
    small = next((sets for name, sets in SMALL.items() if name in " ".join(words[2:4])), "")
    app = import_module(f"{words[2]}.cli").app
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the small vocabulary is warned about, as the page says
        done = CliRunner().invoke(app, [*words[3:], *(part for one in small.split() for part in ("--set", one))])
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    return done


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder after every command, and what each printed."""
    here = tmp_path_factory.mktemp("own")
    shutil.copytree(FILMS, here / "clips", ignore=shutil.ignore_patterns("*.txt"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("OMP_NUM_THREADS", "1")
        said = {line: follow(line) for line in LINES if not any(need in line for need in NEEDS)}
    return here, said


def test_the_page_walks_every_recipe_by_every_verb():
    called = {tuple(shlex.split(line)[2:4]) for line in LINES}
    verbs = ("check", "cache", "train", "generate", "evaluate")
    assert {(app, verb) for app in ("pila", "prophy", "phantom", "mmphysvideo") for verb in verbs} <= called
    assert sum(any(need in line for need in NEEDS) for line in LINES) == 3


def test_every_command_says_what_to_do_next(walked):
    _, said = walked
    assert [line for line, done in said.items() if "next: " not in done.stderr] == []


def test_films_without_captions_get_their_names_and_who_wrote_them_is_kept(walked):
    here, _ = walked
    table = json.loads((here / "clips" / "captions.json").read_text(encoding="utf-8"))
    assert {row["path"]: row["caption"] for row in table}["pushing_blocks.mp4"] == "pushing blocks"
    assert {row["caption_by"] for row in table} == {"file name"}


def test_check_says_of_each_clip_what_labels_it_has_and_by_whom(walked):
    _, said = walked
    for app in ("pila", "prophy"):
        table = next(done.stdout for line, done in said.items() if f"{app} check" in line)
        table = " ".join(re.sub(r"[│┃]", " ", table).split())
        assert "0 of 5 without" in table
        assert "pouring_coffee.mp4: fluid (keywords)" in table


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_ends_with_a_bundle_and_a_video_of_two_sides(walked, recipe):
    here, _ = walked
    assert (here / "runs" / "mine" / recipe / "bundle" / "bundle.safetensors").is_file()
    film = video.read(here / "runs" / "mine" / f"{recipe}.mp4")
    left, right = film.frames[:, -256:, :256], film.frames[:, -256:, -256:]
    assert film.frames.shape[0] == 17
    assert min(np.std(left), np.std(right)) > 5


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_is_measured_on_films_that_it_was_not_trained_on(walked, recipe):
    here, said = walked
    figures = json.loads((here / "runs" / "mine" / f"{recipe}.json").read_text(encoding="utf-8"))
    (base,), (trained,) = figures["losses"].values()
    assert len(base) == len(trained) == len(figures["clips"]) >= 1
    assert base != trained
    counts = [json.loads(done.stdout.splitlines()[0]) for line, done in said.items() if " cache " in line]
    assert all(c["held_out"] >= 1 and c["clips"] >= 1 for c in counts)
