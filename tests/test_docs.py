"""What the pages promise: links and anchors lead somewhere, examples run, every public name and recipe field is told.

Commands are in test_docs_commands.py, messages in test_bad_input.py; `.ci/run` builds the site.
"""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import typer
import yaml
from mdit_py_plugins.anchors.index import slugify  # what the site uses; GitHub's rule for headings

from trainers.schema import find

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "packages/**/*.md", "apps/**/*.md")
    for path in ROOT.glob(pattern)
    if "tests" not in path.parts
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
APPS = sorted(path.parent.name for path in ROOT.glob("apps/*/pyproject.toml"))
SWITCHES = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*=[^`]+)`", (ROOT / "docs" / "pila.md").read_text(encoding="utf-8"))
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)


def commands(path):
    """(app, first words) of every `uv run APP ...` on a page, in a block or in a line."""
    found = re.findall(r"uv run (\w+)((?: [a-z-]+)*)", path.read_text(encoding="utf-8"))
    return [(app, words.split()) for app, words in found if app in APPS]


def links(path):
    """(file, anchor) of every link into the repository, the page itself being ""."""
    prose = re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    found = re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?[^)]*\)", prose)
    return [(target, anchor) for target, anchor in found if target or anchor]


def anchors(path):
    """What `#` may name on a page: its headings, as a code host and the site call them."""
    prose = re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    titles = re.findall(r"^#{1,6} (.*)$", prose, re.M)
    return {slugify(re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title)) for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_between_pages_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_anchors_of_links_are_headings(path):
    lost = [
        f"{target}#{anchor}"
        for target, anchor in links(path)
        if anchor and anchor not in anchors(path.parent / target if target else path)
    ]
    assert lost == []


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


@pytest.fixture(scope="module")
def site():
    """The modules that make generated pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        yield import_module("recipe_tables")
        sys.modules.pop("recipe_tables")


def leaves(model, prefix=""):
    """Dotted names of every field of a recipe, from an object of it and not from its schema."""
    fields = getattr(type(model), "model_fields", None) or getattr(type(model), "__dataclass_fields__", None)
    for name in fields:
        value = getattr(model, name)
        if hasattr(type(value), "model_fields") or hasattr(type(value), "__dataclass_fields__"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


RECIPES = re.findall(r"<!-- recipe (\S+) -->", (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"))


def test_every_app_with_recipes_is_on_the_recipes_page():
    assert {path.parents[1].name for path in ROOT.glob("apps/*/src/*/recipes/*.yaml")} == {
        m.split(".")[0] for m in RECIPES
    }


@pytest.mark.parametrize("model", RECIPES)
def test_every_field_of_a_recipe_is_on_the_recipes_page(site, model):
    page = site.page(model)
    missing = [name for name in leaves(find(model)()) if not re.search(rf"\| `{re.escape(name)}(\.\w+)?`<br>", page)]
    assert missing == []  # an optional part that is left out, such as optim.muon, is there by its own fields


@pytest.mark.parametrize("model", RECIPES)
def test_a_row_of_the_recipes_page_has_the_values_of_the_shipped_files(site, model):
    for part in site.parts(model):
        for row in part.rows:
            for recipe, value in row.values.items():
                home = Path(import_module(model.partition(":")[0]).__file__).parent / "recipes"
                node = yaml.safe_load((home / f"{recipe}.yaml").read_text(encoding="utf-8")) if recipe else {}
                for key in row.name.split("."):
                    node = node.get(key) if isinstance(node, dict) else None
                assert node is None or node == value or float(node) == value, (row.name, recipe)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_of_a_package_has_a_docstring_for_its_api_page(package):
    """docs/api/PACKAGE.md is made from `__all__`: a function or class without a docstring would be an empty entry."""
    text = (ROOT / "docs" / "api" / f"{package}.md").read_text(encoding="utf-8")
    assert f"<!-- api {package} -->" in text
    module = import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    told = [name for name, value in public.items() if isinstance(value, type | FunctionType | ModuleType)]
    silent = [name for name in told if not public[name].__doc__]
    assert silent == []


PICTURES = sorted(path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file())
MAKERS = {
    "overview.png": ("README.md", "bench demo"),
    "start/ball-experts.png": ("docs/start.md", "pila generate"),
    "prophy-*.png": ("docs/prophy.md", "prophy evaluate"),
    "own-clips.png": ("docs/examples/own_clips_picture.py", "docs/examples/own_clips_picture.py"),
    "physfields/*.png": ("docs/examples/physfields_pictures.py", "docs/examples/physfields_pictures.py"),
    "vlmdistill/collision.png": ("packages/vlmdistill/README.md", 'save("collision.png")'),
}
"""What makes each picture: the page or script that has the command or the code, and its words."""


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.name)
def test_a_picture_is_on_a_page_and_something_here_makes_it(picture):
    shown = [page for page in PAGES if any((page.parent / t).resolve() == picture for t, _ in links(page))]
    assert shown, "no page shows it"
    makers = [MAKERS[pattern] for pattern in MAKERS if picture.relative_to(ROOT / "docs" / "images").match(pattern)]
    assert len(makers) == 1, "expected one maker: a command of a page, or a script"
    page, words = makers[0]
    assert words in (ROOT / page).read_text(encoding="utf-8")
