"""The worked examples of docs/contributing are followed to the letter: files written, packages installed, edits made
in a copy of the sources, then every test, script and command of the pages.

A page writes a file in a block whose first line ends in `file=PATH`, and edits one by a sentence, "In `FILE`, behind
`LINE`, add:" (or "in place of"), before a block `python edit`. The pages' own tests run in one process beside the
installed packages; what the row of the table changes runs in a second one, against the copy.
"""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {name: ROOT / "docs" / "contributing" / f"{name}.md" for name in ("backbone", "residual", "expert", "recipe")}
FILE = re.compile(r"^```\w+ file=(\S+)\n(.*?)^```$", re.S | re.M)
EDIT = re.compile(
    r"^In `([^`]+)`, (behind|in place of) `([^`]+)`, (?:add|write):\n\n```python edit\n(.*?)^```$", re.S | re.M
)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.S | re.M)

SMALL = {
    "pila check": "",
    "pila train --config spectral.yaml": "--quiet --set data.clips=8 --set batch=2 --set observe.steps=0"
    " --set recover.steps=0 --set couple.steps=1",
    "carry train": "--quiet --set steps=2 --set clips=8 --set batch=4",
    "carry evaluate": "--quiet --set sampling_steps=1 --clips 1",
}
"""What is run of an app's commands, and the words that make it small; the others are parsed with their recipes."""

RUNNER = """
import importlib, runpy, shlex
from pathlib import Path
import pytest
from typer.testing import CliRunner

@pytest.mark.parametrize("script", {scripts})
def test_a_script_of_the_page_runs(script, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    runpy.run_path(script)

@pytest.mark.parametrize("command", {commands})
def test_a_command_of_the_page_runs(command, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    app, *words = shlex.split(command)
    done = CliRunner().invoke(importlib.import_module(f"{{app}}.cli").app, words)
    assert done.exit_code == 0, f"{{command}}\\n{{done.output}}{{done.exception!r}}"
"""


def text(page):
    return PAGES[page].read_text(encoding="utf-8")


def commands(page):
    """The command lines of a page's shell blocks, in order."""
    return [line for block in SHELL.findall(text(page)) for line in block.splitlines()]


def of_apps(page):
    """Its commands of apps, without `uv run`."""
    asked = [line.removeprefix("uv run ") for line in commands(page)]
    return [line for line in asked if line.split()[0] in ("pila", "bench", "carry")]


def small(page):
    """Those that are run, made small."""
    return [f"{line} {extra}" for line in of_apps(page) for start, extra in SMALL.items() if line.startswith(start)]


def run(words, where, **environment):
    done = subprocess.run(words, cwd=where, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout[-6000:]}{done.stderr[-3000:]}"
    return done.stdout


