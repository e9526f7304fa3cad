"""The options that the verbs of the apps share, one by one and in bundles.

A bundle is a frozen dataclass whose fields are options. `spread` makes a command of a function that takes one: its
fields become options of the command, and the function gets the bundle filled.

    @dataclass(frozen=True)
    class Chosen:
        config: Config = None
        set_: Set = None

    @spread
    def cache(chosen: Chosen, root: Cached = Path("runs/cache")) -> None: ...     # --config, --set, --cache
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints

import typer

__all__ = [
    "Bundled",
    "Bundles",
    "Cached",
    "Chosen",
    "Config",
    "Fitted",
    "Measured",
    "Planned",
    "Quiet",
    "Run",
    "Sampled",
    "Set",
    "Written",
    "spread",
]

P = ParamSpec("P")
R = TypeVar("R")
_NEEDED = inspect.Parameter.empty

Config = Annotated[str | None, typer.Option("--config", help="recipe file, or the name of a shipped one")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override of the recipe, a.b=c (repeatable)")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]
Cached = Annotated[Path, typer.Option("--cache", help="folder of the cache")]
Run = Annotated[Path, typer.Option("--out", help="folder of the run")]
Bundled = Annotated[Path | None, typer.Option("--bundle", help="folder of a trained bundle (none: the shipped one)")]
Bundles = Annotated[
    list[Path] | None, typer.Option("--bundle", help="folder of a trained bundle (repeatable; none: the shipped one)")
]
Written = Annotated[Path, typer.Option("--out", help="mp4 to write; a json lies beside it")]


@dataclass(frozen=True)
class Chosen:
    """Which recipe, and what is changed in it."""

    config: Config = None
    set_: Set = None

    @property
    def overrides(self) -> list[str]:
        """What `--set` said."""
        return self.set_ or []


@dataclass(frozen=True)
class Planned:
    """What a plan goes by."""

    gpu: Annotated[
        list[str] | None, typer.Option("--gpu", help="GPU of the list (repeatable; none: four, with --processes all)")
    ] = None
    engine: Annotated[str, typer.Option("--engine", help="one, ddp, zero1..3, zero2|3-offload, fsdp2")] = ""
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="GPUs that share the run (none: 1 to 8)")
    ] = None
    measured: Annotated[Path | None, typer.Option("--measured", help="lines of `time` to go by")] = None
    efficiency: Annotated[float | None, typer.Option("--efficiency", help="share of the GPU's peak")] = None
    clips: Annotated[int | None, typer.Option("--clips", min=1, help="of data that are not on this machine")] = None
    as_json: Annotated[bool, typer.Option("--json", help="everything as one JSON object")] = False


@dataclass(frozen=True)
class Fitted:
    """How a training goes on, and what it shows."""

    resume: Annotated[bool, typer.Option("--resume", help="go on where the run was stopped")] = False
    quiet: Quiet = False


@dataclass(frozen=True)
class Sampled:
    """A video of one seed, beside the base where that is asked for."""

    seed: Annotated[int, typer.Option("--seed")] = 0
    compare: Annotated[bool, typer.Option("--compare", help="base on the left, same noise")] = False
    quiet: Quiet = False


@dataclass(frozen=True)
class Measured:
    """What an evaluation measures, and where it keeps it."""

    clips: Annotated[int, typer.Option("--clips", min=1, help="captions a mechanism")] = 8
    split: Annotated[str, typer.Option("--split", help="val, test or ood (ranges that training never shows)")] = "test"
    seed: Annotated[int, typer.Option("--seed", help="of the noise")] = 0
    keep: Annotated[
        Path | None, typer.Option("--keep", help="folder for parts: the same command goes on after a stop")
    ] = None
    out: Annotated[Path | None, typer.Option("--out", help="JSON to write, clip by clip; pictures beside it")] = None
    quiet: Quiet = False

    @property
    def how(self) -> dict[str, Any]:
        """All but where the result goes."""
        return {name: value for name, value in vars(self).items() if name != "out"}


def spread(function: Callable[P, R]) -> Callable[P, R]:
    """Make options of the fields of the bundles that a function takes; `inspect.signature` shows them, as typer asks.

    >>> def say(chosen: Chosen, quiet: Quiet = False) -> str:
    ...     return f"{chosen.config} {quiet}"
    >>> spread(say)(config="tiny", set_=None, quiet=True)
    'tiny True'
    """
    hints = get_type_hints(function, include_extras=True)
    bundles: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint) and name != "return"}
    options: list[inspect.Parameter] = []
    for one in inspect.signature(function).parameters.values():
        options += _of(bundles[one.name]) if one.name in bundles else [_option(one.name, hints[one.name], one.default)]

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        said: dict[str, Any] = dict(kwargs)
        for name, bundle in bundles.items():
            said[name] = bundle(**{option.name: said.pop(option.name) for option in _of(bundle) if option.name in said})
        return function(*args, **said)  # pyright: ignore[reportCallIssue]

    result = hints.get("return", inspect.Signature.empty)
    signature = inspect.Signature(options, return_annotation=result)
    run.__dict__["__signature__"] = signature
    run.__annotations__ = {option.name: option.annotation for option in options} | {"return": result}
    return run


def _of(bundle: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(bundle, include_extras=True)
    return [_option(f.name, hints[f.name], _NEEDED if f.default is MISSING else f.default) for f in fields(bundle)]


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
