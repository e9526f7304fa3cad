"""The commands around other benchmarks' own code: what goes in, what comes out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainers import write_text
from trainers.commands import errors, friendly, hint, shown
from trainers.options import Quiet

if TYPE_CHECKING:
    from bench.official.folder import Clip, Problem, Wanted
    from bench.official.prompts import PromptList
    from bench.results import Result

commands = typer.Typer()

BENCHMARKS = ("videophy", "videophy2", "phygenbench", "vbench", "vbench2")
SHOWN_PROBLEMS = 20

Benchmark = Annotated[str, typer.Option("--benchmark", help=", ".join(BENCHMARKS))]
Videos = Annotated[Path, typer.Option("--videos", help="folder of videos, called by number (0012.mp4) or by caption")]
Prompts = Annotated[
    str | None,
    typer.Option("--prompts", help="videophy, videophy2, or a csv with a column caption (none: the benchmark's)"),
]
Clone = Annotated[
    Path | None, typer.Option("--clone", help="PhyGenBench: its clone; VBench: VBench_full_info.json (not shipped)")
]
Dimension = Annotated[str | None, typer.Option("--dimension", help="VBench-2.0: which of its dimensions")]
Manifest = Annotated[
    Path | None, typer.Option("--manifest", help="csv of videopath and caption, for videos under other names")
]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="videos a prompt (none: the benchmark's)")]
Fps = Annotated[float | None, typer.Option("--fps", min=0.1, help="rate of every video (none: that of most)")]
Size = Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT of every video (none: that of most)")]
Frames = Annotated[int | None, typer.Option("--frames", min=1, help="frames of every video (none: those of most)")]
Partial = Annotated[bool, typer.Option("--partial", help="go on with the sound videos where some are not")]
Model = Annotated[str, typer.Option("--name", help="name of what made the videos")]
RulesFile = Annotated[Path | None, typer.Option("--rules", help="csv of videopath and rule")]
ResultFile = Annotated[Path, typer.Option("--out", help="folder of result.json, or a .json file")]


@commands.command()
@friendly
def prompts(
    benchmark: Annotated[str, typer.Argument(help=", ".join(BENCHMARKS))],
    out: Annotated[Path, typer.Option("--out", help="csv to write")],
    clone: Clone = None,
    dimension: Dimension = None,
) -> None:
    """Write a benchmark's prompts with the names that their videos may have."""
    from bench.official import tables

    listed = _prompts(benchmark, None, clone, dimension)
    header = ("video", "caption", "group", "dense caption")
    body = [(f"{p.id}.mp4", p.caption, p.group, p.facts.get("dense caption", "")) for p in listed.prompts]
    tables.put(out, tables.table(header, body))
    shown.print(f"{len(body)} prompts of {listed.name} in {out}", markup=False)
    hint(f"make the videos, then bench to-official --benchmark {benchmark} --videos DIR --out DIR")


@commands.command()
@friendly
def to_official(
    benchmark: Benchmark,
    videos: Videos,
    out: Annotated[Path, typer.Option("--out", help="folder for tables or links; none of the videos is touched")],
    prompts: Prompts = None,
    clone: Clone = None,
    dimension: Dimension = None,
    manifest: Manifest = None,
    rules: RulesFile = None,
    samples: Samples = None,
    fps: Fps = None,
    size: Size = None,
    frames: Frames = None,
    name: Model = "model",
    copy: Annotated[bool, typer.Option("--copy", help="copy videos into a layout instead of linking them")] = False,
    partial: Partial = False,
    quiet: Quiet = False,
) -> None:
    """Check a folder of videos; write what a benchmark's code reads: tables for VideoPhy's raters, else a layout."""
    from bench.official import export, phygenbench, vbench, vbench2, videophy, videophy2

    listed = _prompts(benchmark, prompts, clone, dimension)
    wanted = _wanted(benchmark, samples, fps, size, frames)
    clips, problems = checked(videos, listed, wanted, manifest, quiet)
    show_problems(problems, out)
    if problems and not partial:
        raise ValueError(
            f"{len(problems)} problems with {videos}, listed in {out / 'problems.csv'}: mend them, or go on with the "
            f"{len(clips)} sound videos (--partial). Nothing else was written"
        )
    if not clips:
        raise ValueError(f"expected sound videos of {listed.name} in {videos}, got none")
    if benchmark in ("videophy", "videophy2"):
        made = videophy.tables_for(clips) if benchmark == "videophy" else videophy2.tables_for(clips, rules)
        written = export.write_tables(made, out)
        hint(f"bench rate --benchmark {benchmark} --tables {out} ..., or run the rater and then bench from-official")
    else:
        layout = {"phygenbench": phygenbench.layout, "vbench": vbench.layout, "vbench2": vbench2.layout}[benchmark]
        written = export.lay_out(clips, out, layout, model=name, copy=copy)
        hint(f"run the benchmark's code on {out}, then bench from-official --benchmark {benchmark} --results FILE")
    shown.print(
        f"{len(clips)} of {len(listed.prompts) * wanted.samples} videos, {len(written)} files in {out}", markup=False
    )


