"""The command line: check, plan, cache, train, generate, evaluate, export, time, and pipe (MMPhysPipe);
`trainers.method` has the verbs that are the same in every method.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import trainers.method as verbs
from mmphysvideo.pipe.caption import caption
from mmphysvideo.pipe.command import pipe
from trainers.commands import friendly, hint, left_out, new_app, shown
from trainers.method import CACHE, Method, add
from trainers.options import (
    Bundled,
    Bundles,
    Cached,
    Chosen,
    Fitted,
    Measured,
    Planned,
    Quiet,
    Run,
    Sampled,
    Set,
    Written,
)

if TYPE_CHECKING:
    from mmphysvideo.config import Recipe
    from mmphysvideo.student import Student
    from mmphysvideo.teacher import Teacher

__all__ = ["app"]

app = new_app("MMPhysVideo: a teacher of two streams, a student that costs nothing, and the pipeline of their data.")

Staged = Annotated[str, typer.Option("--stage", help="teacher or student")]
Taught = Annotated[Path | None, typer.Option("--teacher", help="bundle of the teacher that the student learns from")]


def method() -> "Method[Recipe, Any, Teacher | Student]":
    """What is MMPhysVideo's own in the verbs that all methods have."""
    from backbones import load_for
    from mmphysvideo import checks, config, generate, plan, timing

    return Method(
        "mmphysvideo",
        load_recipe=config.load_recipe,
        recipe_of=generate.recipe_of,
        load_backbone=load_for,
        load_adapter=generate.load_trained,
        look=checks.look,
        describe=lambda recipe, *, stage, clips: plan.describe(recipe, _stage(stage), clips=clips),
        prepare=_prepared,
        summary=lambda recipe, _: {"modality": recipe.data.modality},
        measure=lambda recipe, backbone, *, stage, steps: timing.measure(recipe, backbone, _stage(stage), steps=steps),
    )


add(
    app,
    method,
    check="Look at recipe, backbone, clips, round trips of video and perception, grids and identity; writes nothing.",
)


@app.command()
@friendly
def plan(chosen: Chosen, asked: Planned, stage: Staged = "teacher") -> None:
    """Show memory for each GPU, cache size, hours and the largest batch of a stage, from the recipe alone."""
    verbs.plan(method(), chosen, asked, stage=stage)


@app.command()
@friendly
def time(chosen: Chosen, stage: Staged = "teacher", steps: verbs.Steps = 3) -> None:
    """Measure seconds a step of a stage on random data, and a forward of base and student; one JSON line."""
    verbs.time(method(), chosen, steps=steps, stage=stage)


@app.command()
@friendly
def cache(chosen: Chosen, stage: Staged = "teacher", root: Cached = CACHE, quiet: Quiet = False) -> None:
    """Make latents of the recipe's clips and of their perception, text, and features where a stage asks for them; run
    it again to go on. Under torchrun each process makes its share.
    """
    verbs.cache(method(), chosen, root, quiet=quiet, stage=stage)


