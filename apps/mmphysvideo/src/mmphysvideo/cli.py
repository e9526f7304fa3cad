"""The command line: check, plan, cache, train, generate, evaluate, export, time, and pipe (MMPhysPipe)."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mmphysvideo.pipe.command import pipe
from trainers.commands import (
    AsJson,
    Bundled,
    Bundles,
    Cached,
    Captions,
    Config,
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
    show_plan,
    shown,
)

if TYPE_CHECKING:
    from mmphysvideo.config import Recipe
    from mmphysvideo.student import Student
    from mmphysvideo.teacher import Teacher

__all__ = ["app"]

app = new_app("MMPhysVideo: a teacher of two streams, a student that costs nothing, and the pipeline of their data.")

Staged = Annotated[str, typer.Option("--stage", help="teacher or student")]
Taught = Annotated[Path | None, typer.Option("--teacher", help="bundle of the teacher that the student learns from")]


@app.command()
@friendly
def check(config: Config = None, set_: Set = None, cache: Cached = Path("runs/cache")) -> None:
    """Look at recipe, backbone, clips, round trips of video and perception, grids and identity; writes nothing."""
    from mmphysvideo.checks import look
    from trainers.check import show

    recipe, backbone = _load(config, set_)
    if not show(look(recipe, backbone, cache), shown):
        raise ValueError("what stands as error in the table would spoil the run: mend it first")
    hint("`mmphysvideo plan` shows memory, hours and disk, `mmphysvideo train --stage teacher --out RUN` trains")


@app.command()
@friendly
def plan(
    config: Config = None,
    set_: Set = None,
    stage: Staged = "teacher",
    gpu: Gpus = None,
    engine: EngineName = "",
    processes: Processes = 1,
    measured: Measured = None,
    clips: HowMany = None,
    as_json: AsJson = False,
) -> None:
    """Show memory for each GPU, cache size, hours and the largest batch of a stage, from the recipe alone."""
    from mmphysvideo.config import load_recipe
    from mmphysvideo.plan import describe

    recipe = load_recipe(config, set_ or [])
    show_plan(
        lambda: describe(recipe, _stage(stage), clips=clips),
        gpu=gpu,
        engine=engine,
        processes=processes,
        measured=measured,
        efficiency=None,
        as_json=as_json,
    )
    if not as_json:
        hint("`mmphysvideo time` measures this machine (for --measured), `mmphysvideo train --out RUN` trains")


@app.command()
@friendly
def time(
    config: Config = None,
    set_: Set = None,
    stage: Staged = "teacher",
    steps: Annotated[int, typer.Option("--steps", min=1, help="timed steps, after one to warm up")] = 3,
) -> None:
    """Measure seconds a step of a stage on random data, and a forward of base and student; one JSON line."""
    from mmphysvideo.timing import measure

    recipe, backbone = _load(config, set_)
    print(json.dumps(measure(recipe, backbone, _stage(stage), steps=steps)))


@app.command()
@friendly
def cache(
    config: Config = None,
    set_: Set = None,
    stage: Staged = "teacher",
    root: Cached = Path("runs/cache"),
    quiet: Quiet = False,
) -> None:
    """Make latents of the recipe's clips and of their perception, text, and features where a stage asks for them; run
    it again to go on. Under torchrun each process makes its share.
    """
    from trainers.engine import launched

    engine = launched()
    recipe, backbone = _load(config, set_)
    found = _prepared(recipe, backbone, _stage(stage), root, quiet=quiet, engine=engine)
    engine.leave()
    if not engine.main:
        return
    left_out(found.skipped)
    summary = {"clips": found.clips, "computed": found.computed, "skipped": len(found.skipped)}
    print(json.dumps(summary | {"modality": recipe.data.modality}))
    hint(f"`mmphysvideo train --stage {stage} --out RUN --cache {root}` with the same --config and --set")


@app.command()
@friendly
def train(
    config: Config = None,
    set_: Set = None,
    stage: Staged = "teacher",
    teacher: Taught = None,
    out: Out = Path("runs/mmphysvideo"),
    root: Cached = Path("runs/cache"),
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run was stopped")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a teacher or a student and write `OUT/bundle`; a killed run goes on with --resume."""
    from mmphysvideo.generate import load_teacher
    from mmphysvideo.student import check as check_alignment
    from mmphysvideo.train import HELD_CLIPS, kind_of, learner, ready
    from mmphysvideo.train import train as run
    from trainers.engine import launched

    engine = launched()  # first: of several GPUs each process gets its own
    recipe, backbone = _load(config, set_)
    taught = None
    if _stage(stage) == "student":
        from backbones import blocks_of

        taught = load_teacher(teacher, backbone) if teacher is not None else None
        check_alignment(recipe.student.align, blocks_of(backbone.transformer).spec.n_blocks, taught)
    elif teacher is not None:
        raise ValueError("expected --teacher with --stage student alone: a teacher learns from no other")
    if engine.main:
        ready(out, resume=resume)
    found = _prepared(recipe, backbone, stage, root, quiet=quiet, engine=engine)
    if engine.main:
        left_out(found.skipped)
    held = None
    if recipe.data.source == "world":
        val = recipe.data.model_copy(update={"split": "val", "clips": min(HELD_CLIPS, recipe.data.clips)})
        still = recipe.model_copy(update={"data": val})
        held = _prepared(still, backbone, stage, root, quiet=quiet, engine=engine).data
    width = found.data[0]["features"].shape[-1] if "features" in found.data.made else 0
    model = learner(recipe, backbone, stage, teacher=taught, width=width)
    result = run(recipe, backbone, model, found.data, out=out, held=held, resume=resume, quiet=quiet, engine=engine)
    engine.leave()
    if not engine.main:
        return
    summary = {
        "bundle": str(out / "bundle"),
        "kind": kind_of(recipe, stage),
        "clips": found.clips,
        "steps": result.global_step,
        "seconds": round(result.seconds, 1),
        "losses": {name: round(value, 5) for name, value in result.losses.items()},
    }
    print(json.dumps(summary))
    bundle = out / "bundle"
    if stage == "teacher":
        hint(f"`mmphysvideo train --stage student --teacher {bundle} --out RUN` with the same --config and --set")
    else:
        hint(f"`mmphysvideo evaluate --bundle {bundle}`, `mmphysvideo export {bundle} --form weights --out DIR`")


