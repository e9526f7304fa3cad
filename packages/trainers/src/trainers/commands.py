"""The frame of an app's command line: what every verb of every app does alike.

What a user got wrong is one red line and exit code 1 (2 for a wrong command line, 130 for Ctrl-C), never a traceback.
Results go to stdout; progress, warnings and what to do next go to stderr. Of several processes (torchrun, accelerate
launch) the first speaks, and all say what went wrong.

    app = new_app("What it is.")

    @app.command()
    @friendly
    def cache(chosen: Chosen, root: Cached = Path("runs/cache"), quiet: Quiet = False) -> None: ...

The options are in `trainers.options`, the verbs that are the same in every method in `trainers.method`.
"""

import functools
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .data import Skipped
from .options import Chosen, spread

if TYPE_CHECKING:
    from .job import Job
    from .stage import Stage

__all__ = [
    "asked_by",
    "errors",
    "friendly",
    "hint",
    "left_out",
    "line",
    "new_app",
    "recipe_in",
    "show_plan",
    "show_table",
    "shown",
]

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is first imported

RANK = int(os.environ.get("RANK", "0"))

P = ParamSpec("P")
R = TypeVar("R")

shown = Console(width=None if sys.stdout.isatty() else 120)
"""Results; a pipe has no width, and tables shall not wrap there."""
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def new_app(help: str) -> typer.Typer:
    """Make an app without commands: no tracebacks of its own, and help where no command is given."""
    return typer.Typer(help=help, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


def friendly(command: Callable[P, R], *, code: int = 1) -> Callable[P, R]:
    """Turn what a user got wrong into one red line, and warnings into yellow ones, each said once; the fields of the
    bundles that the command takes become its options (`options.spread`). `code` is the exit code of what was wrong.
    """
    command = spread(command)

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        warnings.showwarning = _show_warning
        try:
            return command(*args, **kwargs)
        except (ValueError, ArithmeticError, ImportError, OSError) as error:
            where = f" in process {RANK}" if "RANK" in os.environ else ""
            errors.print(f"error{where}: {error}", style="bold red", markup=False)
            raise typer.Exit(code) from None
        except SystemExit as leaving:  # SIGTERM, after a checkpoint
            if RANK == 0:
                errors.print(str(leaving), markup=False)
            raise
        except KeyboardInterrupt:
            errors.print("stopped; what is written is whole, the same command goes on (train: with --resume)")
            raise typer.Exit(130) from None

    return run


def hint(what: str) -> None:
    """Say what to do next; a command (`line`) stands in backquotes, to be copied as it is."""
    errors.print(f"next: {what}", style="dim", markup=False)


def line(app: str, verb: str, *words: object, chosen: Chosen | None = None, **options: object) -> str:
    """Write a command so that it can be copied: as this one was called, with its `--config` and `--set`, quoted for the
    shell, in backquotes. An option that is None or False is left out, True is a flag, a list stands again and again.

    >>> line("pila", "train", chosen=Chosen("my recipe.yaml", ["steps=2"]), cache="runs/cache", resume=True)
    "`pila train --config 'my recipe.yaml' --set steps=2 --cache runs/cache --resume`"
    """
    given = {"config": chosen.config, "set": chosen.set_} if chosen is not None else {}
    parts = [_called(app), verb, *(shlex.quote(str(word)) for word in words)]
    for name, value in {**given, **options}.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            parts.append(flag)
        elif value is not None and value is not False:
            several = value if isinstance(value, list | tuple) else [value]
            parts += [f"{flag} {shlex.quote(str(one))}" for one in several]
    return f"`{' '.join(parts)}`"


def _called(app: str) -> str:
    """How to call an app in the way that this process was."""
    start = Path(sys.argv[0])
    if start.name == "cli.py":
        return f"python -m {app}.cli"
    return f"uv run {app}" if "UV_RUN_RECURSION_DEPTH" in os.environ and _is_app(start.stem) else app


def _is_app(name: str) -> bool:
    try:
        return find_spec(f"{name}.cli") is not None
    except (ImportError, ValueError):
        return False


def left_out(skipped: Iterable[Skipped], notes: Iterable[Skipped] = ()) -> None:
    """Name clips that were left out, and what was dropped of clips that stay."""
    for kind, clips in (("left out", skipped), ("note", notes)):
        for s in clips:
            errors.print(f"{kind}: {s.path}: {s.why}", style="yellow", markup=False)


def show_table(rows: Sequence[Sequence[str]], title: str = "", legend: str = "") -> None:
    """Print rows as a table, the first one as its header; into a pipe or a file as wide as it is, nothing cut."""
    table = Table(*rows[0], title=escape(title))  # folders and clips may have brackets in their names
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    (shown if shown.is_terminal else Console(width=1000)).print(table)
    if legend:
        shown.print(legend, markup=False)


def recipe_in(run: Path) -> str:
    """Find the recipe in the folder of a run; ValueError where there is none."""
    if not (run / "recipe.yaml").is_file():
        raise ValueError(f"expected the folder of a run with a recipe.yaml, got {run}")
    return str(run / "recipe.yaml")


@contextmanager
def asked_by(what: str, field: str, *, unless: bool = False) -> Iterator[None]:
    """Add to an error that it was `what`, not the user, that asked for this `field`, and how to say another one.

    `unless` the user said it.
    """
    try:
        yield
    except ValueError as error:
        if unless:
            raise
        raise ValueError(f"{error}; {what} asks for it: say with --set {field}=... where it is now") from None


def show_plan(
    describe: "Callable[[], Job]",
    *,
    gpu: Sequence[str] | None,
    engine: str,
    processes: int | None,
    measured: Path | None,
    efficiency: float | None,
    as_json: bool,
    stages: "Callable[[], Sequence[Stage]] | None" = None,
) -> None:
    """Print what a run needs: its stages, memory for each GPU, cache, hours and the largest batch. Without `processes`
    one to eight of the GPUs stand beside one another (`trainers.fleet`).

    `describe` counts work, which takes seconds: what is wrong with the other arguments is said before.
    """
    from . import fleet, gpus, sheet
    from . import plan as plans
    from .footprint import check_engine

    several = processes is None
    usual = [gpus.named(name) for name in fleet.USUAL] if several else gpus.known()
    chosen = [gpus.named(name) for name in gpu] if gpu else usual
    lines = plans.read_measured(measured) if measured is not None else []
    said, processes = engine, processes or 1
    engine = engine or ("one" if processes == 1 else "ddp")
    check_engine(engine, processes)
    job = describe()
    how: dict[str, Any] = {"efficiency": efficiency, "measured": lines}
    made = plans.make(job, chosen, engine=engine, processes=processes, **how)
    table = fleet.cells(job, chosen, engine=said, **how) if several else ()
    if as_json:
        print(json.dumps(made.to_dict() | {"fleet": [cell.to_dict() for cell in table]}))
        return
    if stages is not None:
        shown.print(sheet.stages(stages()))
    sheet.show(made, shown, table)


_said: set[str] = set()


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    known = issubclass(category, (DeprecationWarning, FutureWarning)) or str(message) in _said
    if not known and RANK == 0:
        _said.add(str(message))
        errors.print(f"warning: {message}", style="yellow", markup=False)