@app.command()
@friendly
def train(
    chosen: Chosen,
    fitted: Fitted,
    stage: Staged = "teacher",
    teacher: Taught = None,
    out: Run = Path("runs/mmphysvideo"),
    root: Cached = CACHE,
) -> None:
    """Train a teacher or a student and write `OUT/bundle`; a killed run goes on with --resume."""
    from mmphysvideo.generate import load_teacher
    from mmphysvideo.student import check as check_alignment
    from mmphysvideo.train import HELD_CLIPS, kind_of, learner
    from mmphysvideo.train import train as run
    from trainers import run_folder
    from trainers.engine import launched

    app_, engine = method(), launched()  # first: of several GPUs each process gets its own
    recipe, backbone = app_.load(chosen)
    taught = None
    if _stage(stage) == "student":
        from backbones import blocks_of

        taught = load_teacher(teacher, backbone) if teacher is not None else None
        check_alignment(recipe.student.align, blocks_of(backbone.transformer).spec.n_blocks, taught)
    elif teacher is not None:
        raise ValueError("expected --teacher with --stage student alone: a teacher learns from no other")
    run_folder.unused(out, resume=fitted.resume)
    shared: dict[str, Any] = {"stage": stage, "quiet": fitted.quiet, "engine": engine}
    found = app_.prepare(recipe, backbone, root, **shared)
    if engine.main:
        left_out(found.skipped)
    held = found.held
    if recipe.data.source == "world":
        val = recipe.data.model_copy(update={"split": "val", "clips": min(HELD_CLIPS, recipe.data.clips)})
        still = recipe.model_copy(update={"data": val})
        held = app_.prepare(still, backbone, root, **shared).data
    width = found.data[0]["features"].shape[-1] if "features" in found.data.made else 0
    model = learner(recipe, backbone, stage, teacher=taught, width=width)
    result = run(recipe, backbone, model, found.data, out=out, held=held, engine=engine, **vars(fitted))
    engine.leave()
    if not engine.main:
        return
    bundle = out / "bundle"
    app_.tell(out, result, kind=kind_of(recipe, stage), clips=found.clips)
    if stage == "teacher":
        where: dict[str, Any] = {"cache": root, "out": f"{out}-student"}
        hint(app_.line("train", chosen=chosen, stage="student", teacher=bundle, **where))
    else:
        hint(
            f"{app_.try_it(bundle, recipe, root)}, {app_.line('export', bundle, form='weights', out=f'{out}-weights')}"
        )


app.command()(pipe)
app.command()(caption)


@app.command()
@friendly
def generate(
    prompt: Annotated[str, typer.Argument(help="what the video shows")],
    chosen: Chosen,
    sampled: Sampled,
    bundle: Bundled = None,
    image: Annotated[Path | None, typer.Option("--image", help="first frame (backbones that take one)")] = None,
    out: Written = Path("video.mp4"),
) -> None:
    """Generate a video (a teacher: with its perception to the right); without --config, as the bundle was trained."""
    from mmphysvideo.generate import generate as run
    from mmphysvideo.generate import picture
    from trainers import video

    out = video.named(out)
    app_ = method()
    backbone, trained = app_.load_trained(chosen, bundle)
    first = picture(image, trained.recipe) if image is not None else None
    for path in run(backbone, trained, prompt, out=out, image=first, **vars(sampled)):
        print(path)
    hint(app_.generated(prompt, chosen, sampled, bundle=bundle, out=out, image=image))


