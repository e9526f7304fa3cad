"""The tree in the README is true, and nothing in the repository is out of reach: every module is imported, every script
and every data file is named by a page, a test or a module.
"""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS_OF = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".sbatch", ".j2", ".json", ".jsonl", ""}
"""Endings of files whose text can name another file."""
COMPUTED = ("wan_augmented_",)
"""Beginnings of names that code puts together."""


@cache
def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the repository is not known")
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


@cache
def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def tree():
    """(path, what the README says of it) of each line of the README's tree."""
    block = re.search(r"## The tree\n\n```\w*\n(.*?)```", text(Path("README.md")), re.S).group(1)
    found, parents = [], []
    for line in block.splitlines():
        if not line.strip():
            continue
        indent, name, said = re.match(r"( *)(\S+)\s+(.*)", line).groups()
        parents = parents[: len(indent) // 2]
        found.append((Path(*parents, name.rstrip("/")), said))
        parents.append(name.rstrip("/"))
    return found


def test_what_the_tree_names_exists_once():
    paths = [path for path, _ in tree()]
    assert [str(path) for path in paths if not (ROOT / path).exists()] == []
    assert len(paths) == len(set(paths))


def test_the_tree_names_every_folder_and_file_at_the_top():
    hidden = {".gitignore", ".pre-commit-config.yaml", ".python-version", ".github", "README.md"}
    top = {path.parts[0] for path in tracked()} - hidden
    assert sorted(top - {path.parts[0] for path, _ in tree()}) == []


@pytest.mark.parametrize("group", ["packages", "apps"])
def test_the_tree_names_every_member(group):
    members = {path.parts[1] for path in tracked() if path.parts[0] == group}
    assert members == {path.parts[1] for path, _ in tree() if path.parts[0] == group and len(path.parts) > 1}


def modules():
    """{dotted name: file} of every module that ships."""
    found = {}
    for path in tracked():
        if path.suffix == ".py" and path.parts[0] in ("packages", "apps") and path.parts[2] == "src":
            parts = path.with_suffix("").parts[3:]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path, name):
    """Dotted names that a file imports or may import, itself left out."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def test_every_module_is_reached_by_another_a_command_a_page_or_a_test():
    known = modules()
    reached = {target for name, path in known.items() for target in imported(path, name) if target != name}
    # started by its name (an entry point, python -m), imported by it or by a test, or presented by a page
    named = "".join(text(path) for path in tracked() if path.suffix in WORDS_OF)
    lost = []
    for name, path in known.items():
        presented = rf"`(\w+\.)*{path.stem}(\.py|\.\w+(\(.*?\))?)?`"
        started = rf"[\"'` ]{re.escape(name)}[:.\"'` \n]"
        if name not in reached and path.name not in ("__init__.py", "__main__.py"):
            lost += [name] if not (re.search(started, named) or re.search(presented, named)) else []
    assert lost == []


def test_every_other_file_is_named_somewhere():
    """Data, pictures, scripts, recipes: a file that no text names is one that nobody can find."""
    common = {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "py.typed", "__init__.py", "conftest.py"}
    words = {path: text(path) for path in tracked() if path.suffix in WORDS_OF and path.name != "uv.lock"}
    everything = "\n".join(words.values())

    def named(what, path):
        return everything.count(what) > words.get(path, "").count(what)  # a file that names itself does not count

    lost = []
    for path in tracked():
        code = path.suffix == ".py" and ("src" in path.parts or path.name.startswith("test_"))
        if path.name in common or code or len(path.parts) == 1 or path.parts[0] in (".github", ".ci"):
            continue
        if named(path.name, path) or path.name.startswith(COMPUTED):
            continue
        if not named(path.stem, path):  # a recipe is named without its ending
            lost.append(str(path))
    assert lost == []
