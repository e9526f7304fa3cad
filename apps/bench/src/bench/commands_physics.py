"""The commands that compare with real videos or known physics: no learned judge in any of them."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

commands = typer.Typer()
console = Console() if sys.stdout.isatty() else Console(width=118)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def friendly(command: Callable[..., None]) -> Callable[..., None]:
    """Show what a user can mend as one line instead of a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError) as error:
            errors.print(f"error: {error}", style="bold red", markup=False)
            raise typer.Exit(1) from None

    return run


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
    from bench import physics_iq as piq
    from bench import results

    if masks not in ("exact", "mp4v"):
        raise ValueError(f"expected masks 'exact' or 'mp4v', got {masks!r}")
    found = piq.survey(real, generated, fps=fps, seconds=seconds, quiet=quiet)
    for problem in found.problems:
        errors.print(f"[red]wrong[/] {escape(str(problem))}")
    for note in found.notes if check or export else ():
        errors.print(f"[yellow]note[/] {escape(note)}")
    if found.problems:
        raise ValueError(f"{len(found.problems)} things to mend; nothing was changed or measured")
    if check:
        console.print(
            f"{len(found.views)} videos of {found.scenarios} scenarios can be scored: {found.frames} frames each at "
            f"{found.fps:g} fps"
        )
        return
    if export is not None:
        console.print(f"{len(piq.export(found.views, export))} videos under their official names in {export}")
        return
    kept = cache if cache is not None else out.with_name("physics-iq-cache")
    measured = piq.run(found, cache=kept, masks=masks, workers=workers, quiet=quiet)
    result = piq.result(found, measured, name=generated.name, masks=masks)
    results.write(result, out if out.suffix == ".json" else out / results.FILE)
    console.print(piq.table(result))
    for note in result.notes:
        errors.print(f"[yellow]note[/] {escape(note)}")
    console.print(f"written to {out}; measurements are kept in {kept}")