@app.command()
@friendly
def evaluate(chosen: Chosen, asked: Measured, bundle: Bundles = None, root: Cached = CACHE) -> None:
    """Measure base and bundles on held-out captions of the simulated world, in pairs; bundles of one recipe are its
    training seeds, and methods stand against one another, too. Or bundles of one's own clips by their loss on those
    that training was not shown.
    """
    from mmphysvideo.data import prepare
    from mmphysvideo.evaluate import beside
    from mmphysvideo.evaluate import evaluate as run
    from mmphysvideo.generate import load_trained, methods_of, recipe_of
    from mmphysvideo.teacher import Teacher
    from physworld.paired import paired

    backbone, first = method().load_trained(chosen, bundle[0] if bundle else None)
    trained: dict[str, Any] = {str(bundle[0]) if bundle else "shipped": first}
    for folder in (bundle or [])[1:]:
        trained[str(folder)] = load_trained(folder, backbone, recipe=recipe_of(folder, chosen.overrides))
    methods = methods_of(trained)
    if first.recipe.data.source != "world":
        perceived = any(isinstance(who, Teacher) for who in trained.values())
        found = prepare(first.recipe, backbone, root, perceived=perceived, quiet=asked.quiet)
        losses = {name: [beside(backbone, who) for who in of] for name, of in methods.items()}
        note = "; a teacher sees the clip's perception beside it, as noisy, which base and student are not told"
        recipes = [who.recipe for who in trained.values()]
        how: dict[str, Any] = {"bundles": bundle or [], "paired": paired, "note": note}
        verbs.own_clips(method(), losses, recipes, found, chosen, asked, **how)
        return
    result = run(backbone, methods, first.recipe, **asked.how)
    pairs = [(name, "base") for name in methods]
    names = list(methods)
    pairs += [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    for name, other in pairs:
        runs = f", {len(methods[name])} training seeds" if len(methods[name]) > 1 else ""
        title = f"{name} - {other}: {asked.clips} captions a mechanism ({asked.split}{runs}), paired noise"
        table = Table("mechanism", f"pass {other}", "pass", f"score {other}", "score", "difference [95 %]", title=title)
        for mechanism, difference in result.difference(name, other).items():
            means = [result.mean(w, what, mechanism) for what in ("passes", "scores") for w in (other, name)]
            table.add_row(mechanism, *(f"{x:.3f}" for x in means), str(difference))
        shown.print(table)
    shown.print(
        "pass: share of clips within every gate of their law; score: 0 to 1, real clips near 1; the interval covers the"
        " choice of clips and training seeds, and needs 8 clips"
    )
    if asked.out is not None:
        print(result.save(asked.out))
    hint(method().evaluated(first.recipe, chosen, asked, bundle or ()))


@app.command()
@friendly
def export(
    source: Annotated[Path, typer.Argument(help="folder of a run or of a bundle")],
    out: Annotated[Path, typer.Option("--out", help="folder to write")],
    form: Annotated[str, typer.Option("--form", help="bundle, weights (stock diffusers) or lora")] = "bundle",
    set_: Set = None,
) -> None:
    """Write a run's newest checkpoint as a bundle, or a student as weights or LoRA that stock diffusers loads."""
    from mmphysvideo.config import load_recipe
    from mmphysvideo.export import write
    from mmphysvideo.generate import read, recipe_of
    from mmphysvideo.train import learner, save_bundle
    from trainers import checkpoint, override

    if form not in ("bundle", "weights", "lora"):
        raise ValueError(f"expected --form bundle, weights or lora, got {form!r}")
    if (source / "recipe.yaml").is_file():
        parts, recipe = checkpoint.newest(source)[1], load_recipe(str(source / "recipe.yaml"), set_ or [])
    else:
        trained = read(source)
        parts, recipe = trained.tensors, recipe_of(source, set_ or [])
    stage = "student" if set(parts) <= {"weights", "projector"} else "teacher"
    backbone = method().load_backbone(recipe)
    if form == "bundle":
        if stage == "student":
            model = learner(override(recipe, ["student.align.source=none"]), backbone, stage)
        else:
            model = learner(recipe, backbone, stage)
        for name, group in model.groups().items():
            group.load_state_dict(parts[name])
        written = save_bundle(recipe, backbone, model.groups(), out)
        next_step = method().try_it(out)
    else:
        if stage == "teacher":
            raise ValueError("expected a student for stock diffusers, got a teacher: its two streams need this project")
        written = write(recipe, backbone, parts["weights"], out, form)  # pyright: ignore[reportArgumentType]
        where = repr(str(out))
        loads = f"from_pretrained({where}, subfolder='transformer')"
        loads = f"pipe.load_lora_weights({where})" if form == "lora" else loads
        next_step = f"stock diffusers loads it: {loads} (docs/mmphysvideo.md)"
    print(json.dumps({"form": form, "written": str(written)}))
    hint(next_step)


def _stage(stage: str) -> str:
    from mmphysvideo.train import STAGES

    if stage not in STAGES:
        raise ValueError(f"expected --stage {' or '.join(STAGES)}, got {stage!r}")
    return stage


def _prepared(recipe: "Recipe", backbone: Any, root: Path, *, stage: str, **how: Any) -> Any:
    """The data of a stage."""
    from mmphysvideo.data import prepare
    from mmphysvideo.features import encoder_of

    align = recipe.student.align
    encoder = encoder_of(align, recipe.device) if _stage(stage) == "student" else None
    perceived = stage == "teacher" or align.source == "teacher"
    return prepare(recipe, backbone, root, perceived=perceived, encoder=encoder, **how)


if __name__ == "__main__":
    sys.exit(app())
