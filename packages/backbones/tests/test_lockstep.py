"""Two streams in lockstep: simultaneous coupling before the gates, and nothing else changed."""

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from backbones import blocks_of, lockstep

pytestmark = pytest.mark.filterwarnings("ignore:.*CLIPImageProcessor.*")


def video(per_token=False, dtype=torch.float32):
    """A Wan of width 24 on 12 tokens."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=10,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=16,
    ).eval()
    t = torch.tensor([700, 23])
    return model.to(dtype), {
        "hidden_states": torch.randn(2, 4, 2, 4, 6, dtype=dtype),
        "timestep": t[:, None] * (torch.arange(12) > 5) if per_token else t,
        "encoder_hidden_states": torch.randn(2, 7, 10, dtype=dtype),
    }


def physics(dtype=torch.float32):
    """A Wan of width 16 on 8 tokens without patches, as a second stream in a feature space."""
    torch.manual_seed(1)
    model = WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=1,
        attention_head_dim=16,
        in_channels=5,
        out_channels=5,
        text_dim=10,
        freq_dim=16,
        ffn_dim=24,
        num_layers=3,
        rope_max_seq_len=16,
    ).eval()
    return model.to(dtype), {
        "hidden_states": torch.randn(2, 5, 2, 2, 2, dtype=dtype),
        "timestep": torch.tensor([700, 23]),
        "encoder_hidden_states": torch.randn(2, 7, 10, dtype=dtype),
    }


def cogvideox(dtype=torch.float32):
    """A CogVideoX of width 32 on 12 video tokens and 7 text tokens."""
    torch.manual_seed(2)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=10,
        num_layers=3,
        sample_width=6,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=7,
    ).eval()
    return model.to(dtype), {
        "hidden_states": torch.randn(2, 2, 4, 4, 6, dtype=dtype),
        "timestep": torch.tensor([700, 23]),
        "encoder_hidden_states": torch.randn(2, 7, 10, dtype=dtype),
    }


PAIRS = {
    "wan and features": (video, physics),
    "wan with a timestep a token and features": (lambda dtype=torch.float32: video(True, dtype), physics),
    "wan and cogvideox": (video, cogvideox),
    "cogvideox and features": (cogvideox, physics),
}
each_pair = pytest.mark.parametrize("pair", PAIRS)


def streams(pair, dtype=torch.float32):
    out = []
    for make in PAIRS[pair]:
        model, kwargs = make(dtype=dtype)
        out.append((blocks_of(model), kwargs))
    return out


class Link(nn.Module):
    """Each stream gets a projection of the other's mean token."""

    def __init__(self, d1, d2):
        super().__init__()
        torch.manual_seed(3)
        self.to1, self.to2 = nn.Linear(d2, d1), nn.Linear(d1, d2)

    def forward(self, a1, a2, s1, s2):
        return a1 + self.to1(a2.mean(1, keepdim=True)), a2 + self.to2(a1.mean(1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@each_pair
def test_lockstep_with_the_identity_is_two_separate_forwards_bit_for_bit(pair, dtype):
    (stack1, kwargs1), (stack2, kwargs2) = streams(pair, dtype)
    s1, s2 = stack1.begin(**kwargs1), stack2.begin(**kwargs2)
    for k in range(len(stack1)):
        s1, s2 = lockstep(k, stack1, s1, stack2, s2, lambda a1, a2, s1, s2: (a1, a2))
    assert torch.equal(stack1.end(s1), stack1.transformer(**kwargs1, return_dict=False)[0])
    assert torch.equal(stack2.end(s2), stack2.transformer(**kwargs2, return_dict=False)[0])


@each_pair
def test_both_streams_read_the_state_before_coupling_and_each_gets_its_own_answer(pair):
    (stack1, kwargs1), (stack2, kwargs2) = streams(pair)
    s1, s2 = stack1.begin(**kwargs1), stack2.begin(**kwargs2)
    alone, seen = [], []
    for stack, s in ((stack1, s1), (stack2, s2)):
        stack.block(0, s, after_self_attention=lambda a, s: alone.append(a) or a)

    def couple(a1, a2, t1, t2):
        assert t1.h is s1.h
        assert t2.h is s2.h
        seen.extend([a1, a2])
        return a1 + 1, a2 - 1

    o1, o2 = lockstep(0, stack1, s1, stack2, s2, couple)
    assert torch.equal(seen[0], alone[0])
    assert torch.equal(seen[1], alone[1])
    assert torch.equal(o1.h, stack1.block(0, s1, after_self_attention=lambda a, s: a + 1).h)
    assert torch.equal(o2.h, stack2.block(0, s2, after_self_attention=lambda a, s: a - 1).h)


def grads(stack1, kwargs1, stack2, kwargs2, links, run):
    for module in (stack1.transformer, stack2.transformer, links):
        module.zero_grad()
    s1, s2 = stack1.begin(**kwargs1), stack2.begin(**kwargs2)
    for k in range(len(stack1)):
        s1, s2 = run(k, stack1, s1, stack2, s2, links[k])
    (stack1.end(s1).square().sum() + stack2.end(s2).square().sum()).backward()
    return [p.grad for m in (stack1.transformer, stack2.transformer, links) for p in m.parameters()]


@pytest.mark.parametrize("where", ["first", "second", "both", "around"])
@each_pair
def test_joint_checkpointing_changes_no_gradient_and_computes_both_blocks_again(pair, where):
    (stack1, kwargs1), (stack2, kwargs2) = streams(pair)
    links = nn.ModuleList(Link(stack1.spec.dim, stack2.spec.dim) for _ in range(3))
    plain = grads(stack1, kwargs1, stack2, kwargs2, links, lockstep)
    counts = []
    for stack in (stack1, stack2):
        stack.blocks[1].attn1.register_forward_hook(lambda *_, stack=stack: counts.append(stack))
    if where in ("first", "both"):
        stack1.transformer.enable_gradient_checkpointing()
    if where in ("second", "both"):
        stack2.transformer.enable_gradient_checkpointing()

    def around(k, *streams_and_link):
        return checkpoint(lockstep, k, *streams_and_link, use_reentrant=False)

    run = around if where == "around" else lockstep
    joint = grads(stack1, kwargs1, stack2, kwargs2, links, run)
    assert counts.count(stack1) == counts.count(stack2) == 2
    for a, b in zip(plain, joint, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    assert links[0].to1.weight.grad is not None


def test_a_coupling_that_changes_a_shape_is_refused():
    (stack1, kwargs1), (stack2, kwargs2) = streams("wan and features")
    s1, s2 = stack1.begin(**kwargs1), stack2.begin(**kwargs2)
    with pytest.raises(ValueError, match="expected after_self_attention to give"):
        lockstep(0, stack1, s1, stack2, s2, lambda a1, a2, s1, s2: (a2, a1))
    with pytest.raises(ValueError, match="expected a block from 0 to 2, got 3"):
        lockstep(3, stack1, s1, stack2, s2, lambda a1, a2, s1, s2: (a1, a2))
