"""What attached adapters go together with: one table, on every family.

A row turns a feature of the stock pipelines on, before or after attaching. It holds when, with the feature on, an
adapter that gives zero changes no bit, a trained one moves the guided output as it does without the feature, and
detaching leaves the stock class, the stock weights and the stock video. What cannot work is refused with a sentence.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import accelerate
import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    WanImageToVideoPipeline,
)
from diffusers.hooks import apply_first_block_cache
from PIL import Image
from torch import nn

from backbones import attach, tiny_families

CPU = torch.device("cpu")
FAMILIES = (*tiny_families.FAMILIES, "wan22_ti2v_image")
FOUR = ("wan21_i2v", "wan22_ti2v", "wan22_a14b", "cogvideox_5b")
TWO = ("wan22_ti2v", "cogvideox_5b")
KINDS = ("velocity", "blocks", "seams")
SIZE = {"height": 32, "width": 32, "num_frames": 9}


class Velocity(nn.Module):
    """D = weight (1 + x_s)."""

    kind = "velocity"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls = 0

    def prepare(self, prompts, text):
        assert len(prompts) == len(text)

    def correction(self, x_s, v, sigma, text):
        self.calls += 1
        return self.weight * (1 + x_s)

    def groups(self):
        return {"velocity": self}


class Blocks(nn.Module):
    """Adds weight * tanh(h) to the hidden states after every block."""

    kind, needs_blocks, token_wise = "blocks", True, True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls = 0

    def prepare(self, prompts, text):
        assert len(prompts) == len(text)

    def begin(self, call, tokens, stack):
        self.calls += 1
        return call

    def after_block(self, k, tokens, state, stack):
        return replace(tokens, h=self.add(tokens.h)), state

    def add(self, h):
        return h + (self.weight * h.float().tanh()).to(h.dtype)

    def groups(self):
        return {"blocks": self}


class Seams(Blocks):
    """The same inside every block, at both seams."""

    kind, seams = "seams", ("after_self_attention", "after_cross_attention")

    def after_block(self, k, tokens, state, stack):
        return tokens, state

    def after_self_attention(self, k, a, tokens, state):
        return self.add(a)

    def after_cross_attention(self, k, h, tokens, state):
        return self.add(h)


ADAPTERS = {"velocity": Velocity, "blocks": Blocks, "seams": Seams}


@dataclass(frozen=True)
class Sampled:
    """A video (or its latents) and the guided outputs that the scheduler's steps were given."""

    frames: torch.Tensor
    guided: list[torch.Tensor]


def stock_class(obj):
    return getattr(type(obj), "_stock", type(obj))


@contextmanager
def recorded(scheduler):
    """Note what the stock scheduler's step is given, after an attached adapter has had its say."""
    kind, seen = stock_class(scheduler), []
    stock = kind.step

    @wraps(stock)
    def step(self, model_output, *args, **kwargs):
        seen.append(model_output.clone())
        return stock(self, model_output, *args, **kwargs)

    kind.step = step
    try:
        yield seen
    finally:
        kind.step = stock


