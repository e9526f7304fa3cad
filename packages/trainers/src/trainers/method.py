"""What the command lines of the methods do alike: load a recipe, its backbone and what was trained, and the verbs
check, plan, cache, export and time.

An app fills in a `Method`, in a function that imports what it names, so that `--help` imports none of it, and `add`
makes commands of it. A verb that has options of its own in an app is a command there that calls the function here.

    def method() -> Method[Recipe, WanBackbone, PilaAdapter]: ...

    app = new_app("What it is.")
    add(app, method, check="Look at this and that.", plan="Show stages and hours.")
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer

from .commands import asked_by, friendly, hint, left_out, line, recipe_in, show_plan, show_table, shown
from .options import Cached, Chosen, Measured, Planned, Quiet, Sampled

if TYPE_CHECKING:
    from .check import Finding
    from .heldout import HeldOutLoss
    from .job import Job
    from .loop import FitResult
    from .stage import Stage

__all__ = [
    "CACHE",
    "EXPORT",
    "PROMPT",
    "Export",
    "Method",
    "add",
    "cache",
    "check",
    "export",
    "own_clips",
    "plan",
    "time",
]

R = TypeVar("R")
B = TypeVar("B")
A = TypeVar("A")

CACHE = Path("runs/cache")
"""Where a cache lies when nobody says another place."""
PROMPT = "a red ball is thrown to the left"
"""Of the command that is named to try a bundle with."""
EXPORT = "Write the bundle of a run's newest checkpoint, load it back, and prove that it changes the backbone's output."

Steps = Annotated[int, typer.Option("--steps", min=1, help="timed steps of each kind, after one to warm up")]


@dataclass(frozen=True)
class Export(Generic[R, B, A]):
    """How the bundle of a run is made again from its newest checkpoint, and how it proves itself."""

    fresh: Callable[[R, B, Path], A]
    """An adapter with first weights, of a recipe, for a backbone, in the folder of a run."""
    save_bundle: Callable[[A, B, Path], object]
    change: Callable[[B, Path, R], float]
    """The mean difference that the bundle in a folder makes to a video."""
    idle: Callable[[R], bool] = lambda _: False
    """Whether it is the recipe's wish that nothing changes."""


@dataclass(frozen=True)
class Method(Generic[R, B, A]):
    """What is a method's own in the verbs that all have: its recipe R, backbone B, and what is trained, A.

    Further options of an app's verb reach `look`, `describe`, `prepare`, `summary` and `measure` by their names.
    """

    name: str
    load_recipe: Callable[[str | None, Sequence[str]], R]
    recipe_of: Callable[[Path | None, Sequence[str]], R]
    """The recipe that a bundle (none: the shipped one) was trained with."""
    load_backbone: Callable[[R], B]
    load_adapter: Callable[..., A]
    """A bundle's, by (folder, backbone, recipe=...)."""
    look: Callable[..., "Sequence[Finding]"]
    """What `check` finds, by (recipe, backbone, cache)."""
    describe: Callable[..., "Job"]
    """What a run needs, by (recipe, clips=...)."""
    prepare: Callable[..., Any]
    """The cache filled and opened, by (recipe, backbone, cache, quiet=..., engine=...)."""
    summary: Callable[..., Mapping[str, Any]]
    """What is told of it beside the counts, by (recipe, prepared)."""
    measure: Callable[..., Mapping[str, Any]]
    """Seconds a step, by (recipe, backbone, steps=...)."""
    stages_of: "Callable[[R], Sequence[Stage]] | None" = None
    """The stages to show in a plan (none: there is one)."""
    exported: Export[R, B, A] | None = None

    def load(self, chosen: Chosen) -> tuple[R, B]:
        """Load a recipe and its backbone."""
        recipe = self.load_recipe(chosen.config, chosen.overrides)
        return recipe, self.load_backbone(recipe)

    def load_trained(self, chosen: Chosen, folder: Path | None, backbone: B | None = None) -> tuple[B, A]:
        """Load what was trained, and its backbone unless it is here; without --config under the bundle's recipe."""
        if chosen.config is not None:
            recipe = self.load_recipe(chosen.config, chosen.overrides)
        else:
            recipe = self.recipe_of(folder, chosen.overrides)
        said = chosen.config is not None or any(o.startswith("backbone=") for o in chosen.overrides)
        with asked_by("the bundle", "backbone", unless=said):
            found = self.load_backbone(recipe) if backbone is None else backbone
        return found, self.load_adapter(folder, found, recipe=recipe)

    def tell(self, out: Path, result: "FitResult", **own: Any) -> None:
        """Print the summary of a training that wrote into `out`."""
        steps, seconds = result.global_step, round(result.seconds, 1)
        losses = {name: round(value, 5) for name, value in result.losses.items()}
        summary = {"bundle": str(out / "bundle"), **own, "steps": steps, "seconds": seconds, "losses": losses}
        print(json.dumps(summary))

    def line(self, verb: str, *words: object, chosen: Chosen | None = None, **options: object) -> str:
        """Write a command of this app (`commands.line`)."""
        return line(self.name, verb, *words, chosen=chosen, **options)

    def generated(
        self, prompt: str, chosen: Chosen, sampled: Sampled, *, bundle: Path | None, out: Path, **own: object
    ) -> str:
        """Write what follows a video: the same one beside the base's, and when that stands there, figures."""
        if sampled.compare:
            return f"{self.line('evaluate', chosen=chosen, bundle=bundle)} measures more than one video"
        own |= {"seed": sampled.seed, "compare": True, "out": out}
        return f"{self.line('generate', prompt, chosen=chosen, bundle=bundle, **own)} puts the base's beside it"

    def evaluated(self, recipe: Any, chosen: Chosen, asked: Measured, bundles: Sequence[Path], **own: Any) -> str:
        """Write what follows figures: where they lie, and how to get more of them; of one's own clips, a look."""
        kept = f"{asked.out} holds them clip by clip, " if asked.out is not None else ""
        if recipe.data.source != "world":
            bundle = bundles[0] if bundles else None
            shown = self.line("generate", PROMPT, bundle=bundle, compare=True, out=f"{self.name}.mp4")
            return f"{kept}{shown} shows one"
        if not kept and asked.keep is not None:
            how = {name: value for name, value in asked.how.items() if name != "quiet"}
            again = self.line("evaluate", chosen=chosen, bundle=list(bundles), **own, **how, out="evaluation.json")
            kept = f"{again} writes them clip by clip, "
        # the bundle that an app ships has its name
        backbone = None if recipe.backbone == "world" else recipe.backbone
        more: dict[str, Any] = {"backbone": backbone, "out": f"runs/bench-{self.name}"}
        return f"{kept}{line('bench', 'world', bundle=list(bundles) or [self.name], **more)} measures more"

    def try_it(self, bundle: Path, recipe: Any = None, root: Path = CACHE) -> str:
        """Write the commands that show and measure a bundle; of one's own clips (`recipe`) the loss is taken from the
        cache at `root`.
        """
        seen = self.line("generate", PROMPT, bundle=bundle, compare=True, out=f"{self.name}.mp4")
        own = recipe is not None and recipe.data.source != "world" and root != CACHE
        return f"{seen}, {self.line('evaluate', bundle=bundle, cache=root if own else None)}"


