"""The pages of the four papers are complete and true: equations with their code, our choices, ablations."""

import importlib
import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from physfields.residuals import PILA

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REAL = {"pila": "wan2.1-1.3b", "prophy": "wan2.1-1.3b", "phantom": "wan2.2-ti2v-5b", "mmphysvideo": "wan2.1-1.3b"}
ABLATIONS = {app: DOCS / ("pila-ablations.md" if app == "pila" else f"{app}.md") for app in REAL}
papers = pytest.mark.parametrize("app", REAL)


@cache
def tables(page):
    """The tables of a page, each a list of rows, each a dict by the names in its head."""
    found, head = [], None
    for line in (*page.read_text(encoding="utf-8").splitlines(), ""):
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = cells
            found.append([])
        elif set("".join(cells)) - set("-: "):
            assert len(cells) == len(head), line
            found[-1].append(dict(zip(head, cells, strict=True)))
    return found


def table(page, *columns):
    """Rows of all tables of a page that have these columns."""
    return [row for rows in tables(page) for row in rows if set(columns) <= set(row)]


def rows_of(app):
    """{name: field} of an app's recipe, as the reference of recipes prints them."""
    sys.path.insert(0, str(DOCS))
    try:
        recipe_tables = importlib.import_module("recipe_tables")
    finally:
        sys.path.remove(str(DOCS))
    return {row.name: row for part in recipe_tables.parts(f"{app}.config:Recipe") for row in part.rows}, recipe_tables


def resolve(dotted):
    """What a dotted name stands for; AttributeError or ImportError where nothing does."""
    parts = dotted.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for name in parts[depth:]:
            found = getattr(found, name)
        return found
    raise ImportError(dotted)


@pytest.mark.parametrize("page", [*REAL, "pila-terms"])
def test_every_name_in_a_table_of_equations_is_in_the_code(page):
    rows = table(DOCS / f"{page}.md", "code")
    assert len(rows) >= 11
    for row in rows:
        names = re.findall(r"`([^`]+)`", row["code"])
        assert names, f"a row that names no code: {row}"
        for name in names:
            assert resolve(name) is not None, name


def test_every_numbered_equation_of_pila_has_a_row():
    assert [row["Eq."] for row in table(DOCS / "pila.md", "Eq.", "code")] == [str(n) for n in range(1, 25)]


def test_every_term_of_pila_has_the_row_that_the_code_has():
    rows = table(DOCS / "pila-terms.md", "#", "code")
    assert [(r["#"], r["expert"], r["family"], r["code"]) for r in rows] == [
        (str(t.number), t.category, t.family, f"`physfields.equations.{t.name}`") for t in PILA
    ]
    assert [f"{row['residual, zero where the law holds']}." for row in rows] == [term.equation for term in PILA]


@papers
def test_the_table_of_ablations_is_the_one_that_is_trained(app):
    (path,) = ROOT.glob(f"apps/{app}/src/{app}/recipes/ablations.yaml")
    listed = {row["row"]: row for row in table(ABLATIONS[app], "row", "what changes")}
    trained = yaml.safe_load(path.read_text(encoding="utf-8"))["rows"]
    assert list(listed) == [row["name"] for row in trained]
    for row in trained:
        said = listed[row["name"]]
        assert re.findall(r"`([^`]+)`", said["`--set`"]) == row.get("set", [])
        assert said["what changes"] == row["what"]
        assert said.get("stage", "") == row.get("stage", "")
        assert said.get("when", "training") == row.get("when", "training")
        importlib.import_module(f"{app}.config").load_recipe(None, row.get("set", []))


@papers
def test_our_choices_are_fields_marked_so_with_the_values_of_the_recipes(app):
    known, _ = rows_of(app)
    rows = table(DOCS / f"{app}.md", "field", "why")
    assert len(rows) >= 12
    for row in rows:
        field = known[row["field"].strip("`")]
        assert field.ours, f"{field.name} is not marked 'our choice'"
        assert row["`tiny`"] == f"`{json.dumps(field.values['tiny'])}`", field.name
        assert row[f"`{REAL[app]}`"] == f"`{json.dumps(field.values[REAL[app]])}`", field.name
        assert row["why"]


@papers
def test_every_field_that_is_marked_is_in_the_table_that_the_site_makes(app):
    """The page asks for it by `<!-- choices ... -->`; docs/conf.py puts what `choices` returns in its place."""
    known, recipe_tables = rows_of(app)
    page = (DOCS / f"{app}.md").read_text(encoding="utf-8")
    assert page.count(f"<!-- choices {app}.config:Recipe -->") == 1
    made = recipe_tables.choices(f"{app}.config:Recipe")
    marked = {name for name, row in known.items() if row.ours}
    assert set(re.findall(r"^\| `([\w.]+)`", made, re.M)) == marked
    assert {row["field"].strip("`") for row in table(DOCS / f"{app}.md", "field", "why")} <= marked