def build(name):
    if name != "wan22_ti2v_image":
        return tiny_families.family(name)
    pipe = WanImageToVideoPipeline(**tiny_families.family("wan22_ti2v").components, expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(pipe, **changes):
    settings = {
        "prompt": "a red ball",
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
        **SIZE,
    }
    if "ImageToVideo" in type(pipe).__name__:
        settings["image"] = Image.new("RGB", (32, 32), (200, 60, 30))
    with recorded(pipe.scheduler) as seen, torch.no_grad():
        frames = pipe(**(settings | changes)).frames
    return Sampled(torch.as_tensor(frames), seen)


@dataclass(frozen=True)
class Row:
    """A feature: how it is turned on, and off again when it wraps the forward; whether it changes the stock numbers.

    `exact`: the stock output is the same with it, so a trained adapter's must be, too. `refused` maps a kind of adapter
    to the sentence that turning it on draws.
    """

    name: str
    on: Callable[[Any], Any]
    before: bool = False  # attaching comes after it
    exact: bool = True
    families: tuple[str, ...] = FOUR
    call: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    tolerance: float = 1e-5

    def __str__(self):
        return self.name.replace(" ", "-")


def both(pipe, do):
    for model in (pipe.transformer, getattr(pipe, "transformer_2", None)):
        if model is not None:
            do(model)


def offload(kind):
    def on(pipe):
        both(
            pipe,
            lambda m: m.enable_group_offload(
                onload_device=CPU, offload_device=CPU, offload_type=kind, num_blocks_per_group=1
            ),
        )

    return on


def cache(config):
    return lambda pipe: both(pipe, lambda m: m.enable_cache(config(pipe)))


def lora(pipe):
    """Load a LoRA on the first block's attention, through the stock pipeline."""
    cog = "CogVideoX" in type(pipe).__name__
    model, place = pipe.transformer, "transformer_blocks" if cog else "blocks"
    width = getattr(model, place)[0].attn1.to_q.in_features
    g = torch.Generator().manual_seed(1)
    parts = {}
    for layer in ("to_q", "to_v"):
        key = f"transformer.{place}.0.attn1.{layer}"
        parts[f"{key}.lora_A.weight"] = torch.randn(2, width, generator=g)
        parts[f"{key}.lora_B.weight"] = torch.randn(width, 2, generator=g)
    pipe.load_lora_weights(parts)


def tiling(pipe):
    sizes = {"tile_sample_min_height": 16, "tile_sample_min_width": 16}
    if "Wan" in type(pipe).__name__:
        sizes |= {"tile_sample_stride_height": 8, "tile_sample_stride_width": 8}
    pipe.vae.enable_tiling(**sizes)
    pipe.vae.enable_slicing()


def every_attention(pipe):
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        cross_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


CACHED = dict.fromkeys(("blocks", "seams"), "cache that skips blocks or attentions")
ROWS = (
    Row("nothing", lambda pipe: None, families=FAMILIES),
    Row("no guidance", lambda pipe: None, families=FAMILIES, call={"guidance_scale": 1.0}),
    Row("model offload", lambda pipe: pipe.enable_model_cpu_offload(device="cpu")),
    Row(
        "sequential offload",  # the pipeline's own method asks for an accelerator; this is what it calls
        lambda pipe: both(pipe, lambda m: accelerate.cpu_offload(m, execution_device=CPU)),
    ),
    Row("group offload by block", offload("block_level")),
    Row("group offload by leaf", offload("leaf_level")),
    Row("LoRA after attaching", lora, exact=False),
    Row("LoRA before attaching", lora, exact=False, before=True),
    Row("LoRA at half scale", lora, exact=False, call={"attention_kwargs": {"scale": 0.5}}),
    Row(
        "layerwise casting",
        lambda pipe: both(
            pipe, lambda m: m.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        ),
        exact=False,
    ),
    Row("fused q, k, v", lambda pipe: both(pipe, lambda m: m.fuse_qkv_projections()), tolerance=1e-4),
    Row("bfloat16 before attaching", lambda pipe: pipe.to(torch.bfloat16), before=True, exact=False, tolerance=0.05),
    Row("bfloat16 after attaching", lambda pipe: pipe.to(torch.bfloat16), exact=False, tolerance=0.05),
    Row("VAE tiling and slicing", tiling, families=("wan21_t2v", "cogvideox_5b"), call={"output_type": "pt"}),
    Row(
        "first block cache",
        cache(lambda pipe: FirstBlockCacheConfig(threshold=1e9)),
        exact=False,
        refused=CACHED,
    ),
    Row("attention broadcast", cache(every_attention), exact=False, refused=CACHED),
    Row(
        "TaylorSeer",
        cache(lambda pipe: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, use_lite_mode=True)),
        exact=False,
        refused=CACHED,
    ),
    Row(
        "MagCache",
        cache(
            lambda pipe: MagCacheConfig(
                threshold=10.0, num_inference_steps=2, retention_ratio=0.0, mag_ratios=[1.0, 1.0]
            )
        ),
        exact=False,
        refused=CACHED,
    ),
    Row(
        "FasterCache",
        cache(lambda pipe: FasterCacheConfig(current_timestep_callback=lambda: pipe.current_timestep)),
        refused=CACHED | {"velocity": "FasterCache estimates the"},
    ),
)