def check(method: Method[R, B, A], chosen: Chosen, root: Path, **own: Any) -> None:
    """Show what is found before hours go into a run; ValueError where something is wrong."""
    from .check import show

    recipe, backbone = method.load(chosen)
    if not show(method.look(recipe, backbone, root, **own), shown):
        raise ValueError("what stands as error in the table would spoil the run: mend it first")
    plans, caches = method.line("plan", chosen=chosen), method.line("cache", chosen=chosen, cache=root)
    hint(f"{plans} shows memory, hours and disk, {caches} encodes the clips")


def plan(method: Method[R, B, A], chosen: Chosen, asked: Planned, **own: Any) -> None:
    """Show what a run needs, from the recipe alone."""
    recipe = method.load_recipe(chosen.config, chosen.overrides)
    stages_of = method.stages_of
    show_plan(
        lambda: method.describe(recipe, clips=asked.clips, **own),
        gpu=asked.gpu,
        engine=asked.engine,
        processes=asked.processes,
        measured=asked.measured,
        efficiency=asked.efficiency,
        as_json=asked.as_json,
        stages=None if stages_of is None else lambda: stages_of(recipe),
    )
    if not asked.as_json:
        times, caches = method.line("time", chosen=chosen, **own), method.line("cache", chosen=chosen, **own)
        hint(f"{times} measures this machine (for --measured), {caches} encodes the clips")


def cache(method: Method[R, B, A], chosen: Chosen, root: Path, *, quiet: bool, **own: Any) -> None:
    """Fill the cache; of several processes each makes its share."""
    from .engine import launched

    engine = launched()  # first: of several GPUs each process gets its own
    recipe, backbone = method.load(chosen)
    found = method.prepare(recipe, backbone, root, quiet=quiet, engine=engine, **own)
    engine.leave()
    if not engine.main:
        return
    left_out(found.skipped, getattr(found, "notes", ()))
    counts = {"clips": found.clips, "held_out": len(found.held_clips), "computed": found.computed}
    counts |= {"skipped": len(found.skipped)}
    print(json.dumps({**counts, **method.summary(recipe, found)}))
    hint(method.line("train", chosen=chosen, cache=root, **own))


