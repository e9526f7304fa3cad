"""The command line: check, plan, annotate, cache, train, generate, evaluate, export, time.

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
    from prophy.config import Recipe
    from prophy.data import Prepared

__all__ = ["app"]

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is first imported

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    help="ProPhy: a physical branch beside a frozen generator, with semantic and refinement experts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
shown = Console(width=None if sys.stdout.isatty() else 140)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Config = Annotated[str | None, typer.Option("--config", help="recipe file, or the name of a shipped one")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override, such as refine.k=1 (repeatable)")]
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
            errors.print(f"error: {error}", style="bold red", markup=False)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            errors.print("stopped; what is written is whole, the same command goes on (train: with --resume)")
            raise typer.Exit(130) from None

    return run


@app.command()
@friendly
def check(config: Config = None, set_: Set = None, cache: Cached = Path("runs/cache"), quiet: Quiet = False) -> None:
    """Check recipe, backbone and data: sizes, labels, who teaches the tokens, identity at the start."""
    import torch

    from backbones import attach, sample
    from prophy.adapter import count
    from prophy.data import prepare, token_grid
    from prophy.train import fresh, kind_of

    recipe, backbone = _load(config, set_)
    d = recipe.data
    grid, times = token_grid(recipe, backbone)
    few = recipe.model_copy(update={"data": d.model_copy(update={"clips": min(d.clips, 16)})})
    found = prepare(few, backbone, cache, quiet=quiet)
    adapter = fresh(recipe, backbone)
    one: Any = functools.partial(
        sample, backbone, ["a ball"], seed=0, frames=d.frames, height=d.height, width=d.width, steps=1
    )
    base = one()
    with attach(backbone, adapter):
        same = torch.equal(one(), base)
    table = Table(show_header=False)
    table.add_row("backbone", f"{backbone.id} ({backbone.digest})")
    table.add_row("latent", str(backbone.spec.latent.shape(d.frames, d.height, d.width)))
    table.add_row("token grid (t, y, x)", f"{grid}, at {[round(t, 3) for t in times.tolist()]} s")
    table.add_row("trains", kind_of(recipe))
    table.add_row("parameters", ", ".join(f"{name} {count(group):,}" for name, group in adapter.groups().items()))
    if getattr(adapter, "physical", None) is not None:
        table.add_row("physical blocks beside", str(adapter.physical.places))
    table.add_row("identity at the start", "bit for bit" if same else "BROKEN")
    table.add_row("clips looked at", f"{found.clips} ({', '.join(f'{m} {n}' for m, n in found.labels.items() if n)})")
    table.add_row("token targets", found.teacher)
    table.add_row("clips left out", str(len(found.skipped)))
    shown.print(table)
    _left_out(found)
    if not same:
        raise ValueError("a fresh adapter changes the backbone's output: please report this")
    _next("`prophy plan` shows the stages, `prophy train --out RUN` runs them (same --config, --set, --cache)")


@app.command()
@friendly
def plan(config: Config = None, set_: Set = None) -> None:
    """Show the stages with their groups, steps and rates, and what they need, without training."""
    from prophy.adapter import count
    from prophy.data import token_grid
    from prophy.train import fresh, stages
    from trainers import InMemory

    recipe, backbone = _load(config, set_)
    d = recipe.data
    grid, _ = token_grid(recipe, backbone)
    adapter = fresh(recipe, backbone)
    table = Table("stage", "steps", "batch", "groups (learning rate)")
    for stage in stages(recipe, adapter, backbone, InMemory({"latent": [0]})):
        rates = ", ".join(f"{g} {stage.optim.lr * factor:g}" for g, factor in stage.groups.items())
        table.add_row(stage.name, str(stage.length.steps), f"{stage.batch_size} x {stage.accumulate}", rates)
    shown.print(table)
    weights = sum(count(group) for group in adapter.groups().values())
    c, t, h, w = backbone.spec.latent.shape(d.frames, d.height, d.width)
    tokens = grid[0] * grid[1] * grid[2]
    hidden = tokens * backbone.transformer.config.num_attention_heads
    hidden *= backbone.transformer.config.attention_head_dim
    half = 2 if recipe.dtype == "bfloat16" else 4
    stored = 4 * (c * t * h * w + backbone.spec.text_length * backbone.spec.text_dim)
    shown.print(f"{weights:,} parameters, {16 * weights / 1e9:.3f} GB with gradients and optimizer")
    shown.print(
        f"{tokens:,} tokens a clip; one hidden state {half * hidden / 1e6:.1f} MB, which every physical block adds to "
        f"memory with checkpointing; at most {stored / 1e6:.2f} MB of cache a clip"
    )
    _next("`prophy time` measures seconds a step on this machine, `prophy train --out RUN` trains")


@app.command()
@friendly
def annotate(config: Config = None, set_: Set = None, root: Cached = Path("runs/cache"), quiet: Quiet = False) -> None:
    """Ask a vision-language model (targets.vlm) where each labelled phenomenon of a clip is; run it again to go on,
    under torchrun to share the clips.
    """
    from prophy.annotate import annotate_clips
    from prophy.config import load_recipe

    recipe = load_recipe(config, set_ or [])
    found = annotate_clips(recipe, root, quiet=quiet)
    for s in found.skipped:
        errors.print(f"left out: {s.path}: {s.why}", style="yellow", markup=False)
    summary: dict[str, Any] = {"teacher": recipe.targets.vlm, "clips": found.clips, "computed": found.computed}
    summary |= {"without_a_place": found.placeless, "skipped": len(found.skipped)}
    print(json.dumps(summary | {"rank": found.rank, "world_size": found.world_size}))
    _next(f"`prophy train --out RUN --cache {root}` with the same --config and --set")


@app.command()
@friendly
def cache(config: Config = None, set_: Set = None, root: Cached = Path("runs/cache"), quiet: Quiet = False) -> None:
    """Make latents and text features of the recipe's clips (and read exact fields); run it again to go on."""
    from prophy.data import prepare

    recipe, backbone = _load(config, set_)
    found = prepare(recipe, backbone, root, quiet=quiet)
    _left_out(found)
    summary = {"clips": found.clips, "computed": found.computed, "skipped": len(found.skipped)}
    print(json.dumps(summary | {"token_targets": found.teacher, "labels": found.labels}))
    _next(f"`prophy train --out RUN --cache {root}` with the same --config and --set")


