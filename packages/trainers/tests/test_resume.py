"""Killed anywhere and resumed, a run ends with the same bits as one that was never interrupted."""

import json
import os
import signal

import pytest
import torch
import toy

from trainers import EMA, TrainingWarning, checkpoint, fit

FIRST, SECOND = 6, 5  # steps; the data has 11 samples and batches of 4, so epochs end inside both stages


class Killed(Exception):
    pass


def stages(parts, before=lambda progress: None, **rest):
    first = toy.stage(parts, "a", steps=FIRST, before=before, ema=EMA(0.9, apply=True), accumulate=2, **rest)
    second = toy.stage(parts, "b", steps=SECOND, before=before, handover="keep", ema=EMA(0.8), unfreeze={"encoder": 2})
    return [first, second]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out, parts = tmp_path_factory.mktemp("whole"), toy.groups()
    result = fit(stages(parts), parts, out=out, seed=3, save_every=2, quiet=True)
    return out, toy.state(parts), result


def die_at(step, how):
    def before(progress):
        if progress.global_step == step:
            how()

    return before


def raise_killed():
    raise Killed


def files(out):
    saved = checkpoint.load(checkpoint.latest(out / "checkpoints"))
    return {f"{file}/{key}": value for file, part in saved.tensors.items() for key, value in part.items()}


@pytest.mark.parametrize("step", range(FIRST + SECOND))
def test_killed_at_any_step_and_resumed_gives_the_same_weights_bit_for_bit(tmp_path, whole, step):
    parts = toy.groups()
    with pytest.raises(Killed):
        fit(
            stages(parts, die_at(step, raise_killed)),
            parts,
            out=tmp_path,
            seed=3,
            save_every=2,
            log_every=1,
            quiet=True,
        )
    parts = toy.groups()
    torch.manual_seed(99)  # what the new process has drawn before must not matter
    result = fit(stages(parts), parts, out=tmp_path, seed=3, save_every=2, log_every=1, resume=True, quiet=True)
    assert toy.equal(toy.state(parts), whole[1])
    assert toy.equal(files(tmp_path), files(whole[0]))
    assert toy.equal(result.ema["head"], whole[2].ema["head"])
    assert [record.steps for record in result.history] == [FIRST, SECOND]
    steps = [json.loads(line)["global_step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, FIRST + SECOND + 1))


@pytest.mark.parametrize("step", [3, FIRST, FIRST + 3])
def test_sigkill_in_a_child_and_resume_gives_the_same_weights_bit_for_bit(tmp_path, whole, step):
    child = os.fork()
    if child == 0:  # no pytest in here: whatever happens, the child dies by SIGKILL
        try:
            parts = toy.groups()
            kill = die_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
            fit(stages(parts, kill), parts, out=tmp_path, seed=3, save_every=2, quiet=True)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    parts = toy.groups()
    fit(stages(parts), parts, out=tmp_path, seed=3, save_every=2, resume=True, quiet=True)
    assert toy.equal(toy.state(parts), whole[1])


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, whole, monkeypatch):
    parts = toy.groups()
    real, calls = checkpoint.save_file, []

    def save_file(*args):
        calls.append(args)
        if len(calls) == 5:  # in the middle of the second checkpoint
            raise Killed
        real(*args)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(Killed):
        fit(stages(parts), parts, out=tmp_path, seed=3, save_every=2, quiet=True)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-00000002"
    parts = toy.groups()
    fit(stages(parts), parts, out=tmp_path, seed=3, save_every=2, resume=True, quiet=True)
    assert toy.equal(toy.state(parts), whole[1])
    assert not list((tmp_path / "checkpoints").glob(".writing*"))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    parts = toy.groups()
    first = fit(stages(parts), parts, out=tmp_path, quiet=True)
    again = toy.groups()
    second = fit(stages(again), again, out=tmp_path, resume=True, quiet=True)
    assert toy.equal(toy.state(parts), toy.state(again))
    assert second.checkpoint == first.checkpoint
    assert [(r.name, r.steps, r.seconds) for r in second.history] == [
        (r.name, r.steps, r.seconds) for r in first.history
    ]
    assert toy.equal(second.ema["head"], first.ema["head"])
    assert second.losses == first.losses
    assert [record.losses for record in second.history] == [record.losses for record in first.history]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, whole):
    parts = toy.groups()
    fit(stages(parts), parts, out=tmp_path, seed=3, save_every=2, keep=9, quiet=True)
    newest = checkpoint.latest(tmp_path / "checkpoints")
    (newest / "weights.safetensors").write_bytes(b"cut")
    parts = toy.groups()
    with pytest.warns(TrainingWarning, match="not a whole checkpoint"):
        fit(stages(parts), parts, out=tmp_path, seed=3, save_every=2, resume=True, quiet=True)
    assert toy.equal(toy.state(parts), whole[1])
    (newest / "COMPLETE").unlink()
    with pytest.raises(ValueError, match="resume from another"):
        checkpoint.load(newest)


