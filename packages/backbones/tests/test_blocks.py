"""The own block loop against the stock forward, bit for bit, for every family and dtype; taps, copies, refusals."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from backbones import blocks_of, taps

pytestmark = pytest.mark.filterwarnings("ignore:.*CLIPImageProcessor.*")

B, HEADS, HEAD, TEXT, LAYERS = 2, 2, 12, 10, 3
GRID = (2, 2, 3)  # tokens of the latents below


def wan(cls=WanTransformer3DModel, channels=4, **more):
    torch.manual_seed(0)
    return cls(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        in_channels=channels,
        out_channels=4,
        text_dim=TEXT,
        freq_dim=16,
        ffn_dim=32,
        num_layers=LAYERS,
        rope_max_seq_len=16,
        **more,
    ).eval()


def wan_inputs(channels=4, *, per_token=False, text=7, image=None):
    t = torch.tensor([700, 23])
    n = GRID[0] * GRID[1] * GRID[2]
    kwargs = {
        "hidden_states": torch.randn(B, channels, 2, 4, 6),
        "timestep": t[:, None] * (torch.arange(n) > 5) if per_token else t,
        "encoder_hidden_states": torch.randn(B, text, TEXT),
    }
    return kwargs if image is None else {**kwargs, "encoder_hidden_states_image": torch.randn(*image)}


def cogvideox(*, patch_t=None, rotary=False, learned=False, ofs=None, channels=4):
    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=4,
        time_embed_dim=8,
        ofs_embed_dim=ofs,
        text_embed_dim=TEXT,
        num_layers=LAYERS,
        sample_width=6,
        sample_height=4,
        sample_frames=5,
        patch_size=2,
        patch_size_t=patch_t,
        max_text_seq_length=7,
        use_rotary_positional_embeddings=rotary,
        use_learned_positional_embeddings=learned,
    ).eval()
    for p in model.parameters():  # several biases and gains start as zeros and ones
        torch.nn.init.normal_(p, std=0.3)
    return model


def cogvideox_inputs(*, channels=4, frames=2, rotary=None, ofs=False):
    kwargs = {
        "hidden_states": torch.randn(B, frames, channels, 4, 6),
        "encoder_hidden_states": torch.randn(B, 7, TEXT),
        "timestep": torch.tensor([700, 23]),
    }
    if rotary:
        size = (2, 3)
        extra = {"grid_type": "slice", "max_size": size} if rotary == "1.5" else {}
        crops = ((0, 0), size)
        kwargs["image_rotary_emb"] = get_3d_rotary_pos_embed(16, crops, size, 2, **extra)
    if ofs:
        kwargs["ofs"] = torch.full((1,), 2.0)
    return kwargs


IMAGE = {"image_dim": 6, "added_kv_proj_dim": HEADS * HEAD}
FAMILIES = {
    "wan, one timestep a clip": (lambda: wan(), lambda: wan_inputs()),
    "wan, one timestep a token": (lambda: wan(), lambda: wan_inputs(per_token=True)),
    "wan 2.1 image to video": (
        lambda: wan(channels=36, **IMAGE),
        lambda: wan_inputs(36, text=512, image=(B, 5, 6)),
    ),
    "wan 2.1 first and last frame": (
        lambda: wan(channels=36, pos_embed_seq_len=10, **IMAGE),
        lambda: wan_inputs(36, text=512, image=(2 * B, 5, 6)),
    ),
    "wan 2.2 image to video": (lambda: wan(channels=36), lambda: wan_inputs(36)),
    "wan vace": (
        lambda: wan(WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=6),
        lambda: {
            **wan_inputs(),
            "control_hidden_states": torch.randn(B, 6, 2, 4, 6),
            "control_hidden_states_scale": torch.tensor([1.0, 0.5]),
        },
    ),
    "cogvideox 2b": (lambda: cogvideox(), lambda: cogvideox_inputs()),
    "cogvideox 2b, another size": (lambda: cogvideox(), lambda: cogvideox_inputs(frames=3)),
    "cogvideox 5b": (lambda: cogvideox(rotary=True), lambda: cogvideox_inputs(rotary="1.0")),
    "cogvideox 5b image to video": (
        lambda: cogvideox(rotary=True, learned=True, channels=8),
        lambda: cogvideox_inputs(rotary="1.0", channels=8),
    ),
    "cogvideox 1.5": (
        lambda: cogvideox(rotary=True, patch_t=2),
        lambda: cogvideox_inputs(rotary="1.5", frames=4),
    ),
    "cogvideox 1.5 image to video": (
        lambda: cogvideox(rotary=True, patch_t=2, ofs=8, channels=8),
        lambda: cogvideox_inputs(rotary="1.5", frames=4, channels=8, ofs=True),
    ),
}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def cast(model, dtype):
    """Cast as `from_pretrained(dtype=)` does: the float32 islands stay."""
    islands = type(model)._keep_in_fp32_modules or []
    for name, p in model.named_parameters():
        if not any(word in name.split(".") for word in islands):
            p.data = p.data.to(dtype)
    for name, b in model.named_buffers():
        if "rope" not in name:
            b.data = b.data.to(dtype)
    return model.requires_grad_(False)


def case(family, dtype=torch.float32):
    make, inputs = FAMILIES[family]
    model = cast(make(), dtype)
    kwargs = inputs()
    return model, {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() and k not in ("timestep", "ofs") else v
        for k, v in kwargs.items()
    }


def stock(model, kwargs):
    return model(**kwargs, return_dict=False)[0]


@each_dtype
@each_family
def test_the_own_loop_equals_the_stock_forward_bit_for_bit(family, dtype):
    model, kwargs = case(family, dtype)
    out = taps.run(blocks_of(model), kwargs).output
    assert out.dtype == dtype
    assert torch.equal(out, stock(model, kwargs))


@each_dtype
@each_family
def test_identities_at_the_seams_change_no_bit(family, dtype):
    model, kwargs = case(family, dtype)
    stack = blocks_of(model)
    s, calls = stack.begin(**kwargs, attention_kwargs={"physics": object()}, return_dict=True), []
    for k in range(len(stack)):
        s = stack.block(
            k,
            s,
            after_self_attention=lambda a, t: calls.append("a") or a,
            after_cross_attention=lambda h, t: calls.append("h") or h,
        )
    assert torch.equal(stack.end(s), stock(model, kwargs))
    assert calls == ["a", "h"] * len(stack)


def test_attention_kwargs_reach_the_attention_of_cogvideox_without_what_is_not_its_own():
    model, kwargs = case("cogvideox 2b")
    mask = torch.zeros(B, 1, 7 + 12)
    mask[:, :, :3] = -1e4
    stack, seam = blocks_of(model), {"after_self_attention": lambda a, s: a}
    s = stack.begin(**kwargs, attention_kwargs={"attention_mask": mask, "physics": object(), "scale": 1.0})
    assert s.attention_kwargs is not None
    assert s.attention_kwargs.keys() == {"attention_mask"}
    masked = model(**kwargs, attention_kwargs={"attention_mask": mask}, return_dict=False)[0]
    assert not torch.equal(masked, stock(model, kwargs))
    for more in ({}, seam):
        t = s
        for k in range(len(stack)):
            t = stack.block(k, t, **more)
        assert torch.equal(stack.end(t), masked)


def test_the_blocks_of_each_family_say_their_sizes():
    spec = blocks_of(case("cogvideox 1.5 image to video")[0]).spec
    assert (spec.kind, spec.n_blocks, spec.dim, spec.heads, spec.head_dim) == ("cogvideox", LAYERS, 32, 2, 16)
    assert (spec.patch, spec.in_channels, spec.out_channels, spec.text_dim) == ((2, 2, 2), 8, 4, TEXT)
    assert spec.ctx_evolves
    assert spec.latent_layout == "btchw"
    spec = blocks_of(case("wan 2.2 image to video")[0]).spec
    assert (spec.kind, spec.n_blocks, spec.dim, spec.heads, spec.head_dim) == ("wan", LAYERS, 24, 2, 12)
    assert (spec.patch, spec.in_channels, spec.out_channels, spec.text_dim) == ((1, 2, 2), 36, 4, TEXT)
    assert not spec.ctx_evolves
    assert spec.latent_layout == "bcthw"


@each_family
def test_tokens_lie_on_the_grid_in_raster_order(family):
    model, kwargs = case(family)
    s = blocks_of(model).begin(**kwargs)
    assert s.h.shape == (B, s.grid[0] * s.grid[1] * s.grid[2], blocks_of(model).spec.dim)
    assert s.per_token == (family == "wan, one timestep a token")
    kwargs["hidden_states"][..., :2, 2:4] += 1  # the second patch of the first row
    moved = (blocks_of(model).begin(**kwargs).h != s.h).any(-1).all(0).nonzero().flatten()
    assert moved.tolist() == [1 + t * s.grid[1] * s.grid[2] for t in range(s.grid[0])]


@each_family
def test_a_closed_gate_stops_what_is_added_after_self_attention(family):
    model, kwargs = case(family)
    stack, dim = blocks_of(model), blocks_of(model).spec.dim
    block = stack.blocks[1]
    s = stack.begin(**kwargs)
    add = lambda a, s: a + 1  # noqa: E731
    assert not torch.equal(stack.block(1, s, after_self_attention=add).h, stack.block(1, s).h)
    if stack.spec.kind == "cogvideox":
        for p in (block.norm1.linear.weight, block.norm1.linear.bias):
            p[2 * dim : 3 * dim] = 0
    else:
        block.scale_shift_table[:, 2] = 0
        s.modulation[..., 2, :] = 0
    assert torch.equal(stack.block(1, s, after_self_attention=add).h, stack.block(1, s).h)


@each_family
def test_behind_the_seam_after_cross_attention_only_the_feed_forward_is_left(family):
    model, kwargs = case(family)
    stack, dim = blocks_of(model), blocks_of(model).spec.dim
    block, s, seen = stack.blocks[1], stack.begin(**kwargs), []
    if stack.spec.kind == "cogvideox":
        for p in (block.norm2.linear.weight, block.norm2.linear.bias):
            p[2 * dim : 3 * dim] = 0
    else:
        block.scale_shift_table[:, 5] = 0
        s.modulation[..., 5, :] = 0
    out = stack.block(1, s, after_cross_attention=lambda h, s: seen.append(2 * h) or 2 * h)
    assert torch.equal(out.h, seen[0])


@each_family
def test_the_feed_forward_reads_what_the_seam_after_cross_attention_gives(family):
    model, kwargs = case(family)
    stack = blocks_of(model)
    s = stack.begin(**kwargs)
    given = torch.randn_like(s.h)
    outs = [stack.block(1, t, after_cross_attention=lambda h, s: given).h for t in (s, replace(s, h=s.h + 1))]
    assert torch.equal(*outs)
    assert not torch.equal(outs[0], given)


@each_family
def test_text_reaches_the_video_before_the_seam_after_cross_attention(family):
    model, kwargs = case(family)
    kwargs.pop("encoder_hidden_states_image", None)
    stack, seen = blocks_of(model), []
    for shift in (0, 1):
        text = kwargs["encoder_hidden_states"] + shift * torch.randn_like(kwargs["encoder_hidden_states"])
        s = stack.begin(**{**kwargs, "encoder_hidden_states": text})
        stack.block(
            0,
            s,
            after_self_attention=lambda a, s: seen.append(a) or a,
            after_cross_attention=lambda h, s: seen.append(h) or h,
        )
    a1, h1, a2, h2 = seen
    assert torch.equal(a1, a2) != stack.spec.ctx_evolves  # Wan's self-attention sees no text, CogVideoX's does
    assert not torch.equal(h1, h2)


def test_a_seam_keeps_the_dtype_and_must_keep_the_shape():
    model, kwargs = case("wan, one timestep a clip", torch.bfloat16)
    stack = blocks_of(model)
    s = stack.begin(**kwargs)
    wide = stack.block(0, s, after_cross_attention=lambda h, s: h.float())
    assert wide.h.dtype == torch.bfloat16
    assert torch.equal(wide.h, stack.block(0, s).h)
    with pytest.raises(ValueError, match="expected after_cross_attention to give"):
        stack.block(0, s, after_cross_attention=lambda h, s: h[:1])
    with pytest.raises(ValueError, match=r"to give a tensor .* back, got NoneType"):
        stack.block(0, s, after_self_attention=lambda a, s: None)
    with pytest.raises(ValueError, match="expected a block from 0 to 2, got -1"):
        stack.block(-1, s)


class Stranger(WanTransformer3DModel):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(2, 2), lambda: wan(Stranger)], ids=["linear", "own forward"])
def test_an_unknown_transformer_is_refused(make):
    with pytest.raises(ValueError, match=r"expected one of Wan|a forward of its own"):
        blocks_of(make())


def test_relatives_with_other_blocks_are_refused():
    model = WanAnimateTransformer3DModel.__new__(WanAnimateTransformer3DModel)
    with pytest.raises(ValueError, match=r"expected one of Wan.*, got WanAnimateTransformer3DModel"):
        blocks_of(model)


REFUSED = {
    "wan, time before channels": (
        "wan, one timestep a clip",
        lambda k: {**k, "hidden_states": k["hidden_states"].transpose(1, 2)},
        r"expected latents \(b, 4, t, y, x\)",
    ),
    "wan 2.1 I2V, text not padded": (
        "wan 2.1 image to video",
        lambda k: {**k, "encoder_hidden_states": k["encoder_hidden_states"][:, :77]},
        "expected 512 text tokens, got 77",
    ),
    "vace without control": ("wan vace", lambda k: {**k, "control_hidden_states": None}, "expected `control_hidden"),
    "vace, timestep a token": (
        "wan vace",
        lambda k: {**k, "timestep": k["timestep"][:, None].expand(-1, 12)},
        "expected one timestep a clip",
    ),
    "vace, too few scales": (
        "wan vace",
        lambda k: {**k, "control_hidden_states_scale": torch.ones(1)},
        "expected 2 control scales",
    ),
    "cogvideox, channels before time": (
        "cogvideox 2b",
        lambda k: {**k, "hidden_states": k["hidden_states"].transpose(1, 2)},
        r"expected latents \(b, t, 4, y, x\)",
    ),
    "cogvideox 5b without positions": (
        "cogvideox 5b",
        lambda k: {**k, "image_rotary_emb": None},
        "expected `image_rotary_emb`, got None",
    ),
    "cogvideox 1.5, odd frames": (
        "cogvideox 1.5",
        lambda k: {**k, "hidden_states": k["hidden_states"][:, :3]},
        "expected a multiple of 2 latent frames, got 3",
    ),
    "cogvideox 1.5 I2V without ofs": ("cogvideox 1.5 image to video", lambda k: {**k, "ofs": None}, "expected `ofs`"),
    "cogvideox, timestep a token": (
        "cogvideox 2b",
        lambda k: {**k, "timestep": k["timestep"][:, None].expand(-1, 12)},
        "expected one timestep a clip",
    ),
}


@pytest.mark.parametrize("trap", REFUSED)
def test_what_would_go_wrong_in_silence_is_refused(trap):
    family, spoil, sentence = REFUSED[trap]
    model, kwargs = case(family)
    with pytest.raises(ValueError, match=sentence):
        blocks_of(model).begin(**spoil(kwargs))


@each_family
def test_taps_read_what_passes_there_in_the_stock_forward(family):
    model, kwargs = case(family)
    stack, seen = blocks_of(model), {}

    def keep(name):
        return lambda module, args, out: seen.__setitem__(name, out[0] if isinstance(out, tuple) else out)

    hooks = [b.register_forward_hook(keep(f"block.{k}")) for k, b in enumerate(stack.blocks)]
    hooks += [b.attn1.register_forward_hook(keep(f"block.{k}.self_attention")) for k, b in enumerate(stack.blocks)]
    out = stock(model, kwargs)
    for hook in hooks:
        hook.remove()
    if family == "wan vace":  # hints are added after the block module
        seen = {k: v for k, v in seen.items() if k not in ("block.0", "block.2")}
    run = taps.run(stack, kwargs, taps=list(seen))
    assert torch.equal(run.output, out)
    assert run.taps.keys() == seen.keys()
    assert all(torch.equal(run.taps[name], seen[name]) for name in seen)


@each_family
def test_an_early_stop_equals_the_tap_of_the_full_run_bit_for_bit(family):
    model, kwargs = case(family)
    stack = blocks_of(model)
    full = taps.run(stack, kwargs, taps=["embedding", "block.1", "block.1.cross_attention"])
    short = taps.run(stack, kwargs, taps=["block.1.cross_attention"], until=1)
    assert short.output is None
    assert torch.equal(short.tokens.h, full.taps["block.1"])
    assert torch.equal(short.taps["block.1.cross_attention"], full.taps["block.1.cross_attention"])
    assert torch.equal(full.taps["embedding"], stack.begin(**kwargs).h)


@pytest.mark.parametrize("family", ["wan, one timestep a token", "cogvideox 5b"])
def test_after_an_early_stop_gradients_reach_the_blocks_before_it_alone(family):
    model, kwargs = case(family)
    stack = blocks_of(model.requires_grad_(True))
    taps.run(stack, kwargs, until=1).tokens.h.square().sum().backward()
    reached = [any(p.grad is not None for p in b.parameters()) for b in stack.blocks]
    assert reached == [True, True, False]
    assert model.proj_out.weight.grad is None


@pytest.mark.parametrize("place", ["embedding", "block.1", "block.1.self_attention", "block.1.cross_attention"])
@pytest.mark.parametrize("family", ["wan, one timestep a token", "cogvideox 5b"])
def test_an_edit_is_what_the_model_goes_on_with(family, place):
    model, kwargs = case(family)
    stack = blocks_of(model)
    plain = taps.run(stack, kwargs, taps=[place])
    delta = torch.randn_like(plain.taps[place])
    moved = taps.run(stack, kwargs, taps=[place], edit={place: lambda h, s: h + delta})
    assert torch.equal(moved.taps[place], plain.taps[place] + delta)
    assert not torch.equal(moved.output, plain.output)
    back = taps.run(stack, kwargs, edit={place: lambda h, s: plain.taps[place]})
    assert torch.equal(back.output, plain.output)


def test_a_place_that_no_block_has_is_refused():
    model, kwargs = case("wan, one timestep a clip")
    stack = blocks_of(model)
    for places, sentence in (
        (["block.3"], "expected a block from 0 to 2, got 'block.3'"),
        (["block.1.ffn"], "expected 'embedding', 'block.K'"),
        (["block.-1"], "expected 'embedding', 'block.K'"),
        ("block.1", "in a list, got the string"),
    ):
        with pytest.raises(ValueError, match=sentence):
            taps.run(stack, kwargs, taps=places)
    with pytest.raises(ValueError, match=r"never comes to 'block.2.self_attention'"):
        taps.run(stack, kwargs, edit={"block.2.self_attention": lambda h, s: h}, until=1)
    with pytest.raises(ValueError, match="expected `until` from 0 to 2, got 3"):
        taps.run(stack, kwargs, until=3)
    with pytest.raises(ValueError, match="to give"):
        taps.run(stack, kwargs, edit={"block.1": lambda h, s: h[..., :1]})


@pytest.mark.parametrize("family", ["wan, one timestep a token", "wan vace", "cogvideox 5b"])
def test_gradient_checkpointing_changes_no_gradient_and_computes_blocks_again(family):
    model, kwargs = case(family)
    stack, grads, counts = blocks_of(model.requires_grad_(True)), [], []
    watched = [stack.blocks[1], *getattr(model, "vace_blocks", [])[:1]]
    for block in watched:
        block.attn1.register_forward_hook(lambda *_: counts.append(1))
    scale = torch.tensor(0.5, requires_grad=True)
    for on in (False, True):
        (model.enable_gradient_checkpointing if on else model.disable_gradient_checkpointing)()
        model.zero_grad()
        scale.grad = None
        counts.clear()
        run = taps.run(
            stack,
            kwargs,
            taps=["block.0", "block.1.self_attention"],
            edit={"block.1.cross_attention": lambda h, s: h * scale},
        )
        loss = run.output.square().sum() + sum(t.square().sum() for t in run.taps.values())
        read = dict(run.taps)
        loss.backward()
        assert all(run.taps[name] is read[name] for name in read)  # computed again, but not read again
        assert len(counts) == len(watched) * (1 + on)
        grads.append([scale.grad, *(p.grad for p in model.parameters())])
    for plain, checkpointed in zip(*grads, strict=True):
        assert (plain is None) == (checkpointed is None)
        assert plain is None or torch.equal(plain, checkpointed)
    with torch.no_grad():
        taps.run(stack, kwargs)
