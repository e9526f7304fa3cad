"""A linear causal video autoencoder: one principal basis for every 4 x 4 x 4 block of RGB.

It stands where a trained `AutoencoderKLWan` would stand in a stock Wan pipeline (same calls, same config names) and is
fitted in seconds: 32 x 32 clips of 17 frames become 16 x 5 x 8 x 8 latents. Latent 0 holds frame 0 alone, latent j the
frames 4j-3 .. 4j. Frame 0 is replicated to fill its block, so that one basis serves all latents: with a basis of its
own for frame 0 a transformer that knows only relative positions draws first frames in another clip's colours. Decoding
is the transpose of the basis, and frame 0 is the mean of its four copies (the least-squares inverse of the
replication).

`decode` clamps to [-1, 1] as Wan's does: there is no gradient outside. Latents are scaled by sqrt(sd_k sd_0), half way
between raw coefficients and whitened ones: whitening would spend a model on channels that are mostly noise. The scale
lives in `config.latents_mean` and `config.latents_std`, which pipelines apply.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, UInt8
from torch import Tensor, nn

__all__ = ["AutoencoderBlockPCA"]


class AutoencoderBlockPCA(ModelMixin, ConfigMixin):
    """Shared-basis block PCA with the public interface of `AutoencoderKLWan`.

    Video `(b, 3, t, h, w)` in [-1, 1] with t = 4n + 1 and h, w multiples of `scale_factor_spatial`; latents `(b, z_dim,
    n + 1, y, x)`.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        z_dim: int = 16,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        temperal_downsample: Sequence[bool] = (True, True),  # diffusers' spelling
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int | None = None,
        scale_factor_temporal: int = 4,
        scale_factor_spatial: int = 4,
    ) -> None:
        super().__init__()
        self.block = (scale_factor_temporal, scale_factor_spatial, scale_factor_spatial)
        values = in_channels * int(np.prod(self.block))
        if not 1 <= z_dim <= values:
            raise ValueError(f"expected 1 <= z_dim <= {values} (the values of one block), got {z_dim}")
        self.register_to_config(
            latents_mean=list(latents_mean or [0.0] * z_dim), latents_std=list(latents_std or [1.0] * z_dim)
        )
        self.basis = nn.Parameter(torch.eye(z_dim, values), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(values), requires_grad=False)

    @classmethod
    def fit(
        cls, videos: Iterable[UInt8[np.ndarray, "t h w 3"]], *, z_dim: int = 16, spatial: int = 4
    ) -> "AutoencoderBlockPCA":
        """Fit the basis to uint8 clips: eigenvectors of the covariance of all blocks, largest variance first."""
        probe = cls(z_dim=z_dim, scale_factor_spatial=spatial)
        count, total, square = 0, 0.0, 0.0
        for video in videos:
            clip = torch.from_numpy(np.ascontiguousarray(video)).permute(3, 0, 1, 2)[None].double() / 127.5 - 1
            rows = probe._to_blocks(clip).movedim(1, -1).flatten(0, -2)
            count, total, square = count + len(rows), total + rows.sum(0), square + rows.T @ rows
        if not isinstance(total, Tensor) or not isinstance(square, Tensor):
            raise ValueError("expected at least one clip to fit the block PCA to, got none")
        mean = total / count
        variance, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
        basis = vectors.flip(1)[:, :z_dim].T
        basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()  # eigh leaves the sign open
        sd = variance.flip(0)[:z_dim].clamp_min(1e-12).sqrt()
        vae = cls(z_dim=z_dim, latents_std=(sd * sd[0]).sqrt().tolist(), scale_factor_spatial=spatial)
        vae.basis.data.copy_(basis)
        vae.mean.data.copy_(mean)
        return vae

    def encode(self, x: Float[Tensor, "b 3 t h w"], return_dict: bool = True):  # as diffusers: an output or a tuple
        """Give the distribution of the latents; it has no spread: `sample()` equals `mode()`."""
        blocks = self._to_blocks(x) - self.mean.view(1, -1, 1, 1, 1)
        z = torch.einsum("kn,bnthw->bkthw", self.basis, blocks)
        posterior = DiagonalGaussianDistribution(torch.cat([z, torch.zeros_like(z)], 1), deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Float[Tensor, "b k t y x"], return_dict: bool = True):
        """Give the video in [-1, 1]."""
        blocks = torch.einsum("kn,bkthw->bnthw", self.basis, z) + self.mean.view(1, -1, 1, 1, 1)
        video = self._from_blocks(blocks).clamp(-1, 1)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(self, sample: Float[Tensor, "b 3 t h w"], return_dict: bool = True):
        """Encode and decode."""
        return self.decode(self.encode(sample, return_dict=False)[0].mode(), return_dict=return_dict)

    def _to_blocks(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n tl hl wl"]:
        p, q, r = self.block
        b, c, t, h, w = x.shape
        if (t - 1) % p or h % q or w % r:
            raise ValueError(
                f"expected {p}n+1 frames and sides that are multiples of {q}, got {t} frames of {h} x {w}."
                f" Use {(t - 1) // p * p + 1} or {(t - 1) // p * p + p + 1} frames."
            )
        x = torch.cat([x[:, :, :1].expand(-1, -1, p - 1, -1, -1), x], 2)
        x = x.reshape(b, c, x.shape[2] // p, p, h // q, q, w // r, r)
        return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * p * q * r, -1, h // q, w // r)

    def _from_blocks(self, blocks: Float[Tensor, "b n tl hl wl"]) -> Float[Tensor, "b c t h w"]:
        p, q, r = self.block
        b, n, t, h, w = blocks.shape
        x = blocks.reshape(b, n // (p * q * r), p, q, r, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
        x = x.reshape(b, n // (p * q * r), t * p, h * q, w * r)
        return torch.cat([x[:, :, :p].mean(2, keepdim=True), x[:, :, p:]], 2)
