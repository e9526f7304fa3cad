"""The command line: check, plan, cache, train, generate, continue, evaluate, export, time.

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
    from phantom.adapter import PhantomAdapter
    from phantom.config import Recipe
    from phantom.evaluate import Pushes

__all__ = ["app"]

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is first imported

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    help="Phantom: pixels and physics sampled in lockstep, one stream frozen, one trained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
shown = Console(width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Config = Annotated[str | None, typer.Option("--config", help="recipe file, or the name of a shipped one")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override, such as physics.channels=16 (repeatable)")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]
Cached = Annotated[Path, typer.Option("--cache", help="folder of the cache")]
Out = Annotated[Path, typer.Option("--out", help="folder of the run")]
Bundled = Annotated[Path | None, typer.Option("--bundle", help="folder of a trained bundle (none: the shipped one)")]
Bundles = Annotated[list[Path] | None, typer.Option("--bundle", help="folder of a trained bundle (repeatable)")]


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
def check(
    config: Config = None,
    set_: Set = None,
    cache: Cached = Path("runs/cache"),
    run: Annotated[Path | None, typer.Option("--run", help="an earlier run, for the resets to expect")] = None,
) -> None:
    """Look at recipe, backbone, clips, round trip, physics latent, identity, resets and disk; writes nothing."""
    from phantom.checks import look
    from trainers.check import show

    recipe, backbone, encoder = _load(config, set_)
    if not show(look(recipe, backbone, encoder, cache, run), shown):
        raise ValueError("what stands as error in the table would spoil the run: mend it first")
    _next("`phantom plan` shows memory, hours and disk, `phantom train --out RUN` trains (with the same --set)")


@app.command()
@friendly
def plan(
    config: Config = None,
    set_: Set = None,
    gpu: Annotated[list[str] | None, typer.Option("--gpu", help="GPU of the list (repeatable; none: all)")] = None,
    engine: Annotated[str, typer.Option("--engine", help="one, ddp, zero1..3, zero2-offload, fsdp2")] = "",
    processes: Annotated[int, typer.Option("--processes", min=1, help="GPUs that share the run")] = 1,
    measured: Annotated[Path | None, typer.Option("--measured", help="lines of `phantom time` to go by")] = None,
    clips: Annotated[int | None, typer.Option("--clips", min=1, help="of data that are not on this machine")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="everything as one JSON object")] = False,
) -> None:
    """Show memory for each GPU, cache size, hours and the largest batch, from the recipe alone."""
    from phantom.config import load_recipe
    from phantom.plan import describe
    from trainers import gpus
    from trainers import plan as plans
    from trainers.sheet import show

    recipe = load_recipe(config, set_ or [])
    cards = [gpus.named(name) for name in gpu] if gpu else gpus.known()
    made = plans.make(
        describe(recipe, clips=clips),
        cards,
        engine=engine or ("one" if processes == 1 else "ddp"),
        processes=processes,
        measured=plans.read_measured(measured) if measured is not None else [],
    )
    if as_json:
        print(json.dumps(made.to_dict()))
        return
    show(made, shown)
    _next("`phantom time` measures this machine (for --measured), `phantom train --out RUN` trains")


@app.command()
@friendly
def time(
    config: Config = None,
    set_: Set = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="timed steps, after one to warm up")] = 3,
) -> None:
    """Measure seconds a step on random data; one JSON line."""
    from phantom.config import load_recipe
    from phantom.timing import measure

    recipe = load_recipe(config, set_ or [])
    print(json.dumps(measure(recipe, _backbone(recipe), steps=steps)))


@app.command()
@friendly
def cache(config: Config = None, set_: Set = None, root: Cached = Path("runs/cache"), quiet: Quiet = False) -> None:
    """Make latents, text and physics features of the recipe's clips; run it again to go on. Under torchrun each process
    makes its share.
    """
    from phantom.data import prepare
    from trainers.engine import launched

    engine = launched()
    recipe, backbone, encoder = _load(config, set_)
    found = prepare(recipe, backbone, encoder, root, quiet=quiet, engine=engine)
    engine.leave()
    if not engine.main:
        return
    _left_out(found.skipped)
    summary = {"clips": found.clips, "computed": found.computed, "skipped": len(found.skipped)}
    summary |= {"physics": recipe.physics.kind, "explained": round(float(found.data.basis.explained), 4)}
    print(json.dumps(summary))
    _next(f"`phantom train --out RUN --cache {root}` with the same --config and --set")


@app.command()
@friendly
def train(
    config: Config = None,
    set_: Set = None,
    out: Out = Path("runs/phantom"),
    root: Cached = Path("runs/cache"),
    stage: Annotated[str | None, typer.Option("--stage", help="stop after this stage: joint or force")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run was stopped")] = False,
    quiet: Quiet = False,
) -> None:
    """Train the physics stream and the couplings and write `OUT/bundle`; a killed run goes on with --resume."""
    from phantom.data import held_out, prepare
    from phantom.train import train as run
    from trainers.engine import launched

    engine = launched()  # first: of several GPUs each process gets its own
    recipe, backbone, encoder = _load(config, set_)
    found = prepare(recipe, backbone, encoder, root, quiet=quiet, engine=engine)
    if engine.main:
        _left_out(found.skipped)
    held = held_out(recipe, backbone, encoder, root, found.data.basis, quiet=quiet, engine=engine)
    pushed = None
    if recipe.force.kind != "none":
        shared: dict[str, Any] = {"basis": found.data.basis, "quiet": quiet, "engine": engine}
        balls = prepare(recipe, backbone, encoder, root, pushed=True, **shared)
        if engine.main:
            _left_out(balls.skipped)
        pushed = balls.data
    data: dict[str, Any] = {"held": held, "pushed": pushed, "engine": engine}
    _, result = run(recipe, backbone, encoder, found.data, out=out, only=stage, resume=resume, quiet=quiet, **data)
    engine.leave()
    if not engine.main:
        return
    summary = {
        "bundle": str(out / "bundle"),
        "physics": recipe.physics.kind,
        "clips": found.clips,
        "steps": result.global_step,
        "seconds": round(result.seconds, 1),
        "losses": {name: round(value, 5) for name, value in result.losses.items()},
    }
    print(json.dumps(summary))
    bundle = out / "bundle"
    _next(f'`phantom generate "PROMPT" --bundle {bundle} --compare --out x.mp4`, `phantom evaluate --bundle {bundle}`')


@app.command()
@friendly
def generate(
    prompt: Annotated[str, typer.Argument(help="what the video shows")],
    config: Config = None,
    set_: Set = None,
    bundle: Bundled = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="base on the left, same noise")] = False,
    image: Annotated[Path | None, typer.Option("--image", help="first frame (image to video)")] = None,
    film: Annotated[Path | None, typer.Option("--video", help="observed beginning (video to video)")] = None,
    save_physics: Annotated[bool, typer.Option("--save-physics", help="keep z and draw it")] = False,
    follow: Annotated[Path | None, typer.Option("--follow", help="a video whose physics is to be followed")] = None,
    force: Annotated[str | None, typer.Option("--force", help="a push: x,y,angle,strength (0 to 1, degrees)")] = None,
    wind: Annotated[str | None, typer.Option("--wind", help="wind: angle,speed (degrees, 0 to 1)")] = None,
    out: Annotated[Path, typer.Option("--out", help="mp4 to write; a json lies beside it")] = Path("video.mp4"),
) -> None:
    """Generate a video; without --config, the settings are those that the bundle was trained with."""
    from phantom.force import parse_point, parse_wind
    from phantom.generate import generate as run
    from phantom.generate import named, observe

    out = named(out)
    if force is not None and wind is not None:
        raise ValueError("expected --force or --wind, got both")
    push = parse_point(force) if force is not None else parse_wind(wind) if wind is not None else None
    backbone, adapter = _load_trained(config, set_, bundle)
    observed, notes = observe(adapter.recipe, image=image, film=film)
    for note in notes:
        errors.print(f"note: {note}", style="yellow", markup=False)
    for path in run(
        backbone,
        adapter,
        prompt,
        seed=seed,
        out=out,
        compare=compare,
        observed=observed,
        save_physics=save_physics,
        follow=follow,
        force=push,
    ):
        print(path)


@app.command("continue")
@friendly
def continue_(
    folder: Annotated[Path, typer.Argument(help="videos (their last frames are observed) or pictures")],
    out: Annotated[Path, typer.Option("--out", help="folder of the futures; what they were made with lies beside it")],
    config: Config = None,
    set_: Set = None,
    bundle: Bundled = None,
    base: Annotated[bool, typer.Option("--base", help="the frozen model alone, to compare with")] = False,
    observed: Annotated[int, typer.Option("--observed", min=1, help="frames given, 4m + 1")] = 1,
    seconds: Annotated[float | None, typer.Option("--seconds", help="length of a future (none: as trained)")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="CSV (none: NAME.txt beside each)")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    quiet: Quiet = False,
) -> None:
    """Make the future of every video or picture of a folder, as Physics-IQ's official script takes them (--seconds 5,
    --prompts descriptions.csv).
    """
    from phantom.continuation import beginnings, lengthened, make

    found, skipped = beginnings(folder, prompts)
    backbone, adapter = _load_trained(config, set_, bundle)
    recipe, kept = lengthened(adapter.recipe, observed=observed, seconds=seconds)
    about: dict[str, Any] = {"out": out, "observed": observed, "kept": kept, "seed": seed, "quiet": quiet}
    written, unread = make(backbone, None if base else adapter, recipe, found, **about)
    _left_out([*skipped, *unread])
    summary = {"out": str(out), "videos": len(written), "left_out": len(skipped) + len(unread), "frames": kept}
    print(json.dumps(summary | {"fps": recipe.data.fps}))


@app.command()
@friendly
def evaluate(
    config: Config = None,
    set_: Set = None,
    bundle: Bundles = None,
    clips: Annotated[int, typer.Option("--clips", min=1, help="captions a mechanism")] = 8,
    split: Annotated[str, typer.Option("--split", help="val, test or ood")] = "test",
    seed: Annotated[int, typer.Option("--seed")] = 0,
    observed: Annotated[int, typer.Option("--observed", min=0, help="true frames given, 4m + 1 (0: none)")] = 0,
    forces: Annotated[bool, typer.Option("--forces", help="push balls instead: direction and speed")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="JSON to write, clip by clip")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure base and bundles on held-out captions of the simulated world: passes, scores, paired differences; or
    (--forces) how thrown balls follow their pushes.
    """
    from phantom.config import kind_of
    from phantom.evaluate import compare, push
    from phantom.evaluate import evaluate as run
    from phantom.generate import load_adapter, recipe_of

    backbone, adapter = _load_trained(config, set_, bundle[0] if bundle else None)
    recipe = adapter.recipe
    adapters = {kind_of(recipe): adapter}
    if bundle and len(bundle) > 1:
        adapters = {str(f): load_adapter(f, backbone, recipe=recipe_of(f, set_ or [])) for f in bundle}
    if forces:
        if observed:
            raise ValueError("expected --forces or --observed, got both: a push begins at its one true first frame")
        pushes = push(backbone, adapters, recipe, clips=clips, split=split, seed=seed, quiet=quiet)
        _show_pushes(pushes, list(adapters))
        if out is not None:
            print(pushes.save(out))
        return
    result = run(backbone, adapters, recipe, clips=clips, split=split, seed=seed, observed=observed, quiet=quiet)
    given = f", {observed} observed frames" if observed else ""
    for name in adapters:
        title = f"{name}: {clips} captions a mechanism ({split}{given}), paired noise"
        table = Table("mechanism", "pass base", "pass", "score base", "score", "difference [95 %]", title=title)
        for mechanism, d in compare([result], [name]).items():
            figures = [_mean(part[w], mechanism) for part in (result.passed, result.scores) for w in ("base", name)]
            interval = "" if d.low is None or d.high is None else f" [{d.low:+.3f}, {d.high:+.3f}]"
            table.add_row(mechanism, *(f"{x:.3f}" for x in figures), f"{d.mean:+.3f}{interval}")
        shown.print(table)
    shares = ", ".join(f"{name} {value:.3f}" for name, value in result.diversity.items())
    shown.print(f"diversity (mean distance between samples of one caption): {shares}")
    shown.print(
        "pass: share of clips within every gate of their law; score: 0 to 1, real clips near 1; the interval covers the"
        " choice of clips alone and needs 8 of them"
    )
    if out is not None:
        print(result.save(out))


