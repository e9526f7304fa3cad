"""The commands that compare with real videos or known physics: no learned judge in any of them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from trainers.commands import Quiet, errors, friendly, shown

commands = typer.Typer()


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
        str, typer.Option(help="'exact', or 'mp4v': through a lossy video, as the official script.")
    ] = "exact",
    cache: Annotated[Path | None, typer.Option(help="What was measured before; beside the result if left out.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    check: Annotated[bool, typer.Option("--check", help="Only list what is wrong with the folders.")] = False,
    export: Annotated[
        Path | None, typer.Option(help="Only link the videos into this new folder, under official names.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Score generated futures against filmed ones: Physics-IQ's original and Verified score."""
    from bench import results
    from bench.physics_iq import export as names
    from bench.physics_iq.layout import survey
    from bench.physics_iq.result import result as summed
    from bench.physics_iq.result import table
    from bench.physics_iq.run import run

    if masks not in ("exact", "mp4v"):
        raise ValueError(f"expected masks 'exact' or 'mp4v', got {masks!r}")
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
    result = summed(found, measured, name=generated.name, masks=masks)
    results.write(result, out if out.suffix == ".json" else out / results.FILE)
    shown.print(table(result))
    for note in result.notes:
        errors.print(f"[yellow]note[/] {escape(note)}")
    shown.print(f"written to {out}; measurements are kept in {kept}")
