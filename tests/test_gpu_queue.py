"""The GPU queue: its rows are sound, its runner works what fits and loses nothing, its tables say what was measured."""

import importlib
import io
import json
import lzma
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from trainers import load_config

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks" / "gpu"
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(GPU))
try:
    import machine
    import rows
    import tables
    import wheels
    import work
finally:
    sys.path[:] = [path for path in sys.path if path not in (str(GPU), str(ROOT / "benchmarks"))]

QUEUE = rows.load()
BY_ID = {row.id: row for row in QUEUE}
WITHOUT_TOY = {24, 25}  # they need a language model and a rater; their parts are tried in apps/bench/tests
COMMANDS = [
    pytest.param(part.strip(), id=f"row {row.id}: {part.strip()[:60]}")
    for row in QUEUE
    for command in (*row.commands, *row.toy)
    for part in re.split(r"&&|\|", command)
    if part.strip().startswith("uv run ")
]


# The rows


def test_every_row_has_a_toy_form_or_a_reason():
    assert {row.id for row in QUEUE if not row.toy} == WITHOUT_TOY


def test_what_a_row_takes_is_made_before_it():
    for row in QUEUE:
        for item in row.inputs:
            assert [other.id for other in QUEUE if item in other.makes and other.id < row.id]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_queue_is_understood(command, monkeypatch, tmp_path):
    """By the command line's own parser and by the recipe that its sets change; nothing runs."""
    for name in {name for row in QUEUE for name in row.needs.variables}:
        command = command.replace(f"${name}", str(tmp_path))
    app, *words = shlex.split(command.removeprefix("uv run "))
    if app == "python":
        script = ROOT / words[0]
        known = script.read_text(encoding="utf-8")
        flags = [word for word in words[1:] if word.startswith("--")]
        assert [flag for flag in flags if f'"{flag}"' not in known] == []
        return
    words = [word.replace("runs/", f"{tmp_path}/") for word in words]
    click = typer.main.get_command(importlib.import_module(f"{app}.cli").app)
    context = click.make_context(app, list(words), resilient_parsing=False)
    while hasattr(click, "commands"):
        name, click, words = click.resolve_command(context, [*context._protected_args, *context.args])
        context = click.make_context(name, list(words), parent=context)
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config = next((words[i + 1] for i, word in enumerate(words) if word == "--config"), None)
    if app in ("pila", "prophy", "phantom") or (app == "mmphysvideo" and name != "pipe"):
        importlib.import_module(f"{app}.config").load_recipe(config, sets)
    elif app == "mmphysvideo":
        load_config(importlib.import_module("mmphysvideo.pipe.settings").Settings, config, sets)


def test_a_row_with_a_misspelt_key_or_an_input_that_nobody_makes_is_refused(tmp_path):
    row = 'id = 1\ncommands = ["true"]\ntoy = []\nminutes = 1\nproves = "x"\ncapability = "x"\n'
    for more, said in (("minute = 3\n", "minute"), ('inputs = ["runs/a"]\n', "no row makes")):
        (tmp_path / "q.toml").write_text(f"[[row]]\n{row}{more}")
        with pytest.raises(ValueError, match=said):
            rows.load(tmp_path / "q.toml")


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(rows, "reaches", lambda address: False)
    monkeypatch.delenv("WISA", raising=False)
    said = BY_ID[8].needs.missing(0)
    assert "a GPU" in said
    assert any(s.startswith("$WISA") for s in said)
    assert any("Wan2.1-T2V-1.3B" in s and "no network" in s for s in said)
    assert BY_ID[19].needs.missing(24.0) == ["78 GiB of GPU memory (this one has 24)"]
    folder = tmp_path / "models--Wan-AI--Wan2.1-T2V-1.3B-Diffusers" / "snapshots" / "a" / "vae"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv("WISA", str(tmp_path))
    assert BY_ID[8].needs.missing(80) == []
    monkeypatch.setenv("WISA", str(tmp_path / "nowhere"))
    assert "no such file or folder" in BY_ID[8].needs.missing(80)[0]


# The runner, on rows of a second