@app.command()
@friendly
def export(
    run: Annotated[Path, typer.Argument(help="folder of a run (`phantom train --out`)")],
    out: Annotated[Path, typer.Option("--out", help="folder of the bundle")],
) -> None:
    """Write the bundle of a run's newest checkpoint, load it back, and prove that it changes the backbone's output."""
    from backbones import attach, sample
    from phantom.train import fresh, newest, read_basis, save_bundle

    if not (run / "recipe.yaml").is_file():
        raise ValueError(f"expected the folder of a run with a recipe.yaml, got {run}")
    recipe, backbone, encoder = _load(str(run / "recipe.yaml"), None)
    weights = newest(run)
    adapter = fresh(recipe, backbone, read_basis(run, recipe), encoder)
    for name, part in weights.items():
        adapter.groups()[name].load_state_dict(part)
    save_bundle(adapter, backbone, out)
    d = recipe.data
    two = functools.partial(
        sample, backbone, ["a ball"], seed=0, frames=d.frames, height=d.height, width=d.width, steps=2
    )
    base = two()
    with attach(backbone, out):
        changed = float((two() - base).abs().mean())
    if not 0 < changed < float("inf") and recipe.couple.way not in ("none", "to_physics"):
        raise ValueError(f"the exported bundle changes nothing (mean difference {changed}): train it first")
    print(json.dumps({"bundle": str(out), "mean_change": changed}))
    _next(f'`phantom generate "PROMPT" --bundle {out}`')


