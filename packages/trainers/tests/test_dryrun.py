"""Laws of the dry run: it allocates nothing, and what it counts is what torch's own allocator and counters see."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from trainers import dryrun
from trainers.dryrun import SMALL, DryRun


class Block(nn.Module):
    def __init__(self, width=64, heads=4):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        feed = (nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.feed = nn.Sequential(*feed)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.feed(x)


class Stack(nn.Module):
    def __init__(self, layers=4, *, checkpointed=False):
        super().__init__()
        self.blocks, self.checkpointed = nn.ModuleList(Block() for _ in range(layers)), checkpointed

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return x


def loss_of(model, x):
    return model(x).square().mean()


def counted(model, *shape, dtype=torch.float32):
    with DryRun() as dry:
        model = copy.deepcopy(model)
        dry.weights(model)
        x = dry.tensor(*shape, dtype=dtype)
        return dry.step(lambda: loss_of(model, x), model.parameters())


def allocated(step):
    """The most bytes that torch's CPU allocator gave out at once, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    now = peak = 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("trained", ["all", "last"])
def test_the_peak_is_the_allocator_s_within_one_per_cent(checkpointed, trained):
    model = Stack(checkpointed=checkpointed)
    if trained == "last":
        model.requires_grad_(False)
        model.blocks[-1].requires_grad_(True)
    x = torch.randn(2, 512, 64)
    loss_of(model, x).backward()  # gradients are there, as in the second of accumulated batches
    real = allocated(lambda: loss_of(model, x).backward())
    assert counted(model, 2, 512, 64).peak == pytest.approx(real, rel=0.01)


def test_a_convolution_takes_at_least_what_is_counted():
    model = nn.Sequential(
        nn.Conv3d(4, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv3d(16, 4, 3, padding=1)
    )
    x = torch.randn(2, 4, 9, 24, 24)
    loss_of(model, x).backward()
    real = allocated(lambda: loss_of(model, x).backward())
    assert 0.6 * real < counted(model, 2, 4, 9, 24, 24).peak <= 1.01 * real  # its kernels take scratch space themselves


def test_checkpointing_keeps_one_hidden_state_a_block():
    kept, spared = (counted(Stack(checkpointed=c), 2, 512, 64).kept for c in (False, True))
    hidden = 2 * 512 * 64 * 4
    assert spared == 4 * hidden + 512  # the inputs of blocks 2 to 4, the last one's output, and the loss
    assert kept > 8 * spared


def test_operations_are_those_of_torch_s_own_counter():
    model, x = Stack(), torch.randn(2, 128, 64)
    with FlopCounterMode(display=False) as seen:
        loss_of(model, x).backward()
    assert counted(model, 2, 128, 64).flops == {"float32": seen.get_total_flops()}


def test_half_precision_halves_activations_and_is_counted_apart():
    full, half = counted(Stack(), 2, 512, 64), counted(Stack().bfloat16(), 2, 512, 64, dtype=torch.bfloat16)
    assert half.kept == pytest.approx(full.kept / 2, rel=0.05)
    assert (set(half.flops), set(full.flops)) == ({"bfloat16"}, {"float32"})


def test_all_that_grows_grows_with_the_batch():
    one, two, five = (counted(Stack(), n, 512, 64) for n in (1, 2, 5))
    assert five.peak == pytest.approx(one.peak + 4 * (two.peak - one.peak), rel=0.01)
    assert five.flops["float32"] == 5 * one.flops["float32"]


def test_nothing_is_allocated_for_a_step_that_would_not_fit():
    with DryRun() as dry, torch.device("meta"):
        model = Stack(layers=2)
    with DryRun() as dry:
        dry.weights(model)
        x = dry.tensor(4096, 32768, 64)  # 32 GiB in float32
        work = dry.step(lambda: loss_of(model, x), model.parameters())
    assert work.peak > 2**40


def test_small_tensors_have_values_so_that_a_router_chooses():
    model = nn.Linear(64, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4, 64))
    with DryRun() as dry:
        dry.weights(model)
        score = model(torch.eye(64)[:3])
        assert score.argmax(-1).tolist() == [0, 1, 2]
        assert (score > 0.5).nonzero().shape == (3, 2)
        assert float(score.detach().sum()) == 3.0
        assert score[score > 0.5].numel() == 3
        unknown = dry.tensor(2, SMALL).mean(1)  # of values that nobody knows
        assert unknown.topk(1).indices.numel() == 1
        assert bool(dry.tensor(2, SMALL).isfinite().all())


def test_real_tensors_that_a_step_writes_into_are_written_into():
    state = torch.zeros(4)
    with DryRun():
        state.add_(torch.ones(4))
        state[torch.tensor([0])] = 5.0
    assert state.tolist() == [5, 1, 1, 1]


@pytest.mark.parametrize("ask", [lambda x: x.nonzero(), lambda x: x.tolist(), lambda x: x.numpy(), lambda x: x[x > 0]])
def test_the_values_of_a_large_tensor_are_refused_with_a_sentence(ask):
    with DryRun() as dry, pytest.raises(ValueError, match="keep what steers the computation small"):
        ask(dry.tensor(2, SMALL))


def test_a_tensor_of_a_dry_run_is_of_no_use_outside():
    with DryRun() as dry:
        x = dry.tensor(2, SMALL)
    with pytest.raises(RuntimeError, match="inside `with DryRun"):
        x + 1


def test_terms_for_the_log_alone_are_not_part_of_the_loss():
    model = Stack(layers=1)
    with DryRun() as dry:
        dry.weights(model)
        x = dry.tensor(1, 512, 64)
        plain = dry.step(lambda: {"fit": loss_of(model, x)}, model.parameters())
        logged = dry.step(lambda: {"fit": loss_of(model, x), "log/nothing": loss_of(model, x)}, model.parameters())
    forward, both = plain.flops["float32"], logged.flops["float32"]
    assert both - forward == pytest.approx(forward / 3, rel=0.1)  # a forward more, and no backward


def test_what_was_asked_before_is_answered_alike_from_memory():
    """The first step asks every shape, the second none: equal to the byte, in place, in views and in the values."""

    def once():
        with DryRun() as run:
            model = Stack(2)
            run.weights(model)
            x = run.tensor(2, 100, 64)

            def loss():
                out = model(x)
                out[:, 0].mul_(2)
                small = torch.arange(6.0).view(2, 3).t()
                small += 1
                assert small.tolist() == [[1, 4], [2, 5], [3, 6]]
                return out.square().mean() * small[0, 0]

            return run.step(loss, model.parameters())

    dryrun._SEEN.clear()
    first, asked = once(), len(dryrun._SEEN)
    assert asked > 20
    assert once() == first
    assert len(dryrun._SEEN) == asked