def cases():
    for row in ROWS:
        for name in row.families:
            for kind in KINDS:
                deep = kind != "velocity" and row.name != "nothing" and name not in TWO
                if kind not in row.refused and not deep:
                    yield pytest.param(row, name, kind, id=f"{row}-{name}-{kind}")


@pytest.fixture(scope="module")
def plain():
    """How far a trained adapter moves the first guided output when nothing is turned on, by family, kind and call."""
    known = {}

    def shift(name, kind, call):
        key = (name, kind, call.get("guidance_scale", 3.0))
        if key not in known:
            call = {"guidance_scale": key[2]}
            pipe, adapter = build(name), ADAPTERS[kind]()
            before = sampled(pipe, **call).guided[0]
            nn.init.constant_(adapter.weight, 0.5)
            with attach(pipe, adapter):
                known[key] = sampled(pipe, **call).guided[0] - before
            assert known[key].abs().mean() > 1e-4
        return known[key]

    return shift


@pytest.fixture(scope="module")
def stock_sample():
    """What the stock pipeline gives with a row's feature on."""
    known = {}

    def sample(row, name):
        if (row.name, name) not in known:
            pipe = build(name)
            row.on(pipe)
            known[row.name, name] = sampled(pipe, **row.call)
        return known[row.name, name]

    return sample


@pytest.mark.parametrize(("row", "name", "kind"), list(cases()))
def test_an_attached_adapter_goes_together_with(row, name, kind, plain, stock_sample):
    alone = stock_sample(row, name)
    pipe, adapter = build(name), ADAPTERS[kind]()
    stock = type(pipe.transformer)
    if row.before:
        row.on(pipe)
    weights = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    attached = attach(pipe, adapter)
    if not row.before:
        row.on(pipe)
    assert torch.equal(sampled(pipe, **row.call).frames, alone.frames)
    assert adapter.calls

    nn.init.constant_(adapter.weight, 0.5)
    trained = sampled(pipe, **row.call)
    assert not torch.equal(trained.frames, alone.frames)
    if row.exact or kind == "velocity":
        shift = (trained.guided[0] - alone.guided[0]).float()
        scale = plain(name, kind, row.call).abs().max()
        torch.testing.assert_close(shift / scale, plain(name, kind, row.call) / scale, atol=row.tolerance, rtol=0)

    attached.detach()
    assert torch.equal(sampled(pipe, **row.call).frames, alone.frames)
    assert type(pipe.transformer) is stock
    if row.exact and row.name != "sequential offload":
        after = pipe.transformer.state_dict()
        assert all(torch.equal(after[k], v) for k, v in weights.items())


@pytest.mark.parametrize(("row", "kind"), [pytest.param(r, k, id=f"{r}-{k}") for r in ROWS for k in r.refused])
@pytest.mark.parametrize("name", TWO)
def test_an_attached_adapter_refuses(row, kind, name):
    pipe, adapter = build(name), ADAPTERS[kind]()
    with attach(pipe, adapter), pytest.raises(RuntimeError, match=row.refused[kind]):
        row.on(pipe)


@pytest.mark.parametrize("row", [r for r in ROWS if r.refused is CACHED], ids=str)
@pytest.mark.parametrize("name", TWO)
def test_a_cached_step_is_corrected_like_any_other(row, name):
    pipe, adapter, pairs, ran = build(name), Velocity(), [], []
    nn.init.constant_(adapter.weight, 0.5)
    with attach(pipe, adapter) as attached:
        correct, model = attached.correct, pipe.transformer

        def noted(model, arguments, output, physics):
            new = correct(model, arguments, output, physics)
            pairs.append((arguments, output, new))
            return new

        attached.correct = noted
        row.on(pipe)
        blocks = model.blocks if "wan" in name else model.transformer_blocks
        blocks[-1].attn1.to_q.register_forward_hook(lambda *_: ran.append(1))
        sampled(pipe, num_inference_steps=4)
    assert 0 < len(ran) < len(pairs), "the cache did nothing: this test shows nothing"
    for arguments, output, new in pairs:
        if "wan" in name:
            expected = 0.5 * (1 + arguments["hidden_states"])
        else:
            alpha_bar = pipe.scheduler.alphas_cumprod[arguments["timestep"][0].int()]
            scale = alpha_bar.sqrt() + (1 - alpha_bar).sqrt()
            expected = 0.5 * (1 + arguments["hidden_states"] / scale) / scale
        torch.testing.assert_close(new - output, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FOUR)
