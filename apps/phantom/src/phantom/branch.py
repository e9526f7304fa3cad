"""The trained side of Phantom: a physics stream of stock Wan blocks over z, coupled with the video in each block.

The stream has as many blocks as the frozen model, its own width and its own rotary grid; both streams get the prompt
and the same noise level, per token, 0 where they are observed.

References: Phantom (2026). The width rule d_z >= 2 x channels (a velocity holds white noise in every direction and
cannot pass a narrower network): our choice, as all sizes are.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

from backbones import blocks_of, lockstep
from backbones.blocks import BlockStack, Tokens
from phantom.config import Branch as BranchConfig
from phantom.config import Couple
from phantom.coupling import Coupling, coordinates

__all__ = ["Branch", "Joint"]


@dataclass(frozen=True)
class Joint:
    """The physics side of a forward under way: its tokens, and where the tokens of both streams are."""

    tokens: Tokens
    at_video: Float[Tensor, "n 3"]
    at_physics: Float[Tensor, "m 3"]


class Branch(nn.Module):
    """The physics stream and its couplings. `stream` is a stock `WanTransformer3DModel` over z, without patches."""

    def __init__(
        self,
        config: BranchConfig,
        couple: Couple,
        *,
        channels: int,
        video_width: int,
        blocks: int,
        text_dim: int,
        stride_s: float,
    ) -> None:
        super().__init__()
        width = config.heads * config.head_dim
        if width < 2 * channels:
            raise ValueError(
                f"expected a branch of at least twice the {channels} channels of z, got heads x head_dim = {width}:"
                f" raise branch.heads to {-(-2 * channels // config.head_dim)}, or lower physics.channels"
            )
        stream: Any = WanTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            in_channels=channels,
            out_channels=channels,
            text_dim=text_dim,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim,
            num_layers=blocks,
            cross_attn_norm=True,
            rope_max_seq_len=config.rope_max_seq_len,
        )
        nn.init.zeros_(stream.proj_out.weight)  # u begins at 0, the mean of all velocities
        nn.init.zeros_(stream.proj_out.bias)
        self.stream = stream
        scale = (1.0 / stride_s, couple.cells, couple.cells)  # seconds in latents, fractions in cells
        self.couplings = nn.ModuleList(
            Coupling(video_width, width, heads=couple.heads, head_dim=couple.head_dim, way=couple.way, scale=scale)
            for _ in range(blocks)
        )

    def halve(self, dtype: torch.dtype) -> None:
        """Turn the weights into the half precision of the frozen model, for sampling; those that diffusers keeps in
        float32 stay.
        """
        kept = tuple(self.stream._keep_in_fp32_modules or ())
        for name, parameter in self.named_parameters():
            if not any(part in name.split(".") for part in kept):
                parameter.data = parameter.data.to(dtype)

    @property
    def stack(self) -> BlockStack:
        """The physics stream, block by block."""
        return blocks_of(self.stream)

    def begin(
        self,
        z: Float[Tensor, "b c t y x"],
        timestep: Float[Tensor, "b t"],
        text: Float[Tensor, "b l e"],
        *,
        video_grid: tuple[int, int, int],
        times_s: Float[Tensor, " t"],
        added: Float[Tensor, "b m d"] | None = None,
    ) -> Joint:
        """Embed z; `timestep` is 1000 sigma of each latent, 0 where it is observed. `added` joins the tokens (a force).

        ValueError where z and the video have different latent times.
        """
        if z.shape[2] != video_grid[0] or len(times_s) != video_grid[0]:
            raise ValueError(
                f"expected a physics latent on the {video_grid[0]} latent times of the video, got {z.shape[2]}: encode"
                " the same clip for both"
            )
        dtype = self.stream.patch_embedding.weight.dtype
        per_token = timestep.repeat_interleave(z.shape[3] * z.shape[4], 1)
        tokens = self.stack.begin(hidden_states=z.to(dtype), timestep=per_token, encoder_hidden_states=text.to(dtype))
        if added is not None:
            tokens = replace(tokens, h=tokens.h + added.to(tokens.h.dtype))
        return Joint(
            tokens,
            coordinates(times_s, *video_grid[1:], device=z.device),
            coordinates(times_s, *z.shape[3:], device=z.device),
        )

    def block(self, k: int, video: BlockStack, tokens: Tokens, joint: Joint) -> tuple[Tokens, Joint]:
        """Run block k of both streams in lockstep."""
        coupling: Any = self.couplings[k]

        def couple(a: Tensor, b: Tensor, s: Tokens, t: Tokens) -> tuple[Tensor, Tensor]:
            return coupling(a, b, joint.at_video, joint.at_physics)

        tokens, physics = lockstep(k, video, tokens, self.stack, joint.tokens, couple)
        return tokens, replace(joint, tokens=physics)

    def end(self, joint: Joint) -> Float[Tensor, "b c t y x"]:
        """Give the velocity of z."""
        return self.stack.end(joint.tokens)
