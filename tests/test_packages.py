"""Every member is a package that stands alone: its files, names, version, declared imports, and no sibling in tow."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for group in ("packages", "apps") for path in (ROOT / group).glob("*/pyproject.toml"))
MEMBERS = {folder.name: folder for folder in FOLDERS}  # a folder has the name of its module
PACKAGES = [name for name, folder in MEMBERS.items() if folder.parent.name == "packages"]
APPS = [name for name, folder in MEMBERS.items() if folder.parent.name == "apps"]

# What importing a package must not load, besides the other members: heavy libraries that only some of its users need.
LIGHT = {
    "physfields": {"diffusers", "transformers", "accelerate", "scipy", "matplotlib", "cv2"},
    "physexperts": {"diffusers", "transformers", "accelerate", "scipy", "matplotlib", "cv2"},
    "vlmdistill": {"diffusers", "transformers", "accelerate", "matplotlib", "PIL", "cv2"},
    "physworld": {"torch", "diffusers", "transformers", "accelerate", "matplotlib", "cv2"},
    "backbones": {"matplotlib", "deepspeed"},
    "trainers": {"diffusers", "transformers", "deepspeed", "torchcodec", "matplotlib"},
}


@cache
def project(name):
    return tomllib.loads((MEMBERS[name] / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(name, *, extras):
    """Names of the distributions that a member declares."""
    table = project(name)["project"]
    listed = list(table["dependencies"])
    if extras:
        listed += [r for group in table.get("optional-dependencies", {}).values() for r in group]
    return {re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-") for requirement in listed}


def imported(path):
    """Top-level names of the absolute imports of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@cache
def loaded_by(name):
    """Top-level modules in memory after importing a member in a fresh interpreter, warnings being errors."""
    code = f"import {name}, sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_members_are_those_of_the_workspace():
    root = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = {project(name)["project"]["name"] for name in MEMBERS}
    assert set(root["tool"]["uv"]["sources"]) == set(root["dependency-groups"]["members"]) == names
    assert set(root["tool"]["importlinter"]["root_packages"]) == set(MEMBERS)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_has_its_papers(name):
    folder = MEMBERS[name]
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (folder / "CHANGELOG.md").read_text(encoding="utf-8").startswith("# Changelog")
    assert "```" in (folder / "README.md").read_text(encoding="utf-8"), "a README shows how the member is used"
    assert (folder / "src" / name / "py.typed").is_file()


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_says_what_it_offers(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert len(module.__all__) == len(set(module.__all__))
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_s_version_is_one(name):
    table = project(name)["project"]
    assert importlib.import_module(name).__version__ == version(table["name"]) == table["version"]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_declares_what_it_imports(name):
    owners = {
        module: {d.lower().replace("_", "-") for d in names} for module, names in packages_distributions().items()
    }
    owners |= {module: {project(module)["project"]["name"]} for module in MEMBERS}
    used = {module for path in (MEMBERS[name] / "src").rglob("*.py") for module in imported(path)}
    used -= {name, *sys.stdlib_module_names}
    declared = requirements(name, extras=True)
    assert sorted(module for module in used if not owners.get(module, {module}) & declared) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_loads_neither_its_siblings_nor_what_few_need(name):
    assert loaded_by(name) & ({*MEMBERS, *LIGHT[name]} - {name}) == set()


@pytest.mark.parametrize("name", APPS)
def test_an_app_loads_no_other_app(name):
    assert loaded_by(name) & ({*APPS} - {name}) == set()
