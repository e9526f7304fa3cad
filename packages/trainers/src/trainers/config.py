"""A recipe: YAML in front, a frozen pydantic model behind, and an answer to every key that nobody knows.

A recipe may say `extends: other.yaml` (or a list; later files win, the recipe itself wins last; paths are relative to
the file that says it). Overrides `a.b=c` come after the files; `c` is read as a YAML scalar, list or map, and a number
in the path is an index into a list. `load_config` refuses a key that occurs twice in one map, which YAML itself lets
pass.

What surprises: scalars are those of YAML 1.2, not of 1.1. `1e-4` is a number; `yes`, `on` and `12:30` are words (a
field that is a flag still takes `yes`), so that none becomes a number in silence. NaN and infinity are refused.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ArgsKwargs, PydanticCustomError

from .atomic import write_text

__all__ = ["Config", "did_you_mean", "dump_config", "find_recipe", "load_config", "override"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint that ends an error message: the nearest known words, else all of them.

    >>> did_you_mean("enocder", ["encoder", "decoder"])
    "did you mean 'encoder'?"
    >>> did_you_mean("x", ["encoder", "decoder"])
    'known: decoder, encoder'
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"


def refuse_unknown(cls: type, data: Any) -> Any:
    """Raise for keys that `cls` does not have; pydantic puts the dotted path of `cls` in front."""
    given = (data.kwargs or {}) if isinstance(data, ArgsKwargs) else data
    fields = getattr(cls, "model_fields", None)
    known = set(fields) if fields is not None else {field.name for field in dataclasses.fields(cls)}
    if isinstance(given, dict) and (unknown := [str(key) for key in given if key not in known]):
        hints = [f"unknown key {key[:SHOWN]!r}, {did_you_mean(key, known)}" for key in unknown[:LISTED]]
        hints += [f"and {len(unknown) - LISTED} more"] * (len(unknown) > LISTED)
        # PydanticCustomError fills {braces} from a context, so that a key with braces cannot break the message.
        raise PydanticCustomError("unknown_key", "{hints}", {"hints": "; ".join(hints)})
    return data


class Config(BaseModel):
    """Base of every recipe: frozen, nothing unknown, and `did you mean` at any depth."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        return refuse_unknown(cls, data)


C = TypeVar("C", bound=BaseModel)


SHOWN = 200
"""Characters of a value that a message repeats."""
LISTED = 5
"""Unknown keys of one map that a message names."""
_NUMBER = "-+.0123456789"
_SCALARS = {  # YAML 1.2, section 10.3.2
    "tag:yaml.org,2002:bool": (r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:int": (r"^([-+]?(0|[1-9]\d*)|0x[0-9a-fA-F]+)$", _NUMBER),
    "tag:yaml.org,2002:float": (
        r"^([-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        _NUMBER,
    ),
}


class _Loader(yaml.SafeLoader):
    """The safe loader, with the scalars of YAML 1.2 and without silent doubles."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - a class attribute of PyYAML
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (*_SCALARS, "tag:yaml.org,2002:timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if double := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {double[0]!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def load_config(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read the recipe at `path` (None: all defaults), apply `overrides` such as `optim.lr=1e-4`, and check it.

    Raises ValueError with the file, the dotted path of every key that is wrong, and what was expected there.
    """
    tree = _read(Path(path), ()) if path is not None else {}
    return _checked(cls, tree, overrides, where=f"{path}" if path is not None else cls.__name__)


def override(config: C, overrides: Sequence[str]) -> C:
    """Apply overrides such as `optim.lr=1e-4` to a config that is there, and check it as `load_config` does.

    >>> class Recipe(Config):
    ...     steps: int = 5
    >>> override(Recipe(), ["steps=10"]).steps
    10
    """
    if not overrides:
        return config
    return _checked(type(config), config.model_dump(mode="json"), overrides, where=f"--set {' '.join(overrides)}")


def find_recipe(name: str | Path | None, shipped: Path) -> Path:
    """Find a recipe by its path, or by its name among the shipped ones (none: `tiny`).

    >>> find_recipe(None, Path("recipes")).as_posix()
    'recipes/tiny.yaml'
    """
    source = shipped / "tiny.yaml" if name is None else Path(name)
    known = shipped / f"{source.name.removesuffix('.yaml')}.yaml"
    return known if not source.is_file() and known.is_file() else source


def dump_config(config: BaseModel, path: str | Path) -> None:
    """Write the resolved config as YAML that `load_config` reads back to an equal one; the file appears whole or not at
    all."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _checked(cls: type[C], tree: dict[Any, Any], overrides: Sequence[str], *, where: str) -> C:
    for one in overrides:
        _override(tree, one)
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise ValueError("\n".join([f"{where} is not a valid {cls.__name__}:", *map(_line, error.errors())])) from None


def _line(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "(top)"
    given = repr(error["input"])
    given = given if len(given) <= SHOWN else f"{given[:SHOWN]}..."
    got = "" if error["type"] in ("unknown_key", "missing") else f" (got {given})"
    return f"  {where}: {error['msg']}{got}"


def _read(path: Path, above: tuple[Path, ...]) -> dict[Any, Any]:
    path = path.resolve()
    if path in above:
        raise ValueError(f"{path} extends itself: {' -> '.join(p.name for p in (*above, path))}; break the circle")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except OSError as error:
        by = f" (extended by {above[-1]})" if above else ""
        raise ValueError(f"expected a recipe at {path}{by}, but it cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a map of keys at the top, got {type(tree).__name__}")
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ValueError(f"{path}: expected a file or a list of files after extends, got {str(parents)[:SHOWN]}")
    merged: dict[Any, Any] = {}
    for parent in parents:
        merged = _merge(merged, _read(path.parent / parent, (*above, path)))
    return _merge(merged, tree)


def _merge(below: Any, above: Any) -> Any:
    """Maps merge key by key; anything else (lists too) is replaced whole."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: _merge(below.get(key), value) for key, value in above.items()}}


def _override(tree: dict[Any, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"expected an override such as 'optim.lr=1e-4', got {override!r}")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        shown = f"{override[:SHOWN]!r}"
        raise ValueError(f"expected a YAML value after '=' in {shown}; quote it if it is text") from None
    node: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ValueError(f"{override!r}: expected an index below {len(node)} in place of {key!r}")
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if not last and node.get(key) is None:
                node[key] = {}
        else:
            raise ValueError(f"{override!r}: {'.'.join(keys[:depth])} is {node!r} and has no keys below it")
        if last:
            node[index] = value
        else:
            node = node[index]
