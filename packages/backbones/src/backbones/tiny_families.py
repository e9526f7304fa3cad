"""Every generator family as a tiny model with random weights: the real classes, the real folder layout, small sizes.

What tells the families apart is kept: latent channels and their real normalisation, strides, patches, condition
channels, image encoder, one or two transformers, schedulers and their shifts, lengths of text. Widths and depths are
not. `family(name).save_pretrained(folder)` writes what a hub repository holds, and `backbones.load(folder)` reads it.
Legal sizes: 4n+1 frames (8n+1 for CogVideoX), height and width multiples of 16 (of 32 for Wan2.2 TI2V).

Random weights give random pictures; the VAEs are far from lossless.
"""

import string
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from backbones import configs

__all__ = ["FAMILIES", "VOCABULARY", "family", "tokenizer"]

TEXT_DIM = 32
WORDS = ("a", "the", "red", "blue", "ball", "cube", "falls", "rolls", "is", "thrown", "to", "left", "right")
VOCABULARY = (  # pieces of a T5 tokenizer, with their scores: some words and every letter
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    ("▁", -3.0),
    *((c, -5.0) for c in string.ascii_letters + string.digits + ".,'-"),
    *((f"▁{w}", -2.0) for w in WORDS),
)


def family(name: str, *, layers: int = 2, seed: int = 0) -> Any:
    """Build the stock pipeline of a family; ValueError names the families.

    `wan21_t2v`, `wan21_i2v` (36 channels, CLIP image tokens), `wan22_ti2v` (48 channels, stride 16, one timestep a
    token), `wan22_a14b` (two transformers), `wan22_i2v_a14b` (two, 36 channels, no image encoder), `cogvideox_2b`
    (sine-cosine positions), `cogvideox_5b` (rotary), `cogvideox_5b_i2v`, `cogvideox_15` (patches of two latents),
    `cogvideox_15_i2v`.
    """
    if name not in FAMILIES:
        raise ValueError(f"expected a family among {', '.join(FAMILIES)}, got {name!r}")
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        pipe = FAMILIES[name](layers)
    finally:
        torch.random.set_rng_state(state)
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan21_t2v(layers: int) -> WanPipeline:
    """Wan2.1 T2V: 16 channels, one timestep a clip, UniPC with shift 3."""
    return WanPipeline(**_wan(layers, shift=3.0))


