"""The tables of docs/recipes.md: each field of an app's recipe, from the model, its comments and the shipped YAML."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from trainers import load_config
from trainers.schema import find, schema

BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
COMMENT = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*?)(?: #(?P<comment>.*))?$")


@dataclass(frozen=True)
class Row:
    """A field: its dotted name, what it takes, its value in each shipped recipe, what code and recipes say."""

    name: str
    takes: str
    values: dict[str, Any]
    says: str
    recipes_say: dict[str, str]

    @property
    def ours(self) -> bool:
        """Whether it is marked as our choice."""
        return any("our choice" in text for text in (self.says, *self.recipes_say.values()))


@dataclass(frozen=True)
class Part:
    """A part of a recipe, such as `data`: its dotted name ("" is the top), what is said of it, its own fields."""

    name: str
    says: str
    rows: tuple[Row, ...]


@cache
def parts(model: str) -> tuple[Part, ...]:
    """Return the parts of the recipe `module:Class`, the top first."""
    made = schema(find(model))
    made["properties"].pop("extends")
    return tuple(_walk(made, made.get("$defs", {}), "", made.get("description", ""), _shipped(model)))


def page(model: str) -> str:
    """Return the Markdown of a recipe: a heading and a table a part."""
    app, _, name = model.partition(".")
    top = "top level" if name.endswith(":Recipe") else name.partition(":")[2]
    return "\n".join(_section(f"{app}: {f'`{part.name}`' if part.name else top}", part) for part in parts(model))


def choices(model: str) -> str:
    """Return a table of the fields of a recipe that are marked "our choice", in the code or in a recipe that ships."""
    marked = tuple(row for part in parts(model) for row in part.rows if row.ours)
    return _section('All fields marked "our choice"', Part("", "", marked))


def _walk(
    part: dict[str, Any], defs: dict[str, Any], prefix: str, says: str, shipped: dict[str, tuple[Any, dict[str, str]]]
) -> Iterator[Part]:
    rows, below = [], []
    for key, field in part["properties"].items():
        name = f"{prefix}{key}"
        if (inner := _inner(field, defs)) is not None:
            text = " ".join(filter(None, (inner.get("description"), _sentence(field.get("description", "")))))
            below.append((f"{name}.", inner, text))
            continue
        values = {recipe: _at(tree, name) for recipe, (tree, _) in shipped.items()} or {"": field.get("default")}
        said = {recipe: words[name] for recipe, (_, words) in shipped.items() if name in words}
        rows.append(Row(name, _takes(field), values, field.get("description", ""), said))
    yield Part(prefix.rstrip("."), says, tuple(rows))
    for deeper, inner, text in below:
        yield from _walk(inner, defs, deeper, text, shipped)


def _inner(field: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any] | None:
    """The part that a field holds, where it holds one, or one or none."""
    for choice in (field, *field.get("anyOf", ())):
        if "$ref" in choice and "properties" in (found := defs[choice["$ref"].rpartition("/")[2]]):
            return found
    return None


def _shipped(model: str) -> dict[str, tuple[Any, dict[str, str]]]:
    """Values and comments of each YAML beside a model that is a recipe of it, `tiny` (or the app's only one) first."""
    home = Path(str(import_module(model.partition(":")[0]).__file__)).parent / "recipes"
    found = {}
    for path in sorted(home.glob("*.yaml"), key=lambda path: (path.stem != "tiny", path.stem)):
        if path.stem != "ablations" and model.endswith(":Recipe"):
            found[path.stem] = (load_config(find(model), path).model_dump(mode="json"), _comments(path))
    return found


def _comments(path: Path) -> dict[str, str]:
    """The comment at the end of each line of a recipe, by the dotted name of its field."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := COMMENT.match(line):
            above = [(depth, key) for depth, key in above if depth < len(match["indent"])]
            above.append((len(match["indent"]), match["key"]))
            if match["comment"]:
                found[".".join(key for _, key in above)] = match["comment"].strip()
    return found


def _at(tree: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        tree = tree[key] if tree is not None else None
    return tree


def _takes(field: dict[str, Any]) -> str:
    """What a field takes, in words: `integer > 0`, `"a" or "b"`, `list of (number, number)`."""
    if "anyOf" in field:
        return " or ".join("null" if one.get("type") == "null" else _takes(one) for one in field["anyOf"])
    if "enum" in field:
        return " or ".join(json.dumps(one) for one in field["enum"])
    if "const" in field:
        return json.dumps(field["const"])
    if "prefixItems" in field:
        return f"({', '.join(map(_takes, field['prefixItems']))})"
    if field.get("type") == "array":
        return f"list of {_takes(field['items'])}"
    if field.get("type") == "object":
        return f"map to {_takes(field['additionalProperties'])}"
    bounds = [f"{sign} {field[key]:g}" for key, sign in BOUNDS.items() if key in field]
    return " ".join([field["type"], ", ".join(bounds)]).strip()


def _section(title: str, part: Part) -> str:
    recipes = list(part.rows[0].values) if part.rows else [""]
    first = recipes[0] or "default"
    others = recipes[1:]
    head = ["field", f"`{first}`" if recipes[0] else first, *(["elsewhere"] if others else []), "meaning"]
    lines = [f"### {title}", "", part.says, ""]
    if part.rows:
        lines += [_row(head), _row(["---"] * len(head))]
    for row in part.rows:
        value = _code(row.values[recipes[0]])
        cells = [f"`{row.name}`<br>{_escape(row.takes)}", value]
        if others:
            changed = [name for name in others if row.values[name] != row.values[recipes[0]]]
            cells.append("<br>".join(f"{name}: {_code(row.values[name])}" for name in changed))
        said = [f"*{recipe}*: {_sentence(_escape(text))}" for recipe, text in row.recipes_say.items()]
        lines.append(_row([*cells, " ".join([_sentence(_escape(row.says)), *said]).strip()]))
    return "\n".join([*lines, ""])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(value: Any) -> str:
    shown = yaml.safe_dump(value, default_flow_style=True, width=1e9).removesuffix("...\n").strip()
    return f"`{shown}`"


def _sentence(text: str) -> str:
    return text and text + ("" if text.endswith((".", "?", "!")) else ".")


def _escape(text: str) -> str:
    """Text of a comment as Markdown in a cell of a table."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"([|*_<\[\]])", r"\\\1", piece) for piece in pieces)
