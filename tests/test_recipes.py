"""Every recipe that ships is valid, for its model and for the schema that editors read, and so is every ablation."""

import json
from pathlib import Path

import pytest
import yaml

from backbones import configs
from trainers import load_config
from trainers.schema import find, schema

ROOT = Path(__file__).parents[1]
HOMES = sorted(ROOT.glob("apps/*/src/*/recipes"))
RECIPES = sorted(path for home in HOMES for path in home.glob("*.yaml"))
SCHEMAS = sorted(ROOT.glob("apps/*/src/*/recipes/*.schema.json"))


def tree(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def model(path):
    """The class of the recipes in the folder of an app."""
    app = path.parents[1].name if path.parent.name == "recipes" else path.parent.name
    place = "config" if (path.parents[1] / "config.py").exists() else "recipe"
    return f"{app}.{place}:Recipe"


def named(path):
    return str(path.relative_to(ROOT / "apps").as_posix())


ABLATIONS = [
    pytest.param(path, row, id=f"{path.parents[1].name}: {row['name']}")
    for path in RECIPES
    if "rows" in tree(path)
    for row in tree(path)["rows"]
]
PLAIN = [path for path in RECIPES if "rows" not in tree(path)]


def test_recipes_are_found():
    assert {"pila", "world"} <= {path.parents[1].name for path in PLAIN}


@pytest.mark.parametrize("path", PLAIN, ids=named)
def test_a_shipped_recipe_is_valid_for_its_model(path):
    load_config(find(model(path)), path)


@pytest.mark.parametrize("path", PLAIN, ids=named)
def test_the_backbone_of_a_shipped_recipe_is_known_without_a_network(path):
    """So that `plan` counts it before anything is fetched."""
    known = {"world"} | {configs.read(name)["hub"] for name in configs.NAMES}
    assert tree(path).get("backbone", "world") in known


@pytest.mark.parametrize(("path", "row"), ABLATIONS)
def test_a_row_of_ablations_changes_a_recipe_to_a_valid_one(path, row):
    cls = find(model(path))
    base = path.parent / "tiny.yaml"
    changed = load_config(cls, base, row["set"])
    assert changed != load_config(cls, base) or not row["set"] or "default" in row["what"], "the row changes nothing"


@pytest.mark.parametrize("path", PLAIN, ids=named)
def test_a_shipped_recipe_is_valid_for_its_schema(path):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not in the environment (it comes with ray)")
    check = jsonschema.Draft202012Validator(schema(find(model(path))))
    assert [f"{error.json_path}: {error.message}" for error in check.iter_errors(tree(path))] == []


@pytest.mark.parametrize("path", PLAIN, ids=named)
def test_keys_of_a_shipped_recipe_are_keys_of_its_schema(path):
    """What jsonschema would say of unknown keys, without it."""
    made = schema(find(model(path)))

    def strangers(given, part, where):
        while "$ref" in part:
            part = made["$defs"][part["$ref"].rpartition("/")[2]]
        if not isinstance(given, dict) or "properties" not in part:
            return []
        unknown = [f"{where}.{key}" for key in given if key not in part["properties"]]
        below = [(key, value) for key, value in given.items() if key in part["properties"]]
        return unknown + [
            s for key, value in below for s in strangers(value, part["properties"][key], f"{where}.{key}")
        ]

    assert strangers(tree(path), made, path.stem) == []


@pytest.mark.parametrize("path", SCHEMAS, ids=named)
def test_a_committed_schema_is_current(path):
    name = model(path)
    command = f"uv run python -m trainers schema {name} --out {path.relative_to(ROOT)}"
    assert json.loads(path.read_text(encoding="utf-8")) == schema(find(name)), f"run `{command}`"


@pytest.mark.parametrize("path", PLAIN, ids=named)
def test_a_schema_that_a_recipe_names_is_there(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# yaml-language-server: $schema="):
            assert (path.parent / line.partition("=")[2].strip()).is_file()
