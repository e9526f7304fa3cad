"""What the pages promise: links lead somewhere, examples run, commands and switches exist."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "packages/*/*.md", "apps/*/*.md")
    for path in ROOT.glob(pattern)
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
APPS = sorted(path.parent.name for path in ROOT.glob("apps/*/pyproject.toml"))
SWITCHES = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*=[^`]+)`", (ROOT / "docs" / "pila.md").read_text(encoding="utf-8"))


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)


def commands(path):
    """(app, first words) of every `uv run APP ...` on a page, in a block or in a line."""
    found = re.findall(r"uv run (\w+)((?: [a-z-]+)*)", path.read_text(encoding="utf-8"))
    return [(app, words.split()) for app, words in found if app in APPS]


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_between_pages_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), names)


@pytest.mark.parametrize("path", [p for p in PAGES if commands(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_exist(path):
    for app, words in commands(path):
        command = typer.main.get_command(import_module(f"{app}.cli").app)
        for word in words:
            if not hasattr(command, "commands"):
                break  # an argument of a command without sub-commands
            assert word in command.commands, f"uv run {app} {' '.join(words)}"
            command = command.commands[word]


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_row_of_pila_s_ablation_table_is_one_switch(switch):
    from pila.config import load_recipe

    changed = load_recipe(None, [switch])
    assert changed != load_recipe(), "the row changes nothing"


def test_the_ablation_table_is_found():
    assert len(SWITCHES) >= 13
