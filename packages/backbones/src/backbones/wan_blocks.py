"""The blocks of a Wan transformer (2.1, 2.2, with image tokens or without, one timestep a clip or one a token) and of
its VACE variant.

Latents are (b, c, t, y, x). The text is projected once and stays as it is; a Wan 2.1 I2V puts its image tokens in front
of the text, which its attention takes to be 512 tokens long.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones.blocks import BlockSpec, BlockStack, Tokens

__all__ = ["WanBlocks", "WanVACEBlocks", "new_wan_block"]

IMAGE_MODEL_TEXT = 512  # WanAttnProcessor cuts the context there when the block has keys for image tokens

# What follows re-expresses parts of diffusers' transformer_wan.py and transformer_wan_vace.py (0.42.1) so that they can
# be entered between two steps: `begin`, `_mirror`, `end`.
# Copyright 2025 The Wan Team and The HuggingFace Team. All rights reserved.
# Licensed under the Apache License, Version 2.0; http://www.apache.org/licenses/LICENSE-2.0


class WanBlocks(BlockStack):
    """The blocks of a `WanTransformer3DModel`."""

    kind: Literal["wan", "wan-vace"] = "wan"

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer, transformer.blocks)
        config = transformer.config
        self.spec = BlockSpec(
            kind=self.kind,
            n_blocks=len(transformer.blocks),
            dim=config.num_attention_heads * config.attention_head_dim,
            heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            patch=tuple(config.patch_size),
            in_channels=config.in_channels,
            out_channels=transformer.proj_out.out_features // math.prod(config.patch_size),
            text_dim=config.text_dim,
            ctx_evolves=False,
            latent_layout="bcthw",
        )

    def begin(
        self,
        *,
        hidden_states: Float[Tensor, "b c t y x"],
        timestep: Tensor,
        encoder_hidden_states: Float[Tensor, "b l e"],
        encoder_hidden_states_image: Float[Tensor, "_ m i"] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Tokens:
        """Embed: `timestep` (b,), or (b, n) with one for each token. ValueError for wrong channels and for a text that
        an image model would cut in the wrong place.
        """
        self._check(hidden_states, encoder_hidden_states)
        m = self.transformer
        pt, py, px = self.spec.patch
        grid = (hidden_states.shape[2] // pt, hidden_states.shape[3] // py, hidden_states.shape[4] // px)
        rotary = m.rope(hidden_states)
        h = m.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        per_token = timestep.shape[1] if timestep.ndim == 2 else None
        temb, modulation, ctx, image = m.condition_embedder(
            timestep.flatten() if per_token else timestep,
            encoder_hidden_states,
            encoder_hidden_states_image,
            timestep_seq_len=per_token,
        )
        modulation = modulation.unflatten(-1, (6, -1))
        ctx = ctx if image is None else torch.concat([image, ctx], dim=1)
        return Tokens(h, ctx, temb, modulation, rotary, grid)

    def end(self, s: Tokens) -> Float[Tensor, "b c t y x"]:
        m = self.transformer
        table = m.scale_shift_table.to(s.temb.device)
        if s.temb.ndim == 3:
            shift, scale = (x.squeeze(2) for x in (table.unsqueeze(0) + s.temb.unsqueeze(2)).chunk(2, dim=2))
        else:
            shift, scale = (table + s.temb.unsqueeze(1)).chunk(2, dim=1)
        shift, scale = shift.to(s.h.device), scale.to(s.h.device)
        out = m.proj_out((m.norm_out(s.h.float()) * (1 + scale) + shift).type_as(s.h))
        out = out.reshape(len(out), *s.grid, *self.spec.patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return out.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _check(self, latent: Tensor, text: Tensor) -> None:
        if latent.shape[1] != self.spec.in_channels:
            raise ValueError(
                f"expected latents (b, {self.spec.in_channels}, t, y, x), got {tuple(latent.shape)}: channels come"
                " second, and an image-to-video model wants its mask and condition appended to them"
            )
        if self.transformer.config.added_kv_proj_dim is not None and text.shape[1] != IMAGE_MODEL_TEXT:
            raise ValueError(
                f"expected {IMAGE_MODEL_TEXT} text tokens, got {text.shape[1]}: this model has image tokens before the"
                f" text and cuts them apart there. Pad the text to {IMAGE_MODEL_TEXT}."
            )

    def _call(self, block: Any, s: Tokens) -> Tensor:
        return block(s.h, s.ctx, s.modulation, s.rotary)

    def _mirror(
        self,
        block: Any,
        s: Tokens,
        after_self_attention: Any,
        after_cross_attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: Any,
    ) -> Tensor:
        h = hidden_states
        if temb.ndim == 4:
            parts = (block.scale_shift_table.unsqueeze(0) + temb.float()).chunk(6, dim=2)
            shift, scale, gate, c_shift, c_scale, c_gate = (x.squeeze(2) for x in parts)
        else:
            shift, scale, gate, c_shift, c_scale, c_gate = (block.scale_shift_table + temb.float()).chunk(6, dim=1)
        a = block.attn1((block.norm1(h.float()) * (1 + scale) + shift).type_as(h), None, None, rotary_emb)
        h = (h.float() + after_self_attention(a) * gate).type_as(h)
        h = h + block.attn2(block.norm2(h.float()).type_as(h), encoder_hidden_states, None, None)
        h = after_cross_attention(h)
        f = block.ffn((block.norm3(h.float()) * (1 + c_scale) + c_shift).type_as(h))
        return (h.float() + f.float() * c_gate).type_as(h)

    def _result(self, k: int | None, s: Tokens, out: Tensor) -> Tokens:
        return replace(s, h=out)


class WanVACEBlocks(WanBlocks):
    """The blocks of a `WanVACETransformer3DModel`: its control blocks run in `begin`, their hints are added between."""

    kind: Literal["wan", "wan-vace"] = "wan-vace"

    def begin(
        self,
        *,
        timestep: Tensor,
        control_hidden_states: Float[Tensor, "b k t y x"] | None = None,
        control_hidden_states_scale: Float[Tensor, " hints"] | None = None,
        **transformer_kwargs: Any,
    ) -> Tokens:
        """Embed, and run the control blocks. ValueError without a control video and for a timestep for each token."""
        if control_hidden_states is None:
            raise ValueError("expected `control_hidden_states` for a VACE model, got None")
        if timestep.ndim != 1:
            raise ValueError(
                f"expected one timestep a clip, (b,), got shape {tuple(timestep.shape)}: the control blocks of VACE"
                " know no timestep for each token"
            )
        m = self.transformer
        s = super().begin(timestep=timestep, **transformer_kwargs)
        layers = m.config.vace_layers
        scale = control_hidden_states_scale
        scale = control_hidden_states.new_ones(len(layers)) if scale is None else scale
        if len(scale) != len(layers):
            raise ValueError(f"expected {len(layers)} control scales, one for each of {layers}, got {len(scale)}")
        control = m.vace_patch_embedding(control_hidden_states).flatten(2).transpose(1, 2)
        control = torch.cat(
            [control, control.new_zeros(len(control), s.h.shape[1] - control.shape[1], control.shape[2])], dim=1
        )
        hints = {}
        for k, block, weight in zip(layers, m.vace_blocks, scale.unbind(), strict=True):
            call = block if not self._checkpointing else _checkpointed(m, block)
            hint, control = call(s.h, s.ctx, control, s.modulation, s.rotary)
            hints[k] = hint * weight
        return replace(s, hints=hints)

    def _result(self, k: int | None, s: Tokens, out: Tensor) -> Tokens:
        return replace(s, h=out + s.hints[k].to(out.device) if k in s.hints else out)


def _checkpointed(transformer: Any, block: nn.Module) -> Any:
    return lambda *args: transformer._gradient_checkpointing_func(block, *args)


def new_wan_block(config: Any) -> nn.Module:
    """Build one `WanTransformerBlock` of the sizes in a transformer's config."""
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    return WanTransformerBlock(
        config.num_attention_heads * config.attention_head_dim,
        config.ffn_dim,
        config.num_attention_heads,
        config.qk_norm,
        config.cross_attn_norm,
        config.eps,
        config.added_kv_proj_dim,
    )
