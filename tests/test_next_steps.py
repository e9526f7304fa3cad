"""Every verb says what to do next, in commands that can be copied: they parse, and repeat what the user chose."""

import re
import shlex
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import trainers.method as verbs
from trainers import commands
from trainers.check import Finding
from trainers.method import Export
from trainers.options import Chosen, Planned

APPS = ("pila", "prophy", "phantom", "mmphysvideo")
SET = ["--set", "sampling.steps=2", "--set", "backbone=my models/wan", "--config", "tiny"]


class Found:
    """Whatever the work of a verb would have given, as far as it is told."""

    clips = computed = placeless = rank = steps = global_step = 10**9
    world_size, seconds, teacher, skipped, notes = 1, 1.0, "world", (), ()
    losses, labels, held_clips, said, methods, more, pool = {}, {}, (), None, {}, {"diversity": {}}, {}

    def __init__(self, **known):
        self.__dict__.update(known)

    def __getattr__(self, _name):
        return Found()

    def __call__(self, *_, **__):
        return []

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0

    def __getitem__(self, _):
        return Found()

    def __float__(self):
        return 0.5

    def save(self, path):
        return path

    def rows(self, *_):
        return [("mechanism",)]


def fake(app):
    """The method of an app without its work."""
    made = import_module(f"{app}.cli").method()
    trained = SimpleNamespace(recipe=made.load_recipe(None, []), origin=None, semantic=None, refine=None)
    export = Export(
        lambda *_: SimpleNamespace(groups=dict),
        save_bundle=lambda *_: None,
        change=lambda *_: 0.5,
        idle=lambda _: False,
    )
    return replace(
        made,
        recipe_of=lambda *_: trained.recipe,
        load_backbone=lambda _: Found(),
        load_adapter=lambda *_, **__: trained,
        look=lambda *_, **__: [Finding("looked at", "fine")],
        prepare=lambda *_, **__: Found(),
        summary=lambda *_: {},
        measure=lambda *_, **__: {},
        exported=export,
    )


def named(told):
    """The commands that a line on stderr names."""
    (line,) = [line for line in told.splitlines() if line.startswith("next: ")]
    found = re.findall(r"`([^`]+)`", line)
    assert found, line
    return found


def runs(app, verb, monkeypatch, tmp_path, *more, chosen=SET):
    """Run a verb of an app's own whose work is left out; returns the commands that it names."""
    module, whole = import_module(f"{app}.cli"), fake(app)
    monkeypatch.setattr(module, "method", lambda: whole)
    for name in WORK[app]:
        result = RESULT.get((app, name), RESULT.get(name.rpartition(".")[2], lambda *_, **__: Found()))
        monkeypatch.setattr(f"{app}.{name}", result)
    words = {
        "train": ["--cache", "my cache", "--out", "my run"],
        "annotate": ["--cache", "my cache"],
        "generate": ["it's a ball", "--seed", "4", "--bundle", "my run/bundle"],
        "evaluate": ["--bundle", "my run/bundle"],
        "continue": [str(tmp_path), "--out", "futures"],
        "pipe": [str(tmp_path), "--out", str(tmp_path / "my pipe")],
    }
    given = [] if verb == "pipe" else chosen
    told = CliRunner().invoke(module.app, [verb, *words[verb], *given, *more])
    assert told.exit_code == 0, told.output + repr(told.exception)
    return named(told.stderr)