@app.command()
@friendly
def train(
    config: Config = None,
    set_: Set = None,
    out: Out = Path("runs/prophy"),
    root: Cached = Path("runs/cache"),
    stage: Annotated[str | None, typer.Option("--stage", help="stop after this stage")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run was stopped")] = False,
    quiet: Quiet = False,
) -> None:
    """Train and write `OUT/bundle`; a killed run goes on with --resume and ends with the same weights."""
    from prophy.data import prepare
    from prophy.train import ready
    from prophy.train import train as run

    recipe, backbone = _load(config, set_)
    ready(recipe, backbone, out, resume=resume, only=stage)
    found = prepare(recipe, backbone, root, quiet=quiet)
    _left_out(found)
    errors.print(f"token targets: {found.teacher}", markup=False)
    _, result = run(
        recipe,
        backbone,
        found.data,
        said=found.said,
        out=out,
        resume=resume,
        only=stage,
        teacher=found.teacher,
        quiet=quiet,
    )
    summary: dict[str, Any] = {"bundle": str(out / "bundle"), "steps": result.global_step}
    summary |= {"seconds": round(result.seconds, 1), "token_targets": found.teacher, "losses": result.losses}
    print(json.dumps(summary))
    bundle = out / "bundle"
    _next(f'`prophy generate "PROMPT" --bundle {bundle} --compare --out x.mp4`, `prophy evaluate --bundle {bundle}`')


@app.command()
@friendly
def generate(
    prompt: Annotated[str, typer.Argument(help="what the video shows")],
    config: Config = None,
    set_: Set = None,
    bundle: Bundled = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="base on the left, same noise")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="also draw what REB finds where, and how")] = False,
    out: Annotated[Path, typer.Option("--out", help="mp4 to write; a json lies beside it")] = Path("video.mp4"),
) -> None:
    """Generate a video; without --config, the settings are those that the bundle was trained with.

    `--set sampling.inverted=true` negates the semantic router (the paper's expert inversion).
    """
    from prophy.generate import generate as run
    from prophy.generate import named

    out = named(out)
    backbone, adapter = _load_trained(config, set_, bundle)
    for path in run(backbone, adapter, prompt, seed=seed, out=out, compare=compare, maps=maps):
        print(path)