def test_gradient_checkpointing_leaves_the_gradients_of_an_adapter_alone(name, kind):
    pipe, adapter, calls, gradients = build(name), ADAPTERS[kind](), [], []
    for part in (pipe.transformer, pipe.text_encoder):
        part.requires_grad_(False)
    pipe.transformer.register_forward_pre_hook(lambda m, a, k: calls.append(k), with_kwargs=True)
    sampled(pipe, num_inference_steps=1)
    nn.init.constant_(adapter.weight, 0.5)
    with attach(pipe, adapter):
        for checkpointing in (False, True):
            if checkpointing:
                pipe.transformer.enable_gradient_checkpointing()
            adapter.weight.grad = None
            arguments = calls[0] | {"attention_kwargs": None}
            if "cog" in name:
                pipe.encode_prompt("a red ball")  # the mask of these features is known through it
            pipe.transformer(**arguments)[0].square().sum().backward()
            gradients.append(adapter.weight.grad.clone())
    assert gradients[0].abs() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=0)
    assert all(p.grad is None for p in pipe.transformer.parameters())


def enter(pipe, adapter, **how):
    attach(pipe, adapter, **how)


def hooked(turn_on):
    def act(pipe, adapter):
        turn_on(pipe)
        attach(pipe, adapter)

    return act


def attached_and(act, **how):
    def do(pipe, adapter):
        with attach(pipe, adapter, **how) as attached:
            act(pipe, attached)

    return do


def unwatched(pipe, _):
    other = type(pipe)(**pipe.components, **({"expand_timesteps": True} if "Wan" in type(pipe).__name__ else {}))
    other.set_progress_bar_config(disable=True)
    sampled(other)


UNTOLD = "was not told the prompts|features were never told"
CAPTURED = "Attach before offload, caches"
REFUSED = {
    "saving the pipeline": ("velocity", attached_and(lambda p, _: p.save_pretrained("nowhere")), "Call detach"),
    "saving the model": ("blocks", attached_and(lambda p, _: p.transformer.save_pretrained("nowhere")), "Call detach"),
    "a second adapter": ("velocity", attached_and(lambda p, _: attach(p, Velocity())), "already: detach it first"),
    "model offload before": ("velocity", hooked(lambda p: p.enable_model_cpu_offload(device="cpu")), CAPTURED),
    "group offload before": ("blocks", hooked(offload("block_level")), CAPTURED),
    "compiling before": ("velocity", hooked(lambda p: p.transformer.compile(backend="eager")), CAPTURED),
    "another pipeline": ("velocity", attached_and(unwatched), UNTOLD),
    "another pipeline, deep": ("blocks", attached_and(unwatched), UNTOLD),
    "a cache behind its back": (
        "blocks",
        attached_and(lambda p, _: (apply_first_block_cache(p.transformer, FirstBlockCacheConfig()), sampled(p))),
        "a block cache .first_block_cache. skips",
    ),
    "physics for nobody": (
        "velocity",
        attached_and(lambda p, _: sampled(p, attention_kwargs={"physics": {"force": 1}})),
        "takes no `physics`, got force",
    ),
    "blocks once a step": ("blocks", lambda p, a: enter(p, a, mode="conditional"), "changes hidden states inside"),
    "one expert of one": ("velocity", lambda p, a: enter(p, a, experts="low"), "one transformer for all noise levels"),
    "unknown experts": ("velocity", lambda p, a: enter(p, a, experts="middle"), "among both, high, low"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("name", TWO)
def test_what_would_go_wrong_in_silence_is_refused(what, name):
    kind, act, sentence = REFUSED[what]
    pipe = build(name)
    with pytest.raises((RuntimeError, ValueError), match=sentence):
        act(pipe, ADAPTERS[kind]())
