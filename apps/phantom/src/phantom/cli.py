"""The command line: check, plan, cache, train, generate, continue, evaluate, export, time (`trainers.method` has the
verbs that are the same in every method).
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import trainers.method as verbs
from trainers.commands import friendly, hint, left_out, new_app, show_table, shown
from trainers.method import CACHE, EXPORT, Export, Method, add
from trainers.options import Bundled, Bundles, Cached, Chosen, Fitted, Measured, Quiet, Run, Sampled, Written

if TYPE_CHECKING:
    from backbones import WanBackbone
    from phantom.adapter import PhantomAdapter
    from phantom.config import Recipe
    from phantom.evaluate import Pushes

__all__ = ["app"]

app = new_app("Phantom: pixels and physics sampled in lockstep, one stream frozen, one trained.")


def method() -> "Method[Recipe, WanBackbone, PhantomAdapter]":
    """What is Phantom's own in the verbs that all methods have."""
    from backbones import verify
    from phantom import checks, config, data, generate, plan, timing, train
    from phantom.adapter import encoder_of

    def fresh(recipe: "Recipe", backbone: "WanBackbone", run: Path) -> "PhantomAdapter":
        return train.fresh(recipe, backbone, train.read_basis(run, recipe), encoder_of(recipe))

    def summary(recipe: "Recipe", found: Any) -> dict[str, Any]:
        return {"physics": recipe.physics.kind, "explained": round(float(found.data.basis.explained), 4)}

    return Method(
        "phantom",
        load_recipe=config.load_recipe,
        recipe_of=generate.recipe_of,
        load_backbone=_wan,
        load_adapter=generate.load_adapter,
        look=lambda recipe, backbone, root, run: checks.look(recipe, backbone, encoder_of(recipe), root, run),
        describe=plan.describe,
        prepare=lambda recipe, backbone, root, **how: data.prepare(recipe, backbone, encoder_of(recipe), root, **how),
        summary=summary,
        measure=timing.measure,
        exported=Export(
            fresh=fresh,
            save_bundle=train.save_bundle,
            change=lambda backbone, bundle, recipe: verify.change(backbone, bundle, verify.Probe.of(recipe.data)),
            idle=lambda recipe: recipe.couple.way in ("none", "to_physics"),
        ),
    )


@app.command()
@friendly
def check(
    chosen: Chosen,
    cache: Cached = CACHE,
    run: Annotated[Path | None, typer.Option("--run", help="an earlier run, for the resets to expect")] = None,
) -> None:
    """Look at recipe, backbone, clips, round trip, physics latent, identity, resets and disk; writes nothing."""
    verbs.check(method(), chosen, cache, run=run)


add(
    app,
    method,
    plan="Show memory for each GPU, cache size, hours and the largest batch, from the recipe alone.",
    time="Measure seconds a step on random data; one JSON line.",
    cache="Make latents, text and physics features of the recipe's clips; run it again to go on. Under torchrun each"
    " process makes its share.",
)


@app.command()
@friendly
def train(
    chosen: Chosen,
    fitted: Fitted,
    out: Run = Path("runs/phantom"),
    root: Cached = CACHE,
    stage: Annotated[str | None, typer.Option("--stage", help="stop after this stage: joint or force")] = None,
    begun: Annotated[
        Path | None, typer.Option("--from", help="a bundle to teach forces to, the joint stage left out")
    ] = None,
) -> None:
    """Train the physics stream and the couplings and write `OUT/bundle`; a killed run goes on with --resume."""
    from phantom.adapter import basis_of, encoder_of
    from phantom.data import held_out, prepare
    from phantom.generate import read
    from phantom.train import train as run
    from trainers import run_folder
    from trainers.engine import launched

    phantom, engine = method(), launched()  # first: of several GPUs each process gets its own
    recipe, backbone = phantom.load(chosen)
    encoder = encoder_of(recipe)
    run_folder.unused(out, resume=fitted.resume)
    shared: dict[str, Any] = {"quiet": fitted.quiet, "engine": engine}
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
    held = found.held if found is not None else None
    held = held or held_out(recipe, backbone, encoder, root, basis, **shared)
    data: dict[str, Any] = {"held": held, "pushed": balls and balls.data, "begun": source, "engine": engine}
    _, result = run(recipe, backbone, encoder, first.data, out=out, only=stage, **data, **vars(fitted))
    engine.leave()
    if not engine.main:
        return
    phantom.tell(out, result, physics=recipe.physics.kind, clips=first.clips)
    hint(phantom.try_it(out / "bundle", recipe, root))