def test_damaged_checkpoints_do_not_push_out_the_good_ones_that_follow(tmp_path, whole):
    parts = toy.groups()
    fit(stages(parts), parts, out=tmp_path, seed=3, save_every=2, keep=9, quiet=True)
    for damaged in sorted((tmp_path / "checkpoints").iterdir())[1:]:
        (damaged / "weights.safetensors").write_bytes(b"cut")
    parts = toy.groups()
    with pytest.warns(TrainingWarning, match="not a whole checkpoint"), pytest.raises(Killed):
        fit(stages(parts, die_at(5, raise_killed)), parts, out=tmp_path, seed=3, save_every=2, keep=1, resume=True,
            quiet=True)  # fmt: skip
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-00000004"


def test_a_longer_stage_after_its_average_was_applied_is_warned_about(tmp_path):
    parts = toy.groups()
    fit([toy.stage(parts, ema=EMA(0.9, apply=True))], parts, out=tmp_path, quiet=True)
    with pytest.warns(TrainingWarning, match="the average that was written"):
        fit([toy.stage(parts, steps=8, ema=EMA(0.9, apply=True))], parts, out=tmp_path, resume=True, quiet=True)


def test_a_finished_run_that_is_given_another_stage_goes_on_as_if_it_always_had_it(tmp_path, whole):
    parts = toy.groups()
    fit(stages(parts)[:1], parts, out=tmp_path, seed=3, save_every=2, quiet=True)
    parts = toy.groups()
    result = fit(stages(parts), parts, out=tmp_path, seed=3, save_every=2, resume=True, quiet=True)
    assert toy.equal(toy.state(parts), whole[1])
    assert toy.equal(files(tmp_path), files(whole[0]))
    assert [record.name for record in result.history] == ["a", "b"]


def test_a_run_that_loses_the_stage_under_way_is_refused_and_one_that_loses_a_later_one_ends_there(tmp_path):
    parts = interrupted(tmp_path)
    with pytest.raises(ValueError, match=r"stages\.1: 'b' -> None"):
        fit(stages(parts)[:1], parts, out=tmp_path, resume=True, quiet=True)
    out = tmp_path / "earlier"
    parts = toy.groups()
    with pytest.raises(Killed):
        fit(stages(parts, die_at(3, raise_killed)), parts, out=out, save_every=2, quiet=True)
    parts = toy.groups()
    result = fit(stages(parts)[:1], parts, out=out, save_every=2, resume=True, quiet=True)
    assert (result.global_step, [record.name for record in result.history]) == (FIRST, ["a"])


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint_to_go_on_from(tmp_path, whole, monkeypatch):
    stock, written = checkpoint.save_file, []

    def save_file(tensors, path):
        written.append(path)
        if len(written) == 8:  # the third checkpoint's second file
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        stock(tensors, path)

    parts = toy.groups()
    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(OSError, match="No space"):
        fit(stages(parts), parts, out=tmp_path, seed=3, save_every=2, quiet=True)
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-00000004"
    parts = toy.groups()
    fit(stages(parts), parts, out=tmp_path, seed=3, save_every=2, resume=True, quiet=True)
    assert toy.equal(toy.state(parts), whole[1])
    assert not list((tmp_path / "checkpoints").glob(".writing*"))


