"""Fresh copies of blocks, and blocks under hooks: offload, casting, caches, anything that replaced their forward."""

import functools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.hooks import ModelHook as AccelerateHook
from accelerate.hooks import add_hook_to_module
from diffusers import CogVideoXTransformer3DModel, FirstBlockCacheConfig, WanTransformer3DModel
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading
from diffusers.models import attention_dispatch
from torch import nn

from backbones import blocks_of, fresh_copy, lockstep, taps

pytestmark = pytest.mark.filterwarnings("ignore:.*CLIPImageProcessor.*")


def wan():
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
    return model.requires_grad_(False), {
        "hidden_states": torch.randn(2, 4, 2, 4, 6),
        "timestep": torch.tensor([700, 23]),
        "encoder_hidden_states": torch.randn(2, 7, 10),
    }


def cogvideox():
    torch.manual_seed(0)
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
    return model.requires_grad_(False), {
        "hidden_states": torch.randn(2, 2, 4, 4, 6),
        "timestep": torch.tensor([700, 23]),
        "encoder_hidden_states": torch.randn(2, 7, 10),
    }


each_model = pytest.mark.parametrize("make", [wan, cogvideox])


class Doubling(ModelHook):
    """A hook whose absence shows: it doubles the hidden states on their way in."""

    def pre_forward(self, module, *args, **kwargs):
        if args:
            return (2 * args[0], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": 2 * kwargs["hidden_states"]}


class AccelerateDoubling(AccelerateHook):
    def pre_forward(self, module, *args, **kwargs):
        return Doubling.pre_forward(None, module, *args, **kwargs)


class Passing(ModelHook):
    """A hook that takes the forward's place and calls it, as caches do."""

    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs)


def hook_with_diffusers(block):
    HookRegistry.check_if_exists_or_initialize(block).register_hook(Doubling(), "double")


def hook_as_a_cache(block):
    HookRegistry.check_if_exists_or_initialize(block).register_hook(Passing(), "pass")
    hook_with_diffusers(block)


def hook_with_both(block):
    hook_with_diffusers(block)
    add_hook_to_module(block, AccelerateHook())


def hook_with_both_the_other_way(block):
    add_hook_to_module(block, AccelerateDoubling())
    HookRegistry.check_if_exists_or_initialize(block).register_hook(Passing(), "pass")


def hook_with_torch(block):
    block.register_forward_pre_hook(lambda m, a, kw: Doubling.pre_forward(None, m, *a, **kw), with_kwargs=True)


def hook_and_remove(block):
    hook_with_torch(block)
    HookRegistry.check_if_exists_or_initialize(block).register_hook(Doubling(), "double")
    block._diffusers_hook.remove_hook("double")


HOOKS = {
    "diffusers": hook_with_diffusers,
    "a cache of diffusers": hook_as_a_cache,
    "accelerate": lambda block: add_hook_to_module(block, AccelerateDoubling()),
    "diffusers, then accelerate": hook_with_both,
    "accelerate, then diffusers": hook_with_both_the_other_way,
    "torch": hook_with_torch,
    "torch, one of diffusers removed": hook_and_remove,
}


@each_model
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_around_a_block_stay_on_when_its_seams_are_used(make, hook):
    model, kwargs = make()
    plain = model(**kwargs, return_dict=False)[0]
    block = blocks_of(model).blocks[1]
    HOOKS[hook](block)
    forward = vars(block).get("forward")
    hooked = model(**kwargs, return_dict=False)[0]
    assert not torch.equal(hooked, plain)
    stack = blocks_of(model)
    names = [f"block.1.{x}" for x in ("self_attention", "cross_attention")]
    assert torch.equal(taps.run(stack, kwargs, taps=names).output, hooked)
    assert vars(block).get("forward") is forward
    assert torch.equal(model(**kwargs, return_dict=False)[0], hooked)
    s = stack.begin(**kwargs)
    for k in range(3):  # both streams in the same blocks: each is entered a second time inside itself
        s, other = lockstep(k, stack, s, stack, s, lambda a1, a2, s1, s2: (a1, a2))
        assert torch.equal(s.h, other.h)
    assert torch.equal(stack.end(s), hooked)
    assert torch.equal(model(**kwargs, return_dict=False)[0], hooked)


def test_after_an_error_at_a_seam_the_block_is_as_before():
    model, kwargs = wan()
    hook_with_diffusers(model.blocks[1])
    before = model(**kwargs, return_dict=False)[0]
    with pytest.raises(ValueError, match="to give"):
        taps.run(blocks_of(model), kwargs, edit={"block.1.self_attention": lambda a, s: a[:1]})
    assert torch.equal(model(**kwargs, return_dict=False)[0], before)


