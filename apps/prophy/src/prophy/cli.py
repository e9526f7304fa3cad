"""The command line: check, plan, annotate, cache, train, generate, evaluate, export, time (`trainers.method` has the
verbs that are the same in every method).
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainers.commands import errors, friendly, hint, left_out, new_app, show_table, shown
from trainers.method import CACHE, EXPORT, Export, Method, add, own_clips
from trainers.options import Bundled, Bundles, Cached, Chosen, Fitted, Measured, Quiet, Run, Sampled, Written

if TYPE_CHECKING:
    from prophy.config import Recipe

__all__ = ["app"]

app = new_app("ProPhy: a physical branch beside a frozen generator, with semantic and refinement experts.")


def method() -> "Method[Recipe, Any, Any]":
    """What is ProPhy's own in the verbs that all methods have."""
    from backbones import load_for, verify
    from prophy import checks, config, data, generate, plan, timing, train

    return Method(
        "prophy",
        load_recipe=config.load_recipe,
        recipe_of=generate.recipe_of,
        load_backbone=load_for,
        load_adapter=generate.load_adapter,
        look=checks.look,
        describe=plan.describe,
        stages_of=plan.stages_of,
        prepare=data.prepare,
        summary=lambda _, found: {"token_targets": found.teacher, "labels": found.labels},
        measure=timing.measure,
        exported=Export(
            fresh=lambda recipe, backbone, _: train.fresh(recipe, backbone),
            save_bundle=train.save_bundle,
            change=lambda backbone, bundle, recipe: verify.change(backbone, bundle, verify.Probe.of(recipe.data)),
        ),
    )


add(
    app,
    method,
    check="Look at recipe, backbone, records, clips, labels, who teaches the tokens, round trip, identity and disk;"
    " writes nothing.",
    plan="Show stages, memory for each GPU, cache size, hours and the largest batch, from the recipe alone.",
)


@app.command()
@friendly
def annotate(chosen: Chosen, root: Cached = CACHE, quiet: Quiet = False) -> None:
    """Ask a vision-language model (targets.vlm) where each labelled phenomenon of a clip is; run it again to go on,
    under torchrun to share the clips.
    """
    from prophy.annotate import annotate_clips

    prophy = method()
    recipe = prophy.load_recipe(chosen.config, chosen.overrides)
    found = annotate_clips(recipe, root, quiet=quiet)
    left_out(found.skipped)
    summary: dict[str, Any] = {"teacher": recipe.targets.vlm, "clips": found.clips, "computed": found.computed}
    summary |= {"without_a_place": found.placeless, "skipped": len(found.skipped)}
    print(json.dumps(summary | {"rank": found.rank, "world_size": found.world_size}))
    hint(prophy.line("train", chosen=chosen, cache=root))


add(
    app,
    method,
    cache="Make latents and text features of the recipe's clips (and read exact fields); run it again to go on. Under"
    " torchrun each process makes its share.",
)


@app.command()
@friendly
def train(
    chosen: Chosen,
    fitted: Fitted,
    out: Run = Path("runs/prophy"),
    root: Cached = CACHE,
    stage: Annotated[str | None, typer.Option("--stage", help="stop after this stage")] = None,
) -> None:
    """Train and write `OUT/bundle`; a killed run goes on with --resume and ends with the same weights."""
    from prophy.data import held_out
    from prophy.train import ready
    from prophy.train import train as run
    from trainers.engine import launched

    prophy, engine = method(), launched()  # first: of several GPUs each process gets its own
    recipe, backbone = prophy.load(chosen)
    ready(recipe, backbone, out, resume=fitted.resume, only=stage)
    found = prophy.prepare(recipe, backbone, root, quiet=fitted.quiet, engine=engine)
    if engine.main:
        left_out(found.skipped, found.notes)
        errors.print(f"token targets: {found.teacher}", markup=False)
    held = found.held or held_out(recipe, backbone, root, quiet=fitted.quiet, engine=engine)
    data: dict[str, Any] = {"said": found.said, "held": held, "teacher": found.teacher, **vars(fitted)}
    _, result = run(recipe, backbone, found.data, out=out, only=stage, engine=engine, **data)
    engine.leave()
    if not engine.main:
        return
    prophy.tell(out, result, token_targets=found.teacher)
    hint(prophy.try_it(out / "bundle", recipe, root))


@app.command()
@friendly
def generate(
    prompt: Annotated[str, typer.Argument(help="what the video shows")],
    chosen: Chosen,
    sampled: Sampled,
    bundle: Bundled = None,
    maps: Annotated[bool, typer.Option("--maps", help="also draw what REB finds where, and how")] = False,
    out: Written = Path("video.mp4"),
) -> None:
    """Generate a video; without --config, the settings are those that the bundle was trained with.

    `--set sampling.inverted=true` negates the semantic router (the paper's expert inversion).
    """
    from prophy.generate import generate as run
    from trainers import video

    out = video.named(out)
    prophy = method()
    backbone, adapter = prophy.load_trained(chosen, bundle)
    for path in run(backbone, adapter, prompt, out=out, maps=maps, **vars(sampled)):
        print(path)
    hint(prophy.generated(prompt, chosen, sampled, bundle=bundle, out=out, maps=maps))


@app.command()
@friendly
def evaluate(
    chosen: Chosen,
    asked: Measured,
    bundle: Bundles = None,
    routers: Annotated[bool, typer.Option("--routers/--no-routers", help="measure the routers as well")] = True,
    root: Cached = CACHE,
) -> None:
    """Measure base and bundles on held-out captions of the simulated world, paired; and what the routers learned; or
    bundles of one's own clips by their loss on those that training was not shown.
    """
    from physworld.evaluation import LEGEND
    from physworld.paired import paired
    from prophy import pictures
    from prophy.adapter import ProphyAdapter
    from prophy.evaluate import beside
    from prophy.evaluate import evaluate as run
    from prophy.labels import names
    from prophy.places import look
    from prophy.routers import refinement_report, semantic_report
    from prophy.train import kind_of

    folders: list[Path | None] = [*(bundle or [None])]
    prophy, out = method(), asked.out
    backbone, first = prophy.load_trained(chosen, folders[0])
    adapters = [first, *(prophy.load_trained(chosen, folder, backbone)[1] for folder in folders[1:])]
    if first.recipe.data.source != "world":
        losses: dict[str, list[Any]] = {}
        for adapter in adapters:
            losses.setdefault(kind_of(adapter.recipe), []).append(beside(backbone, adapter))
        found = prophy.prepare(first.recipe, backbone, root, quiet=asked.quiet)
        recipes = [adapter.recipe for adapter in adapters]
        own_clips(prophy, losses, recipes, found, chosen, asked, bundles=bundle or [], paired=paired)
        return
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
    result = run(backbone, adapters, routers=reports, **asked.how)
    runs = ", ".join(f"{name} {len(of)}" for name, of in result.methods.items())
    title = f"{asked.clips} captions a mechanism ({asked.split}), paired noise; runs: {runs}"
    show_table(result.rows(result.pairs()), title, LEGEND)
    if out is not None:
        print(result.save(out))
        for path in drawn:
            print(path)
    hint(prophy.evaluated(first.recipe, chosen, asked, bundle or (), no_routers=not routers))


add(
    app,
    method,
    export=EXPORT,
    time="Measure seconds a training step on random data; one JSON line.",
)


def _bar(name: str, what: str, score: float, beside: str, passes: bool) -> None:
    shown.print(f"{name}: {what} {score:.3f} ({beside}): {'passes' if passes else 'MISSES'} its bar", markup=False)


if __name__ == "__main__":
    sys.exit(app())
