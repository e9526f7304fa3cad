"""The commands around other benchmarks' own code: what goes in, what comes out; and a judge of one's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainers.commands import Quiet, errors, friendly, hint, shown

if TYPE_CHECKING:
    from bench.judge.client import Judge
    from bench.official.folder import Clip, Problem, Wanted
    from bench.official.prompts import PromptList
    from bench.results import Result

commands = typer.Typer()
judge = typer.Typer(help="Ask a vision-language model VideoPhy-2's questions.", no_args_is_help=True)
commands.add_typer(judge, name="judge")

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
    clips, problems = _checked(videos, listed, wanted, manifest, quiet)
    _show_problems(problems, out)
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
    _show_result(made)


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
    _show_result(made)


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

    from bench.official import folder, tables, vbench_terms
    from trainers.show import track

    if not videos.is_dir() or not (paths := folder.names_of(videos)):
        raise ValueError(f"expected a folder of videos, got {videos}")
    measure = vbench_terms.measure(dimension, device, flows)
    results = {path.name: measure(path) for path in track(paths, dimension, quiet=quiet)}
    score = vbench_terms.total(dimension, list(results.values()))
    entries = [{"video_path": path, "video_results": result} for path, result in results.items()]
    file = out / f"{name}_{dimension}_eval_results.json"
    tables.replace(file, json.dumps({dimension: [score, entries]}, indent=1) + "\n")
    shown.print(f"{dimension} {score:.4f} over {len(entries)} videos, in {file}", markup=False)


Server = Annotated[str | None, typer.Option("--server", help="OpenAI-compatible server, http://localhost:8000/v1")]
ModelName = Annotated[str, typer.Option("--model", help="the server's name of the model, or a folder or hub id")]
Device = Annotated[str, typer.Option("--device", help="of a model on this machine: cpu or cuda")]
KeyVariable = Annotated[str, typer.Option("--key-variable", help="environment variable that holds the server's key")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="seconds for one answer")]
Retries = Annotated[int, typer.Option("--retries", min=0, help="further tries of one question")]
Seen = Annotated[int, typer.Option("--frames", min=1, max=256, help="frames of a video that the judge sees")]
Side = Annotated[int, typer.Option("--side", min=16, help="their longer side in pixels, at most")]
Tasks = Annotated[str, typer.Option("--tasks", help="of sa, pc and rule, with commas between")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="questions at once (none: 4 of a server, else 1)")
]
Run = Annotated[Path, typer.Option("--out", help="folder of answers.jsonl and of the result; a stopped run goes on")]


@judge.command("run")
@friendly
def judge_run(
    videos: Videos,
    model: ModelName,
    out: Run,
    server: Server = None,
    prompts: Annotated[str, typer.Option("--prompts", help="videophy, videophy2, or a csv with a column caption")] = (
        "videophy2"
    ),
    tasks: Tasks = "sa,pc",
    rules: RulesFile = None,
    manifest: Manifest = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="videos a prompt")] = 1,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="calibration.json of this judge, to say how far to believe it")
    ] = None,
    name: Model = "model",
    frames: Seen = 16,
    side: Side = 448,
    device: Device = "cpu",
    key_variable: KeyVariable = "OPENAI_API_KEY",
    timeout: Timeout = 120.0,
    retries: Retries = 4,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Rate a folder of videos with a judge of one's own: its figures are no benchmark's official ones."""
    from bench import results as schema
    from bench.judge import result as judged
    from bench.judge import run
    from bench.judge.frames import Look
    from bench.official import folder
    from bench.official.prompts import load
    from trainers.show import bar

    chosen = _tasks(tasks, rules)
    asker = _judge(server, model, device, key_variable, timeout, retries)
    known = _calibration(calibration, model)
    listed = load(prompts)
    clips, problems = _checked(videos, listed, folder.Wanted(samples=samples, alike=False), manifest, quiet)
    _show_problems(problems, out)
    if not clips:
        raise ValueError(f"expected sound videos of {listed.name} in {videos}, got none")
    asked = judged.questions(clips, chosen, rules)
    with bar("questions", len(asked), quiet=quiet) as progress:
        done = iter(range(1, len(asked) + 1))
        answers = run.ask(
            asker,
            asked,
            out,
            look=Look(frames, side),
            workers=workers or run.workers_for(asker),
            seen=lambda: progress.update(next(done)),
        )
    notes = [f"{len(problems)} problems with the videos, listed in problems.csv"] if problems else []
    made = judged.result(
        name,
        clips,
        answers,
        listed,
        judge=asker,
        look=Look(frames, side),
        tasks=chosen,
        notes=notes,
        calibration=known,
    )
    schema.write(made, out)
    _show_result(made)