def test_a_block_whose_forward_was_replaced_is_refused_at_its_seams_alone():
    model, kwargs = wan()
    old = model.blocks[1].forward
    model.blocks[1].forward = lambda *args: 2 * old(*args)
    stack = blocks_of(model)
    assert torch.equal(taps.run(stack, kwargs).output, model(**kwargs, return_dict=False)[0])
    with pytest.raises(RuntimeError, match="was replaced by something other than the hooks"):
        taps.run(stack, kwargs, taps=["block.1.self_attention"])


def test_a_block_cache_that_skips_a_seam_is_refused():
    model, kwargs = wan()
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    stack = blocks_of(model)
    with model.cache_context("cond"):
        assert torch.isfinite(taps.run(stack, kwargs).output).all()
        s = stack.block(0, stack.begin(**kwargs))
        with pytest.raises(RuntimeError, match="a block cache answered for block 1"):
            stack.block(1, s, after_self_attention=lambda a, s: a)
        with pytest.raises(RuntimeError, match="a block cache is enabled"):
            taps.run(stack, kwargs, taps=["block.1"])
    model.disable_cache()
    assert torch.isfinite(taps.run(stack, kwargs, taps=["block.1"]).output).all()


def in_its_own_forward(model, names):
    """Make a model run the own loop inside its forward, and so inside the hooks around all of it, as a host does."""
    stock = type(model)

    @functools.wraps(stock.forward)
    def forward(self, **kwargs):
        return (taps.run(blocks_of(self), kwargs, taps=names).output,)

    model.__class__ = type("Looped", (stock,), {"forward": forward})


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@each_model
def test_group_offload_works_at_the_seams_and_forbids_copies(make, kind, tmp_path):
    model, kwargs = make()
    plain = model(**kwargs, return_dict=False)[0]
    in_its_own_forward(model, [f"block.{k}.self_attention" for k in range(3)])
    more = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    device = torch.device("cpu")  # weights go to files and come back; what is in memory between is not initialised
    apply_group_offloading(model, device, device, kind, offload_to_disk_path=str(tmp_path), **more)
    assert torch.equal(model(**kwargs, return_dict=False)[0], plain)
    with pytest.raises(ValueError, match="not in memory: copy the block before offload"):
        fresh_copy(blocks_of(model).blocks[1], model.config)


@each_model
def test_layerwise_casting_works_at_the_seams_and_a_copy_gets_the_dtype_of_the_computation(make):
    model, kwargs = make()
    config = model.config
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    cast = model(**kwargs, return_dict=False)[0]
    stack = blocks_of(model)
    assert stack.blocks[1].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert torch.equal(taps.run(stack, kwargs, taps=["block.1.self_attention"]).output, cast)
    copy = fresh_copy(stack.blocks[1], config)
    assert {p.dtype for p in copy.parameters()} == {torch.float32}
    s = stack.block(0, stack.begin(**kwargs))
    assert torch.equal(stack.block(1, s, module=copy).h, stack.block(1, s).h)


