"""An ablation table is run by command lines alone, goes on where it stopped, and pairs its rows."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import ablate, ablation_table, results
from bench.cli import app

TOY = '''
"""An app that trains and evaluates in no time; every start leaves a line."""
import json, pathlib, sys

verb, given = sys.argv[1], sys.argv[2:]
sets = [b for a, b in zip(given, given[1:]) if a == "--set"]
flag = lambda name: given[given.index(name) + 1]
log = pathlib.Path(flag("--out")).parents[1] / "started.txt"
with log.open("a") as lines:
    lines.write(" ".join([verb, *sorted(sets), *(["--resume"] if "--resume" in given else [])]) + "\\n")
if "broken=true" in sets:
    sys.exit("this row cannot be trained")
if verb == "train":
    out = pathlib.Path(flag("--out"))
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    if "stop=true" in sets and "--resume" not in given:
        sys.exit("killed")
    (out / "bundle").mkdir()
    gain = 0.3 - 0.1 * ("part=off" in sets) + 0.01 * int([s for s in sets if s.startswith("seed=")][0][5:])
    taught = flag("--teacher") if "--teacher" in given else ""
    (out / "bundle" / "bundle.json").write_text(json.dumps({"gain": gain, "taught": taught}))
else:
    gain = json.loads((pathlib.Path(flag("--bundle")) / "bundle.json").read_text())["gain"] - 0.05 * ("k=1" in sets)
    n = int(flag("--clips"))
    base = [((7 * i) % 10) / 20 for i in range(n)]
    run = lambda values: [{"about": {}, "scored": {m: {"passes": [v > 0.5 for v in values], "scores": values,
        "measures": [{} for _ in values]} for m in ("fluid", "thermal")}}]
    content = {"format": 1, "clips": n, "split": flag("--split"), "seed": 0, "scale": 1, "observed": 0,
        "mechanisms": ["fluid", "thermal"], "world": "w", "thresholds": "t", "more": {},
        "methods": {"base": run(base), "toy": run([v + gain for v in base])}}
    pathlib.Path(flag("--out")).write_text(json.dumps(content))
'''
TABLE = """
rows:
  - {name: without the part, set: [part=off], what: The part is switched off.}
  - {name: one expert, set: [k=1], when: sampling, what: One expert answers.}
  - {name: asks a model, set: [llm=true], when: language model, what: A language model helps.}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An installed app with a table of ablations."""
    home = tmp_path / "site" / "toyapp"
    (home / "recipes").mkdir(parents=True)
    (home / "__init__.py").write_text("")
    (home / "cli.py").write_text(TOY)
    (home / "recipes" / "ablations.yaml").write_text(TABLE)
    monkeypatch.syspath_prepend(str(home.parent))
    monkeypatch.setenv("PYTHONPATH", str(home.parent))
    yield home
    for name in [n for n in sys.modules if n.startswith("toyapp")]:
        del sys.modules[name]


def started(out) -> list[str]:
    return (out / "started.txt").read_text().splitlines()


def test_a_table_is_trained_evaluated_and_paired_by_clip(toy, tmp_path):
    out = tmp_path / "out"
    result = ablate.run(ablation_table.read("toyapp"), out, clips=8, seeds=2)
    assert [s.name for s in result.systems] == ["base", ablation_table.WHOLE, "without the part", "one expert"]
    gains = {(c.a, c.b): c for c in result.comparisons if c.metric == "score" and not c.group}
    assert gains[ablation_table.WHOLE, "base"].mean == pytest.approx(0.305)
    assert gains["without the part", ablation_table.WHOLE].mean == pytest.approx(-0.1)
    assert gains["one expert", ablation_table.WHOLE].mean == pytest.approx(-0.05)
    assert result.system("one expert").details == {"what": "One expert answers.", "set": ["k=1"]}
    assert result.system(ablation_table.WHOLE).training_seeds == (0, 1)
    trained = [line for line in started(out) if line.startswith("train")]
    assert trained == ["train seed=0", "train seed=1", "train part=off seed=0", "train part=off seed=1"]


def test_what_stands_is_not_done_again_and_more_rows_are_added(toy, tmp_path):
    out = tmp_path / "out"
    table = ablation_table.read("toyapp")
    ablate.run(table, out, clips=8, rows=["one expert"])
    before = started(out)
    ablate.run(table, out, clips=8, rows=["one expert"])
    assert started(out) == before
    ablate.run(table, out, clips=8)
    assert started(out)[len(before) :] == ["train part=off seed=0", "evaluate"]


def test_a_killed_training_goes_on_and_a_failed_row_is_named(toy, tmp_path):
    out = tmp_path / "out"
    rows = [
        {"name": "slow", "set": ["stop=true"], "what": "Stopped once."},
        {"name": "broken", "set": ["broken=true"], "what": "Fails."},
    ]
    (tmp_path / "mine.yaml").write_text(json.dumps({"app": "toyapp", "rows": rows}))
    table = ablation_table.read(str(tmp_path / "mine.yaml"))
    with pytest.raises(
        ValueError, match=r"slow \(seed 0\) failed.*killed; broken \(seed 0\) failed.*cannot be trained"
    ):
        ablate.run(table, out, clips=8)
    assert [s.name for s in results.read(out).systems] == ["base", ablation_table.WHOLE]
    with pytest.raises(ValueError, match=r"^broken"):
        ablate.run(table, out, clips=8)
    assert "train seed=0 stop=true --resume" in started(out)
    assert "slow" in [s.name for s in results.read(out).systems]


def test_a_command_that_outlived_its_bench_is_waited_for(toy, tmp_path, monkeypatch):
    out = tmp_path / "out"
    waits = threading.Event()
    monkeypatch.setattr(ablate.errors, "print", lambda *_, **__: waits.set())
    with ablate._alone(out / "runs" / "whole-method-seed0", threading.Event()) as held:
        left = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(held,))  # as `train` is when bench is killed
    table = ablation_table.read("toyapp")
    given = {"clips": 1, "rows": ["one expert"]}
    again = threading.Thread(target=ablate.run, args=(table, out), kwargs=given, daemon=True)
    again.start()
    try:
        assert waits.wait(60)
        assert not (out / "started.txt").exists()
    finally:
        left.communicate()
    again.join(60)
    assert not again.is_alive()
    assert len(started(out)) == 3


def test_who_leaves_while_another_command_works_starts_nothing(tmp_path):
    leaving = threading.Event()
    with ablate._alone(tmp_path / "run", threading.Event()):
        leaving.set()
        with (
            pytest.raises(InterruptedError, match="left while another command works"),
            ablate._alone(tmp_path / "run", leaving),
        ):
            pass


@pytest.mark.parametrize("workers", [1, 2])
def test_a_student_learns_from_the_teacher_that_its_row_names(toy, tmp_path, workers):
    rows = [
        {"name": "teacher", "stage": "teacher", "what": "First."},
        {"name": "student", "stage": "student", "what": "Learns from it."},
        {"name": "half a teacher", "stage": "teacher", "set": ["part=off"], "what": "Half of the first."},
        {"name": "its student", "stage": "student", "set": ["x=1"], "needs": "half a teacher", "what": "Learns less."},
    ]
    (tmp_path / "mine.yaml").write_text(json.dumps({"app": "toyapp", "rows": rows}))
    out = tmp_path / "out"
    result = ablate.run(ablation_table.read(str(tmp_path / "mine.yaml")), out, clips=1, workers=workers)
    assert [s.name for s in result.systems] == ["base", "student", "half a teacher", "its student"]
    runs = {p.parent.parent.name: json.loads(p.read_text()) for p in out.glob("runs/*/bundle/bundle.json")}
    assert set(runs) == {f"{n}-seed0" for n in ("teacher", "student", "half-a-teacher", "half-a-teacher-student")} | {
        "its-student-seed0"
    }
    assert runs["student-seed0"]["taught"].endswith("/teacher-seed0/bundle")
    assert runs["half-a-teacher-student-seed0"]["taught"].endswith("/half-a-teacher-seed0/bundle")
    assert runs["its-student-seed0"]["taught"].endswith("/half-a-teacher-seed0/bundle")
    assert len([line for line in started(out) if line.startswith("train")]) == 5


def test_a_folder_of_another_recipe_is_refused(toy, tmp_path):
    table = ablation_table.read("toyapp")
    ablate.run(table, tmp_path / "out", clips=1, rows=["one expert"])
    with pytest.raises(ValueError, match="take another --out"):
        ablate.run(table, tmp_path / "out", clips=1, sets=["steps=3"])


def test_the_command_prints_the_table(toy, tmp_path):
    given = ["ablate", "toyapp", "--out", str(tmp_path / "out"), "--clips", "8"]
    answer = CliRunner().invoke(app, given)
    assert answer.exit_code == 0, answer.stderr
    assert "score - whole method" in answer.stdout
    assert "-0.100" in answer.stdout
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows: []", "at least 1"),
        ("rows: [{name: a, what: b, typo: 1}]", "Extra inputs"),
        ("app: nosuchapp\nrows: [{name: a, set: [x=1], what: b}]", "name of an installed app"),
        ("app: toyapp\nrows: [{name: a, set: [x=1], what: b}, {name: A, what: c}, {name: A, what: d}]", "own in"),
        ("rows: {", "expected YAML"),
    ],
)
def test_a_table_that_is_none_says_what_is_wrong(toy, tmp_path, text, said):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        ablation_table.read(str(tmp_path / "t.yaml"))


def test_the_tables_that_apps_ship_are_read():
    for name in ("pila", "prophy", "phantom", "mmphysvideo"):
        table = ablation_table.read(name)
        assert table.app == name
        assert sum(not row.set for row in table.measured) == 1
    names = [row.name for row in ablation_table.choose(ablation_table.read("pila"), None)]
    assert "plain adapter" in names
    assert "k = 2" in names
    assert "w/o prompt refine" not in names
    with pytest.raises(ValueError, match="expected rows among"):
        ablation_table.choose(ablation_table.read("pila"), ["k = 99"])
    with pytest.raises(ValueError, match="an app that ships"):
        ablation_table.read("json")


def test_evaluations_of_other_clips_are_not_mixed(toy, tmp_path):
    out = tmp_path / "out"
    table = ablation_table.read("toyapp")
    ablate.run(table, out, clips=8, rows=["one expert"])
    file = next(iter((out / "evaluations").glob("one-expert-*.json")))
    file.write_text(file.read_text().replace('"world": "w"', '"world": "other"'))
    with pytest.raises(ValueError, match="is of others: delete it"):
        ablate.run(table, out, clips=8, rows=["one expert"])
    assert np.isfinite(results.read(out).systems[0].metrics["score"].value)
