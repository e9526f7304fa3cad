"""Watching a run changes nothing in it: held-out losses, samples, trackers, bars."""

import importlib.machinery
import importlib.util
import itertools
import json
import random
import sys
import types
import warnings

import forked
import numpy as np
import pytest
import torch
import toy

from trainers import EMA, HeldOut, Length, Sampling, Stage, TrainingWarning, fit, rng
from trainers.engine import Engine


@pytest.fixture
def forgotten():
    """Accelerate remembers for ever that this process was alone; the processes that other tests fork are not."""
    yield
    state = pytest.importorskip("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)


def held(parts, **rest):
    """A loss on clips of its own that draws from every generator there is."""

    def loss(batch, level, generator):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        assert not parts["encoder"].training
        noise = torch.randn(batch["x"].shape, generator=generator)
        error = parts["head"](parts["encoder"](batch["x"] + level * noise)) - batch["y"]
        assert not error.requires_grad
        return {"mse": error.square().mean(), "level": torch.tensor(level)}

    return HeldOut(loss, toy.data(20), **{"clips": 8, "batch_size": 2, "every": 2} | rest)


def two(parts, steps=5):
    return [toy.stage(parts, "a", steps=steps), toy.stage(parts, "b", steps=4, ema=EMA(0.9, apply=True))]


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_held_out_loss_stands_in_the_log_at_nine_levels_every_so_often_and_at_stage_ends(tmp_path):
    parts = toy.groups()
    fit(two(parts), parts, out=tmp_path, held_out=held(parts), quiet=True)
    found = {(line["stage"], line["step"]): line["held_out"] for line in lines(tmp_path) if "held_out" in line}
    assert list(found) == [("a", 2), ("a", 4), ("a", 5), ("b", 2), ("b", 4)]
    for values in found.values():
        assert list(values["mse"]) == [f"0.{i}" for i in range(1, 10)]
        assert values["level"] == pytest.approx({f"0.{i}": i / 10 for i in range(1, 10)})


def test_held_out_losses_samples_and_trackers_leave_training_bit_equal(tmp_path, forgotten):
    def run(folder, **rest):
        parts = toy.groups()
        np.random.seed(0)  # noqa: NPY002
        fit(two(parts), parts, out=folder, quiet=True, **{key: make(parts) for key, make in rest.items()})
        return toy.state(parts), np.random.rand()  # noqa: NPY002

    def sampling(parts):
        def write(folder, moment):
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
            (folder / "y.txt").write_text(str(parts["head"](parts["encoder"](torch.ones(1, 3))).item()))

        return Sampling(write, every=1)

    plain = run(tmp_path / "plain")
    watched = run(tmp_path / "watched", held_out=held, sampling=sampling, trackers=lambda _: ["tensorboard"])
    assert toy.equal(plain[0], watched[0])
    assert plain[1] == watched[1]


def test_a_look_from_outside_gives_every_generator_and_mode_back():
    parts = toy.groups()
    parts["head"].eval()

    def states():
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002

    with rng.isolated(parts.values()):
        before = states()
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        assert all(a != b for a, b in zip(states(), before, strict=True))
        assert not any(module.training for part in parts.values() for module in part.modules())
        assert not torch.is_grad_enabled()
    assert states() == before
    assert [part.training for part in parts.values()] == [True, False, True]


def test_a_resumed_run_makes_the_same_lines(tmp_path):
    def killed(progress):
        if progress.global_step == 3:
            raise KeyboardInterrupt

    parts, whole = toy.groups(), toy.groups()
    fit(two(whole), whole, out=tmp_path / "whole", held_out=held(whole), save_every=2, quiet=True)
    stages = [toy.stage(parts, "a", steps=5, before=killed), two(parts)[1]]
    with pytest.raises(KeyboardInterrupt):
        fit(stages, parts, out=tmp_path / "cut", held_out=held(parts), save_every=2, quiet=True)
    parts = toy.groups()
    fit(two(parts), parts, out=tmp_path / "cut", held_out=held(parts), save_every=2, resume=True, quiet=True)
    kept = [[{**line, "seconds": 0} for line in lines(tmp_path / name)] for name in ("whole", "cut")]
    assert kept[0] == kept[1]


def test_the_last_held_out_loss_of_a_stage_is_that_of_the_average_which_it_leaves(tmp_path):
    parts = toy.groups()
    watched = held(parts)
    fit(two(parts), parts, out=tmp_path, held_out=watched, quiet=True)
    again = watched.evaluate(parts, Engine(), torch.device("cpu"))
    assert lines(tmp_path)[-1]["held_out"] == again


def test_the_same_noise_meets_the_same_clips_whatever_the_number_of_processes(tmp_path):
    pytest.importorskip("accelerate")

    def make(folder):
        def work(rank):
            warnings.simplefilter("ignore")  # torch's own, of its DDP and gloo
            parts = toy.groups()
            watched = held(parts, clips=6, every=1)  # three batches over two processes

            def loss(batch, progress):
                return {"spare": parts["spare"].weight.square().sum()}

            stage = Stage("a", {"spare": 1.0}, loss, toy.data(), 2, Length(steps=1))
            fit([stage], parts, out=tmp_path / folder, held_out=watched, quiet=True)

        return work

    assert forked.run(make("two")) == [0, 0]
    assert forked.run(make("one"), processes=1) == [0]
    one, two = (lines(tmp_path / name)[-1]["held_out"]["mse"] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-6)


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"clips": 21}, {"every": 0}, {"levels": 0}])
def test_a_held_out_set_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        held(toy.groups(), **wrong)