@judge.command("calibrate")
@friendly
def judge_calibrate(
    videos: Annotated[Path, typer.Option("--videos", help="folder of the labelled videos, <model_name>/<file name>")],
    model: ModelName,
    out: Run,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="people's labels as JSON lines (none: VideoPhy-2's 318 rows)")
    ] = None,
    server: Server = None,
    tasks: Tasks = "sa,pc,rule",
    frames: Seen = 16,
    side: Side = 448,
    device: Device = "cpu",
    key_variable: KeyVariable = "OPENAI_API_KEY",
    timeout: Timeout = 120.0,
    retries: Retries = 4,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Compare a judge with people on the same videos: agreement, kappa, rank correlation and bias."""
    from bench.judge import calibrate, run
    from bench.judge.frames import Look
    from bench.judge.result import shown as drawn
    from bench.official import tables
    from bench.official.prompts import DATA
    from trainers.show import bar

    chosen = _tasks(tasks, None, needs_rules=False)
    asker = _judge(server, model, device, key_variable, timeout, retries)
    labels = labels or DATA / "videophy2" / "human_sample.jsonl"
    questions, missing = calibrate.labelled(labels, videos, chosen)
    for name in missing[:SHOWN_PROBLEMS]:
        errors.print(f"no video: {name}", style="yellow", markup=False)
    if missing:
        errors.print(f"{len(missing)} labels have no video in {videos}", style="yellow", markup=False)
    with bar("questions", len(questions), quiet=quiet) as progress:
        done = iter(range(1, len(questions) + 1))
        answers = run.ask(
            asker,
            [question.asked for question in questions],
            out,
            look=Look(frames, side),
            workers=workers or run.workers_for(asker),
            seen=lambda: progress.update(next(done)),
        )
    found = calibrate.calibrate(
        questions,
        answers,
        judge=asker.name,
        settings={**asker.settings, "frames": frames, "side": side},
        labels=labels,
        missing=len(missing),
    )
    file = tables.replace(out / "calibration.json", found.model_dump_json(indent=1) + "\n")
    for table in drawn(found):
        shown.print(table)
    _show_failed(answers.failed)
    hint(f"bench judge run ... --calibration {file}")


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


def _checked(
    videos: Path, listed: "PromptList", wanted: "Wanted", manifest: Path | None, quiet: bool
) -> "tuple[list[Clip], list[Problem]]":
    from bench.official import folder
    from trainers.show import bar

    total = len(folder.names_of(videos)) if videos.is_dir() else 0
    with bar("videos", total, quiet=quiet) as progress:
        done = iter(range(1, total + 1))
        return folder.check(videos, listed, wanted, manifest=manifest, seen=lambda: progress.update(next(done, total)))


def _show_problems(problems: "Sequence[Problem]", out: Path) -> None:
    """Show the first problems, and write all of them to `out`."""
    from bench.official import folder, tables

    if not problems:
        (out / "problems.csv").unlink(missing_ok=True)
        return
    tables.replace(out / "problems.csv", folder.written(problems))
    for problem in problems[:SHOWN_PROBLEMS]:
        errors.print(f"{problem.kind}: {problem.name}: {problem.text}", style="yellow", markup=False)
    if len(problems) > SHOWN_PROBLEMS:
        errors.print(f"and {len(problems) - SHOWN_PROBLEMS} more", style="yellow")


def _show_failed(failed: Sequence[tuple[Any, str]]) -> None:
    for asked, why in failed[:SHOWN_PROBLEMS]:
        errors.print(f"no answer: {asked.id}, {asked.question.task}: {why}", style="yellow", markup=False)


def _show_result(made: "Result") -> None:
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


def _tasks(tasks: str, rules: Path | None, *, needs_rules: bool = True) -> list[str]:
    from bench.judge.questions import TASKS

    chosen = [task.strip() for task in tasks.split(",") if task.strip()]
    if not chosen or set(chosen) - set(TASKS) or len(set(chosen)) < len(chosen):
        raise ValueError(f"expected tasks among {', '.join(TASKS)}, each once, got {tasks!r}")
    if rules is not None and "rule" not in chosen:
        chosen.append("rule")
    if needs_rules and "rule" in chosen and rules is None:
        raise ValueError("the task rule needs a table of rules: --rules FILE, a csv of videopath and rule")
    return chosen


def _judge(server: str | None, model: str, device: str, key_variable: str, timeout: float, retries: int) -> "Judge":
    from bench.judge.client import LocalModel, Server

    if server is None:
        return LocalModel(model, device)
    return Server(server, model, key_variable, timeout, retries)


def _calibration(path: Path | None, model: str) -> Any:
    from pydantic import ValidationError

    from bench.judge.calibrate import Calibration
    from bench.official import tables

    if path is None:
        return None
    try:
        found = Calibration.model_validate(tables.content(path))
    except ValidationError as error:
        wrong = error.errors()[0]
        what = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
        raise ValueError(f"expected calibration.json of bench judge calibrate, got {path}: {what}") from None
    if found.judge != Path(model).name and found.judge != model:
        raise ValueError(f"expected the calibration of {model}, got that of {found.judge}")
    return found