@app.command()
@friendly
def evaluate(
    config: Config = None,
    set_: Set = None,
    bundle: Annotated[
        list[Path] | None, typer.Option("--bundle", help="bundles to compare (repeatable; none: the shipped one)")
    ] = None,
    clips: Annotated[int, typer.Option("--clips", min=1, help="captions a mechanism")] = 8,
    split: Annotated[str, typer.Option("--split", help="val, test or ood")] = "test",
    seed: Annotated[int, typer.Option("--seed")] = 0,
    routers: Annotated[bool, typer.Option("--routers/--no-routers", help="measure the routers as well")] = True,
    out: Annotated[Path | None, typer.Option("--out", help="JSON to write; pictures lie beside it")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure base and bundles on held-out captions of the simulated world, paired; and what the routers learned."""
    from prophy import pictures
    from prophy.adapter import ProphyAdapter
    from prophy.evaluate import evaluate as run
    from prophy.labels import names
    from prophy.places import look
    from prophy.routers import refinement_report, semantic_report
    from prophy.train import kind_of

    folders: list[Path | None] = [*(bundle or [None])]
    backbone, first = _load_trained(config, set_, folders[0])
    adapters = [first, *(_load_trained(config, set_, folder, backbone)[1] for folder in folders[1:])]
    reports: dict[str, Any] = {}
    drawn: list[Path] = []
    for number, adapter in enumerate(adapters if routers else []):
        if not isinstance(adapter, ProphyAdapter) or adapter.recipe.data.vocabulary != "mechanisms":
            continue
        name, found = f"{number}-{kind_of(adapter.recipe)}", {}
        if adapter.semantic is not None:
            report = semantic_report(adapter, backbone)
            found["semantic"] = vars(report) | {"passes": report.passes}
            if out is not None:
                import torch

                known = names(adapter.recipe.data.vocabulary)
                path = out.with_name(f"{out.stem}-{name}-pearson.png")
                drawn.append(pictures.pearson(torch.tensor(report.pearson), known, path))
            _bar(name, "semantic routing", report.accuracy, f"{report.initial:.3f} untrained", report.passes)
        if adapter.refine is not None and adapter.recipe.aligned:
            places = look(adapter, backbone)
            where = refinement_report(adapter, places)
            if out is not None:
                drawn.append(pictures.compared(places, out.with_name(f"{out.stem}-{name}-places.png")))
            found["refinement"] = vars(where) | {"passes": where.passes}
            beside = f"{where.attention:.3f} own attention, {where.random_quantile:.3f} random"
            _bar(name, "localisation", where.score, beside, where.passes)
        reports[name] = found
    result = run(backbone, adapters, clips=clips, split=split, seed=seed, routers=reports, quiet=quiet)
    kinds = list(result.runs)
    table = Table(
        "mechanism",
        *(f"pass {k}" for k in kinds),
        *(f"score {k}" for k in kinds),
        *(f"{pair} [95 %]" for pair in result.differences),
        title=f"{clips} captions a mechanism ({split}), paired noise; runs: "
        + ", ".join(f"{k} {n}" for k, n in result.runs.items()),
    )
    for mechanism, shares in result.passes.items():
        cells = [f"{shares[k]:.3f}" for k in kinds] + [f"{result.scores[mechanism][k]:.3f}" for k in kinds]
        for by in result.differences.values():
            d = by[mechanism]
            cells.append(f"{d.mean:+.3f}" + ("" if d.low is None else f" [{d.low:+.3f}, {d.high:+.3f}]"))
        table.add_row(mechanism, *cells)
    shown.print(table)
    shown.print(
        "pass: share of clips within every gate of their law; score: 0 to 1, real clips near 1; an interval takes 8 "
        "clips and covers the choice of clips and, with several bundles of a kind, of training seeds"
    )
    if out is not None:
        print(result.save(out))
        for path in drawn:
            print(path)


@app.command()
@friendly
def export(
    run: Annotated[Path, typer.Argument(help="folder of a run (`prophy train --out`)")],
    out: Annotated[Path, typer.Option("--out", help="folder of the bundle")],
) -> None:
    """Write the bundle of a run's newest checkpoint, load it back, and prove that it changes the backbone's output."""
    import torch

    from backbones import attach, sample
    from prophy.generate import load_adapter
    from prophy.train import fresh, save_bundle
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
    two: Any = functools.partial(
        sample, backbone, ["a ball"], seed=0, frames=d.frames, height=d.height, width=d.width, steps=2
    )
    base = two()
    with attach(backbone, load_adapter(out, backbone)):
        changed = float((two() - base).abs().mean())
    if not torch.tensor(changed).isfinite() or changed == 0:
        raise ValueError(f"the exported bundle changes nothing (mean difference {changed}): the branch has not trained")
    print(json.dumps({"bundle": str(out), "checkpoint": newest.name, "mean_change": changed}))
    _next(f'`prophy generate "PROMPT" --bundle {out}`')


@app.command()
@friendly
def time(
    config: Config = None,
    set_: Set = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="timed steps, after one to warm up")] = 3,
) -> None:
    """Measure seconds a training step on random data; one JSON line."""
    from prophy.timing import measure

    recipe, backbone = _load(config, set_)
    print(json.dumps(measure(recipe, backbone, steps=steps)))


def _load(config: str | None, overrides: list[str] | None) -> "tuple[Recipe, Any]":
    from prophy.config import load_recipe

    recipe = load_recipe(config, overrides or [])
    return recipe, _backbone(recipe)


def _load_trained(
    config: str | None, overrides: list[str] | None, folder: Path | None, backbone: Any = None
) -> tuple[Any, Any]:
    from prophy.config import load_recipe
    from prophy.generate import load_adapter, recipe_of

    recipe = load_recipe(config, overrides or []) if config is not None else recipe_of(folder, overrides or [])
    try:
        backbone = backbone or _backbone(recipe)
    except ValueError as error:
        if config is not None or any(o.startswith("backbone=") for o in overrides or []):
            raise
        raise ValueError(
            f"{error}; the bundle was trained on it: say with --set backbone=... where it is now"
        ) from None
    return backbone, load_adapter(folder, backbone, recipe=recipe)


def _backbone(recipe: "Recipe") -> Any:
    import torch
    from transformers.utils import logging

    from backbones import load

    if recipe.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"expected a CUDA device for device={recipe.device}, found none on this machine; set device=cpu"
        )
    logging.disable_progress_bar()  # "Loading weights" for two files of a megabyte
    dtype = None if recipe.dtype == "float32" else getattr(torch, recipe.dtype)
    return load(recipe.backbone, device=recipe.device, dtype=dtype)


def _bar(name: str, what: str, score: float, beside: str, passes: bool) -> None:
    shown.print(f"{name}: {what} {score:.3f} ({beside}): {'passes' if passes else 'MISSES'} its bar", markup=False)


def _left_out(found: "Prepared") -> None:
    for kind, clips in (("left out", found.skipped), ("note", found.notes)):
        for s in clips:
            errors.print(f"{kind}: {s.path}: {s.why}", style="yellow", markup=False)


def _next(what: str) -> None:
    errors.print(f"next: {what}", style="dim", markup=False)


_said: set[str] = set()


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    if not issubclass(category, (DeprecationWarning, FutureWarning)) and str(message) not in _said:
        _said.add(str(message))
        errors.print(f"warning: {message}", style="yellow", markup=False)


if __name__ == "__main__":
    sys.exit(app())
