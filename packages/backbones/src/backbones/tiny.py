"""A tiny Wan with random weights: stock classes in the stock layout, small enough for a test and for a laptop to train.

`pipeline` is the size that trains; `family` gives every generator family at a size that only tests want.

Only sizes differ from the real thing. The tokenizer knows a closed list of words; its `model_max_length` is the length
that text is padded to (pass it as `max_sequence_length` when you call the pipeline by hand: the pads are part of what
the model was trained on).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from backbones.block_pca import AutoencoderBlockPCA

__all__ = ["family", "kl_vae", "pipeline", "text_encoder", "tokenizer", "transformer"]


def family(name: str, *, layers: int = 2, seed: int = 0) -> Any:
    """Build the stock pipeline of a generator family with random weights (`backbones.tiny_families` names them)."""
    from backbones.tiny_families import (
        family as build,
    )  # imports every family's classes, which `pipeline` does not need

    return build(name, layers=layers, seed=seed)


def pipeline(
    words: Iterable[str],
    *,
    vae: nn.Module | None = None,
    layers: int = 4,
    heads: int = 4,
    head_dim: int = 32,
    ffn_dim: int = 512,
    patch: Sequence[int] = (1, 2, 2),
    text_dim: int = 64,
    text_length: int = 32,
    shift: float = 1.0,
    seed: int = 0,
) -> WanPipeline:
    """Build a `WanPipeline` (TI2V: per-token timesteps) with random weights; `vae` defaults to an unfitted block PCA.

    ValueError when the transformer is too narrow for its tokens: a velocity carries white noise in all `channels x
    patch volume` directions, and a width below twice that cannot pass it (JiT, arXiv 2511.13720, makes the same
    observation).
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        vae = vae if vae is not None else AutoencoderBlockPCA()
        words = list(words)
        pipe = WanPipeline(
            tokenizer=tokenizer(words, length=text_length),  # pyright: ignore[reportArgumentType]
            text_encoder=text_encoder(len(words) + 3, dim=text_dim),
            vae=vae,  # pyright: ignore[reportArgumentType]  # any autoencoder with AutoencoderKLWan's interface
            transformer=transformer(
                vae.config.z_dim,  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
                layers=layers,
                heads=heads,
                head_dim=head_dim,
                ffn_dim=ffn_dim,
                patch=patch,
                text_dim=text_dim,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
            expand_timesteps=True,
        )
    finally:
        torch.random.set_rng_state(state)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def transformer(
    channels: int,
    *,
    layers: int = 4,
    heads: int = 4,
    head_dim: int = 32,
    ffn_dim: int = 512,
    patch: Sequence[int] = (1, 2, 2),
    text_dim: int = 64,
) -> WanTransformer3DModel:
    """Build a small `WanTransformer3DModel`; ValueError when it is too narrow for its tokens."""
    width, token = heads * head_dim, channels * math.prod(patch)
    if width < 2 * token:
        raise ValueError(
            f"expected heads * head_dim >= 2 * channels * patch volume = {2 * token}, got {width}: a narrower model"
            " cannot pass the noise in a velocity. Use more heads, fewer channels or a smaller patch."
        )
    return WanTransformer3DModel(
        patch_size=tuple(patch),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=channels,
        out_channels=channels,
        text_dim=text_dim,
        freq_dim=64,
        ffn_dim=ffn_dim,
        num_layers=layers,
        rope_max_seq_len=64,
    ).eval()


def text_encoder(vocabulary: int, *, dim: int = 64) -> UMT5EncoderModel:
    """Build a two-layer UMT5 encoder for a vocabulary of so many tokens."""
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=dim,
        d_kv=dim // 4,
        d_ff=2 * dim,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config).eval()


def tokenizer(words: Iterable[str], *, length: int = 32) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer: lower case, punctuation dropped, `</s>` at the end as UMT5 has it, `<unk>` for the
    rest.
    """
    vocabulary = dict.fromkeys(["<pad>", "</s>", "<unk>", *words])
    ids = {word: i for i, word in enumerate(vocabulary)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z0-9'-]+"), " ")]
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def kl_vae(*, base_dim: int = 8, z_dim: int = 16) -> AutoencoderKLWan:
    """Build a small real `AutoencoderKLWan` (stride 4 x 4 x 4) with random weights and unit normalisation."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=z_dim,
        dim_mult=[1, 2, 4],
        temperal_downsample=[True, True],
        scale_factor_temporal=4,
        scale_factor_spatial=4,
        latents_mean=[0.0] * z_dim,
        latents_std=[1.0] * z_dim,
    ).eval()
