"""`bench`: measure physical plausibility and show it."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench import commands_physics

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console() if sys.stdout.isatty() else Console(width=118)  # a pipe has no width: do not wrap tables
errors = Console(stderr=True, highlight=False, soft_wrap=True)

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # both are read when transformers is first imported
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show what a user can mend as one line instead of a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError) as error:
            errors.print(f"error: {error}", style="bold red", markup=False)
            raise typer.Exit(1) from None

    return run


app.add_typer(commands_physics.commands)


@app.callback()
def main() -> None:
    """Measure physical plausibility and show it."""


@app.command()
@plain_errors
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the report, its figures and a picture.")] = Path(
        "bench-demo"
    ),
    clips: Annotated[int, typer.Option(min=1, help="Clips a mechanism.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise and of the live training.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 1.5,
    backbone: Annotated[str, typer.Option(help="'world', or a diffusers folder.")] = "world",
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 2,
    live: Annotated[bool, typer.Option(help="Train 60 steps of PILA first.")] = True,
) -> None:
    """Compare base, plain adapter and PILA on the embedded backbone; write a report to open in a browser."""
    import torch

    from bench.demo import run, shipped_systems, tables
    from bench.generate import Setting
    from bench.picture import save_picture
    from bench.report import write

    torch.set_num_threads(1)
    setting = Setting(backbone, clips, "test", seed, steps, guidance)
    result = run(setting, shipped_systems(), workers=workers, train_live=live)
    report = write(result, out)
    save_picture(result, out / "overview.png")
    for table in tables(result):
        console.print(table)
    console.print(
        "real, VAE: what can be reached; static, reversed, shuffled: controls that should fail (see the report)"
    )
    console.print(f"demo, not a claim. Open [bold]{report}[/] in a browser.")


if __name__ == "__main__":
    app()