# ---- samples


def sampled(out, sampling, steps=5):
    parts = toy.groups()
    return fit([toy.stage(parts, steps=steps)], parts, out=out, sampling=sampling, quiet=True)


def test_samples_appear_by_rename_every_so_often_and_at_the_end(tmp_path):
    seen = []

    def write(folder, moment):
        assert folder.name.startswith(".writing-")
        (folder / "a.txt").write_text(f"{moment.stage} {torch.rand(1, generator=moment.generator).item()}")
        seen.append((moment.step, moment.global_step, moment.rank, moment.world_size))

    sampled(tmp_path, Sampling(write, every=2))
    folders = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert folders == ["step-00000002", "step-00000004", "step-00000005"]
    assert seen == [(2, 2, 0, 1), (4, 4, 0, 1), (5, 5, 0, 1)]
    assert (
        len({(tmp_path / "samples" / name / "a.txt").read_text() for name in folders}) == 1
    )  # the same noise each time


def test_a_sampler_that_fails_is_warned_about_and_leaves_nothing_but_the_run(tmp_path):
    def write(folder, moment):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("no room for the decoder")

    with pytest.warns(TrainingWarning, match="no samples of step 5: RuntimeError: no room for the decoder; train"):
        result = sampled(tmp_path, Sampling(write, every=99))
    assert result.global_step == 5
    assert list((tmp_path / "samples").iterdir()) == []