def queue(path, *listed):
    """Write a queue; a row is its id, commands, minutes and what else it has."""
    lines = []
    for number, commands, minutes, more in listed:
        lines += ["[[row]]", f"id = {number}", f"commands = {json.dumps(commands)}", f"minutes = {minutes}"]
        lines += ["toy = []", 'proves = "x"', 'capability = "x"', more]
        lines += [] if "needs" in more else ["needs = { gpu_gib = 0 }"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Work a queue in its own folder; give the rows of the results in their order."""
    monkeypatch.setattr(work, "ROOT", tmp_path)
    monkeypatch.setattr(work, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(rows, "reaches", lambda address: False)
    monkeypatch.setattr(machine, "code", lambda: "c0de")
    monkeypatch.setattr(machine, "commit", lambda: "c0ffee")

    def call(path, *arguments):
        status = work.main(["--out", str(tmp_path / "out"), *arguments], queue=path)
        return status, work.lines_of(tmp_path / "out" / "results.jsonl")

    return call


def test_what_fits_is_run_cheapest_first_and_what_it_takes_before_it(tmp_path, run, capsys):
    listed = queue(
        tmp_path / "q.toml",
        (1, ["touch runs/a"], 20, 'makes = ["runs/a"]'),
        (2, ["ls runs/a"], 1, 'inputs = ["runs/a"]'),
        (3, ["true"], 5, ""),
        (4, ["true"], 100, ""),
    )
    status, found = run(listed, "--budget", "30")
    assert (status, [line["row"] for line in found]) == (0, [3, 1, 2])
    assert "row 4: left: 100 minutes" in capsys.readouterr().out
    (tmp_path / "runs" / "a").unlink()
    assert [line["row"] for line in run(listed, "--budget", "30")[1]] == [3, 1, 2], "nobody takes what is gone"


def test_nothing_is_made_for_rows_that_cannot_be_run(tmp_path, run, capsys):
    lacking = 'inputs = ["runs/b"]\nneeds = { variables = { NOWHERE_SET = "a thing" }, gpu_gib = 0 }'
    listed = queue(
        tmp_path / "q.toml",
        (1, ["touch runs/a"], 1, 'makes = ["runs/a"]'),
        (2, ["touch runs/b"], 1, 'inputs = ["runs/a"]\nmakes = ["runs/b"]'),
        (3, ["true"], 1, lacking),
    )
    assert run(listed) == (0, [])
    said = capsys.readouterr().out
    assert "row 3: skipped, missing: $NOWHERE_SET (a thing)" in said
    assert "row 1: skipped, no row that takes runs/a can be run" in said


def test_what_is_gone_is_made_again_for_a_row_that_takes_it(tmp_path, run):
    takes = (2, ["test -e runs/b && ls runs/a"], 1, 'inputs = ["runs/a"]')
    listed = queue(tmp_path / "q.toml", (1, ["touch runs/a"], 1, 'makes = ["runs/a"]'), takes)
    assert [(line["row"], line["exit"]) for line in run(listed)[1]] == [(1, 0), (2, 1)]
    (tmp_path / "runs" / "a").rename(tmp_path / "runs" / "b")
    assert [(line["row"], line["exit"]) for line in run(listed)[1][2:]] == [(1, 0), (2, 0)]


def test_what_a_stopped_row_has_half_made_is_finished_before_it_is_taken(tmp_path, run, capsys):
    half = "if test -e runs/a; then touch runs/whole; else touch runs/a; exit 1; fi"
    takes = (2, ["test -e runs/whole"], 1, 'inputs = ["runs/a"]')
    listed = queue(tmp_path / "q.toml", (1, [half], 5, 'makes = ["runs/a"]'), takes)
    assert [(line["row"], line["exit"]) for line in run(listed)[1]] == [(1, 1)]
    assert "row 2: skipped, it takes runs/a of row 1" in capsys.readouterr().out
    assert [(line["row"], line["exit"]) for line in run(listed, "--rows", "2")[1]] == [(1, 1), (1, 0), (2, 0)]


def test_a_folder_with_a_blank_in_its_name_is_one_word_of_a_command():
    assert rows.placed("ls runs/a", Path("/my runs")) == "ls '/my runs'/a"


def test_a_line_says_what_was_measured_where_and_when(tmp_path, run):
    printed = '{"variant": "a", "ms": {"median": 2}}'
    command = f"echo progress; echo '{printed}'; echo '{{broken'; echo '{{\"x\": 1}}' > runs/f.json"
    _, found = run(queue(tmp_path / "q.toml", (7, [command], 1, 'read = ["runs/f.json"]')))
    assert [line["figures"] for line in found] == [json.loads(printed), {"x": 1}]
    line = found[0]
    assert (line["row"], line["command"], line["exit"], line["toy"]) == (7, command, 0, False)
    assert (line["commit"], line["code"]) == ("c0ffee", "c0de")
    assert {"gpu", "driver", "torch", "transformers", "python"} <= set(line["machine"])
    assert line["seconds"] < 60
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", line["date"])
    assert "progress" in (tmp_path / "out" / "log.txt").read_text()


def test_a_failed_row_is_recorded_and_the_others_run(tmp_path, run, capsys):
    listed = queue(
        tmp_path / "q.toml",
        (1, ["echo '{\"n\": 1}'; echo no memory >&2; exit 3"], 1, 'makes = ["runs/a"]'),
        (2, ["true"], 1, 'inputs = ["runs/a"]'),
        (3, ["true"], 2, ""),
    )
    status, found = run(listed)
    assert (status, [(line["row"], line["exit"]) for line in found]) == (1, [(1, 3), (3, 0)])
    assert found[0]["figures"] == {"n": 1}
    assert "no memory" in found[0]["error"]
    assert "row 2: skipped, it takes runs/a of row 1" in capsys.readouterr().out
    assert [line["row"] for line in run(listed)[1]] == [1, 3, 1], "a failed row is tried again, a good one is not"


def test_a_row_that_leaves_nothing_has_failed(tmp_path, run, capsys):
    status, _ = run(queue(tmp_path / "q.toml", (1, ["true"], 1, 'makes = ["runs/a"]')))
    assert status == 1
    assert "row 1: failed: it left no runs/a" in capsys.readouterr().out


def test_a_row_is_done_for_its_code_alone_and_also_where_its_results_were_committed(tmp_path, run, monkeypatch):
    listed = queue(tmp_path / "q.toml", (1, ["true", "false"], 1, ""))
    run(listed)
    assert [line["command"] for line in run(listed)[1]] == ["true", "false", "false"]
    (tmp_path / "results").mkdir()
    (tmp_path / "out" / "results.jsonl").rename(tmp_path / "results" / "a.jsonl")
    assert [line["command"] for line in run(listed)[1]] == ["false"]
    monkeypatch.setattr(machine, "code", lambda: "new")
    assert [line["command"] for line in run(listed)[1]] == ["false", "true", "false"]


def test_a_torn_last_line_is_no_measurement_and_is_written_over(tmp_path):
    path = tmp_path / "r.jsonl"
    work.append(path, [{"a": 1}])
    with path.open("a") as file:
        file.write('{"a": 2')
    assert work.lines_of(path) == [{"a": 1}]
    work.append(path, [{"a": 3}, {"a": 4}])
    assert work.lines_of(path) == [{"a": 1}, {"a": 3}, {"a": 4}]


def test_a_command_ends_with_the_budget_and_takes_its_children_along(tmp_path, run):
    listed = queue(tmp_path / "q.toml", (1, ["echo '{\"n\": 1}'; sleep 600 & echo $! > runs/pid; wait"], 0, ""))
    status, found = run(listed, "--budget", "0.03")
    assert (status, found[0]["exit"], found[0]["figures"]) == (1, 124, {"n": 1})
    assert "stopped after" in found[0]["error"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "runs" / "pid").read_text()), 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_whole_state_and_goes_on(tmp_path, number):
    waits = f"echo '{{\"n\": 1}}'; touch {tmp_path}/began; test -e {tmp_path}/again || sleep 600"
    listed = queue(tmp_path / "q.toml", (1, ["true"], 1, ""), (2, [waits], 2, ""))
    code = f"import sys; sys.path.insert(0, {str(GPU)!r}); import work; from pathlib import Path\n"
    code += "work.rows.reaches = lambda address: False\n"
    code += f"work.ROOT = Path({str(tmp_path)!r}); work.RESULTS = work.ROOT / 'results'\n"
    code += f"sys.exit(work.main(['--out', {str(tmp_path / 'out')!r}], queue=Path({str(listed)!r})))"
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "began").exists():
        time.sleep(0.02)
    first.send_signal(number)
    assert "stopped; the same command goes on" in first.communicate()[0]
    assert first.returncode == 130
    found = work.lines_of(tmp_path / "out" / "results.jsonl")
    assert [(line["row"], line["exit"], line["figures"]) for line in found] == [(1, 0, {}), (2, 130, {"n": 1})]
    (tmp_path / "again").touch()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    found = work.lines_of(tmp_path / "out" / "results.jsonl")
    assert [(line["row"], line["exit"]) for line in found] == [(1, 0), (2, 130), (2, 0)]


def test_unknown_rows_and_missing_wheels_are_one_line(tmp_path, run, capsys):
    listed = queue(tmp_path / "q.toml", (1, ["true"], 1, ""))
    assert work.main(["--rows", "1,9", "--out", str(tmp_path)], queue=listed) == 2
    assert "expected rows of the queue, got [9]" in capsys.readouterr().err
    assert work.main(["--wheels", str(tmp_path), "--out", str(tmp_path)], queue=listed) == 2
    assert "expected wheels" in capsys.readouterr().err


# The real rows, at toy size


def dry_run(out, *arguments):
    words = ["bash", GPU / "run.sh", "--dry-run", "--out", out, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable})
    log = (out / "log.txt").read_text(errors="replace") if (out / "log.txt").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]
    return work.lines_of(out / "results.jsonl")


@pytest.mark.long
def test_rows_run_on_a_cpu_and_give_the_figures_of_their_tables(tmp_path):
    """Some, by the script that works them on a GPU: the world's clips, fields, a language model, a method."""
    chosen = {1: 0, 12: 5, 15: 4, 19: 3}  # row: its figures
    found = dry_run(tmp_path, "--rows", ",".join(map(str, chosen)))
    for number, count in chosen.items():
        lines = [line for line in found if line["row"] == number]
        assert [line["exit"] for line in lines] == [0] * len(lines)
        assert len([line for line in lines if line["figures"]]) == count
        for template in BY_ID[number].columns.values():
            filled = [rows.columns_of(template, line["figures"]) for line in lines]
            assert any(filled) or "peak" in template, f"{template} finds nothing"  # a CPU has no peak


@pytest.mark.slow
def test_every_row_runs_on_a_cpu_at_toy_size(tmp_path):
    found = dry_run(tmp_path)
    assert {line["row"] for line in found} == {row.id for row in QUEUE} - WITHOUT_TOY
    assert [line["command"] for line in found if line["exit"]] == []


# The tables


def fake(number, command, date, *, exit=0, toy=False, gpu="NVIDIA H100", **figures):
    about = {"gpu": gpu, "torch": "2.11.0", "diffusers": "0.42.1", "transformers": "5.17.0"}
    line = {"row": number, "command": command, "figures": figures, "machine": about, "commit": "c0ffee" * 4}
    return line | {"code": "c", "date": date, "seconds": 1.0, "exit": exit, "toy": toy}


def test_a_table_shows_the_last_good_run_of_each_command(tmp_path):
    first, second = BY_ID[15].commands
    good = {"model": "m", "ratio": 1.01, "lowest": 1.0, "highest": 1.02, "peak_gib": 17.5}
    lines = [
        fake(15, first, "2026-12-01T10:00:00+00:00", variant="old", seconds=9.0, **good),
        fake(15, first, "2026-12-02T10:00:00+00:00", variant="plain", seconds=1.5, **good),
        fake(15, first, "2026-12-02T10:00:00+00:00", variant="probe | 2", seconds=2.5, **good),
        fake(15, first, "2026-12-03T10:00:00+00:00", exit=1, variant="failed", seconds=1.0, **good),
        fake(15, second, "2026-12-03T10:00:00+00:00", toy=True, variant="toy", seconds=1.0, **good),
        fake(9, first, "2026-12-03T10:00:00+00:00", variant="another row", seconds=1.0, **good),
    ]
    assert tables.table_of(BY_ID[15], lines) == (
        "Row 15: NVIDIA H100, torch 2.11.0, diffusers 0.42.1, transformers 5.17.0, 2026-12-02, commit c0ffeec0f.\n\n"
        "| model | variant | s | ratio | peak, GiB |\n| --- | --- | --- | --- | --- |\n"
        "| m | plain | 1.5 | 1.01 (1.0 to 1.02) | 17.5 |\n| m | probe \\| 2 | 2.5 | 1.01 (1.0 to 1.02) | 17.5 |"
    )
    assert "2026-12-02, NVIDIA H100 (in part) |" in tables.queue_of(QUEUE, lines)
    assert "Not measured yet: row 9" in tables.table_of(BY_ID[9], lines[:-1])


def test_pages_are_made_from_results_and_stay_as_they_are_made(tmp_path):
    home, results = tmp_path / "benchmarks", tmp_path / "results"
    for page in tables.PAGES:
        (home / page).parent.mkdir(parents=True, exist_ok=True)
        (home / page).write_text((tables.HOME / page).read_text(encoding="utf-8"), encoding="utf-8")
    (command,) = BY_ID[12].commands
    measured = fake(12, command, "2026-12-02T10:00:00+00:00", case="720p", form="compiled", what="forward", goal=0.7)
    measured["figures"]["ms"] = {"median": 1.25, "low": 1.0, "high": 1.5}
    work.append(home.parent / "results.jsonl", [measured])
    results.mkdir()
    (home.parent / "results.jsonl").rename(results / "h100.jsonl")
    made = tables.pages(home, results)
    assert "| 720p | compiled, forward | 1.25 (1.0 to 1.5) | 0.7 |" in made[home / "README.md"]
    assert "2026-12-02, NVIDIA H100 |" in made[home / "gpu" / "QUEUE.md"]
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    assert tables.pages(home, results) == made


def test_the_committed_pages_are_those_that_the_script_makes():
    for path, text in tables.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run `uv run python benchmarks/tables.py`"


def test_every_row_with_columns_has_its_table():
    page = (tables.HOME / "README.md").read_text(encoding="utf-8")
    assert {int(n) for n in re.findall(r"<!-- table: row (\d+) -->", page)} == {r.id for r in QUEUE if r.columns}


def test_a_mark_without_an_end_is_refused():
    with pytest.raises(ValueError, match="found none"):
        tables.rewritten("a\n<!-- table: queue -->\nb", str)


# The environment


def test_wheels_are_those_of_the_lock_file_for_the_other_machine():
    wanted = wheels.wanted({"numpy", "pydantic-core"})
    names = [requirement.partition("==")[0] for requirement in wanted]
    assert {"diffusers", "av", "pydantic"} <= set(names)
    assert not {"torch", "triton", "numpy", "pydantic-core", "colorama"} & set(names)
    assert not any(name.startswith("nvidia-") for name in names)
    assert names.count("av") == 1, "one of the two that the lock file has, by Python"
    assert not any(";" in requirement for requirement in wanted)
    assert wanted[-1].startswith("uv_build")


def test_a_folder_that_holds_something_else_is_not_emptied_for_wheels(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").touch()
    monkeypatch.setattr(sys, "argv", ["wheels.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        wheels.main()
    assert (tmp_path / "mine.txt").exists()
    assert "expected a folder of wheels or none for --out" in capsys.readouterr().err


def test_a_packed_wheel_is_the_wheel(tmp_path):
    files = {"a/b.py": "x = 1\n" * 1000}
    (tmp_path / "a.whl").write_bytes(packed_wheel("a", files))
    unpacked = zipfile.ZipFile(io.BytesIO(lzma.decompress(wheels.packed(tmp_path / "a.whl"))))
    original = zipfile.ZipFile(tmp_path / "a.whl")
    assert unpacked.namelist() == original.namelist()
    assert [unpacked.read(name) for name in unpacked.namelist()] == [original.read(n) for n in original.namelist()]


def test_the_machine_of_a_figure_is_named(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 580.159.04'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = machine.facts(Path(sys.executable))
    assert (found["gpu"], found["gpu_gib"], found["driver"]) == ("NVIDIA H100 80GB HBM3", 79.6, "580.159.04")
    assert found["torch"] == version("torch")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine.facts(Path(sys.executable))["gpu"] is None


BUILDER = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(pathlib.Path(folder, "member-0.1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("member.pth", str(pathlib.Path("src").resolve()))
        about = {"METADATA": "Metadata-Version: 2.1\\nName: member\\nVersion: 0.1\\n", "RECORD": ""}
        about["WHEEL"] = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        for name, text in about.items():
            wheel.writestr(f"member-0.1.dist-info/{name}", text)
    return "member-0.1-py3-none-any.whl"
"""


def packed_wheel(name, files):
    """A wheel of version 0.1 in bytes."""
    about = f"{name}-0.1.dist-info"
    files = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return data.getvalue()


def test_an_environment_is_made_from_carried_wheels_alone(tmp_path, monkeypatch):
    """Of one wheel and one member, by pip, without an index; what this Python has stays visible."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    if subprocess.run([base, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip(f"{base} has no pip, and an environment of uv has none either")
    monkeypatch.setattr(sys, "executable", str(base))
    (tmp_path / "w").mkdir()
    builder = packed_wheel("uv_build", {"uv_build.py": BUILDER})
    (tmp_path / "w" / "uv_build-0.1-py3-none-any.whl.xz").write_bytes(lzma.compress(builder))
    member = tmp_path / "member"
    (member / "src").mkdir(parents=True)
    (member / "src" / "member.py").write_text("import torch")
    (member / "pyproject.toml").write_text('[build-system]\nrequires = ["uv_build"]\nbuild-backend = "uv_build"\n')
    monkeypatch.setattr(machine, "MEMBERS", [member])
    python = machine.set_up(tmp_path / "w", tmp_path / "venv")
    shown = subprocess.run([python, "-c", "import member; print(member.__file__)"], capture_output=True, text=True)
    assert shown.stdout.strip() == str(member / "src" / "member.py"), shown.stderr
    monkeypatch.setattr(machine, "_run", None)
    assert machine.set_up(tmp_path / "w", tmp_path / "venv") == python, "the same wheels need no second time"
