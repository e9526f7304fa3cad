"""Recomputed activations: the same gradients bit for bit, dropout and all, for more forwards."""

import pytest
import torch
import toy

from trainers import Length, Stage, fit
from trainers.recompute import recomputed


class Stack(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.3), torch.nn.Tanh()) for _ in range(3)
        )

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def train(out, recompute, calls):
    torch.manual_seed(0)
    stack = Stack()
    stack.blocks[1][0].register_forward_hook(lambda *_: calls.append(1))

    def loss(batch, progress):
        return {"size": stack(batch["x"]).square().mean()}

    fit([Stage("a", {"stack": 1.0}, loss, toy.data(), 4, Length(steps=5), recompute=recompute)], {"stack": stack},
        out=out, quiet=True)  # fmt: skip
    return toy.state({"stack": stack}), stack


def test_gradients_are_bit_equal_and_forwards_are_made_twice(tmp_path):
    kept, again = [], []
    plain, _ = train(tmp_path / "kept", (), kept)
    recomputed_, stack = train(tmp_path / "again", ("stack/blocks.[12]",), again)
    assert toy.equal(plain, recomputed_)
    assert (len(kept), len(again)) == (5, 10)
    assert "forward" not in vars(stack.blocks[1])  # given back as it was


def test_less_is_saved_for_the_backward():
    stack, x = Stack().eval(), torch.ones(50, 3)

    def saved():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            stack(x)
        return sum(sizes)

    kept = saved()
    with recomputed({"stack": stack}, ["stack/blocks.*"]):
        assert saved() < kept / 2


def test_a_pattern_that_matches_no_module_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"got 'stack/block\.1'; did you mean 'stack/blocks\.1'"):
        train(tmp_path, ("stack/block.1",), [])