def results(words, where, **environment):
    """{name of a test: its outcome} of one run of pytest."""
    report = where / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error", f"--junitxml={report}"]
    options += ["-W", "ignore:.*CLIPImageProcessor.*", "--rootdir", str(where)]
    command = [sys.executable, "-m", "pytest", *options, *words]
    said = subprocess.run(command, cwd=where, env={**os.environ, **environment}, capture_output=True, text=True)
    assert report.is_file(), said.stdout + said.stderr
    cases = {}
    for case in xml.parse(report).getroot().iter("testcase"):
        wrong = next(iter([*case.iter("failure"), *case.iter("error")]), None)
        cases[f"{case.get('classname')}.{case.get('name')}"] = "" if wrong is None else (wrong.text or "failed")
    return cases


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The folder that all pages are followed in: their files, with PILA's sources beside them."""
    folder = tmp_path_factory.mktemp("contributing")
    shutil.copytree(ROOT / "apps/pila/src", folder / "apps/pila/src", ignore=shutil.ignore_patterns("__pycache__"))
    for page in PAGES:
        for path, content in FILE.findall(text(page)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def followed(here):
    """Outcome of every test, script and command of the pages, after `uv pip install` as they say."""
    for page in PAGES:
        for line in commands(page):
            if line.startswith("uv pip install"):
                run([*line.split(), "--offline", "--quiet", "--target", "site"], here)
    scripts = {p: [f for f, _ in FILE.findall(text(p)) if re.fullmatch(r"(?!test_|plates)\w+\.py", f)] for p in PAGES}
    for page in PAGES:
        runner = RUNNER.format(scripts=scripts[page], commands=small(page), lines=of_apps(page))
        (here / f"test_page_{page}.py").write_text(runner, encoding="utf-8")
    tests = [
        line.removeprefix("uv run pytest ") for p in PAGES for line in commands(p) if line.startswith("uv run pytest ")
    ]
    path = os.pathsep.join(map(str, (here, here / "site", here / "apps/pila/src")))
    wanted = [test for test in tests if not test.startswith("packages/")]
    return results([*wanted, *(f"test_page_{page}.py" for page in PAGES)], here, PYTHONPATH=path)


@pytest.mark.parametrize(
    ("page", "tests", "at_least"),
    [
        ("backbone", "test_physltx", 13),
        ("residual", "test_plates|test_page_residual", 6),
        ("expert", "test_spectral|test_page_expert", 9),
        ("recipe", "test_carry|test_page_recipe", 10),
    ],
)
def test_what_a_page_writes_passes_its_tests_and_its_commands_run(followed, page, tests, at_least):
    mine = {name: wrong for name, wrong in followed.items() if re.search(tests, name)}
    assert not any(mine.values()), "\n\n".join(f"{name}\n{wrong}" for name, wrong in mine.items() if wrong)
    assert len(mine) >= at_least, sorted(mine)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_followed(page):
    """A block is a file, an edit or commands, and each command is installed, tested or one of an app."""
    opened = re.findall(r"^```(\S.*)$", text(page), re.M)
    assert [one for one in opened if not re.search(r" file=\S+$|^python edit$|^sh$", one)] == []
    assert opened.count("python edit") == len(EDIT.findall(text(page)))
    known = ("uv pip install --no-deps ./mine/", "uv run pytest ", *(f"uv run {line}" for line in of_apps(page)))
    assert [line for line in commands(page) if not line.startswith(known)] == []


def test_every_command_that_is_made_small_stands_on_a_page():
    lines = [line.removeprefix("uv run ") for page in PAGES for line in commands(page)]
    assert [start for start in SMALL if not any(line.startswith(start) for line in lines)] == []


def test_the_recipes_of_the_page_say_what_they_change(here):
    from pila.config import load_recipe

    recipes = here / "apps/pila/src/pila/recipes"
    for name, base in (("gentle", "tiny"), ("gentle-1.3b", "wan2.1-1.3b")):
        made, shipped = load_recipe(recipes / f"{name}.yaml"), load_recipe(base)
        assert made.couple.physics_weight == 0.15 == shipped.couple.physics_weight / 2
        assert made.couple.physics_warmup == 2 * shipped.couple.physics_warmup
        couple = shipped.couple.model_copy(
            update={"physics_weight": 0.15, "physics_warmup": made.couple.physics_warmup}
        )
        assert made == shipped.model_copy(update={"couple": couple})


def test_the_rows_of_the_page_are_read_by_bench_and_change_the_recipe(here):
    from bench import ablation_table
    from pila.config import load_recipe

    table = ablation_table.read(str(here / "gentle-rows.yaml"))
    assert table.app == "pila"
    assert [row.name for row in table.measured] == [ablation_table.WHOLE, "gentle", "half weight alone"]
    assert len({load_recipe(table.config, row.set).model_dump_json() for row in table.rows}) == 3


def test_the_law_of_the_page_takes_its_place_in_the_table(tmp_path):
    """The edits of the last step, in a copy of physfields, whose own tests must then hold for the new row."""
    copy = tmp_path / "packages/physfields"
    for part in ("src", "tests"):
        shutil.copytree(ROOT / "packages/physfields" / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "src/physfields/plates.py").write_text(dict(FILE.findall(text("residual")))["plates.py"], encoding="utf-8")
    edits = EDIT.findall(text("residual"))
    assert len({path for path, *_ in edits}) == 2, "one file of the package and one of its tests are edited"
    for path, where, line, new in edits:
        before = (tmp_path / path).read_text(encoding="utf-8")
        assert before.count(f"{line}\n") == 1, f"{path}: {line}"
        after = before.replace(f"{line}\n", f"{line}\n{new}" if where == "behind" else new)
        (tmp_path / path).write_text(after, encoding="utf-8")
    chosen = "plate or cover or printed or batch or nan or analytic"
    found = results([str(copy / "tests/test_general_laws.py"), "-k", chosen], tmp_path, PYTHONPATH=str(copy / "src"))
    assert not any(found.values()), "\n\n".join(f"{name}\n{wrong}" for name, wrong in found.items() if wrong)
    assert sum("plate.bending" in name for name in found) == 3  # where it holds, what it reads, its source
    said = run(
        [sys.executable, "-c", "import physfields as pf; print(pf.residuals.describe(['plate']))"],
        tmp_path,
        PYTHONPATH=str(copy / "src"),
    )
    assert "D_tt w + B lap lap w - q = 0." in said