def own_clips(
    method: Method[R, B, A],
    losses: "Mapping[str, Sequence[HeldOutLoss]]",
    recipes: Sequence[Any],
    found: Any,
    chosen: Chosen,
    asked: Measured,
    *,
    bundles: Sequence[Path],
    paired: Callable[..., Any],
    note: str = "",
) -> None:
    """Print the losses of base and methods on the clips that are kept back of one's own films (`found.held`).

    ValueError where none is, and for bundles that were not trained on the same clips.
    """
    from .heldout import compare

    d = recipes[0].data
    parts = [vars(r.data) | {"labels": None, "encode_batch": None} for r in recipes]
    if any(part != parts[0] for part in parts[1:]):
        raise ValueError("expected bundles that were trained on the same clips: others had different ones kept back")
    if any(said.startswith("data.held_out=") for said in chosen.overrides):
        raise ValueError("expected data.held_out as in training: another share would show clips that were trained on")
    for folder in bundles:  # --config may say another share, too
        trained: Any = method.recipe_of(folder, [])
        if trained.data.source != "world" and trained.data.held_out != d.held_out:
            raise ValueError(
                f"expected data.held_out={trained.data.held_out:g}, with which {folder} was trained, got {d.held_out:g}"
                ": clips that it was trained on would be shown as kept back"
            )
    if found.held is None:
        raise ValueError(
            f"nothing of {d.source} was kept back from training (data.held_out={d.held_out:g}, {found.clips} clips): "
            "train on two films or more with data.held_out above 0, or measure on the world (--set data.source=world)"
        )
    result = compare(losses, found.held, found.held_clips, device=recipes[0].device, quiet=asked.quiet)
    count = len(result.clips)
    title = f"{count} clip{'s' * (count > 1)} of {d.source!r} kept back from training, same noise"
    legend = f"held-out loss: the training loss without extras, mean over nine noise levels, lower is better{note};"
    show_table(result.rows(paired), title, f"{legend} an interval takes 8 clips, and fewer say little")
    if asked.out is not None:
        about = {"data": d.model_dump(mode="json"), "note": note.strip("; ")}
        print(result.save(asked.out, paired, about))
    hint(method.evaluated(recipes[0], chosen, asked, bundles))


def export(method: Method[R, B, A], run: Path, out: Path) -> None:
    """Write the bundle of a run's newest checkpoint; ValueError where it does not change the backbone's output."""
    from . import checkpoint

    assert method.exported is not None
    recipe, backbone = method.load(Chosen(recipe_in(run)))
    name, weights = checkpoint.newest(run)
    adapter: Any = method.exported.fresh(recipe, backbone, run)
    for group, part in weights.items():
        adapter.groups()[group].load_state_dict(part)
    method.exported.save_bundle(adapter, backbone, out)
    changed = method.exported.change(backbone, out, recipe)
    if not 0 <= changed < float("inf") or (changed == 0 and not method.exported.idle(recipe)):
        raise ValueError(
            f"the exported bundle changes nothing (mean difference {changed}): train what moves the output first"
        )
    print(json.dumps({"bundle": str(out), "checkpoint": name, "mean_change": changed}))
    hint(f"{method.try_it(out)}; docs/backbones.md puts it into a stock diffusers pipeline, in three lines")


def time(method: Method[R, B, A], chosen: Chosen, *, steps: int, **own: Any) -> None:
    """Print what a step takes on this machine, one JSON line."""
    recipe, backbone = method.load(chosen)
    print(json.dumps(method.measure(recipe, backbone, steps=steps, **own)))
    plans = method.line("plan", chosen=chosen, **own, measured="time.jsonl")
    times = method.line("time", chosen=chosen, **own).strip("`")
    hint(f"{plans} goes by this line, where it was kept: `{times} >> time.jsonl`")


def add(app: typer.Typer, method: Callable[[], Method[Any, Any, Any]], **verbs: str) -> None:
    """Add verbs to an app as they are here, each with the text of its help."""

    def check_(chosen: Chosen, cache: Cached = CACHE) -> None:
        check(method(), chosen, cache)

    def plan_(chosen: Chosen, asked: Planned) -> None:
        plan(method(), chosen, asked)

    def cache_(chosen: Chosen, root: Cached = CACHE, quiet: Quiet = False) -> None:
        cache(method(), chosen, root, quiet=quiet)

    def export_(
        run: Annotated[Path, typer.Argument(help="folder of a run (`train --out`)")],
        out: Annotated[Path, typer.Option("--out", help="folder of the bundle")],
    ) -> None:
        export(method(), run, out)

    def time_(chosen: Chosen, steps: Steps = 3) -> None:
        time(method(), chosen, steps=steps)

    known = {"check": check_, "plan": plan_, "cache": cache_, "export": export_, "time": time_}
    for verb, help in verbs.items():
        app.command(verb, help=help)(friendly(known[verb]))