def test_a_folder_that_holds_a_run_is_not_trained_over(tmp_path):
    parts = toy.groups()
    fit(stages(parts), parts, out=tmp_path, quiet=True)
    with pytest.raises(ValueError, match="already holds a run"):
        fit(stages(parts), parts, out=tmp_path, quiet=True)


def interrupted(tmp_path, **rest):
    parts = toy.groups()
    with pytest.raises(Killed):
        fit(stages(parts, die_at(FIRST + 3, raise_killed)), parts, out=tmp_path, save_every=2, quiet=True, **rest)
    return toy.groups()


def test_another_seed_other_data_another_backbone_or_another_past_are_refused(tmp_path):
    backbone, other_backbone = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    parts = interrupted(tmp_path, watch={"backbone": backbone})
    with pytest.raises(ValueError, match="seed: 0 -> 4"):
        fit(stages(parts), parts, out=tmp_path, seed=4, resume=True, quiet=True)
    other = stages(parts)
    with pytest.raises(ValueError, match=r"stages\.1\.data"):
        fit([other[0], toy.stage(parts, "b", data=toy.data(12))], parts, out=tmp_path, resume=True, quiet=True)
    with pytest.raises(ValueError, match=r"stages\.0\.batch_size: 4 -> 3"):
        fit(stages(parts, batch_size=3), parts, out=tmp_path, resume=True, quiet=True)
    with pytest.raises(ValueError, match=r"frozen\.backbone"):
        fit(other, parts, out=tmp_path, watch={"backbone": other_backbone}, resume=True, quiet=True)


def test_another_learning_rate_is_warned_about_and_a_longer_stage_is_taken_as_it_is(tmp_path):
    parts = interrupted(tmp_path)
    second = toy.stage(
        parts, "b", steps=SECOND + 4, handover="keep", ema=EMA(0.8), unfreeze={"encoder": 2}, batch_size=2
    )
    with pytest.warns(TrainingWarning, match=r"stages\.1\.batch_size: 4 -> 2"):
        result = fit([stages(parts)[0], second], parts, out=tmp_path, resume=True, quiet=True)
    assert result.global_step == FIRST + SECOND + 4


def test_a_checkpoint_holds_the_trained_groups_alone(tmp_path):
    parts = toy.groups()
    fit([toy.stage(parts, groups=["head"])], parts, out=tmp_path, quiet=True)
    assert {
        key.split("/")[0] for key in checkpoint.load(checkpoint.latest(tmp_path / "checkpoints")).tensors["weights"]
    } == {"head"}


def test_the_newest_weights_of_a_run_fit_the_groups_that_it_trained(tmp_path):
    with pytest.raises(ValueError, match="no whole checkpoint yet"):
        checkpoint.newest(tmp_path)
    parts = toy.groups()
    fit([toy.stage(parts, steps=3)], parts, out=tmp_path, save_every=2, quiet=True)
    name, found = checkpoint.newest(tmp_path)
    assert name == "step-00000003"
    for group, state in found.items():
        assert all(torch.equal(state[key], value) for key, value in parts[group].state_dict().items())


def test_only_the_newest_checkpoints_stay(tmp_path):
    parts = toy.groups()
    fit([toy.stage(parts, steps=9)], parts, out=tmp_path, save_every=2, keep=3, quiet=True)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000006", "step-00000008", "step-00000009",
    ]  # fmt: skip


def test_tied_weights_are_saved_and_come_back_tied(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.b.weight = self.a.weight

    def run(resume):
        torch.manual_seed(0)
        tied = Tied()

        def loss(batch, progress):
            if progress.step == 3 and not resume:
                raise Killed
            return {"mse": tied.b(tied.a(batch["x"])).square().mean()}

        stage = toy.Stage("a", {"tied": 1.0}, loss, toy.data(), 4, toy.Length(steps=6))
        return fit([stage], {"tied": tied}, out=tmp_path, save_every=2, resume=resume, quiet=True), tied

    with pytest.raises(Killed):
        run(False)
    result, tied = run(True)
    assert tied.a.weight is tied.b.weight
    assert result.global_step == 6
