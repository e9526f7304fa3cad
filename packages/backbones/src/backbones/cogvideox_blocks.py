"""The blocks of a CogVideoX transformer: 2B (sin-cos positions), 5B (rotary), 5B-I2V (rotary and learned), 1.5 (patches
in time, ofs embedding).

Latents are (b, t, c, y, x): time before channels. Text and video attend to each other in one attention and both evolve
from block to block, so a parallel stream carries a `ctx` of its own. The pipeline passes rotary positions in.
"""

from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, cat, nn

from backbones.blocks import BlockSpec, BlockStack, Tokens

__all__ = ["CogVideoXBlocks", "new_cogvideox_block"]

# What follows re-expresses parts of diffusers' cogvideox_transformer_3d.py (0.42.1) so that they can be entered between
# two steps: `begin`, `_mirror`, `end`.
# Copyright 2025 The CogVideoX team, Tsinghua University & ZhipuAI and The HuggingFace Team. All rights reserved.
# Licensed under the Apache License, Version 2.0; http://www.apache.org/licenses/LICENSE-2.0


class CogVideoXBlocks(BlockStack):
    """The blocks of a `CogVideoXTransformer3DModel`."""

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer, transformer.transformer_blocks)
        config = transformer.config
        p, p_t = config.patch_size, config.patch_size_t or 1
        self.spec = BlockSpec(
            kind="cogvideox",
            n_blocks=len(transformer.transformer_blocks),
            dim=config.num_attention_heads * config.attention_head_dim,
            heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            patch=(p_t, p, p),
            in_channels=config.in_channels,
            out_channels=transformer.proj_out.out_features // (p_t * p * p),
            text_dim=config.text_embed_dim,
            ctx_evolves=True,
            latent_layout="btchw",
        )

    def begin(
        self,
        *,
        hidden_states: Float[Tensor, "b t c y x"],
        encoder_hidden_states: Float[Tensor, "b l e"],
        timestep: Tensor,
        timestep_cond: Tensor | None = None,
        ofs: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Tokens:
        """Embed: `timestep` (b,). ValueError for wrong channels, missing rotary positions, a missing ofs, and frames
        that the patches do not divide.
        """
        self._check(hidden_states, timestep, ofs, image_rotary_emb)
        m = self.transformer
        _, t, _, y, x = hidden_states.shape
        emb = m.time_embedding(m.time_proj(timestep).to(dtype=hidden_states.dtype), timestep_cond)
        if m.ofs_embedding is not None:
            emb = emb + m.ofs_embedding(m.ofs_proj(ofs).to(dtype=hidden_states.dtype))
        joint = m.embedding_dropout(m.patch_embed(encoder_hidden_states, hidden_states))
        length = encoder_hidden_states.shape[1]
        p_t, p, _ = self.spec.patch
        kwargs = {k: v for k, v in (attention_kwargs or {}).items() if k not in ("physics", "scale")}
        return Tokens(
            h=joint[:, length:],
            ctx=joint[:, :length],
            temb=emb,
            modulation=None,
            rotary=image_rotary_emb,
            grid=(t // p_t, y // p, x // p),
            attention_kwargs=kwargs or None,
        )

    def end(self, s: Tokens) -> Float[Tensor, "b t c y x"]:
        m = self.transformer
        out = m.proj_out(m.norm_out(m.norm_final(s.h), temb=s.temb))
        p_t, p, _ = self.spec.patch
        if m.config.patch_size_t is None:
            out = out.reshape(len(out), *s.grid, -1, p, p).permute(0, 1, 4, 2, 5, 3, 6)
            return out.flatten(5, 6).flatten(3, 4)
        out = out.reshape(len(out), *s.grid, -1, p_t, p, p).permute(0, 1, 5, 4, 2, 6, 3, 7)
        return out.flatten(6, 7).flatten(4, 5).flatten(1, 2)

    def _check(self, latent: Tensor, timestep: Tensor, ofs: Any, rotary: Any) -> None:
        config = self.transformer.config
        if latent.shape[2] != self.spec.in_channels:
            raise ValueError(
                f"expected latents (b, t, {self.spec.in_channels}, y, x), got {tuple(latent.shape)}: CogVideoX has time"
                " before channels, and an image-to-video model wants its condition appended to the channels"
            )
        if latent.shape[1] % self.spec.patch[0]:
            raise ValueError(
                f"expected a multiple of {self.spec.patch[0]} latent frames, got {latent.shape[1]}: repeat the first"
                " frame in front, as the pipeline of CogVideoX 1.5 does"
            )
        if timestep.ndim != 1:
            raise ValueError(
                f"expected one timestep a clip, (b,), got shape {tuple(timestep.shape)}: CogVideoX knows no timestep"
                " for each token"
            )
        if config.use_rotary_positional_embeddings and rotary is None:
            raise ValueError(
                "expected `image_rotary_emb`, got None: this model gets its positions from the pipeline and would run"
                " without any"
            )
        if self.transformer.ofs_embedding is not None and ofs is None:
            raise ValueError("expected `ofs` (a tensor, 2.0 in the stock pipeline) for a CogVideoX 1.5 I2V, got None")

    def _call(self, block: Any, s: Tokens) -> tuple[Tensor, Tensor]:
        return block(
            hidden_states=s.h,
            encoder_hidden_states=s.ctx,
            temb=s.temb,
            image_rotary_emb=s.rotary,
            attention_kwargs=s.attention_kwargs,
        )

    def _mirror(
        self,
        block: Any,
        s: Tokens,
        after_self_attention: Any,
        after_cross_attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        h, ctx = hidden_states, encoder_hidden_states
        length = ctx.size(1)
        normed, normed_ctx, gate, gate_ctx = block.norm1(h, ctx, temb)
        a, a_ctx = block.attn1(
            hidden_states=normed,
            encoder_hidden_states=normed_ctx,
            image_rotary_emb=image_rotary_emb,
            **(attention_kwargs or {}),
        )
        h = h + gate * after_self_attention(a)
        ctx = ctx + gate_ctx * a_ctx
        h = after_cross_attention(h)
        normed, normed_ctx, gate, gate_ctx = block.norm2(h, ctx, temb)
        f = block.ff(cat([normed_ctx, normed], dim=1))
        return h + gate * f[:, length:], ctx + gate_ctx * f[:, :length]

    def _result(self, k: int | None, s: Tokens, out: tuple[Tensor, Tensor]) -> Tokens:
        return replace(s, h=out[0], ctx=out[1])


def new_cogvideox_block(config: Any) -> nn.Module:
    """Build one `CogVideoXBlock` of the sizes in a transformer's config."""
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    return CogVideoXBlock(
        dim=config.num_attention_heads * config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        time_embed_dim=config.time_embed_dim,
        dropout=config.dropout,
        activation_fn=config.activation_fn,
        attention_bias=config.attention_bias,
        norm_elementwise_affine=config.norm_elementwise_affine,
        norm_eps=config.norm_eps,
    )
