"""The commands that compare with real videos or known physics: no learned judge in any of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from trainers.commands import errors, friendly, hint, shown
from trainers.options import Quiet

if TYPE_CHECKING:
    from bench.results import Metric, Result
    from trainers.data import Skipped

commands = typer.Typer()

Name = Annotated[str, typer.Option(help="What the scored system is called.")]


@commands.command("physics-iq")
@friendly
def physics_iq(
    real: Annotated[Path, typer.Option(help="The benchmark's folder, or that of its real test videos.")],
    generated: Annotated[Path, typer.Option(help="Folder of NNNN_ANYTHING.mp4, NNNN being take 1's number.")],
    fps: Annotated[
        float | None, typer.Option(help="Rate to compare at; that of the generated videos if left out.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Result file.")] = Path("physics-iq.json"),
    seconds: Annotated[float, typer.Option(help="Length that counts: 5 in the benchmark.")] = 5.0,
    masks: Annotated[
        Literal["mp4v", "exact"], typer.Option(help="mp4v: through a lossy video, as the official script has it.")
    ] = "mp4v",
    cache: Annotated[Path | None, typer.Option(help="What was measured before; beside the result if left out.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    show: Annotated[int, typer.Option(min=0, help="Views a category whose films are kept for the report.")] = 2,
    check: Annotated[bool, typer.Option("--check", help="Only list what is wrong with the folders.")] = False,
    export: Annotated[
        Path | None, typer.Option(help="Only link the videos into this new folder, under official names.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Score generated futures against filmed ones: Physics-IQ's original and Verified score."""
    from bench import results
    from bench.physics_iq import export as names
    from bench.physics_iq.films import films
    from bench.physics_iq.layout import survey
    from bench.physics_iq.result import result as summed
    from bench.physics_iq.result import table
    from bench.physics_iq.run import run, setting_of

    found = survey(real, generated, fps=fps, seconds=seconds, quiet=quiet)
    for problem in found.problems:
        errors.print(f"[red]wrong[/] {escape(str(problem))}")
    for note in found.notes if check or export else ():
        errors.print(f"[yellow]note[/] {escape(note)}")
    if found.problems:
        raise ValueError(f"{len(found.problems)} things to mend; nothing was changed or measured")
    if check:
        shown.print(
            f"{len(found.views)} videos of {found.scenarios} scenarios can be scored: {found.frames} frames each at "
            f"{found.fps:g} fps"
        )
        return
    if export is not None:
        shown.print(f"{len(names.export(found.views, export))} videos under their official names in {export}")
        return
    kept = cache if cache is not None else out.with_name("physics-iq-cache")
    measured = run(found, cache=kept, masks=masks, workers=workers, quiet=quiet)
    file = out if out.suffix == ".json" else out / results.FILE
    places = films(measured, setting_of(found, masks), beside=file, each=show, quiet=quiet)
    result = summed(found, measured, name=generated.name, masks=masks, films=places)
    results.write(result, file)
    shown.print(table(result))
    for note in result.notes:
        errors.print(f"[yellow]note[/] {escape(note)}")
    shown.print(f"written to {out}; measurements are kept in {kept}")
    hint(f"bench report {out} --out report.html")


@commands.command()
@friendly
def phyworld(
    videos: Annotated[Path, typer.Option(help="Folder of NAME.mp4, side by side as the authors write them.")],
    truth: Annotated[Path, typer.Option(help="Folder of NAME.npz with position and init.")],
    task: Annotated[Literal["uniform", "parabola", "collision"], typer.Option(help="What the balls should do.")],
    part: Annotated[
        Literal["rollout", "reconstruction", "truth", "whole"], typer.Option(help="What of a file is scored.")
    ] = "rollout",
    out: Annotated[Path, typer.Option(help="Result file.")] = Path("phyworld.json"),
    name: Name = "model",
    quiet: Quiet = False,
) -> None:
    """Score balls that should move uniformly, fall, or collide: PhyWorld's errors, in and out of distribution."""
    from bench.phyworld import evaluate

    _told(*evaluate(videos, truth, task, part=part, name=name, quiet=quiet), out)


@commands.command()
@friendly
def pisa(
    pairs: Annotated[Path, typer.Option(help="Official jsonl: gt_mask, gt_fps, pd_mask, pd_fps[, gt_annotation].")],
    out: Annotated[Path, typer.Option(help="Result file.")] = Path("pisa.json"),
    name: Name = "model",
    quiet: Quiet = False,
) -> None:
    """Score masks of dropped objects against filmed ones: PISA's L2, Chamfer and IoU, with vanished objects counted."""
    from bench.pisa import evaluate

    _told(*evaluate(pairs, name=name, quiet=quiet), out)


