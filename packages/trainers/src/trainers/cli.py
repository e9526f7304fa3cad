"""`python -m trainers VERB`: what can be done without an app. `cache` looks after a store of artefacts, `schema` writes
the JSON schema of a recipe."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from . import cache_upkeep
from .artefact import Producer, plain
from .cache import Cache
from .config import did_you_mean

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
cache = typer.Typer(
    no_args_is_help=True, help="Look after a cache: what it holds, what is stale or broken, what to free."
)
app.add_typer(cache, name="cache")

Root = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the cache.")]
Forget = Annotated[bool, typer.Option("--drop", help="Forget what is listed, so that the cache step makes it anew.")]
LISTED = 20
"""Entries that are named one by one."""


@cache.command("ls")
def list_(root: Root) -> None:
    """List the artefacts of a cache by name and producer, and its shards."""
    with Cache(root) as store:
        rows = cache_upkeep.held(store)
        shards, size = store.index.rows("select count(*), coalesce(sum(size), 0) from shards")[0]
        entries = len(store.keys())
    typer.echo(f"{entries} entries in {shards} shards, {size / 1e6:.1f} MB")
    for row in rows:
        made = plain(row.producer) if row.producer else {"producer": "not recorded"}
        typer.echo(f"  {row.name}: {row.entries}  " + ", ".join(f"{k} {v}" for k, v in made.items() if v))


@cache.command()
def stale(
    root: Root,
    present: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="YAML or JSON: `producers: {latent: {model: ..., revision: ...}}` and, if you like, `spec`; the "
            "summary of a cache job (reports/*.json) will do.",
        ),
    ],
    drop: Forget = False,
) -> None:
    """Name what the present config would not make as it is stored, and what differs: old -> new."""
    producers, spec = _present(present)
    with Cache(root) as store:
        rows = cache_upkeep.stale(store, producers, spec=spec)
        groups: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            groups.setdefault((row.artefact or "entry", "; ".join(row.why)), []).append(row.key)
        for (what, why), keys in groups.items():
            more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
            typer.echo(f"{len(keys)} x {what}: {why}")
            typer.echo(f"  {' '.join(key[:12] for key in keys[:LISTED])}{more}")
        typer.echo(f"{len(rows)} stale, {cache_upkeep.drop(store, rows)} dropped" if drop else f"{len(rows)} stale")


@cache.command()
def verify(root: Root, drop: Forget = False) -> None:
    """Read everything: checksums, finite, dtypes and shapes as the producers say. Exits with 1 if some is wrong."""
    with Cache(root) as store:
        bad = cache_upkeep.verify(store)
        for row in bad:
            typer.echo(f"{row.key[:12]} {row.artefact}: {row.why}" if row.key else row.why)
        dropped = f", {cache_upkeep.drop(store, bad)} dropped" if drop else ""
    typer.echo(f"{len(bad)} wrong{dropped}")
    if bad:
        raise typer.Exit(1)


@cache.command()
def gc(root: Root) -> None:
    """Free what nothing reads: dropped artefacts, second copies, damaged shards, what killed writers left."""
    with Cache(root) as store:
        typer.echo(f"{cache_upkeep.gc(store) / 1e6:.1f} MB freed")


@cache.command()
def rebuild(root: Root) -> None:
    """Make the index anew from the shards, which say what they hold."""
    with Cache(root) as store:
        store.index.rebuild()
        typer.echo(f"{len(store.keys())} entries in {store.index.rows('select count(*) from shards')[0][0]} shards")


@app.command()
def schema(
    model: Annotated[str, typer.Argument(help="Class of the recipe, such as pila.config:Recipe.")],
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write; none: print it.")] = None,
) -> None:
    """Write the JSON schema of a recipe for editors; a recipe names it by `# yaml-language-server: $schema=FILE`."""
    from .schema import find, schema, write

    try:
        found = find(model)
        text = write(found, out) if out is not None else json.dumps(schema(found), indent=1)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(text)


def _present(path: Path) -> tuple[dict[str, Any], Any]:
    """The producers and the spec that a file names."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        producers = tree["producers"]
        fields = list(Producer.__dataclass_fields__)
        for name, given in producers.items():
            for field in given:
                if field not in fields:
                    raise ValueError(f"{name} has an unknown field {field!r}: {did_you_mean(field, fields)}")
        return {name: Producer(**given) for name, given in producers.items()}, tree.get("spec")
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise typer.BadParameter(f"expected `producers: {{NAME: {{model: ...}}}}` in {path}: {error}") from None