@pytest.mark.parametrize("hook", [None, "diffusers", "a cache of diffusers", "accelerate"])
@each_model
def test_a_copy_is_a_block_of_its_own_even_when_the_original_is_hooked(make, hook):
    model, kwargs = make()
    stack = blocks_of(model)
    s = stack.begin(**kwargs)
    unhooked = stack.block(1, s)
    if hook is not None:
        HOOKS[hook](stack.blocks[1])
    copy = fresh_copy(stack.blocks[1], model.config)
    assert torch.equal(stack.block(1, s, module=copy).h, unhooked.h)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    base = stack.block(1, s).h
    with torch.no_grad():
        for p in copy.parameters():
            p += 0.1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(stack.block(1, s).h, base)
    changed = stack.block(1, s, module=copy, after_cross_attention=lambda h, s: h)
    assert not torch.allclose(changed.h, unhooked.h)
    changed.h.square().sum().backward()
    assert all(p.grad is not None for p in copy.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_copy_keeps_the_float32_islands_and_the_mode():
    model, _ = wan()
    block = model.blocks[0].to(torch.bfloat16)
    block.scale_shift_table.data = block.scale_shift_table.data.float()
    block.norm2.float()
    copy = fresh_copy(block, model.config)
    assert {n: p.dtype for n, p in copy.named_parameters()} == {n: p.dtype for n, p in block.named_parameters()}
    assert copy.scale_shift_table.dtype == torch.float32
    assert not copy.training
    assert fresh_copy(block.train(), model.config).training


def test_a_copy_keeps_the_attention_backend_and_shares_no_processor(monkeypatch):
    registry = attention_dispatch._AttentionBackendRegistry
    monkeypatch.setattr(registry, "_active_backend", registry._active_backend)  # diffusers sets it for all
    model, _ = wan()
    model.set_attention_backend("_native_math")
    copy = fresh_copy(model.blocks[0], model.config)
    assert copy.attn1.processor._attention_backend == model.blocks[0].attn1.processor._attention_backend is not None
    assert copy.attn1.processor is not model.blocks[0].attn1.processor


@each_model
def test_a_copy_of_a_fused_block_has_the_separate_projections(make):
    model, kwargs = make()
    stack = blocks_of(model)
    s = stack.begin(**kwargs)
    before = stack.block(1, s).h
    model.fuse_qkv_projections()
    copy = fresh_copy(stack.blocks[1], model.config)
    assert not any("to_qkv" in n or "to_kv" in n for n, _ in copy.named_parameters())
    torch.testing.assert_close(stack.block(1, s, module=copy).h, before)


def test_a_block_on_meta_gives_a_copy_on_meta():
    with torch.device("meta"):
        model, _ = wan()
    copy = fresh_copy(model.blocks[0], model.config)
    assert all(p.is_meta for p in copy.parameters())
    assert sum(p.numel() for p in copy.parameters()) == sum(p.numel() for p in model.blocks[0].parameters())


class Int8(torch.Tensor):
    """A quantised weight as quantisers make it: a tensor that says float32 and holds bytes."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data, scale):
        self.data_int8, self.scale = data, scale

    def dequantize(self):
        return self.data_int8.float() * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].data_int8, args[0].scale)
        args = [a.dequantize() if isinstance(a, cls) else a for a in args]
        return func(*args, **(kwargs or {}))


def test_a_copy_of_a_quantised_block_is_plain_and_can_be_trained():
    model, kwargs = wan()
    stack = blocks_of(model)
    for linear in (m for m in stack.blocks[1].modules() if isinstance(m, nn.Linear)):
        scale = linear.weight.abs().max() / 127
        data = (linear.weight / scale).round().to(torch.int8)
        linear.weight = nn.Parameter(Int8(data, scale), requires_grad=False)
    s = stack.begin(**kwargs)
    copy = fresh_copy(stack.blocks[1], model.config)
    assert {type(p) for p in copy.parameters()} == {nn.Parameter}
    out = stack.block(1, s, module=copy).h
    torch.testing.assert_close(out, stack.block(1, s).h)
    out.square().sum().backward()
    assert all(p.grad is not None for p in copy.parameters())


def lora(block):
    block.attn1.to_q.lora_A = nn.Linear(24, 2)


def other(block):
    block.gate = nn.Linear(2, 2)


def packed(block):
    block.attn1.to_q.weight = nn.Parameter(torch.zeros(24, 24, dtype=torch.uint8), requires_grad=False)


def eight_bits(block):
    block.attn1.to_q.to(torch.float8_e4m3fn)


def offloaded(block):
    hook_with_diffusers(block)
    block.attn1.to_q.to("meta")


SPOILT = {
    lora: "copy the block before load_lora_weights",
    other: "something was added to it",
    packed: "packed as torch.uint8: call transformer.dequantize",
    eight_bits: "stored in 8 bits",
    offloaded: "not in memory: copy the block before offload",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda f: f.__name__)
def test_a_block_that_cannot_be_copied_says_why(spoil):
    model, _ = wan()
    spoil(model.blocks[0])
    with pytest.raises(ValueError, match=SPOILT[spoil]):
        fresh_copy(model.blocks[0], model.config)


def test_a_strange_block_and_a_config_of_another_size_are_refused():
    model, _ = wan()
    with pytest.raises(ValueError, match="expected a WanTransformerBlock or a CogVideoXBlock, got Linear"):
        fresh_copy(nn.Linear(2, 2), model.config)
    config = SimpleNamespace(**{**model.config, "ffn_dim": 48})
    with pytest.raises(ValueError, match="by the config, got"):
        fresh_copy(model.blocks[0], config)


COMPILED = """
import torch
torch.set_num_threads(1)
from diffusers import WanTransformer3DModel
from backbones import blocks_of, taps
torch.manual_seed(0)
model = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10,
    freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=16).eval().requires_grad_(False)
kwargs = dict(hidden_states=torch.randn(1, 4, 2, 4, 6), timestep=torch.tensor([700]),
    encoder_hidden_states=torch.randn(1, 7, 10))
stack, names = blocks_of(model), ["block.0.self_attention", "block.1"]
plain = taps.run(stack, kwargs, taps=names)
whole = torch.compile(lambda kw: taps.run(stack, kw, taps=names).output, backend="eager", fullgraph=True)
assert torch.equal(whole(kwargs), plain.output), "whole loop"
model.compile_repeated_blocks(backend="eager", fullgraph=True)
mixed = taps.run(stack, kwargs, taps=names)
assert torch.equal(mixed.output, plain.output), "compiled blocks"
assert all(torch.equal(mixed.taps[n], plain.taps[n]) for n in names)
"""


def test_the_loop_compiles_as_a_whole_and_runs_over_compiled_blocks():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
