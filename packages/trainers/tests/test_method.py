"""One frame: bundles of options, verbs that are the same in every method, one way to write the folder of a run."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from trainers import Config, Skipped, check, load_config, run_folder
from trainers.commands import friendly, new_app
from trainers.engine import Engine
from trainers.method import Export, Method, add, own_clips
from trainers.options import Chosen, Measured, Quiet, spread


class Recipe(Config):
    """A recipe of a toy."""

    seed: int = 0
    backbone: str = "world"


@dataclass(frozen=True)
class Sizes:
    """A bundle with one option that must be given."""

    height: Annotated[int, typer.Option("--height")]
    width: Annotated[int, typer.Option("--width")] = 32


def invoked(command, *words):
    app = new_app("A test.")
    app.callback()(lambda: None)
    app.command("it")(friendly(command))
    return CliRunner().invoke(app, ["it", *words])


def test_the_fields_of_a_bundle_are_options_of_the_command():
    def it(name: Annotated[str, typer.Argument()], sizes: Sizes, chosen: Chosen, quiet: Quiet = False) -> None:
        """Say it."""
        print(name, sizes.height, sizes.width, chosen.config, chosen.overrides, quiet)

    told = invoked(it, "x", "--height", "8", "--set", "a=1", "--set", "b=2", "--quiet")
    assert told.stdout == "x 8 32 None ['a=1', 'b=2'] True\n", told.output
    assert invoked(it, "x").exit_code == 2  # --height is missing
    assert "Say it." in invoked(it, "--help").stdout


def test_what_is_spread_can_be_called_with_fields_by_name():
    def it(sizes: Sizes, name: str = "x") -> str:
        return f"{sizes.height} {sizes.width} {name}"

    assert spread(it)(height=1, width=2, name="y") == "1 2 y"
    assert spread(it)(height=1) == "1 32 x"


@dataclass
class Adapter:
    """A toy that remembers the weights that it was given."""

    weights: dict

    def groups(self):
        return {"head": SimpleNamespace(load_state_dict=self.weights.update)}


def toy(**changes):
    made = {"weights": {}}
    parts = {
        "load_recipe": lambda config, overrides: load_config(Recipe, None, overrides),
        "recipe_of": lambda folder, overrides: load_config(Recipe, None, ["seed=7", *overrides]),
        "load_backbone": lambda recipe: f"backbone {recipe.backbone}",
        "load_adapter": lambda folder, backbone, recipe: (folder, backbone, recipe.seed),
        "look": lambda recipe, backbone, cache: [check.Finding("looked at", backbone)],
        "describe": lambda recipe, clips: None,
        "prepare": lambda *_, **__: SimpleNamespace(
            clips=2, computed=1, skipped=(Skipped("a.mp4", "cut off"),), held_clips=(), notes=()
        ),
        "summary": lambda recipe, found: {"seed": recipe.seed},
        "measure": lambda recipe, backbone, steps: {"steps": steps},
        "exported": Export(
            lambda *_: Adapter(made["weights"]),
            lambda adapter, backbone, out: made.update(out=out),
            lambda *_: changes.get("change", 0.25),
            lambda _: changes.get("idle", False),
        ),
    }
    return Method("toy", **parts | {k: v for k, v in changes.items() if k in parts}), made


def asks(method, *words):
    app = new_app("A toy.")
    verbs = dict.fromkeys(("check", "plan", "cache", "export", "time"), "Help.")
    add(app, lambda: method, **verbs)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_verb_tells_its_result_on_stdout_and_the_rest_on_stderr(tmp_path):
    told = asks(toy()[0], "cache", "--set", "seed=3", "--cache", tmp_path)
    found = json.loads(told.stdout)
    assert (found["clips"], found["computed"], found["skipped"], found["seed"]) == (2, 1, 1, 3)
    left_out, following = told.stderr.splitlines()
    assert left_out == "left out: a.mp4: cut off"
    assert following == f"next: `toy train --set seed=3 --cache {tmp_path}`"
    assert json.loads(asks(toy()[0], "time", "--steps", 2).stdout) == {"steps": 2}


def test_a_check_with_an_error_in_its_table_is_one():
    bad = toy(look=lambda *_: [check.Finding("range", "wrong", "error")])[0]
    told = asks(bad, "check")
    assert told.exit_code == 1
    assert "would spoil the run" in told.stderr
    assert asks(toy()[0], "check").exit_code == 0


def test_an_export_restores_the_newest_weights_and_refuses_a_bundle_that_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.checkpoint.newest", lambda _: ("step-00000003", {"head": {"w": 1}}))
    assert "expected the folder of a run" in asks(toy()[0], "export", tmp_path, "--out", "b").stderr
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    method, made = toy()
    said = json.loads(asks(method, "export", tmp_path, "--out", "b").stdout)
    assert said == {"bundle": "b", "checkpoint": "step-00000003", "mean_change": 0.25}
    assert made == {"weights": {"w": 1}, "out": Path("b")}
    for change in (0.0, float("nan")):
        told = asks(toy(change=change)[0], "export", tmp_path, "--out", "b")
        assert (told.exit_code, "changes nothing" in told.stderr) == (1, True)
    assert asks(toy(change=0.0, idle=True)[0], "export", tmp_path, "--out", "b").exit_code == 0


def test_what_was_trained_comes_with_its_own_recipe_unless_another_is_named():
    method = toy()[0]
    assert method.load_trained(Chosen(), None) == ("backbone world", (None, "backbone world", 7))
    assert method.load_trained(Chosen("tiny"), None)[1][2] == 0
    assert method.load_trained(Chosen(), None, "here")[0] == "here"

    def missing(recipe):
        raise ValueError("no model there")

    lost = toy(load_backbone=missing)[0]
    with pytest.raises(ValueError, match="the bundle asks for it: say with --set backbone="):
        lost.load_trained(Chosen(), None)
    with pytest.raises(ValueError, match=r"no model there$"):
        lost.load_trained(Chosen(None, ["backbone=x"]), None)


def test_another_share_kept_back_than_in_training_is_refused():
    def recipe(source, held_out):
        return SimpleNamespace(data=SimpleNamespace(source=source, held_out=held_out), device="cpu")

    def ask(trained):
        method = toy(recipe_of=lambda folder, overrides: trained)[0]
        found, asked = SimpleNamespace(held=None, clips=2), (Chosen("own"), Measured())
        own_clips(method, {}, [recipe("films", 0.05)], found, *asked, bundles=[Path("b")], paired=print)

    with pytest.raises(ValueError, match=r"expected data\.held_out=0, with which b was trained, got 0\.05"):
        ask(recipe("films", 0.0))
    for fine in (recipe("films", 0.05), recipe("world", 0.0)):
        with pytest.raises(ValueError, match="nothing of films was kept back"):
            ask(fine)


def test_the_folder_of_a_run_has_its_recipe_from_the_first_moment_and_as_it_was_in_the_end(tmp_path):
    out = tmp_path / "run"
    run_folder.unused(out, resume=False)
    run_folder.begin(out, Recipe(seed=1), Engine())
    run_folder.begin(out, Recipe(seed=2), Engine())
    assert load_config(Recipe, out / "recipe.yaml").seed == 1
    written = []
    run_folder.finish(out, Recipe(seed=2), Engine(), written.append)
    assert load_config(Recipe, out / "recipe.yaml").seed == 2
    assert written == [out / "bundle"]


def test_of_several_processes_the_first_writes_the_folder(tmp_path):
    waited = []

    class Second(Engine):
        """The second of two processes."""

        rank = 1

        def barrier(self):
            waited.append(True)

    run_folder.begin(tmp_path, Recipe(), Second())
    run_folder.finish(tmp_path, Recipe(), Second(), lambda _: pytest.fail("the second process wrote"))
    assert list(tmp_path.iterdir()) == []
    assert waited == [True]


def test_few_of_many_are_looked_at_and_what_was_left_out_is_named():
    assert check.few(list(range(3))) == [0, 1, 2]
    assert len(check.few(list(range(1000)))) == check.FEW
    assert check.read(5, "found", []) == check.Finding("records", "5 found, 0 left out")
    said = check.read(5, "found", [Skipped(f"{i}.mp4", "short") for i in range(7)])
    assert said.level == "warn"
    assert said.said.startswith("5 found, 7 left out: 0.mp4: short; ")
    assert said.said.endswith("; and 2 more")
    assert check.identity(True, "adapter", 1000).level == "ok"
    assert check.identity(False, "adapter", 1000).level == "error"
