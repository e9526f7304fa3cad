"""Signals between two steps: a checkpoint, and on SIGTERM the end, from which a resumed run goes on bit for bit."""

import os
import signal

import pytest
import toy

from trainers import Stopped, checkpoint, fit
from trainers.engine import Engine


def stages(parts, before=lambda progress: None):
    return [toy.stage(parts, "a", before=before), toy.stage(parts, "b", steps=3, before=before)]


def send(number, step):
    def before(progress):
        if progress.global_step == step:
            os.kill(os.getpid(), number)

    return before


def test_sigusr1_saves_after_the_step_under_way_and_goes_on(tmp_path):
    parts = toy.groups()
    result = fit(stages(parts, send(signal.SIGUSR1, 2)), parts, out=tmp_path, keep=9, quiet=True)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [checkpoint.name_of(step) for step in (3, 6, 9)]  # 6 and 9 end the stages
    assert result.global_step == 9


@pytest.mark.parametrize("step", [0, 2, 5, 6])
def test_sigterm_saves_stops_and_is_resumed_bit_for_bit(tmp_path, step):
    whole, parts = toy.groups(), toy.groups()
    fit(stages(whole), whole, out=tmp_path / "whole", quiet=True)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {step + 1}: resume from") as stopped:
        fit(stages(parts, send(signal.SIGTERM, step)), parts, out=tmp_path / "cut", quiet=True)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert checkpoint.latest(tmp_path / "cut" / "checkpoints").name == checkpoint.name_of(step + 1)
    parts = toy.groups()
    fit(stages(parts), parts, out=tmp_path / "cut", resume=True, quiet=True)
    assert toy.equal(toy.state(parts), toy.state(whole))


def test_sigterm_in_the_last_step_lets_the_run_end(tmp_path):
    parts = toy.groups()
    assert fit(stages(parts, send(signal.SIGTERM, 8)), parts, out=tmp_path, quiet=True).global_step == 9


class Interrupted(Engine):
    """Gets a signal while it tells the other processes, after its first step, what it was asked for."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def mean(self, values):
        made = super().mean(values)
        if self.number is not None and len(values) == 4:
            os.kill(os.getpid(), self.number)
            self.number = None
        return made


def test_a_signal_that_comes_while_the_processes_talk_is_heard_one_step_later(tmp_path):
    parts = toy.groups()
    with pytest.raises(Stopped, match="after step 2"):
        fit(stages(parts), parts, out=tmp_path / "stop", engine=Interrupted(signal.SIGTERM), quiet=True)
    parts = toy.groups()
    fit(stages(parts), parts, out=tmp_path / "on", keep=9, engine=Interrupted(signal.SIGUSR1), quiet=True)
    names = sorted(path.name for path in (tmp_path / "on" / "checkpoints").iterdir())
    assert names == [checkpoint.name_of(step) for step in (2, 6, 9)]


class Deaf(Engine):
    """Gets SIGTERM while a checkpoint is written, when the other processes have agreed not to leave."""

    def moments(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().moments()


def test_no_process_leaves_before_all_have_heard_of_it(tmp_path):
    parts = toy.groups()
    with pytest.raises(Stopped, match="after step 3"):
        fit(stages(parts), parts, out=tmp_path, save_every=2, engine=Deaf(), quiet=True)
    assert checkpoint.latest(tmp_path / "checkpoints").name == checkpoint.name_of(3)