WORK = {
    "pila": ("train.ready", "train.train", "generate.generate", "evaluate.evaluate"),
    "prophy": ("train.ready", "train.train", "generate.generate", "evaluate.evaluate", "data.held_out",
               "annotate.annotate_clips", "routers.semantic_report", "routers.refinement_report"),
    "phantom": ("train.train", "generate.generate", "evaluate.evaluate", "data.held_out", "data.prepare",
                "adapter.encoder_of", "continuation.beginnings", "continuation.make", "continuation.lengthened"),
    "mmphysvideo": ("train.train", "train.learner", "student.check", "generate.generate", "evaluate.evaluate",
                    "generate.methods_of", "pipe.run.run", "pipe.run.sources_of", "train.save_bundle"),
}  # fmt: skip
RESULT = {
    "train": lambda *_, **__: (None, Found()),
    ("mmphysvideo", "train.train"): lambda *_, **__: Found(),
    "generate": lambda *_, **__: [],
    "beginnings": lambda *_, **__: ([], []),
    "make": lambda *_, **__: ([], []),
    "lengthened": lambda recipe, **_: (recipe, 12),
    "methods_of": lambda *_: {},
    "sources_of": lambda *_, **__: ([], []),
    "run": lambda *_, **__: {
        "kept": [], "dropped": [], "failed": [], "files_without_clips": [], "skipped": [],
        "totals": dict.fromkeys(("kept", "dropped", "failed", "pending"), 0),
    },
}  # fmt: skip


def parsed(command):
    """What an app makes of a command, as (verb, parameters); a redirection is the shell's."""
    words = shlex.split(command.partition(" >> ")[0])
    app = typer.main.get_command(import_module(f"{words[0]}.cli").app)
    name, verb, rest = app.resolve_command(app.context_class(app), words[1:])
    return name, verb.make_context(name, list(rest)).params


def goes_by(options):
    return (options["config"], options["set_"]) == ("tiny", SET[1:4:2])


@pytest.mark.parametrize("app", APPS)
def test_what_the_shared_verbs_name_next_parses_and_goes_by_what_was_chosen(app, monkeypatch, tmp_path, capsys):
    method, chosen, root = fake(app), Chosen("tiny", SET[1:4:2]), Path("my cache")
    own = {"stage": "student"} if app == "mmphysvideo" else {}
    monkeypatch.setattr(verbs, "show_plan", lambda *_, **__: None)
    monkeypatch.setattr("trainers.checkpoint.newest", lambda _: ("step", {}))
    (tmp_path / "recipe.yaml").write_text("seed: 0\n")

    def following(verb, *words, **options):
        verb(method, *words, **options)
        return [parsed(command) for command in named(capsys.readouterr().err)]

    looked = following(verbs.check, chosen, root)
    assert [name for name, _ in looked] == ["plan", "cache"]
    assert looked[1][1]["root"] == root
    planned = following(verbs.plan, chosen, Planned(), **own)
    assert [name for name, _ in planned] == ["time", "cache"]
    filled = following(verbs.cache, chosen, root, quiet=True, **own)
    assert [(name, options["root"]) for name, options in filled] == [("train", root)]
    timed = following(verbs.time, chosen, steps=1, **own)
    assert [name for name, _ in timed] == ["plan", "time"]
    for _, options in (*looked, *planned, *filled, *timed):
        assert goes_by(options)
    for _, options in (*planned, *filled, *timed):
        assert options.get("stage") == own.get("stage")
    written = following(verbs.export, tmp_path, Path("my bundle"))
    assert [name for name, _ in written] == ["generate", "evaluate"]
    assert [bundles(options) for _, options in written] == [[Path("my bundle")]] * 2


