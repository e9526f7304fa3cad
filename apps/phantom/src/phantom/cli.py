"""The command line: check, plan, cache, train, generate, continue, evaluate, export, time (`trainers.commands` is its
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
    from phantom.adapter import PhantomAdapter
    from phantom.config import Recipe
    from phantom.evaluate import Pushes

__all__ = ["app"]

app = new_app("Phantom: pixels and physics sampled in lockstep, one stream frozen, one trained.")


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
    hint("`phantom plan` shows memory, hours and disk, `phantom train --out RUN` trains (with the same --set)")


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
    """Show memory for each GPU, cache size, hours and the largest batch, from the recipe alone."""
    from phantom.config import load_recipe
    from phantom.plan import describe

    recipe = load_recipe(config, set_ or [])
    show_plan(
        lambda: describe(recipe, clips=clips),
        gpu=gpu,
        engine=engine,
        processes=processes,
        measured=measured,
        efficiency=efficiency,
        as_json=as_json,
    )
    if not as_json:
        hint("`phantom time` measures this machine (for --measured), `phantom train --out RUN` trains")


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
    left_out(found.skipped)
    summary = {"clips": found.clips, "computed": found.computed, "skipped": len(found.skipped)}
    summary |= {"physics": recipe.physics.kind, "explained": round(float(found.data.basis.explained), 4)}
    print(json.dumps(summary))
    hint(f"`phantom train --out RUN --cache {root}` with the same --config and --set")


@app.command()
@friendly
def train(
    config: Config = None,
    set_: Set = None,
    out: Out = Path("runs/phantom"),
    root: Cached = Path("runs/cache"),
    stage: Annotated[str | None, typer.Option("--stage", help="stop after this stage: joint or force")] = None,
    begun: Annotated[
        Path | None, typer.Option("--from", help="a bundle to teach forces to, the joint stage left out")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run was stopped")] = False,
    quiet: Quiet = False,
) -> None:
    """Train the physics stream and the couplings and write `OUT/bundle`; a killed run goes on with --resume."""
    from phantom.adapter import basis_of
    from phantom.data import held_out, prepare
    from phantom.generate import read
    from phantom.train import train as run
    from trainers.engine import launched

    engine = launched()  # first: of several GPUs each process gets its own
    recipe, backbone, encoder = _load(config, set_)
    shared: dict[str, Any] = {"quiet": quiet, "engine": engine}
    source, basis, found, balls = None, None, None, None
    if begun is not None:
        if recipe.force.kind == "none":
            raise ValueError("expected forces to teach with --from, got none: add --set force.kind=point (or wind)")
        source, recipe = read(begun), recipe.model_copy(update={"steps": 0})
        basis = basis_of(source, recipe, encoder)
    else:
        found = prepare(recipe, backbone, encoder, root, **shared)
        basis = found.data.basis
    if recipe.force.kind != "none":
        balls = prepare(recipe, backbone, encoder, root, basis=basis, pushed=True, **shared)
    first, *_ = prepared = [part for part in (found, balls) if part is not None]
    if engine.main:
        left_out([line for part in prepared for line in part.skipped])
    held = held_out(recipe, backbone, encoder, root, basis, **shared)
    data: dict[str, Any] = {"held": held, "pushed": balls and balls.data, "begun": source, "engine": engine}
    _, result = run(recipe, backbone, encoder, first.data, out=out, only=stage, resume=resume, quiet=quiet, **data)
    engine.leave()
    if not engine.main:
        return
    summary = {
        "bundle": str(out / "bundle"),
        "physics": recipe.physics.kind,
        "clips": first.clips,
        "steps": result.global_step,
        "seconds": round(result.seconds, 1),
        "losses": {name: round(value, 5) for name, value in result.losses.items()},
    }
    print(json.dumps(summary))
    bundle = out / "bundle"
    hint(f'`phantom generate "PROMPT" --bundle {bundle} --compare --out x.mp4`, `phantom evaluate --bundle {bundle}`')


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
    from phantom.generate import observe
    from trainers import video

    out = video.named(out)
    if force is not None and wind is not None:
        raise ValueError("expected --force or --wind, got both")
    push = parse_point(force) if force is not None else parse_wind(wind) if wind is not None else None
    backbone, adapter = _load_trained(config, set_, bundle)
    observed, notes = observe(adapter.recipe, image=image, film=film)
    left_out([], notes)
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
    left_out([*skipped, *unread])
    summary = {"out": str(out), "videos": len(written), "left_out": len(skipped) + len(unread), "frames": kept}
    print(json.dumps(summary | {"fps": recipe.data.fps}))


@app.command()
@friendly
def evaluate(
    config: Config = None,
    set_: Set = None,
    bundle: Bundles = None,
    clips: Captions = 8,
    split: Split = "test",
    seed: Annotated[int, typer.Option("--seed", help="of the noise")] = 0,
    observed: Annotated[int, typer.Option("--observed", min=0, help="true frames given, 4m + 1 (0: none)")] = 0,
    forces: Annotated[bool, typer.Option("--forces", help="push balls instead: direction and speed")] = False,
    keep: Kept = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON to write, clip by clip")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure base and bundles on held-out captions of the simulated world: passes, scores, paired differences; bundles
    of one kind are training seeds of one method. Or (--forces) how thrown balls follow their pushes.
    """
    from phantom.config import kind_of
    from phantom.evaluate import evaluate as run
    from phantom.evaluate import push
    from phantom.generate import load_adapter, recipe_of
    from physworld.evaluation import LEGEND

    first, *others = bundle or [None]
    backbone, adapter = _load_trained(config, set_, first)
    recipe, adapters = adapter.recipe, [adapter]
    adapters += [load_adapter(folder, backbone, recipe=recipe_of(folder, set_ or [])) for folder in others]
    if forces:
        if observed:
            raise ValueError("expected --forces or --observed, got both: a push begins at its one true first frame")
        names = [str(folder) for folder in bundle] if bundle and others else [kind_of(recipe)]
        given = dict(zip(names, adapters, strict=True))
        pushes = push(backbone, given, recipe, clips=clips, split=split, seed=seed, quiet=quiet)
        _show_pushes(pushes, names)
        if out is not None:
            print(pushes.save(out))
        return
    methods: dict[str, list[Any]] = {}
    for one in adapters:
        methods.setdefault(kind_of(one.recipe), []).append(one)
    how: dict[str, Any] = {"clips": clips, "split": split, "seed": seed, "observed": observed, "quiet": quiet}
    result = run(backbone, methods, recipe, keep=keep, **how)
    beginning = f", {observed} observed frames" if observed else ""
    runs = ", ".join(f"{name} {len(of)}" for name, of in result.methods.items())
    title = f"{clips} captions a mechanism ({split}{beginning}), paired noise; runs: {runs}"
    show_table(result.rows(result.pairs()), title, LEGEND)
    spread = ", ".join(f"{name} {value:.3f}" for name, value in result.more["diversity"].items())
    shown.print(f"diversity (mean distance between samples of one caption): {spread}")
    if out is not None:
        print(result.save(out))


