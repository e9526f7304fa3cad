"""The command line: check, plan, annotate, cache, train, generate, evaluate, export, time (`trainers.commands` is its
frame).
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainers.commands import (
    AsJson,
    Bundled,
    Bundles,
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
    errors,
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
    from prophy.config import Recipe

__all__ = ["app"]

app = new_app("ProPhy: a physical branch beside a frozen generator, with semantic and refinement experts.")


@app.command()
@friendly
def check(config: Config = None, set_: Set = None, cache: Cached = Path("runs/cache")) -> None:
    """Look at recipe, backbone, records, clips, labels, who teaches the tokens, round trip, identity and disk; writes
    nothing.
    """
    from prophy.checks import look
    from trainers.check import show

    recipe, backbone = _load(config, set_)
    if not show(look(recipe, backbone, cache), shown):
        raise ValueError("what stands as error in the table would spoil the run: mend it first")
    hint("`prophy plan` shows memory, hours and disk, `prophy train --out RUN` trains (same --config, --set, --cache)")


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
    from prophy.config import load_recipe
    from prophy.plan import describe, stages_of

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
        hint("`prophy time` measures this machine (for --measured), `prophy train --out RUN` trains")


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
    left_out(found.skipped)
    summary: dict[str, Any] = {"teacher": recipe.targets.vlm, "clips": found.clips, "computed": found.computed}
    summary |= {"without_a_place": found.placeless, "skipped": len(found.skipped)}
    print(json.dumps(summary | {"rank": found.rank, "world_size": found.world_size}))
    hint(f"`prophy train --out RUN --cache {root}` with the same --config and --set")


@app.command()
@friendly
def cache(config: Config = None, set_: Set = None, root: Cached = Path("runs/cache"), quiet: Quiet = False) -> None:
    """Make latents and text features of the recipe's clips (and read exact fields); run it again to go on. Under
    torchrun each process makes its share.
    """
    from prophy.data import prepare
    from trainers.engine import launched

    engine = launched()
    recipe, backbone = _load(config, set_)
    found = prepare(recipe, backbone, root, quiet=quiet, engine=engine)
    engine.leave()
    if not engine.main:
        return
    left_out(found.skipped, found.notes)
    summary = {"clips": found.clips, "computed": found.computed, "skipped": len(found.skipped)}
    print(json.dumps(summary | {"token_targets": found.teacher, "labels": found.labels}))
    hint(f"`prophy train --out RUN --cache {root}` with the same --config and --set")


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
    from prophy.data import held_out, prepare
    from prophy.train import ready
    from prophy.train import train as run
    from trainers.engine import launched

    engine = launched()  # first: of several GPUs each process gets its own
    recipe, backbone = _load(config, set_)
    ready(recipe, backbone, out, resume=resume, only=stage)
    found = prepare(recipe, backbone, root, quiet=quiet, engine=engine)
    if engine.main:
        left_out(found.skipped, found.notes)
        errors.print(f"token targets: {found.teacher}", markup=False)
    held = held_out(recipe, backbone, root, quiet=quiet, engine=engine)
    data: dict[str, Any] = {"said": found.said, "held": held, "teacher": found.teacher}
    how: dict[str, Any] = {"out": out, "resume": resume, "only": stage, "quiet": quiet, "engine": engine}
    _, result = run(recipe, backbone, found.data, **data, **how)
    engine.leave()
    if not engine.main:
        return
    summary: dict[str, Any] = {"bundle": str(out / "bundle"), "steps": result.global_step}
    summary |= {"seconds": round(result.seconds, 1), "token_targets": found.teacher, "losses": result.losses}
    print(json.dumps(summary))
    bundle = out / "bundle"
    hint(f'`prophy generate "PROMPT" --bundle {bundle} --compare --out x.mp4`, `prophy evaluate --bundle {bundle}`')


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
    from trainers import video

    out = video.named(out)
    backbone, adapter = _load_trained(config, set_, bundle)
    for path in run(backbone, adapter, prompt, seed=seed, out=out, compare=compare, maps=maps):
        print(path)


@app.command()
@friendly
def evaluate(
    config: Config = None,
    set_: Set = None,
    bundle: Bundles = None,
    clips: Captions = 8,
    split: Split = "test",
    seed: Annotated[int, typer.Option("--seed", help="of the noise")] = 0,
    routers: Annotated[bool, typer.Option("--routers/--no-routers", help="measure the routers as well")] = True,
    keep: Kept = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON to write, clip by clip; pictures beside it")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure base and bundles on held-out captions of the simulated world, paired; and what the routers learned."""
    from physworld.evaluation import LEGEND
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
    how: dict[str, Any] = {"clips": clips, "split": split, "seed": seed, "quiet": quiet}
    result = run(backbone, adapters, routers=reports, keep=keep, **how)
    runs = ", ".join(f"{name} {len(of)}" for name, of in result.methods.items())
    title = f"{clips} captions a mechanism ({split}), paired noise; runs: {runs}"
    show_table(result.rows(result.pairs()), title, LEGEND)
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
    from backbones import verify
    from prophy.train import fresh, save_bundle
    from trainers import checkpoint

    recipe, backbone = _load(recipe_in(run), None)
    name, weights = checkpoint.newest(run)
    adapter = fresh(recipe, backbone)
    for group, part in weights.items():
        adapter.groups()[group].load_state_dict(part)
    save_bundle(adapter, backbone, out)
    d = recipe.data
    changed = verify.change(backbone, out, verify.Probe(frames=d.frames, height=d.height, width=d.width))
    if not 0 < changed < float("inf"):
        raise ValueError(f"the exported bundle changes nothing (mean difference {changed}): the branch has not trained")
    print(json.dumps({"bundle": str(out), "checkpoint": name, "mean_change": changed}))
    hint(f'`prophy generate "PROMPT" --bundle {out}`')


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
    config: str | None, set_: list[str] | None, folder: Path | None, backbone: Any = None
) -> tuple[Any, Any]:
    from prophy.config import load_recipe
    from prophy.generate import load_adapter, recipe_of

    recipe = load_recipe(config, set_ or []) if config is not None else recipe_of(folder, set_ or [])
    said = config is not None or any(o.startswith("backbone=") for o in set_ or [])
    with asked_by("the bundle", "backbone", unless=said):
        backbone = backbone or _backbone(recipe)
    return backbone, load_adapter(folder, backbone, recipe=recipe)


def _backbone(recipe: "Recipe") -> Any:
    import torch

    from backbones import load

    dtype = None if recipe.dtype == "float32" else getattr(torch, recipe.dtype)
    return load(recipe.backbone, device=recipe.device, dtype=dtype)


def _bar(name: str, what: str, score: float, beside: str, passes: bool) -> None:
    shown.print(f"{name}: {what} {score:.3f} ({beside}): {'passes' if passes else 'MISSES'} its bar", markup=False)


if __name__ == "__main__":
    sys.exit(app())
