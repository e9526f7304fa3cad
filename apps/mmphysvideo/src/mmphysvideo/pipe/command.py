"""The command `mmphysvideo pipe`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from trainers.commands import friendly, hint, line, shown
from trainers.options import Quiet, Set

__all__ = ["pipe"]

Videos = Annotated[Path, typer.Argument(help="folder of videos, one video, or a table of records")]
Made = Annotated[Path, typer.Option("--out", help="folder of the run: manifest, records, clips, contact sheet")]
Settings_ = Annotated[Path | None, typer.Option("--settings", help="YAML file of settings (none: the defaults)")]
Root = Annotated[Path | None, typer.Option("--root", help="folder that the records' paths are relative to")]
Ray = Annotated[int, typer.Option("--ray", min=0, help="actors on Ray; 0: this process alone, or torchrun's")]
Gpus = Annotated[float, typer.Option("--gpus-per-actor", min=0, help="GPUs of each Ray actor")]


@friendly
def pipe(
    videos: Videos,
    out: Made = Path("runs/pipe"),
    settings: Settings_ = None,
    set_: Set = None,
    root: Root = None,
    ray: Ray = 0,
    gpus_per_actor: Gpus = 0,
    quiet: Quiet = False,
) -> None:
    """Make clips with pseudo-RGB, captions and evidence from plain videos; run again, it goes on where it stopped."""
    from mmphysvideo.pipe.run import run, sources_of
    from mmphysvideo.pipe.settings import Settings
    from trainers import load_config

    chosen = load_config(Settings, settings, set_ or [])
    sources, skipped = sources_of(videos, root=root)
    if ray:
        from mmphysvideo.pipe.ray import run_on_ray

        manifest = run_on_ray(sources, out, chosen, workers=ray, skipped=skipped, num_gpus=gpus_per_actor, quiet=quiet)
    else:
        manifest = run(sources, out, chosen, skipped=skipped, quiet=quiet)
    table = Table("clip", "outcome", "what", title=escape(f"{out}/manifest.json"))
    for status in ("kept", "dropped", "failed"):
        for clip in manifest[status]:
            what = clip["caption"] if status == "kept" else f"{clip['stage']}: {clip['why']}"
            table.add_row(clip["clip"], status, escape(what))
    for file in manifest["files_without_clips"]:
        table.add_row(escape(file["file"]), "failed" if file["failed"] else "no clip", escape(file["why"]))
    for one in manifest["skipped"]:
        table.add_row(escape(one["path"]), "skipped", escape(one["why"]))
    shown.print(table)
    totals = manifest["totals"]
    shown.print(", ".join(f"{totals[k]} {k}" for k in ("kept", "dropped", "failed", "pending")))
    kept = line("mmphysvideo", "cache", set=[f"data.source={out / 'records.jsonl'}", f"data.fps={chosen.cut.fps:g}"])
    hint(f"look at {out / 'sheet.png'}; {kept} takes what was kept")