app.command()(pipe)


@app.command()
@friendly
def generate(
    prompt: Annotated[str, typer.Argument(help="what the video shows")],
    config: Config = None,
    set_: Set = None,
    bundle: Bundled = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="base on the left, same noise")] = False,
    image: Annotated[Path | None, typer.Option("--image", help="first frame (backbones that take one)")] = None,
    out: Annotated[Path, typer.Option("--out", help="mp4 to write; a json lies beside it")] = Path("video.mp4"),
) -> None:
    """Generate a video (a teacher: with its perception to the right); without --config, as the bundle was trained."""
    from mmphysvideo.generate import generate as run
    from mmphysvideo.generate import picture
    from trainers import video

    out = video.named(out)
    backbone, trained = _load_trained(config, set_, bundle)
    first = picture(image, trained.recipe) if image is not None else None
    for path in run(backbone, trained, prompt, seed=seed, out=out, compare=compare, image=first):
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
    keep: Kept = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON to write, clip by clip")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure base and bundles on held-out captions of the simulated world, in pairs; bundles of one recipe are its
    training seeds, and methods stand against one another, too.
    """
    from mmphysvideo.evaluate import evaluate as run
    from mmphysvideo.generate import load_trained, methods_of, recipe_of

    backbone, first = _load_trained(config, set_, bundle[0] if bundle else None)
    trained: dict[str, Any] = {str(bundle[0]) if bundle else "shipped": first}
    for folder in (bundle or [])[1:]:
        trained[str(folder)] = load_trained(folder, backbone, recipe=recipe_of(folder, set_ or []))
    methods = methods_of(trained)
    about: dict[str, Any] = {"clips": clips, "split": split, "seed": seed, "keep": keep, "quiet": quiet}
    result = run(backbone, methods, first.recipe, **about)
    pairs = [(name, "base") for name in methods]
    names = list(methods)
    pairs += [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    for name, other in pairs:
        runs = f", {len(methods[name])} training seeds" if len(methods[name]) > 1 else ""
        title = f"{name} - {other}: {clips} captions a mechanism ({split}{runs}), paired noise"
        table = Table("mechanism", f"pass {other}", "pass", f"score {other}", "score", "difference [95 %]", title=title)
        for mechanism, difference in result.difference(name, other).items():
            means = [result.mean(w, what, mechanism) for what in ("passes", "scores") for w in (other, name)]
            table.add_row(mechanism, *(f"{x:.3f}" for x in means), str(difference))
        shown.print(table)
    shown.print(
        "pass: share of clips within every gate of their law; score: 0 to 1, real clips near 1; the interval covers the"
        " choice of clips and training seeds, and needs 8 clips"
    )
    if out is not None:
        print(result.save(out))


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
    from mmphysvideo.train import learner, newest, save_bundle
    from trainers import override

    if form not in ("bundle", "weights", "lora"):
        raise ValueError(f"expected --form bundle, weights or lora, got {form!r}")
    if (source / "recipe.yaml").is_file():
        parts, recipe = newest(source), load_recipe(str(source / "recipe.yaml"), set_ or [])
    else:
        trained = read(source)
        parts, recipe = trained.tensors, recipe_of(source, set_ or [])
    stage = "student" if set(parts) <= {"weights", "projector"} else "teacher"
    backbone = _backbone(recipe)
    if form == "bundle":
        if stage == "student":
            model = learner(override(recipe, ["student.align.source=none"]), backbone, stage)
        else:
            model = learner(recipe, backbone, stage)
        for name, group in model.groups().items():
            group.load_state_dict(parts[name])
        written = save_bundle(recipe, backbone, model.groups(), out)
        next_step = f'`mmphysvideo generate "PROMPT" --bundle {out}`'
    else:
        if stage == "teacher":
            raise ValueError("expected a student for stock diffusers, got a teacher: its two streams need this project")
        written = write(recipe, backbone, parts["weights"], out, form)  # pyright: ignore[reportArgumentType]
        loads = "pipe.load_lora_weights(DIR)" if form == "lora" else "from_pretrained(DIR, subfolder='transformer')"
        next_step = f"stock diffusers loads it: {loads}"
    print(json.dumps({"form": form, "written": str(written)}))
    hint(next_step)


def _stage(stage: str) -> str:
    from mmphysvideo.train import STAGES

    if stage not in STAGES:
        raise ValueError(f"expected --stage {' or '.join(STAGES)}, got {stage!r}")
    return stage


def _prepared(recipe: "Recipe", backbone: Any, stage: str, root: Path, **how: Any) -> Any:
    """The data of a stage."""
    from mmphysvideo.data import prepare
    from mmphysvideo.features import encoder_of

    align = recipe.student.align
    encoder = encoder_of(align, recipe.device) if stage == "student" else None
    perceived = stage == "teacher" or align.source == "teacher"
    return prepare(recipe, backbone, root, perceived=perceived, encoder=encoder, **how)


def _load(config: str | None, overrides: list[str] | None) -> "tuple[Recipe, Any]":
    from mmphysvideo.config import load_recipe

    recipe = load_recipe(config, overrides or [])
    return recipe, _backbone(recipe)


def _load_trained(
    config: str | None, overrides: list[str] | None, folder: Path | None
) -> "tuple[Any, Teacher | Student]":
    from mmphysvideo.config import load_recipe
    from mmphysvideo.generate import load_trained, recipe_of

    recipe = load_recipe(config, overrides or []) if config is not None else recipe_of(folder, overrides or [])
    said = config is not None or any(o.startswith("backbone=") for o in overrides or [])
    with asked_by("the bundle", "backbone", unless=said):
        backbone = _backbone(recipe)
    return backbone, load_trained(folder, backbone, recipe=recipe)


def _backbone(recipe: "Recipe") -> Any:
    import torch
    from transformers.utils import logging

    from backbones import load

    if recipe.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"expected a CUDA device for device={recipe.device}, found none on this machine; set device=cpu"
        )
    logging.disable_progress_bar()  # "Loading weights" for files of a megabyte
    dtype = None if recipe.dtype == "float32" else getattr(torch, recipe.dtype)
    return load(recipe.backbone, device=recipe.device, dtype=dtype)


if __name__ == "__main__":
    sys.exit(app())