@commands.command()
@friendly
def laws(
    tracks: Annotated[Path | None, typer.Option(help="Track file (npz, csv), or a folder of them.")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of films, instead of tracks.")] = None,
    law: Annotated[
        Literal["fall", "bounce", "swing", "collision", "slide"] | None, typer.Option(help="What the bodies should do.")
    ] = None,
    colour: Annotated[list[str] | None, typer.Option(help="R,G,B of a body in films (repeatable).")] = None,
    pivot: Annotated[str | None, typer.Option(help="Y,X in pixels of what a pendulum hangs from.")] = None,
    fps: Annotated[float | None, typer.Option(help="Rate of tracks that name none.")] = None,
    out: Annotated[Path, typer.Option(help="Result file.")] = Path("laws.json"),
    name: Name = "model",
    quiet: Quiet = False,
) -> None:
    """Fit laws to tracks or films: invariance scores, fall, bounces, periods, collisions, and what a film keeps."""
    from bench import law_results

    if (tracks is None) == (videos is None):
        raise ValueError("expected either --tracks or --videos")
    where = _numbers(pivot, 2, "--pivot Y,X")
    hung = (where[0], where[1]) if where else None
    if tracks is not None:
        if law is None:
            raise ValueError("expected --law for tracks: fall, bounce, swing, collision or slide")
        _told(*law_results.of_tracks(tracks, law, fps=fps, pivot=hung, name=name, quiet=quiet), out)
        return
    colours = [_colour(one) for one in colour or ()]
    assert videos is not None
    _told(*law_results.of_films(videos, law, colours=colours, pivot=hung, name=name, quiet=quiet), out)


@commands.command()
@friendly
def frechet(
    reference: Annotated[Path, typer.Argument(help="Features of real videos: npy, npz or safetensors, (n, d).")],
    made: Annotated[Path, typer.Argument(help="Features of generated ones.")],
    key: Annotated[str, typer.Option(help="Which array, of several in a file.")] = "",
    out: Annotated[Path, typer.Option(help="Result file.")] = Path("frechet.json"),
    name: Name = "model",
) -> None:
    """Measure the Frechet distance of two sets of features (FVD, FID), with the protocol they were made by."""
    from bench.frechet import compare

    _told(compare(reference, made, key=key, name=name), [], out)


def _told(result: "Result", skipped: "Sequence[Skipped]", out: Path) -> None:
    """Write a result and show its means, and what was left out."""
    from rich.table import Table

    from bench import results

    table = Table(title=result.title, title_justify="left")
    (system,) = result.systems
    groups = {"all": system.metrics} | system.groups
    table.add_column("")
    for group in groups:
        table.add_column(escape(group), justify="right")
    for key in system.metrics:
        row = [_cell(metrics[key]) if key in metrics else "" for metrics in groups.values()]
        table.add_row(f"{key} {system.metrics[key].unit}".strip(), *row)
    shown.print(table)
    for one in skipped:
        errors.print(f"[yellow]left out[/] {escape(one.path)}: {escape(one.why)}")
    for note in result.notes if not skipped else ():
        errors.print(f"[yellow]note[/] {escape(note)}")
    results.write(result, out if out.suffix == ".json" else out / results.FILE)
    hint(f"bench report {out} --out report.html")


def _cell(metric: "Metric") -> str:
    if metric.value is None:
        return "-"
    ends = "" if metric.low is None or metric.high is None else f" [{metric.low:.4g}, {metric.high:.4g}]"
    of = "" if metric.n_valid is None else f" ({metric.n_valid} of {metric.n})"
    return escape(f"{metric.value:.4g}{ends}{of}")


def _numbers(text: str | None, count: int, what: str) -> list[float]:
    if text is None:
        return []
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ValueError(f"expected {what}, got {text!r}")
    return numbers


def _colour(text: str) -> tuple[int, int, int]:
    r, g, b = _numbers(text, 3, "--colour R,G,B")
    if not all(0 <= part <= 255 and part == int(part) for part in (r, g, b)):
        raise ValueError(f"expected whole numbers from 0 to 255 in --colour R,G,B, got {text!r}")
    return int(r), int(g), int(b)
