"""The commands of a judge of one's own: a vision-language model that is asked VideoPhy-2's questions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.commands_official import (
    SHOWN_PROBLEMS,
    Manifest,
    Model,
    RulesFile,
    Videos,
    checked,
    show_problems,
    show_result,
)
from trainers import write_text
from trainers.commands import errors, friendly, hint, shown
from trainers.options import Quiet

if TYPE_CHECKING:
    from bench.judge.client import Judge

judge = typer.Typer(help="Ask a vision-language model VideoPhy-2's questions.", no_args_is_help=True)

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
    clips, problems = checked(videos, listed, folder.Wanted(samples=samples, alike=False), manifest, quiet)
    show_problems(problems, out)
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
            there=progress.skip,
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
    show_result(made)


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
            there=progress.skip,
        )
    found = calibrate.calibrate(
        questions,
        answers,
        judge=asker.name,
        settings={**asker.settings, "frames": frames, "side": side},
        labels=labels,
        missing=len(missing),
    )
    file = write_text(out / "calibration.json", found.model_dump_json(indent=1) + "\n")
    for table in drawn(found):
        shown.print(table)
    _show_failed(answers.failed)
    hint(f"bench judge run ... --calibration {file}")


def _show_failed(failed: Sequence[tuple[Any, str]]) -> None:
    for asked, why in failed[:SHOWN_PROBLEMS]:
        errors.print(f"no answer: {asked.id}, {asked.question.task}: {why}", style="yellow", markup=False)


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
