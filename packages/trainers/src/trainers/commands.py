"""The frame of an app's command line: what every verb of every app does alike.

Every command takes `--config RECIPE.yaml` (or the name of a shipped recipe; none: `tiny`) and `--set a.b=c`. What a
user got wrong is one red line and exit code 1 (2 for a wrong command line, 130 for Ctrl-C), never a traceback. Results
go to stdout; progress, warnings and what to do next go to stderr. Of several processes (torchrun, accelerate launch)
the first speaks, and all say what went wrong.

    app = new_app("What it is.")

    @app.command()
    @friendly
    def cache(config: Config = None, set_: Set = None, quiet: Quiet = False) -> None: ...
"""

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from .data import Skipped

if TYPE_CHECKING:
    from .job import Job
    from .stage import Stage

__all__ = [
    "AsJson",
    "Bundled",
    "Bundles",
    "Cached",
    "Captions",
    "Config",
    "Efficiency",
    "EngineName",
    "Gpus",
    "HowMany",
    "Kept",
    "Measured",
    "Out",
    "Processes",
    "Quiet",
    "Set",
    "Split",
    "asked_by",
    "errors",
    "friendly",
    "hint",
    "left_out",
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

Config = Annotated[str | None, typer.Option("--config", help="recipe file, or the name of a shipped one")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override of the recipe, a.b=c (repeatable)")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]
Cached = Annotated[Path, typer.Option("--cache", help="folder of the cache")]
Out = Annotated[Path, typer.Option("--out", help="folder of the run")]
Bundled = Annotated[Path | None, typer.Option("--bundle", help="folder of a trained bundle (none: the shipped one)")]
Bundles = Annotated[
    list[Path] | None, typer.Option("--bundle", help="folder of a trained bundle (repeatable; none: the shipped one)")
]
Gpus = Annotated[list[str] | None, typer.Option("--gpu", help="GPU of the list (repeatable; none: all)")]
EngineName = Annotated[str, typer.Option("--engine", help="one, ddp, zero1..3, zero2-offload, fsdp2")]
Processes = Annotated[int, typer.Option("--processes", min=1, help="GPUs that share the run")]
Measured = Annotated[Path | None, typer.Option("--measured", help="lines of `time` to go by")]
Efficiency = Annotated[float | None, typer.Option("--efficiency", help="share of the GPU's peak")]
HowMany = Annotated[int | None, typer.Option("--clips", min=1, help="of data that are not on this machine")]
AsJson = Annotated[bool, typer.Option("--json", help="everything as one JSON object")]
Captions = Annotated[int, typer.Option("--clips", min=1, help="captions a mechanism")]
Split = Annotated[str, typer.Option("--split", help="val, test or ood (ranges that training never shows)")]
Kept = Annotated[Path | None, typer.Option("--keep", help="folder for parts: the same command goes on after a stop")]


def new_app(help: str) -> typer.Typer:
    """Make an app without commands: no tracebacks of its own, and help where no command is given."""
    return typer.Typer(help=help, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


def friendly(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a user got wrong into one red line, and warnings into yellow ones, each said once."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        warnings.showwarning = _show_warning
        try:
            return command(*args, **kwargs)
        except (ValueError, ArithmeticError, ImportError, OSError) as error:
            where = f" in process {RANK}" if "RANK" in os.environ else ""
            errors.print(f"error{where}: {error}", style="bold red", markup=False)
            raise typer.Exit(1) from None
        except SystemExit as leaving:  # SIGTERM, after a checkpoint
            if RANK == 0:
                errors.print(str(leaving), markup=False)
            raise
        except KeyboardInterrupt:
            errors.print("stopped; what is written is whole, the same command goes on (train: with --resume)")
            raise typer.Exit(130) from None

    return run


def hint(what: str) -> None:
    """Say what to do next."""
    errors.print(f"next: {what}", style="dim", markup=False)


def left_out(skipped: Iterable[Skipped], notes: Iterable[Skipped] = ()) -> None:
    """Name clips that were left out, and what was dropped of clips that stay."""
    for kind, clips in (("left out", skipped), ("note", notes)):
        for s in clips:
            errors.print(f"{kind}: {s.path}: {s.why}", style="yellow", markup=False)


def show_table(rows: Sequence[Sequence[str]], title: str = "", legend: str = "") -> None:
    """Print rows as a table, the first one as its header; into a pipe or a file as wide as it is, nothing cut."""
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
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
    processes: int,
    measured: Path | None,
    efficiency: float | None,
    as_json: bool,
    stages: "Callable[[], Sequence[Stage]] | None" = None,
) -> None:
    """Print what a run needs: its stages, memory for each GPU, cache, hours and the largest batch.

    `describe` counts work, which takes seconds: what is wrong with the other arguments is said before.
    """
    from . import gpus, sheet
    from . import plan as plans
    from .footprint import check_engine

    chosen = [gpus.named(name) for name in gpu] if gpu else gpus.known()
    lines = plans.read_measured(measured) if measured is not None else []
    engine = engine or ("one" if processes == 1 else "ddp")
    check_engine(engine, processes)
    made = plans.make(
        describe(),
        chosen,
        engine=engine,
        processes=processes,
        efficiency=plans.EFFICIENCY if efficiency is None else efficiency,
        measured=lines,
    )
    if as_json:
        print(json.dumps(made.to_dict()))
        return
    if stages is not None:
        shown.print(sheet.stages(stages()))
    sheet.show(made, shown)


_said: set[str] = set()


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    known = issubclass(category, (DeprecationWarning, FutureWarning)) or str(message) in _said
    if not known and RANK == 0:
        _said.add(str(message))
        errors.print(f"warning: {message}", style="yellow", markup=False)
