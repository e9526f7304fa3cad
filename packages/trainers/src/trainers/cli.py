"""`python -m trainers VERB`: what can be done without an app. `cache` looks after a store of artefacts."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from .cache import Cache

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
cache = typer.Typer(
    no_args_is_help=True, help="Look after a cache: what it holds, what is stale or broken, what to free."
)
app.add_typer(cache, name="cache")

Root = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the cache.")]


@cache.command()
def ls(root: Root) -> None:
    """Count entries by the artefacts that they hold."""
    with Cache(root) as store:
        held = Counter(", ".join(store.names(key)) for key in store.keys())
    for names, count in held.items():
        typer.echo(f"{count} entries: {names}")