@app.command()
@friendly
def generate(
    prompt: Annotated[str, typer.Argument(help="what the video shows")],
    chosen: Chosen,
    sampled: Sampled,
    bundle: Bundled = None,
    image: Annotated[Path | None, typer.Option("--image", help="first frame (image to video)")] = None,
    film: Annotated[Path | None, typer.Option("--video", help="observed beginning (video to video)")] = None,
    save_physics: Annotated[bool, typer.Option("--save-physics", help="keep z and draw it")] = False,
    follow: Annotated[Path | None, typer.Option("--follow", help="a video whose physics is to be followed")] = None,
    force: Annotated[str | None, typer.Option("--force", help="a push: x,y,angle,strength (0 to 1, degrees)")] = None,
    wind: Annotated[str | None, typer.Option("--wind", help="wind: angle,speed (degrees, 0 to 1)")] = None,
    out: Written = Path("video.mp4"),
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
    phantom = method()
    backbone, adapter = phantom.load_trained(chosen, bundle)
    observed, notes = observe(adapter.recipe, image=image, film=film)
    left_out([], notes)
    for path in run(
        backbone,
        adapter,
        prompt,
        out=out,
        observed=observed,
        save_physics=save_physics,
        follow=follow,
        force=push,
        **vars(sampled),
    ):
        print(path)
    own: dict[str, Any] = {"image": image, "video": film, "save_physics": save_physics, "follow": follow}
    own |= {"force": force, "wind": wind}
    hint(phantom.generated(prompt, chosen, sampled, bundle=bundle, out=out, **own))


@app.command("continue")
@friendly
def continue_(
    folder: Annotated[Path, typer.Argument(help="videos (their last frames are observed) or pictures")],
    out: Annotated[Path, typer.Option("--out", help="folder of the futures; what they were made with lies beside it")],
    chosen: Chosen,
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
    phantom = method()
    backbone, adapter = phantom.load_trained(chosen, bundle)
    recipe, kept = lengthened(adapter.recipe, observed=observed, seconds=seconds)
    about: dict[str, Any] = {"out": out, "observed": observed, "kept": kept, "seed": seed, "quiet": quiet}
    written, unread = make(backbone, None if base else adapter, recipe, found, **about)
    left_out([*skipped, *unread])
    summary = {"out": str(out), "videos": len(written), "left_out": len(skipped) + len(unread), "frames": kept}
    print(json.dumps(summary | {"fps": recipe.data.fps}))
    if not base:
        how: dict[str, Any] = {"base": True, "observed": observed, "seconds": seconds, "prompts": prompts, "seed": seed}
        beside = phantom.line("continue", folder, chosen=chosen, bundle=bundle, **how, out=f"{out}-base")
        hint(f"{beside} makes the base's, docs/bench-physics-iq.md scores both")


@app.command()
@friendly
def evaluate(
    chosen: Chosen,
    asked: Measured,
    bundle: Bundles = None,
    observed: Annotated[int, typer.Option("--observed", min=0, help="true frames given, 4m + 1 (0: none)")] = 0,
    forces: Annotated[bool, typer.Option("--forces", help="push balls instead: direction and speed")] = False,
    root: Cached = CACHE,
) -> None:
    """Measure base and bundles on held-out captions of the simulated world: passes, scores, paired differences; bundles
    of one kind are training seeds of one method. Or (--forces) how thrown balls follow their pushes. Or bundles of
    one's own clips by their loss on those that training was not shown.
    """
    from phantom.config import kind_of
    from phantom.data import prepare
    from phantom.evaluate import beside, push
    from phantom.evaluate import evaluate as run
    from phantom.generate import load_adapter, recipe_of
    from physworld.evaluation import LEGEND
    from physworld.paired import paired

    first, *others = bundle or [None]
    backbone, adapter = method().load_trained(chosen, first)
    recipe, adapters, out = adapter.recipe, [adapter], asked.out
    adapters += [load_adapter(folder, backbone, recipe=recipe_of(folder, chosen.overrides)) for folder in others]
    if forces:
        if observed:
            raise ValueError("expected --forces or --observed, got both: a push begins at its one true first frame")
        names = [str(folder) for folder in bundle] if bundle and others else [kind_of(recipe)]
        given = dict(zip(names, adapters, strict=True))
        pushes = push(backbone, given, recipe, clips=asked.clips, split=asked.split, seed=asked.seed, quiet=asked.quiet)
        _show_pushes(pushes, names)
        if out is not None:
            print(pushes.save(out))
        return
    methods: dict[str, list[Any]] = {}
    for one in adapters:
        methods.setdefault(kind_of(one.recipe), []).append(one)
    if recipe.data.source != "world":
        if observed:
            raise ValueError("expected no --observed for the loss on one's own clips: nothing is observed there")
        losses = {name: [beside(backbone, one) for one in of] for name, of in methods.items()}
        found = prepare(recipe, backbone, adapter.encoder, root, basis=adapter.basis, quiet=asked.quiet)
        note = "; the adapter sees the clip's physics latent beside it, as noisy, which the base is not told"
        recipes = [one.recipe for one in adapters]
        how: dict[str, Any] = {"bundles": bundle or [], "paired": paired, "note": note}
        verbs.own_clips(method(), losses, recipes, found, chosen, asked, **how)
        return
    result = run(backbone, methods, recipe, observed=observed, **asked.how)
    beginning = f", {observed} observed frames" if observed else ""
    runs = ", ".join(f"{name} {len(of)}" for name, of in result.methods.items())
    title = f"{asked.clips} captions a mechanism ({asked.split}{beginning}), paired noise; runs: {runs}"
    show_table(result.rows(result.pairs()), title, LEGEND)
    spread = ", ".join(f"{name} {value:.3f}" for name, value in result.more["diversity"].items())
    shown.print(f"diversity (mean distance between samples of one caption): {spread}")
    if out is not None:
        print(result.save(out))
    hint(method().evaluated(recipe, chosen, asked, bundle or (), observed=observed or None))


add(
    app,
    method,
    export=EXPORT,
)


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


def _wan(recipe: "Recipe") -> "WanBackbone":
    from backbones import WanBackbone, load_for

    backbone = load_for(recipe)
    if not isinstance(backbone, WanBackbone):
        raise ValueError(f"expected a Wan TI2V for backbone={recipe.backbone}, got {type(backbone).__name__}")
    return backbone


if __name__ == "__main__":
    sys.exit(app())