def _show_pushes(pushes: "Pushes", names: list[str]) -> None:
    title = f"{pushes.clips} thrown balls ({pushes.split}), from their true first frame, paired noise"
    table = Table("", "whole balls", "permanence", "direction error", "speed rank", title=title)
    for name, f in pushes.followed.items():
        row = (f"{f.n} of {f.of}", f"{f.permanence:.2f}", f"{f.angle_error:.1f} deg", f"{f.speed_rank:+.2f}")
        table.add_row(name, *row)
    shown.print(table)
    for name in names:
        verdict = {True: "follows", False: "does not follow", None: "is not judged on"}[pushes.passes(name)]
        shown.print(f"{name} {verdict} its pushes")
    shown.print(
        "follows: nearer in direction and in rank of speed than the base, which is told no push, and than under the"
        " pushes of other clips; judged where the base keeps its ball (permanence >= .80)"
    )


def _mean(part: dict[str, list[Any]], mechanism: str) -> float:
    values = [v for m, row in part.items() if mechanism in ("all", m) for v in row]
    return sum(map(float, values)) / len(values)


def _load(config: str | None, overrides: list[str] | None) -> "tuple[Recipe, WanBackbone, Any]":
    from phantom.adapter import encoder_of
    from phantom.config import load_recipe

    recipe = load_recipe(config, overrides or [])
    backbone = _backbone(recipe)
    return recipe, backbone, encoder_of(recipe)


def _load_trained(
    config: str | None, overrides: list[str] | None, folder: Path | None
) -> "tuple[WanBackbone, PhantomAdapter]":
    from phantom.config import load_recipe
    from phantom.generate import load_adapter, recipe_of

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
    logging.disable_progress_bar()  # "Loading weights" for files of a megabyte
    dtype = None if recipe.dtype == "float32" else getattr(torch, recipe.dtype)
    backbone = load(recipe.backbone, device=recipe.device, dtype=dtype)
    if not isinstance(backbone, WanBackbone):
        raise ValueError(f"expected a Wan TI2V for backbone={recipe.backbone}, got {type(backbone).__name__}")
    return backbone


def _left_out(skipped: Any) -> None:
    for s in skipped:
        errors.print(f"left out: {s.path}: {s.why}", style="yellow", markup=False)


def _next(what: str) -> None:
    errors.print(f"next: {what}", style="dim", markup=False)


_said: set[str] = set()


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    if not issubclass(category, (DeprecationWarning, FutureWarning)) and str(message) not in _said:
        _said.add(str(message))
        errors.print(f"warning: {message}", style="yellow", markup=False)


if __name__ == "__main__":
    sys.exit(app())
