"""`bench`: measure physical plausibility and show it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from bench import commands_judge, commands_official, commands_physics
from trainers.commands import friendly, hint, new_app, shown
from trainers.options import Quiet

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when huggingface_hub is first imported

app = new_app("Measure physical plausibility and show it.")
app.add_typer(commands_physics.commands)
app.add_typer(commands_official.commands)
app.add_typer(commands_judge.judge, name="judge")

Steps = Annotated[int, typer.Option("--steps", min=1, help="Euler steps.")]
Guidance = Annotated[float, typer.Option("--guidance", help="Classifier-free guidance.")]
Backbone = Annotated[str, typer.Option("--backbone", help="'world', or a diffusers folder.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes of one thread each.")]
Each = Annotated[int, typer.Option("--each", min=0, help="Prompts a group whose videos are shown.")]


@app.command()
@friendly
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the report, its figures and a picture.")] = Path(
        "bench-demo"
    ),
    clips: Annotated[int, typer.Option(min=1, help="Clips a mechanism.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise and of the live training.")] = 0,
    steps: Steps = 25,
    guidance: Guidance = 1.5,
    backbone: Backbone = "world",
    workers: Workers = 2,
    also: Annotated[list[str] | None, typer.Option(help="Another shipped bundle, or 'all' (repeatable).")] = None,
    live: Annotated[bool, typer.Option(help="Train 60 steps of PILA first.")] = True,
    quiet: Quiet = False,
) -> None:
    """Compare base, plain adapter and PILA on the embedded backbone; write a report to open in a browser."""
    from bench import demo, report, results
    from bench.generate import Setting
    from bench.picture import save_picture

    setting = Setting(backbone, clips, ("test",), (seed,), steps, guidance)
    systems = demo.shipped_systems(also or ())
    folder = demo.run(setting, systems, out, workers=workers, train_live=live, quiet=quiet)
    page = report.write([folder], out / "report.html")
    save_picture(folder, out / "overview.png")
    for table in demo.tables(results.read(folder)):
        shown.print(table)
    shown.print(
        "real, VAE: what can be reached; static, reversed, shuffled: controls that should fail (see the report)"
    )
    hint(f"open {page} in a browser; it is a demo, not a claim. `bench world` measures with more clips and seeds")


@app.command()
@friendly
def world(
    out: Annotated[Path, typer.Option("--out", help="Folder of results, report, and of what was measured.")],
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            "--bundle",
            help="[NAME=]FOLDER, shipped name or hub id (repeatable; the same NAME again is another training run).",
        ),
    ] = None,
    per_category: Annotated[int, typer.Option("--per-category", min=1, help="Captions a mechanism.")] = 64,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Noise seeds a caption.")] = 3,
    split: Annotated[list[str] | None, typer.Option("--split", help="test, ood or val (repeatable).")] = None,
    steps: Steps = 25,
    guidance: Guidance = 1.5,
    backbone: Backbone = "world",
    scale: Annotated[int, typer.Option("--scale", min=1, help="Pictures of 32 pixels times this.")] = 1,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    workers: Workers = 2,
    maps: Annotated[bool, typer.Option("--maps", help="Also draw what each adapter saw in the first clips.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure adapters on the simulated world, in and out of distribution; run it again to go on."""
    from bench import demo, report, results
    from bench import world as study
    from bench.generate import Setting, System
    from physworld import SPLITS

    splits = tuple(split or ("test", "ood"))
    if strange := set(splits) - set(SPLITS):
        raise ValueError(f"expected splits among {', '.join(SPLITS)}, got {', '.join(sorted(strange))}")
    setting = Setting(backbone, per_category, splits, tuple(range(seeds)), steps, guidance, scale, device)
    systems = [System("base"), *study.named(bundle or [])]
    folders = study.run(setting, systems, out, workers=workers, maps=maps, quiet=quiet)
    for folder in folders:
        for table in demo.tables(results.read(folder)):
            shown.print(table)
    hint(f"open {report.write(folders, out / 'report.html')} in a browser")


@app.command()
@friendly
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Results, or folders of videos with records.jsonl.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the comparison and its report.")] = None,
    workers: Workers = 2,
) -> None:
    """Compare any runs of one benchmark prompt by prompt; refuses other prompts or another rater."""
    from bench import compare, demo, report

    result = compare.compare(runs, out=out, workers=workers)
    for note in result.notes:
        hint(note)
    for metric in dict.fromkeys(c.metric for c in result.comparisons):
        shown.print(demo.differences(result.comparisons, metric))
    if out is not None:
        hint(f"open {report.write([out], out / 'report.html')} in a browser")


@app.command()
@friendly
def ablate(
    recipe: Annotated[str, typer.Argument(help="An app's name, or a file of ablations.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of runs, evaluations and the table.")],
    config: Annotated[
        str | None, typer.Option("--config", help="Recipe of every row; the file's, else `tiny`.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override for every row, a.b=c (repeatable).")] = None,
    row: Annotated[list[str] | None, typer.Option("--row", help="Only this row (repeatable).")] = None,
    clips: Annotated[int, typer.Option("--clips", min=1, help="Captions a mechanism.")] = 64,
    split: Annotated[str, typer.Option("--split", help="test, ood or val.")] = "test",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds a row.")] = 1,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Rows at the same time.")] = 1,
) -> None:
    """Train and measure the rows of an ablation table through the app's own commands; run it again to go on."""
    from bench import ablate as study
    from bench import report
    from bench.ablation_results import printed
    from bench.ablation_table import read

    asked = {"clips": clips, "split": split, "seeds": seeds, "workers": workers}
    study.run(read(recipe), out, config=config, sets=set_ or (), rows=row, **asked)
    shown.print(printed(out))
    hint(f"open {report.write([out], out / 'report.html')} in a browser")


@app.command()
@friendly
def report(
    runs: Annotated[list[Path], typer.Argument(help="Result files, or folders with a result.json.")],
    out: Annotated[Path, typer.Option("--out", help="Page to write.")] = Path("report.html"),
    each: Each = 2,
) -> None:
    """Write one page for any results, with videos and figures inside; it opens from the file system."""
    from bench import report

    print(report.write(runs, out, each=each))


@app.command()
@friendly
def serve(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")],
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8765,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; others than this machine's are open.")] = (
        "127.0.0.1"
    ),
) -> None:
    """Show reports and live training curves of a folder of runs on this machine."""
    from bench import serve

    if host not in serve.NAMES:
        hint(f"whoever reaches {host} sees every run in {folder}: nobody is asked who they are")
    hint(f"http://{host}:{port} shows {folder}; Ctrl-C ends it")
    serve.serve(folder, host=host, port=port)


if __name__ == "__main__":
    app()
