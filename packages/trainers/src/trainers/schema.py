"""The JSON schema of a recipe, for editors: names, types, bounds, defaults, and the comments of the code as help.

A recipe's fields are explained where they are declared, by a comment at the end of the line or on lines above it; the
schema takes these as `description`, so that an editor shows them. A YAML file names its schema in its first lines,
`# yaml-language-server: $schema=recipe.schema.json`.
"""

import ast
import importlib
import inspect
import io
import json
import textwrap
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from .atomic import write_text

__all__ = ["comments", "find", "schema", "write"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXTENDS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "files that this one builds on, relative to it; later ones win, this one wins last",
}


def schema(cls: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a recipe as `load_config` reads it, with `extends`.

    Every key may be left out: what a file does not say, one that it extends or a default does.
    """
    made = cls.model_json_schema(schema_generator=_Described)
    for part in (made, *made.get("$defs", {}).values()):
        part.pop("required", None)
    made["properties"] = {"extends": EXTENDS, **made.get("properties", {})}
    return {"$schema": DIALECT, **made}


def find(name: str) -> type[BaseModel]:
    """Import a recipe's class by `module:Class`; ValueError for what is none.

    >>> find("trainers.data:Filters").__name__
    'Filters'
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError) as error:
        raise ValueError(f"expected a recipe's class such as pila.config:Recipe, got {name!r}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise ValueError(f"expected a recipe's class such as pila.config:Recipe, got {name!r}, which is none")
    return found


def write(cls: type[BaseModel], path: Path) -> Path:
    """Write the schema of a recipe; the file appears whole or not at all."""
    return write_text(path, json.dumps(schema(cls), indent=1, ensure_ascii=False) + "\n")


@cache
def comments(cls: type) -> dict[str, str]:
    """Return the comment of each field of a class, where its source says one; parents' fields too."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__annotations__" in vars(base) and base is not BaseModel:
            found |= _own_comments(base)
    return found


def _own_comments(cls: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    said: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa"):
            said[token.start[0]] = token.string.removeprefix("#").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        first = node.lineno
        while first - 1 in alone:
            first -= 1
        lines = range(first, (node.end_lineno or node.lineno) + 1)
        if text := " ".join(said[line] for line in lines if line in said):
            found[node.target.id] = text
    return found


class _Described(GenerateJsonSchema):
    def model_schema(self, schema: Any) -> Any:
        return _describe(super().model_schema(schema), schema["cls"])

    def dataclass_schema(self, schema: Any) -> Any:
        return _describe(super().dataclass_schema(schema), schema["cls"])


def _describe(made: dict[str, Any], cls: type) -> dict[str, Any]:
    for name, text in comments(cls).items():
        if name in made.get("properties", {}):
            made["properties"][name].setdefault("description", text)
    if "description" in made:
        made["description"] = inspect.cleandoc(made["description"])
    return made