@app.command()
@friendly
def export(
    run: Annotated[Path, typer.Argument(help="folder of a run (`phantom train --out`)")],
    out: Annotated[Path, typer.Option("--out", help="folder of the bundle")],
) -> None:
    """Write the bundle of a run's newest checkpoint, load it back, and prove that it changes the backbone's output."""
    from backbones import verify
    from phantom.train import fresh, read_basis, save_bundle
    from trainers import checkpoint

    recipe, backbone, encoder = _load(recipe_in(run), None)
    _, weights = checkpoint.newest(run)
    adapter = fresh(recipe, backbone, read_basis(run, recipe), encoder)
    for name, part in weights.items():
        adapter.groups()[name].load_state_dict(part)
    save_bundle(adapter, backbone, out)
    d = recipe.data
    changed = verify.change(backbone, out, verify.Probe(frames=d.frames, height=d.height, width=d.width))
    if not 0 < changed < float("inf") and recipe.couple.way not in ("none", "to_physics"):
        raise ValueError(f"the exported bundle changes nothing (mean difference {changed}): train it first")
    print(json.dumps({"bundle": str(out), "mean_change": changed}))
    hint(f'`phantom generate "PROMPT" --bundle {out}`')


def _show_pushes(pushes: "Pushes", names: list[str]) -> None:
    title = f"{pushes.clips} thrown balls ({pushes.split}), from their true first frame, paired noise"
    rows = [("", "whole balls", "permanence", "direction error", "speed rank")]
    for name, f in pushes.followed.items():
        figures = (f"{f.permanence:.2f}", f"{f.angle_error:.1f} deg", f"{f.speed_rank:+.2f}")
        rows.append((name, f"{f.n} of {f.of}", *figures))
    show_table(rows, title)
    for name in names:
        for row in pushes.against(name):
            direction, speed = pushes.direction(name, row), pushes.speed(name, row)
            if direction is not None:
                rank = "" if speed is None else f", rank {speed}"
                shown.print(f"{name} - {row}: direction error {direction} deg over {direction.n} clips{rank}")
        verdict = {True: "follows", False: "does not follow", None: "is not judged on"}[pushes.passes(name)]
        shown.print(f"{name} {verdict} its pushes")
    shown.print(
        "follows: nearer in direction, by more than the interval, and in rank of speed than the base, which is told no"
        " push, and than under the pushes of other clips; judged where the base keeps its ball (permanence >= .80) and"
        " eight balls or more are whole in both"
    )


def _load(config: str | None, overrides: list[str] | None) -> "tuple[Recipe, WanBackbone, Any]":
    from phantom.adapter import encoder_of
    from phantom.config import load_recipe

    recipe = load_recipe(config, overrides or [])
    backbone = _backbone(recipe)
    return recipe, backbone, encoder_of(recipe)


def _load_trained(
    config: str | None, set_: list[str] | None, folder: Path | None
) -> "tuple[WanBackbone, PhantomAdapter]":
    from phantom.config import load_recipe
    from phantom.generate import load_adapter, recipe_of

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
        raise ValueError(f"expected a Wan TI2V for backbone={recipe.backbone}, got {type(backbone).__name__}")
    return backbone


if __name__ == "__main__":
    sys.exit(app())