@commands.command()
@friendly
def from_official(
    benchmark: Benchmark,
    out: ResultFile,
    sa: Annotated[Path | None, typer.Option("--sa", help="VideoPhy: the rater's output for semantic adherence")] = None,
    pc: Annotated[Path | None, typer.Option("--pc", help="VideoPhy: its output for physical commonsense")] = None,
    rule: Annotated[Path | None, typer.Option("--rule", help="VideoPhy-2: its output for rules")] = None,
    human: Annotated[
        Path | None, typer.Option("--human", help="VideoPhy: people's labels instead of a rater's")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="PhyGenBench, VBench: result file, folder or zip")
    ] = None,
    prompts: Prompts = None,
    clone: Clone = None,
    name: Model = "model",
) -> None:
    """Read what a benchmark's own code wrote, and work out its figures under names that cannot be mixed up."""
    from bench import results as schema
    from bench.official import imports

    given = {"sa": sa, "pc": pc, "rule": rule, "human": human, "results": results}
    made = imports.result(benchmark, {kind: path for kind, path in given.items() if path}, prompts, clone, name)
    schema.write(made, out)
    show_result(made)


@commands.command()
@friendly
def rate(
    benchmark: Annotated[str, typer.Option("--benchmark", help="videophy or videophy2")],
    tables: Annotated[Path, typer.Option("--tables", help="folder that bench to-official wrote")],
    python: Annotated[Path, typer.Option("--python", help="interpreter of the rater's own environment")],
    clone: Annotated[Path, typer.Option("--clone", help="clone of github.com/Hritikbansal/videophy")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="folder of the rater's weights")],
    out: Annotated[Path, typer.Option("--out", help="folder of the rater's outputs and result.json")],
    prompts: Prompts = None,
    hours: Annotated[float, typer.Option("--hours", min=0.001, help="longest run of one task")] = 24.0,
    name: Model = "model",
) -> None:
    """Run VideoPhy's own rater in its own environment on tables of to-official; a stopped run goes on."""
    from bench import results as schema
    from bench.official import imports
    from bench.official.rater import TABLES, Rater

    own = Rater(benchmark, python, clone, checkpoint, hours * 3600)
    files = {task: tables / file for task, file in TABLES[benchmark].items() if (tables / file).is_file()}
    if not files:
        raise ValueError(f"expected {' or '.join(dict.fromkeys(TABLES[benchmark].values()))} in {tables}, got none")
    outputs = {}
    for task, table in files.items():
        errors.print(f"{task}: rating {table}", markup=False)
        outputs[task] = own.run(task, table, out / f"{task}.csv")
    made = imports.result(benchmark, outputs, prompts, None, name)
    schema.write(made, out)
    show_result(made)


