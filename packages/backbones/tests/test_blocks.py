"""The own block loop against the stock forward, bit for bit, for every family and dtype; taps, copies, refusals."""

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
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
