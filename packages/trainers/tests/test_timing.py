"""Timed steps are training steps: gradients move what they should, at full strength, and a plan reads the figures."""

import json

import torch
from torch import nn

from trainers import plan, timing
from trainers.dryrun import Work


def test_every_kind_takes_steps_but_a_frozen_one_and_carries_its_work(tmp_path):
    net = nn.Linear(3, 1)
    seen = []

    def joint(progress):
        seen.append((progress.step, progress.ramp("physics")))
        return {"loss": net(torch.ones(2, 3)).square().mean(), "log/size": torch.tensor(1e9)}

    def frozen(progress):
        return {"none": torch.zeros(())}  # has no gradient to send back

    before = net.weight.clone()
    work = {"joint": Work(1, 2, {"float32": 3}, 4)}
    figures = timing.steps({"joint": joint, "frozen": frozen}, net.parameters(), calls=2, ramps=("physics",), work=work)
    assert not torch.equal(net.weight, before)
    assert seen == [(0, 1.0), (1, 1.0), (2, 1.0)]  # one warms up
    assert (figures["joint"]["calls"], figures["joint"]["work"]["flops"]) == (2, {"float32": 3})
    assert "work" not in figures["frozen"]
    line = {**timing.machine(), "shape": "s", "batch": 2, "seconds_a_step": figures}
    (tmp_path / "time.jsonl").write_text(json.dumps(line) + "\n")
    assert [m.kind for m in plan.read_measured(tmp_path / "time.jsonl")] == ["joint"]


def test_a_step_draws_the_same_numbers_every_time():
    one, again, other = (torch.rand(4, generator=timing.at_end("a", step).generator) for step in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