def test_samples_by_minutes_count_trained_time(tmp_path, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("trainers.loop.time.perf_counter", lambda: float(next(ticks)))  # a step takes a second
    sampled(tmp_path, Sampling(lambda folder, moment: (folder / "a").touch(), minutes=3 / 60), steps=7)
    assert sorted(path.name[-1] for path in (tmp_path / "samples").iterdir()) == ["3", "6", "7"]


def test_every_process_may_write_its_share_of_the_samples(tmp_path):
    pytest.importorskip("accelerate")

    def child(rank):
        warnings.simplefilter("ignore")  # torch's own, of its DDP and gloo

        def write(folder, moment):
            for prompt in "abc"[moment.rank :: moment.world_size]:
                (folder / f"{prompt}.txt").touch()

        sampled(tmp_path, Sampling(write, every=3))

    assert forked.run(child) == [0, 0]
    for name in ("step-00000003", "step-00000005"):
        assert sorted(path.name for path in (tmp_path / "samples" / name).iterdir()) == ["a.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize("wrong", [{}, {"every": 1, "minutes": 1}, {"every": 0}, {"minutes": -1}])
def test_samples_want_exactly_one_period(wrong):
    with pytest.raises(ValueError, match="exactly one of every"):
        Sampling(print, **wrong)


# ---- trackers


def test_tensorboard_reads_back_what_the_log_says_and_a_resume_purges_what_is_made_again(tmp_path, forgotten):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def killed(progress):
        if progress.global_step == 5:
            raise KeyboardInterrupt

    settings = {"out": tmp_path, "trackers": ("tensorboard",), "log_every": 1, "save_every": 3, "quiet": True}
    parts = toy.groups()
    with pytest.raises(KeyboardInterrupt):
        fit([toy.stage(parts, steps=8, before=killed)], parts, **settings, held_out=held(parts))
    parts = toy.groups()
    fit([toy.stage(parts, steps=8)], parts, **settings, held_out=held(parts), resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = {event.step: event.value for event in events.Scalars("terms/mse")}
    assert [event.step for event in events.Scalars("terms/mse")] == list(range(1, 9))
    assert written == pytest.approx({line["global_step"]: line["terms"]["mse"] for line in lines(tmp_path)})
    assert {"lr", "gradient_norm", "seconds", "held_out/mse/0.5"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("held_out/mse/0.5")] == [2, 4, 6, 8]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_sentence_before_anything_is_written(tmp_path, name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    parts = toy.groups()
    with pytest.raises(
        ValueError, match=rf"the tracker '{name}' is not installed: pip install 'phystrainers\[{name}\]'"
    ):
        fit([toy.stage(parts)], parts, out=tmp_path / "out", trackers=(name,), quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_nobody_knows_is_answered_with_the_nearest(tmp_path):
    parts = toy.groups()
    with pytest.raises(ValueError, match="did you mean 'wandb'"):
        fit([toy.stage(parts)], parts, out=tmp_path, trackers=("wanbd",), quiet=True)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_other_trackers_get_the_lines_through_accelerate(tmp_path, monkeypatch, name, forgotten):
    """Accelerate's own class, on a package that only notes what it is told."""
    tracking = pytest.importorskip("accelerate.tracking")
    said = []

    class Started:
        def __init__(self, **settings):
            said.append(("init", settings.get("project")))

        def log(self, values, step=None, **rest):
            said.append(("log", step, values))

        def finish(self):
            said.append(("finish",))

    fake = types.ModuleType(name)
    fake.init = Started
    fake.__spec__ = importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, fake)
    assert name in tracking.LOGGER_TYPE_TO_CLASS
    parts = toy.groups()
    fit([toy.stage(parts, steps=4)], parts, out=tmp_path / "my-run", trackers=(name,), log_every=2, quiet=True)
    assert said[0] == ("init", "my-run")
    assert [entry[1] for entry in said if entry[0] == "log"] == [2, 4]
    assert said[1][2]["terms/mse"] == lines(tmp_path / "my-run")[0]["terms"]["mse"]
    assert said[-1] == ("finish",)


# ---- what is shown


def test_a_bar_is_drawn_by_rich_on_a_terminal_and_by_the_first_process_alone(tmp_path, monkeypatch, capfd):
    pytest.importorskip("accelerate")
    parts = toy.groups()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    fit([toy.stage(parts)], parts, out=tmp_path / "one")
    assert "━" in capfd.readouterr().err
    monkeypatch.undo()

    def child(rank):
        warnings.simplefilter("ignore")  # torch's own, of its DDP and gloo
        parts = toy.groups()
        fit([toy.stage(parts)], parts, out=tmp_path / "two")

    assert forked.run(child) == [0, 0]
    shown = " ".join(capfd.readouterr().err.split())
    assert shown.count("a: 6/6") == 1
    assert "batch 4 x 1 accumulated x 2 processes (DDP) = 8" in shown