def wan21_i2v(layers: int) -> WanImageToVideoPipeline:
    """Wan2.1 I2V: 16 noisy + 4 mask + 16 condition channels, image tokens before the text."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return WanImageToVideoPipeline(
        **_wan(layers, shift=3.0, in_channels=36, image_dim=16, added_kv_proj_dim=24),
        image_encoder=CLIPVisionModel(vision),  # pyright: ignore[reportArgumentType]
        image_processor=CLIPImageProcessor(  # pyright: ignore[reportArgumentType]
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )


def wan22_ti2v(layers: int) -> WanPipeline:
    """Wan2.2 TI2V-5B: 48 channels, stride 16, one timestep a token, shift 5."""
    parts = _wan(layers, shift=5.0, in_channels=48, out_channels=48)
    real = configs.read("wan2.2-ti2v-5b")["vae"]
    parts["vae"] = AutoencoderKLWan(**(real | {"base_dim": 4, "decoder_base_dim": 4, "num_res_blocks": 1}))
    return WanPipeline(**parts, expand_timesteps=True)


def wan22_a14b(layers: int) -> WanPipeline:
    """Wan2.2 T2V-A14B: a transformer for sigma >= 0.875 and a second one below."""
    parts = _wan(layers, shift=3.0)
    low = WanTransformer3DModel(**dict(parts["transformer"].config))
    return WanPipeline(**parts, transformer_2=low, boundary_ratio=0.875)


def wan22_i2v_a14b(layers: int) -> WanImageToVideoPipeline:
    """Wan2.2 I2V-A14B: two transformers of 36 channels, boundary 0.9, no image encoder."""
    parts = _wan(layers, shift=3.0, in_channels=36)
    low = WanTransformer3DModel(**dict(parts["transformer"].config))
    return WanImageToVideoPipeline(**parts, transformer_2=low, boundary_ratio=0.9)


def cogvideox_2b(layers: int) -> CogVideoXPipeline:
    """CogVideoX-2B: sine-cosine positions, DDIM, scale 1.15, SNR shift 3."""
    return CogVideoXPipeline(**_cogvideox(layers, scale=1.15258426, snr_shift=3.0, ddim=True))


def cogvideox_5b(layers: int) -> CogVideoXPipeline:
    """CogVideoX-5B: rotary positions, the stochastic DPM scheduler, scale 0.7, SNR shift 1."""
    return CogVideoXPipeline(**_cogvideox(layers, use_rotary_positional_embeddings=True))


def cogvideox_5b_i2v(layers: int) -> CogVideoXImageToVideoPipeline:
    """CogVideoX-5B-I2V: 32 channels and learned positions, so one size only: 9 frames of 32 x 32 here."""
    return CogVideoXImageToVideoPipeline(
        **_cogvideox(
            layers,
            in_channels=32,
            use_rotary_positional_embeddings=True,
            use_learned_positional_embeddings=True,
        )
    )


def cogvideox_15(layers: int) -> CogVideoXPipeline:
    """CogVideoX1.5-5B: patches of two latents, so one still latent leads in."""
    return CogVideoXPipeline(
        **_cogvideox(layers, patch_size_t=2, patch_bias=False, use_rotary_positional_embeddings=True)
    )


def cogvideox_15_i2v(layers: int) -> CogVideoXImageToVideoPipeline:
    """CogVideoX1.5-5B-I2V: as 1.5, 32 channels, an `ofs` embedding, and the condition divided by the scale."""
    parts = _cogvideox(
        layers,
        in_channels=32,
        patch_size_t=2,
        patch_bias=False,
        ofs_embed_dim=16,
        time_embed_dim=16,
        use_rotary_positional_embeddings=True,
    )
    parts["vae"].register_to_config(invert_scale_latents=True)
    return CogVideoXImageToVideoPipeline(**parts)


FAMILIES: dict[str, Callable[[int], Any]] = {
    f.__name__: f
    for f in (
        wan21_t2v,
        wan21_i2v,
        wan22_ti2v,
        wan22_a14b,
        wan22_i2v_a14b,
        cogvideox_2b,
        cogvideox_5b,
        cogvideox_5b_i2v,
        cogvideox_15,
        cogvideox_15_i2v,
    )
}


def _wan(layers: int, *, shift: float, **changes: Any) -> dict[str, Any]:
    text = UMT5Config(
        vocab_size=len(VOCABULARY), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    sizes: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": TEXT_DIM,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": layers,
        "rope_max_seq_len": 64,
    }
    return {
        "tokenizer": tokenizer(512),
        "text_encoder": UMT5EncoderModel(text),
        "transformer": WanTransformer3DModel(**(sizes | changes)),
        "vae": AutoencoderKLWan(base_dim=4, num_res_blocks=1),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
        ),
    }


def _cogvideox(
    layers: int, *, scale: float = 0.7, snr_shift: float = 1.0, ddim: bool = False, **changes: Any
) -> dict[str, Any]:
    text = T5Config(
        vocab_size=len(VOCABULARY),
        d_model=TEXT_DIM,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    sizes: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 16,
        "out_channels": 16,
        "time_embed_dim": 16,
        "text_embed_dim": TEXT_DIM,
        "num_layers": layers,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 9,
        "max_text_seq_length": 226,
    }
    schedule: dict[str, Any] = {
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "snr_shift_scale": snr_shift,
    }
    return {
        "tokenizer": tokenizer(226),
        "text_encoder": T5EncoderModel(text),
        "transformer": CogVideoXTransformer3DModel(**(sizes | changes)),
        "vae": AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 4, 4),  # pyright: ignore[reportArgumentType]  # diffusers annotates a tuple of one
            layers_per_block=1,
            norm_num_groups=2,
            sample_height=64,
            sample_width=64,
            scaling_factor=scale,
        ),
        "scheduler": CogVideoXDDIMScheduler(**schedule) if ddim else CogVideoXDPMScheduler(**schedule),
    }


def tokenizer(length: int) -> T5Tokenizer:
    """Build a T5 tokenizer of some words and every letter, which pads to a length."""
    return T5Tokenizer(vocab=list(VOCABULARY), extra_ids=0, model_max_length=length)
