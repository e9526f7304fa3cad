"""Groups by patterns: the module's own parameters under their own names, nothing twice, nothing for nothing."""

import pytest
import torch
import toy
from torch import nn

from trainers import Length, Optim, Stage, checkpoint, fit, named_groups


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.frozen = nn.Linear(3, 3)
        self.lora = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Dropout(0.5), nn.Linear(2, 3, bias=False))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.scale * self.frozen(x) + self.lora(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


PATTERNS = {"lora": "*.lora.*", "scales": ["*.scale", "head.bias"], "norm": "*.norm.*"}


def stage(net, groups, steps=6, before=lambda progress: None):
    def loss(batch, progress):
        before(progress)
        return {"mse": (net(batch["x"]) - batch["y"]).square().mean()}

    return Stage("a", dict.fromkeys(groups, 1.0), loss, toy.data(), 4, Length(steps=steps), Optim(lr=1e-2))


def test_a_group_holds_the_modules_own_parameters_under_their_own_names():
    net = Net()
    groups = named_groups(net, PATTERNS)
    names = {name: [key for key, _ in group.named_parameters()] for name, group in groups.items()}
    assert names["lora"] == [f"blocks.{i}.lora.{j}.weight" for i in (0, 1) for j in (0, 2)]
    assert names["scales"] == ["blocks.0.scale", "blocks.1.scale", "head.bias"]
    own = dict(net.named_parameters())
    assert all(p is own[key] for group in groups.values() for key, p in group.named_parameters())
    assert "blocks.0.norm.running_mean" in groups["norm"].state_dict()  # buffers go with their pattern


def test_a_part_that_is_named_whole_keeps_its_module_and_so_its_mode():
    net = Net()
    groups = named_groups(net, PATTERNS)
    assert groups["lora"].get_submodule("blocks.0.lora") is net.blocks[0].lora
    groups["lora"].eval()
    assert not net.blocks[0].lora[1].training
    assert net.training
    assert named_groups(net, {"all": "*"})["all"] is net


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"lora": "*.lroa.*"}, "matches a parameter"),
        ({"lora": ["*.lora.*", "blocks.7.*"]}, "blocks.7"),
        ({"norm": "*.running_mean"}, "matches a parameter"),  # a buffer alone is nothing to train
        ({"none": []}, "matches a parameter"),
        ({"lora": "*.lora.*", "first": "blocks.0.*"}, "'lora' and 'first' both match 'blocks.0.lora.0.weight'"),
    ],
)
def test_a_pattern_for_nothing_and_a_parameter_in_two_groups_are_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        named_groups(Net(), patterns)


def test_tied_parameters_may_not_be_shared_out_under_two_names():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    with pytest.raises(ValueError, match="may not overlap"):
        named_groups(net, {"a": "a.*", "b": "b.*"})


def test_a_run_trains_saves_and_resumes_what_the_patterns_name_and_nothing_else(tmp_path):
    def run(folder, before=lambda progress: None, **rest):
        net = Net()
        groups = named_groups(net, PATTERNS)
        watch = {"frozen": net.blocks[0].frozen}
        fit([stage(net, groups, before=before)], groups, out=folder, save_every=2, watch=watch, quiet=True, **rest)
        return net

    def killed(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    start, whole = Net(), run(tmp_path / "whole")
    moved = {k for k, v in whole.named_parameters() if not torch.equal(v, start.get_parameter(k))}
    groups = named_groups(start, PATTERNS)
    assert moved == {key for group in groups.values() for key, _ in group.named_parameters()}
    saved = checkpoint.load(checkpoint.latest(tmp_path / "whole" / "checkpoints")).tensors["weights"]
    assert set(saved) == {f"{name}/{key}" for name, group in groups.items() for key in group.state_dict()}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", killed)
    again = run(tmp_path / "cut", resume=True)
    assert toy.equal(toy.state({"": whole}), toy.state({"": again}))