@commands.command("vbench")
@friendly
def vbench_terms(
    videos: Annotated[Path, typer.Option("--videos", help="folder of videos")],
    dimension: Annotated[
        str, typer.Option("--dimension", help="temporal_flickering, imaging_quality (needs pyiqa) or dynamic_degree")
    ],
    out: Annotated[Path, typer.Option("--out", help="folder of NAME_eval_results.json")],
    name: Model = "model",
    flows: Annotated[
        Path | None, typer.Option("--flows", help="dynamic_degree: folder of flows, <video's name>.npy")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    quiet: Quiet = False,
) -> None:
    """Work out a dimension of VBench that needs no judge, in VBench's own format of results."""
    import json

    from bench.official import folder, vbench_terms
    from trainers.show import track

    if not videos.is_dir() or not (paths := folder.names_of(videos)):
        raise ValueError(f"expected a folder of videos, got {videos}")
    measure = vbench_terms.measure(dimension, device, flows)
    results = {path.name: measure(path) for path in track(paths, dimension, quiet=quiet)}
    score = vbench_terms.total(dimension, list(results.values()))
    entries = [{"video_path": path, "video_results": result} for path, result in results.items()]
    file = out / f"{name}_{dimension}_eval_results.json"
    write_text(file, json.dumps({dimension: [score, entries]}, indent=1) + "\n")
    shown.print(f"{dimension} {score:.4f} over {len(entries)} videos, in {file}", markup=False)


def _prompts(benchmark: str, prompts: str | None, clone: Path | None, dimension: str | None) -> "PromptList":
    from bench.official import phygenbench, vbench, vbench2
    from bench.official.prompts import load

    if benchmark not in BENCHMARKS:
        raise ValueError(f"expected the benchmark {', '.join(BENCHMARKS)}, got {benchmark!r}")
    if benchmark in ("videophy", "videophy2"):
        return load(prompts or benchmark)
    if prompts is not None:
        raise ValueError(f"--prompts goes with videophy and videophy2; {benchmark} scores its own prompts alone")
    if benchmark == "vbench2":
        if dimension is None:
            raise ValueError(f"vbench2 is laid out a dimension at a time: --dimension {'|'.join(vbench2.SHIPPED)}")
        return vbench2.prompts(dimension)
    if clone is None:
        what = "a clone of github.com/OpenGVLab/PhyGenBench" if benchmark == "phygenbench" else "VBench_full_info.json"
        raise ValueError(f"the prompts of {benchmark} are not shipped: name {what} with --clone")
    return phygenbench.prompts(clone) if benchmark == "phygenbench" else vbench.prompts(clone)


def _wanted(benchmark: str, samples: int | None, fps: float | None, size: str | None, frames: int | None) -> "Wanted":
    import re

    from bench.official import vbench, vbench2
    from bench.official.folder import Wanted

    parts = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size) if size else None
    if size and not parts:
        raise ValueError(f"expected --size WIDTHxHEIGHT, such as 832x480, got {size!r}")
    pixels = (int(parts[1]), int(parts[2])) if parts else None
    usual = {"vbench": vbench.SAMPLES, "vbench2": vbench2.SAMPLES}.get(benchmark, 1)
    return Wanted(samples=samples or usual, fps=fps, size=pixels, frames=frames)


def checked(
    videos: Path, listed: "PromptList", wanted: "Wanted", manifest: Path | None, quiet: bool
) -> "tuple[list[Clip], list[Problem]]":
    from bench.official import folder
    from trainers.show import bar

    total = len(folder.names_of(videos)) if videos.is_dir() else 0
    with bar("videos", total, quiet=quiet) as progress:
        done = iter(range(1, total + 1))
        return folder.check(videos, listed, wanted, manifest=manifest, seen=lambda: progress.update(next(done, total)))


def show_problems(problems: "Sequence[Problem]", out: Path) -> None:
    """Show the first problems, and write all of them to `out`."""
    from bench.official import folder

    if not problems:
        (out / "problems.csv").unlink(missing_ok=True)
        return
    write_text(out / "problems.csv", folder.written(problems))
    for problem in problems[:SHOWN_PROBLEMS]:
        errors.print(f"{problem.kind}: {problem.name}: {problem.text}", style="yellow", markup=False)
    if len(problems) > SHOWN_PROBLEMS:
        errors.print(f"and {len(problems) - SHOWN_PROBLEMS} more", style="yellow")


def show_result(made: "Result") -> None:
    from rich.markup import escape  # names come from files
    from rich.table import Table

    title = escape(f"{made.benchmark} on {made.prompt_set.name} by {made.rater.name} ({made.rater.kind})")
    table = Table(title=title, title_justify="left")
    for column in ("system", "group", "metric", "value", "95 % interval", "n", "unit"):
        table.add_column(column)
    for system in made.systems:
        for group, metrics in (("all", system.metrics), *system.groups.items()):
            for metric, found in metrics.items():
                value = "-" if found.value is None else f"{found.value:.4f}"
                span = "" if found.low is None else f"{found.low:.3f} to {found.high:.3f}"
                n = str(found.n) if found.n_valid is None else f"{found.n_valid} of {found.n}"
                table.add_row(escape(system.name), escape(group), metric, value, span, n, found.unit)
    shown.print(table)
    for note in made.notes:
        errors.print(f"note: {note}", style="yellow", markup=False)
