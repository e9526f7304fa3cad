"""The command line: check, plan, cache, train, generate, evaluate, export, time.

Every command takes `--config RECIPE.yaml` (or the name of a shipped recipe; none: `tiny`) and `--set a.b=c`. What a
user got wrong is one red line and exit code 1 (2 for a wrong command line, 130 for Ctrl-C), never a traceback. Results
go to stdout, progress and what to do next to stderr.
"""

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from backbones import WanBackbone
    from pila.adapter import PilaAdapter
    from pila.config import Recipe
    from pila.data import Prepared

__all__ = ["app"]

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is first imported

RANK = int(os.environ.get("RANK", "0"))
"""Of several processes (torchrun, accelerate launch) the first speaks; all say what went wrong."""

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    help="PILA: a frozen generator corrected by routed physics experts on recovered fields.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
shown = Console(width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Config = Annotated[str | None, typer.Option("--config", help="recipe file, or the name of a shipped one")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override, such as routing.k=2 (repeatable)")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]
Cached = Annotated[Path, typer.Option("--cache", help="folder of the cache")]
Out = Annotated[Path, typer.Option("--out", help="folder of the run")]
Bundled = Annotated[Path | None, typer.Option("--bundle", help="folder of a trained bundle (none: the shipped one)")]


def friendly(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a user got wrong into one red line, and warnings into yellow ones."""

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


@app.command()
@friendly
def check(config: Config = None, set_: Set = None, cache: Cached = Path("runs/cache")) -> None:
    """Look at recipe, backbone, records, clips, labels, round trip, identity and disk; writes nothing."""
    from pila.checks import look
    from trainers.check import show

    recipe, backbone = _load(config, set_)
    if not show(look(recipe, backbone, cache), shown):
        raise ValueError("what stands as error in the table would spoil the run: mend it first")
    _next("`pila plan` shows memory, hours and disk, `pila train --out RUN` trains (same --config, --set, --cache)")


@app.command()
@friendly
def plan(
    config: Config = None,
    set_: Set = None,
    gpu: Annotated[list[str] | None, typer.Option("--gpu", help="GPU of the list (repeatable; none: all)")] = None,
    engine: Annotated[str, typer.Option("--engine", help="one, ddp, zero1..3, zero2-offload, fsdp2")] = "",
    processes: Annotated[int, typer.Option("--processes", min=1, help="GPUs that share the run")] = 1,
    measured: Annotated[Path | None, typer.Option("--measured", help="lines of `pila time` to go by")] = None,
    efficiency: Annotated[float | None, typer.Option("--efficiency", help="share of the GPU's peak")] = None,
    clips: Annotated[int | None, typer.Option("--clips", min=1, help="of data that are not on this machine")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="everything as one JSON object")] = False,
) -> None:
    """Show stages, memory for each GPU, cache size, hours and the largest batch, from the recipe alone."""
    from pila.config import load_recipe
    from pila.plan import describe, stage_rows
    from trainers import gpus
    from trainers import plan as plans
    from trainers.footprint import check_engine
    from trainers.sheet import show

    recipe = load_recipe(config, set_ or [])
    chosen = [gpus.named(name) for name in gpu] if gpu else gpus.known()
    lines = plans.read_measured(measured) if measured is not None else []
    engine = engine or ("one" if processes == 1 else "ddp")
    check_engine(engine, processes)  # before seconds go into counting
    job = describe(recipe, clips=clips)
    made = plans.make(
        job,
        chosen,
        engine=engine,
        processes=processes,
        efficiency=plans.EFFICIENCY if efficiency is None else efficiency,
        measured=lines,
    )
    if as_json:
        print(json.dumps(made.to_dict()))
        return
    table = Table("stage", "steps", "groups (learning rate)", "ramps")
    for row in stage_rows(recipe):
        table.add_row(*row)
    shown.print(table)
    show(made, shown)
    _next("`pila time` measures this machine (for --measured), `pila train --out RUN` trains")


@app.command()
@friendly
def cache(config: Config = None, set_: Set = None, root: Cached = Path("runs/cache"), quiet: Quiet = False) -> None:
    """Make latents, flow and text features of the recipe's clips; run it again to go on. Under torchrun each process
    makes its share.
    """
    from pila.data import prepare
    from trainers.engine import launched

    engine = launched()
    recipe, backbone = _load(config, set_)
    found = prepare(recipe, backbone, root, quiet=quiet, engine=engine)
    engine.leave()
    if not engine.main:
        return
    _left_out(found)
    summary = {"clips": found.clips, "computed": found.computed, "skipped": len(found.skipped), "labels": found.labels}
    print(json.dumps(summary))
    _next(f"`pila train --out RUN --cache {root}` with the same --config and --set")


@app.command()
@friendly
def train(
    config: Config = None,
    set_: Set = None,
    out: Out = Path("runs/pila"),
    root: Cached = Path("runs/cache"),
    stage: Annotated[
        str | None, typer.Option("--stage", help="stop after this stage (or stages that begin so)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run was stopped")] = False,
    quiet: Quiet = False,
) -> None:
    """Train through all stages and write `OUT/bundle`; a killed run goes on with --resume and ends with the same
    weights. Several processes: see docs/launch.md.
    """
    from pila.data import prepare
    from pila.train import ready
    from pila.train import train as run
    from trainers.engine import launched

    engine = launched()  # first: of several GPUs each process gets its own
    recipe, backbone = _load(config, set_)
    ready(recipe, backbone, out, resume=resume, only=stage)
    found = prepare(recipe, backbone, root, quiet=quiet, engine=engine)
    if engine.main:
        _left_out(found)
    _, result = run(recipe, backbone, found.data, out=out, resume=resume, only=stage, quiet=quiet, engine=engine)
    engine.leave()
    if not engine.main:
        return
    summary = {
        "bundle": str(out / "bundle"),
        "clips": found.clips,
        "steps": result.global_step,
        "seconds": round(result.seconds, 1),
        "losses": {name: round(value, 5) for name, value in result.losses.items()},
    }
    print(json.dumps(summary))
    if result.global_step < recipe.steps:
        _next(f"`pila train --out {out} --resume` with the same --config and --set trains the stages that are left")
    else:
        bundle = out / "bundle"
        _next(f'`pila generate "PROMPT" --bundle {bundle} --compare --out x.mp4`, `pila evaluate --bundle {bundle}`')


@app.command()
@friendly
def generate(
    prompt: Annotated[str, typer.Argument(help="what the video shows")],
    config: Config = None,
    set_: Set = None,
    bundle: Bundled = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="base on the left, same noise")] = False,
    fields: Annotated[bool, typer.Option("--fields", help="also draw the bank and the experts")] = False,
    out: Annotated[Path, typer.Option("--out", help="mp4 to write; a json lies beside it")] = Path("video.mp4"),
) -> None:
    """Generate a video; without --config, the settings are those that the bundle was trained with."""
    from pila.generate import generate as run
    from pila.generate import named

    out = named(out)
    backbone, adapter = _load_trained(config, set_, bundle)
    for path in run(backbone, adapter, prompt, seed=seed, out=out, compare=compare, fields=fields):
        print(path)


@app.command()
@friendly
def evaluate(
    config: Config = None,
    set_: Set = None,
    bundle: Bundled = None,
    clips: Annotated[int, typer.Option("--clips", min=1, help="captions a mechanism")] = 8,
    split: Annotated[str, typer.Option("--split", help="val, test or ood")] = "test",
    seed: Annotated[int, typer.Option("--seed")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="JSON to write")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure base and adapter on held-out captions of the simulated world: pass shares, scores, paired differences."""
    from pila.evaluate import evaluate as run

    backbone, adapter = _load_trained(config, set_, bundle)
    result = run(backbone, adapter, clips=clips, split=split, seed=seed, quiet=quiet)
    name = adapter.recipe.adapter
    title = f"{clips} captions a mechanism ({split}), paired noise"
    table = Table(
        "mechanism", "pass base", f"pass {name}", "score base", f"score {name}", "difference [95 %]", title=title
    )
    for mechanism, shares in result.passes.items():
        scores, d = result.scores[mechanism], result.difference[mechanism]
        figures = (shares["base"], shares[name], scores["base"], scores[name])
        interval = "" if d.low is None else f" [{d.low:+.3f}, {d.high:+.3f}]"
        table.add_row(mechanism, *(f"{x:.3f}" for x in figures), f"{d.mean:+.3f}{interval}")
    shown.print(table)
    shown.print(
        "pass: share of clips within every gate of their law; score: 0 to 1, real clips near 1; an interval takes 8 "
        "clips and covers the choice of clips alone"
    )
    if out is not None:
        print(result.save(out))


@app.command()
@friendly
def export(
    run: Annotated[Path, typer.Argument(help="folder of a run (`pila train --out`)")],
    out: Annotated[Path, typer.Option("--out", help="folder of the bundle")],
) -> None:
    """Write the bundle of a run's newest checkpoint, load it back, and prove that it changes the backbone's output."""
    import torch

    from backbones import attach, sample
    from pila.train import fresh, save_bundle
    from trainers import checkpoint

    if not (run / "recipe.yaml").is_file():
        raise ValueError(f"expected the folder of a run with a recipe.yaml, got {run}")
    recipe, backbone = _load(str(run / "recipe.yaml"), None)
    newest = checkpoint.latest(run / "checkpoints")
    if newest is None:
        raise ValueError(f"{run} has no whole checkpoint yet: let it train on, or resume it")
    weights = checkpoint.load(newest).tensors["weights"]
    adapter = fresh(recipe, backbone)
    for name, module in adapter.groups().items():
        part = {k.removeprefix(f"{name}/"): v for k, v in weights.items() if k.startswith(f"{name}/")}
        if part:
            module.load_state_dict(part)
    save_bundle(adapter, backbone, out)
    d = recipe.data
    two = functools.partial(
        sample, backbone, ["a ball"], seed=0, frames=d.frames, height=d.height, width=d.width, steps=2
    )
    base = two()
    with attach(backbone, out, mode=recipe.sampling.mode):
        changed = float((two() - base).abs().mean())
    if not torch.tensor(changed).isfinite() or (changed == 0 and recipe.correct != "none"):
        raise ValueError(
            f"the exported bundle changes nothing (mean difference {changed}): stage C has not trained yet"
        )
    summary = {"bundle": str(out), "checkpoint": newest.name, "mean_change": changed}
    print(json.dumps(summary))
    _next(f'`pila generate "PROMPT" --bundle {out}`')


@app.command()
@friendly
def time(
    config: Config = None,
    set_: Set = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="timed steps a stage, after one to warm up")] = 3,
) -> None:
    """Measure seconds a step of every kind of stage on random data; one JSON line."""
    from pila.timing import measure

    recipe, backbone = _load(config, set_)
    print(json.dumps(measure(recipe, backbone, steps=steps)))


def _load(config: str | None, overrides: list[str] | None) -> "tuple[Recipe, WanBackbone]":
    from pila.config import load_recipe

    recipe = load_recipe(config, overrides or [])
    return recipe, _backbone(recipe)


def _load_trained(
    config: str | None, overrides: list[str] | None, folder: Path | None
) -> "tuple[WanBackbone, PilaAdapter]":
    from pila.config import load_recipe
    from pila.generate import load_adapter, recipe_of

    recipe = load_recipe(config, overrides or []) if config is not None else recipe_of(folder, overrides or [])
    try:
        backbone = _backbone(recipe)
    except ValueError as error:
        if config is not None or any(o.startswith("backbone=") for o in overrides or []):
            raise
        raise ValueError(
            f"{error}; the bundle was trained on it: say with --set backbone=... where it is now"
        ) from None
    return backbone, load_adapter(folder, backbone, recipe=recipe)


def _backbone(recipe: "Recipe") -> "WanBackbone":
    import torch
    from transformers.utils import logging

    from backbones import WanBackbone, load

    if recipe.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"expected a CUDA device for device={recipe.device}, found none on this machine; set device=cpu"
        )
    logging.disable_progress_bar()  # "Loading weights" for two files of a megabyte
    dtype = None if recipe.dtype == "float32" else getattr(torch, recipe.dtype)
    backbone = load(recipe.backbone, device=recipe.device, dtype=dtype)
    if not isinstance(backbone, WanBackbone):
        raise ValueError(
            f"expected a Wan for backbone={recipe.backbone}, got {type(backbone).__name__}: this recipe was tried"
            " on Wan alone; in Python the adapter attaches to CogVideoX as well"
        )
    return backbone


def _left_out(found: "Prepared") -> None:
    for kind, clips in (("left out", found.skipped), ("note", found.notes)):
        for s in clips:
            errors.print(f"{kind}: {s.path}: {s.why}", style="yellow", markup=False)


def _next(what: str) -> None:
    errors.print(f"next: {what}", style="dim", markup=False)


_said: set[str] = set()


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    known = issubclass(category, (DeprecationWarning, FutureWarning)) or str(message) in _said
    if not known and RANK == 0:
        _said.add(str(message))
        errors.print(f"warning: {message}", style="yellow", markup=False)


if __name__ == "__main__":
    sys.exit(app())
