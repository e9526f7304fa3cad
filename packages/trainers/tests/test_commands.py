"""A command line answers mistakes in one line, speaks once, and says what to do next."""

import json
import warnings

import pytest
import torch
import typer
from typer.testing import CliRunner

from trainers import InMemory, Length, Optim, Ramp, Skipped, Stage, commands, sheet
from trainers.commands import asked_by, friendly, hint, left_out, new_app, show_plan
from trainers.dryrun import Work
from trainers.footprint import Trained
from trainers.job import Job, Kind


def run(body):
    app = new_app("A test.")

    @app.callback()
    def main() -> None:
        """Keep `it` a command of its own."""

    app.command("it")(friendly(body))
    return CliRunner().invoke(app, ["it"])


def fails(error):
    def body() -> None:
        raise error

    return run(body)


WRONG = (ValueError("wrong [b]size[/b]"), OSError("full"), ImportError("no such"), ZeroDivisionError("by 0"))


@pytest.mark.parametrize("error", WRONG)
def test_what_a_user_got_wrong_is_one_line_and_no_traceback(error):
    found = fails(error)
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr == f"error: {error}\n"


def test_a_fault_of_the_program_stays_a_fault():
    assert isinstance(fails(KeyError("x")).exception, KeyError)


def test_ctrl_c_says_how_to_go_on_and_exits_as_shells_expect():
    found = fails(KeyboardInterrupt())
    assert found.exit_code == 130
    assert "--resume" in found.stderr
    leaving = fails(SystemExit("stopped by SIGTERM, resume with --resume"))
    assert "stopped by SIGTERM" in leaving.stderr


def test_of_several_processes_all_say_what_went_wrong_and_the_first_alone_the_rest(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(commands, "RANK", 1)
    assert fails(ValueError("no")).stderr == "error in process 1: no\n"
    assert "SIGTERM" not in fails(SystemExit("SIGTERM")).stderr

    def warn() -> None:
        warnings.warn("only rank 0 says this", UserWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(warn).stderr == ""


def test_a_warning_is_one_yellow_line_said_once_and_developers_warnings_are_silent():
    def body() -> None:
        for _ in range(2):
            warnings.warn("the clips are few", UserWarning, stacklevel=1)
        warnings.warn("old name", DeprecationWarning, stacklevel=1)
        hint("train")
        left_out([Skipped("a.mp4", "cut off")], notes=[Skipped("b", "unknown [category]")])

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        found = run(body)
    assert found.stdout == ""
    assert found.stderr.splitlines() == [
        "warning: the clips are few",
        "next: train",
        "left out: a.mp4: cut off",
        "note: b: unknown [category]",
    ]


def test_an_error_says_who_asked_for_it_unless_the_user_did():
    told = r"no model there; the bundle asks for it: say with --set backbone=\.\.\."
    with pytest.raises(ValueError, match=told), asked_by("the bundle", "backbone"):
        raise ValueError("no model there")
    with pytest.raises(ValueError, match=r"no model there$"), asked_by("the bundle", "backbone", unless=True):
        raise ValueError("no model there")


def job() -> Job:
    work = {b: Work(kept=b << 20, peak=b << 21, flops={"float32": b * 10**12}, traffic=b << 20) for b in (1, 4)}
    trained = Trained({"net": 1_000_000}, optimizer="adamw")
    return Job("toy", "4 values", 4, 1, 1, {"frozen": 1 << 20}, trained, (Kind("all", 100, work),))


def planned(**changes):
    given = {"gpu": ["H100"], "engine": "", "processes": 1, "measured": None, "efficiency": None, "as_json": False}
    return lambda: show_plan(job, **(given | changes))


def test_a_plan_shows_stages_and_cards_or_is_one_json_object():
    data = InMemory({"x": torch.zeros(1)})
    ramps = {"rise": Ramp(0.0, 2.0, to_step=50)}
    how = {"data": data, "length": Length(steps=100), "optim": Optim(lr=0.1), "unfreeze": {"net": 7}, "ramps": ramps}
    stage = Stage("joint", {"net": 0.5}, lambda *_: {}, batch_size=3, accumulate=2, **how)
    told = run(planned(stages=lambda: [stage])).stdout
    for part in ("joint", "100", "3 x 2", "net 0.05; net from step 7", "rise to 2 by 50", "H100", "hours"):
        assert part in told
    found = json.loads(run(planned(as_json=True, processes=8)).stdout)
    assert (found["engine"], found["processes"]) == ("ddp", 8)
    commands.shown.print(sheet.stages([stage]))


def test_a_plan_refuses_wrong_arguments_before_it_counts():
    def never() -> Job:
        raise AssertionError

    given = {"engine": "", "processes": 1, "measured": None, "efficiency": None, "as_json": False}
    for wrong in ({"gpu": ["H1000"]}, {"gpu": None, "engine": "zero9"}, {"gpu": None, "engine": "one", "processes": 2}):
        with pytest.raises(ValueError, match=r"expected|there is no GPU"):
            show_plan(never, **(given | wrong))


def test_a_table_of_rows_has_the_first_as_its_header_and_takes_text_as_it_is():
    def body() -> None:
        cells = [("name", "x"), ("a [raw]", "+0.1 [-0.2, +0.4]")]
        commands.show_table(cells, title="two [/old]", legend="x [b]: a number")

    told = run(body).stdout
    words = ("two [/old]", "name", "a [raw]", "+0.1 [-0.2, +0.4]", "x [b]: a number")
    assert [word in told for word in words] == [True] * 5


def test_a_wide_table_is_not_cut_where_there_is_no_terminal():
    cells = [f"+0.00{i} [-0.0{i}1, +0.0{i}2]" for i in range(9)]

    def body() -> None:
        commands.show_table([[f"column {i}" for i in range(9)], cells])

    told = run(body).stdout
    assert all(cell in told for cell in cells)
    assert max(map(len, told.splitlines())) < 300


def test_the_recipe_of_a_run_lies_in_its_folder(tmp_path):
    with pytest.raises(ValueError, match=r"expected the folder of a run with a recipe\.yaml"):
        commands.recipe_in(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    assert commands.recipe_in(tmp_path) == str(tmp_path / "recipe.yaml")


def test_an_app_without_a_command_shows_its_help():
    app = new_app("What it is.")
    for name in ("one", "two"):
        app.command(name)(lambda: None)
    found = CliRunner().invoke(app, [])
    assert "What it is." in found.stdout + found.stderr
    assert isinstance(app, typer.Typer)