@pytest.mark.parametrize("app", APPS)
def test_a_training_is_followed_by_what_its_bundle_is_for(app, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("backbones.blocks_of", lambda _: Found())
    more = ["--stage", "student"] if app == "mmphysvideo" else []
    found = [parsed(command) for command in runs(app, "train", monkeypatch, tmp_path, *more)]
    assert [name for name, _ in found[:2]] == ["generate", "evaluate"]
    assert [bundles(options) for _, options in found[:2]] == [[Path("my run/bundle")]] * 2


def test_a_teacher_is_followed_by_its_student_and_a_part_of_the_stages_by_the_rest(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ((name, options),) = [parsed(c) for c in runs("mmphysvideo", "train", monkeypatch, tmp_path)]
    assert (name, options["stage"], options["teacher"]) == ("train", "student", Path("my run/bundle"))
    assert goes_by(options)
    monkeypatch.setitem(RESULT, ("pila", "train.train"), lambda *_, **__: (None, Found(global_step=0)))
    ((name, options),) = [parsed(c) for c in runs("pila", "train", monkeypatch, tmp_path)]
    assert (name, options["resume"], options["out"]) == ("train", True, Path("my run"))
    assert goes_by(options)
    assert options["root"] == Path("my cache")


def test_maps_clips_and_futures_are_followed_by_what_takes_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ((name, options),) = [parsed(c) for c in runs("prophy", "annotate", monkeypatch, tmp_path)]
    assert (name, options["root"], goes_by(options)) == ("train", Path("my cache"), True)
    ((name, options),) = [parsed(c) for c in runs("mmphysvideo", "pipe", monkeypatch, tmp_path)]
    assert name == "cache"
    assert options["set_"] == [f"data.source={tmp_path / 'my pipe' / 'records.jsonl'}", "data.fps=8"]
    ((name, options),) = [parsed(c) for c in runs("phantom", "continue", monkeypatch, tmp_path)]
    assert (name, options["base"], options["out"], goes_by(options)) == ("continue", True, Path("futures-base"), True)


def bundles(options):
    return options["bundle"] if isinstance(options["bundle"], list) else [options["bundle"]]


@pytest.mark.parametrize("app", APPS)
def test_a_video_is_followed_by_the_same_one_beside_the_base_s_and_that_by_figures(app, monkeypatch, tmp_path):
    (name, options), *_ = [parsed(c) for c in runs(app, "generate", monkeypatch, tmp_path, "--out", "a b.mp4")]
    assert (name, options["prompt"], options["seed"], options["compare"]) == ("generate", "it's a ball", 4, True)
    assert (options["bundle"], options["out"]) == (Path("my run/bundle"), Path("a b.mp4"))
    (name, options), *_ = [parsed(c) for c in runs(app, "generate", monkeypatch, tmp_path, "--compare")]
    assert name == "evaluate"
    assert bundles(options) == [Path("my run/bundle")]


@pytest.mark.parametrize("app", APPS)
def test_figures_are_followed_by_more_figures_and_parts_by_their_file(app, monkeypatch, tmp_path):
    name, options = parsed(runs(app, "evaluate", monkeypatch, tmp_path, chosen=[])[-1])
    assert (name, options["bundle"]) == ("world", ["my run/bundle"])
    monkeypatch.undo()
    name, options = parsed(runs(app, "evaluate", monkeypatch, tmp_path, "--keep", "my parts", "--clips", "3")[0])
    assert (name, options["keep"], options["clips"]) == ("evaluate", Path("my parts"), 3)
    assert options["out"] is not None


@pytest.mark.parametrize(
    ("start", "depth", "said"),
    [
        ("/x/.venv/bin/pila", None, "`bench world`"),
        ("/x/.venv/bin/pila", "1", "`uv run bench world`"),
        ("/x/.venv/bin/pytest", "1", "`bench world`"),
        ("/x/apps/pila/src/pila/cli.py", "1", "`python -m bench.cli world`"),
    ],
)
def test_a_command_is_written_as_this_one_was_called(start, depth, said, monkeypatch):
    monkeypatch.setattr("sys.argv", [start])
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    if depth is not None:
        monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", depth)
    assert commands.line("bench", "world") == said


def test_a_command_is_quoted_for_the_shell_and_leaves_out_what_was_not_said():
    told = commands.line(
        "pila", "generate", "it's $5", chosen=Chosen(None, ["a=b c"]), bundle=None, fields=False, seed=0
    )
    assert shlex.split(told.strip("`")) == ["pila", "generate", "it's $5", "--set", "a=b c", "--seed", "0"]
