"""The command line: check, plan, cache, train, generate, evaluate, export, time (`trainers.method` has the verbs that
are the same in every method).
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainers.commands import friendly, hint, left_out, new_app, show_table
from trainers.method import CACHE, EXPORT, Export, Method, add, own_clips
from trainers.options import Bundled, Cached, Chosen, Fitted, Measured, Run, Sampled, Written

if TYPE_CHECKING:
    from backbones import WanBackbone
    from pila.adapter import PilaAdapter
    from pila.config import Recipe

__all__ = ["app"]

app = new_app("PILA: a frozen generator corrected by routed physics experts on recovered fields.")


def method() -> "Method[Recipe, WanBackbone, PilaAdapter]":
    """What is PILA's own in the verbs that all methods have."""
    from backbones import verify
    from pila import checks, config, data, generate, plan, timing, train

    return Method(
        "pila",
        load_recipe=config.load_recipe,
        recipe_of=generate.recipe_of,
        load_backbone=_wan,
        load_adapter=generate.load_adapter,
        look=checks.look,
        describe=plan.describe,
        stages_of=plan.stages_of,
        prepare=data.prepare,
        summary=lambda _, found: {"labels": found.labels},
        measure=timing.measure,
        exported=Export(
            fresh=lambda recipe, backbone, _: train.fresh(recipe, backbone),
            save_bundle=train.save_bundle,
            change=lambda backbone, bundle, recipe: verify.change(
                backbone, bundle, verify.Probe.of(recipe.data, mode=recipe.sampling.mode)
            ),
            idle=lambda recipe: recipe.correct == "none",
        ),
    )


add(
    app,
    method,
    check="Look at recipe, backbone, records, clips, labels, round trip, identity and disk; writes nothing.",
    plan="Show stages, memory for each GPU, cache size, hours and the largest batch, from the recipe alone.",
    cache="Make latents, flow and text features of the recipe's clips; run it again to go on. Under torchrun each"
    " process makes its share.",
)


@app.command()
@friendly
def train(
    chosen: Chosen,
    fitted: Fitted,
    out: Run = Path("runs/pila"),
    root: Cached = CACHE,
    stage: Annotated[
        str | None, typer.Option("--stage", help="stop after this stage (or stages that begin so)")
    ] = None,
) -> None:
    """Train through all stages and write `OUT/bundle`; a killed run goes on with --resume and ends with the same
    weights. Several processes: see docs/launch.md.
    """
    from pila.train import ready
    from pila.train import train as run
    from trainers.engine import launched

    pila, engine = method(), launched()  # first: of several GPUs each process gets its own
    recipe, backbone = pila.load(chosen)
    ready(recipe, backbone, out, resume=fitted.resume, only=stage)
    found = pila.prepare(recipe, backbone, root, quiet=fitted.quiet, engine=engine)
    if engine.main:
        left_out(found.skipped, found.notes)
    _, result = run(recipe, backbone, found.data, out=out, only=stage, engine=engine, **vars(fitted))
    engine.leave()
    if not engine.main:
        return
    pila.tell(out, result, clips=found.clips)
    if result.global_step < recipe.steps:
        on = pila.line("train", chosen=chosen, cache=root, out=out, resume=True)
        hint(f"{on} trains the stages that are left")
    else:
        hint(pila.try_it(out / "bundle", recipe, root))


@app.command()
@friendly
def generate(
    prompt: Annotated[str, typer.Argument(help="what the video shows")],
    chosen: Chosen,
    sampled: Sampled,
    bundle: Bundled = None,
    fields: Annotated[bool, typer.Option("--fields", help="also draw the bank and the experts")] = False,
    out: Written = Path("video.mp4"),
) -> None:
    """Generate a video; without --config, the settings are those that the bundle was trained with."""
    from pila.generate import generate as run
    from trainers import video

    out = video.named(out)
    pila = method()
    backbone, adapter = pila.load_trained(chosen, bundle)
    for path in run(backbone, adapter, prompt, out=out, fields=fields, **vars(sampled)):
        print(path)
    hint(pila.generated(prompt, chosen, sampled, bundle=bundle, out=out, fields=fields))


@app.command()
@friendly
def evaluate(chosen: Chosen, asked: Measured, bundle: Bundled = None, root: Cached = CACHE) -> None:
    """Measure base and adapter on held-out captions of the simulated world: pass shares, scores, paired differences; or
    a bundle of one's own clips by its loss on those that training was not shown.
    """
    from physworld.evaluation import LEGEND
    from physworld.paired import paired
    from pila.evaluate import beside
    from pila.evaluate import evaluate as run

    pila = method()
    backbone, adapter = pila.load_trained(chosen, bundle)
    recipe = adapter.recipe
    if recipe.data.source != "world":
        found = pila.prepare(recipe, backbone, root, quiet=asked.quiet)
        losses = {recipe.adapter: [beside(backbone, adapter)]}
        bundles = [bundle] if bundle else []
        own_clips(pila, losses, [recipe], found, chosen, asked, bundles=bundles, paired=paired)
        return
    result = run(backbone, adapter, **asked.how)
    title = f"{asked.clips} captions a mechanism ({asked.split}), paired noise"
    show_table(result.rows([(recipe.adapter, "base")]), title, LEGEND)
    if asked.out is not None:
        print(result.save(asked.out))
    hint(method().evaluated(adapter.recipe, chosen, asked, [bundle] if bundle else ()))


add(
    app,
    method,
    export=EXPORT,
    time="Measure seconds a step of every kind of stage on random data; one JSON line.",
)


def _wan(recipe: "Recipe") -> "WanBackbone":
    from backbones import WanBackbone, load_for

    backbone = load_for(recipe)
    if not isinstance(backbone, WanBackbone):
        raise ValueError(
            f"expected a Wan for backbone={recipe.backbone}, got {type(backbone).__name__}: this recipe was tried"
            " on Wan alone; in Python the adapter attaches to CogVideoX as well"
        )
    return backbone


if __name__ == "__main__":
    sys.exit(app())
