"""The command line: check, plan, cache, train, generate, evaluate, export, time (`trainers.commands` is its frame)."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainers.commands import (
    AsJson,
    Bundled,
    Cached,
    Captions,
    Config,
    Efficiency,
    EngineName,
    Gpus,
    HowMany,
    Kept,
    Measured,
    Out,
    Processes,
    Quiet,
    Set,
    Split,
    asked_by,
    friendly,
    hint,
    left_out,
    new_app,
    recipe_in,
    show_plan,
    show_table,
    shown,
)

if TYPE_CHECKING:
    from backbones import WanBackbone
    from pila.adapter import PilaAdapter
    from pila.config import Recipe

__all__ = ["app"]

app = new_app("PILA: a frozen generator corrected by routed physics experts on recovered fields.")


@app.command()
@friendly
def check(config: Config = None, set_: Set = None, cache: Cached = Path("runs/cache")) -> None:
    """Look at recipe, backbone, records, clips, labels, round trip, identity and disk; writes nothing."""
    from pila.checks import look
    from trainers.check import show

    recipe, backbone = _load(config, set_)
    if not show(look(recipe, backbone, cache), shown):
        raise ValueError("what stands as error in the table would spoil the run: mend it first")
    hint("`pila plan` shows memory, hours and disk, `pila train --out RUN` trains (same --config, --set, --cache)")


@app.command()
@friendly
def plan(
    config: Config = None,
    set_: Set = None,
    gpu: Gpus = None,
    engine: EngineName = "",
    processes: Processes = 1,
    measured: Measured = None,
    efficiency: Efficiency = None,
    clips: HowMany = None,
    as_json: AsJson = False,
) -> None:
    """Show stages, memory for each GPU, cache size, hours and the largest batch, from the recipe alone."""
    from pila.config import load_recipe
    from pila.plan import describe, stages_of

    recipe = load_recipe(config, set_ or [])
    show_plan(
        lambda: describe(recipe, clips=clips),
        gpu=gpu,
        engine=engine,
        processes=processes,
        measured=measured,
        efficiency=efficiency,
        as_json=as_json,
        stages=lambda: stages_of(recipe),
    )
    if not as_json:
        hint("`pila time` measures this machine (for --measured), `pila train --out RUN` trains")


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
    left_out(found.skipped, found.notes)
    summary = {"clips": found.clips, "computed": found.computed, "skipped": len(found.skipped), "labels": found.labels}
    print(json.dumps(summary))
    hint(f"`pila train --out RUN --cache {root}` with the same --config and --set")


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
        left_out(found.skipped, found.notes)
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
        hint(f"`pila train --out {out} --resume` with the same --config and --set trains the stages that are left")
    else:
        bundle = out / "bundle"
        hint(f'`pila generate "PROMPT" --bundle {bundle} --compare --out x.mp4`, `pila evaluate --bundle {bundle}`')


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
    from trainers import video

    out = video.named(out)
    backbone, adapter = _load_trained(config, set_, bundle)
    for path in run(backbone, adapter, prompt, seed=seed, out=out, compare=compare, fields=fields):
        print(path)


@app.command()
@friendly
def evaluate(
    config: Config = None,
    set_: Set = None,
    bundle: Bundled = None,
    clips: Captions = 8,
    split: Split = "test",
    seed: Annotated[int, typer.Option("--seed", help="of the noise")] = 0,
    keep: Kept = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON to write, clip by clip")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure base and adapter on held-out captions of the simulated world: pass shares, scores, paired differences."""
    from physworld.evaluation import LEGEND
    from pila.evaluate import evaluate as run

    backbone, adapter = _load_trained(config, set_, bundle)
    result = run(backbone, adapter, clips=clips, split=split, seed=seed, keep=keep, quiet=quiet)
    title = f"{clips} captions a mechanism ({split}), paired noise"
    show_table(result.rows([(adapter.recipe.adapter, "base")]), title, LEGEND)
    if out is not None:
        print(result.save(out))


@app.command()
@friendly
def export(
    run: Annotated[Path, typer.Argument(help="folder of a run (`pila train --out`)")],
    out: Annotated[Path, typer.Option("--out", help="folder of the bundle")],
) -> None:
    """Write the bundle of a run's newest checkpoint, load it back, and prove that it changes the backbone's output."""
    from backbones import verify
    from pila.train import fresh, save_bundle
    from trainers import checkpoint

    recipe, backbone = _load(recipe_in(run), None)
    name, weights = checkpoint.newest(run)
    adapter = fresh(recipe, backbone)
    for group, part in weights.items():
        adapter.groups()[group].load_state_dict(part)
    save_bundle(adapter, backbone, out)
    d = recipe.data
    probe = verify.Probe(mode=recipe.sampling.mode, frames=d.frames, height=d.height, width=d.width)
    changed = verify.change(backbone, out, probe)
    if not 0 <= changed < float("inf") or (changed == 0 and recipe.correct != "none"):
        raise ValueError(
            f"the exported bundle changes nothing (mean difference {changed}): stage C has not trained yet"
        )
    summary = {"bundle": str(out), "checkpoint": name, "mean_change": changed}
    print(json.dumps(summary))
    hint(f'`pila generate "PROMPT" --bundle {out}`')


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


def _load_trained(config: str | None, set_: list[str] | None, folder: Path | None) -> "tuple[WanBackbone, PilaAdapter]":
    from pila.config import load_recipe
    from pila.generate import load_adapter, recipe_of

    recipe = load_recipe(config, set_ or []) if config is not None else recipe_of(folder, set_ or [])
    said = config is not None or any(o.startswith("backbone=") for o in set_ or [])
    with asked_by("the bundle", "backbone", unless=said):
        backbone = _backbone(recipe)
    return backbone, load_adapter(folder, backbone, recipe=recipe)


def _backbone(recipe: "Recipe") -> "WanBackbone":
    import torch

    from backbones import WanBackbone, load

    dtype = None if recipe.dtype == "float32" else getattr(torch, recipe.dtype)
    backbone = load(recipe.backbone, device=recipe.device, dtype=dtype)
    if not isinstance(backbone, WanBackbone):
        raise ValueError(
            f"expected a Wan for backbone={recipe.backbone}, got {type(backbone).__name__}: this recipe was tried"
            " on Wan alone; in Python the adapter attaches to CogVideoX as well"
        )
    return backbone


if __name__ == "__main__":
    sys.exit(app())
