"""The autoencoders: what goes in comes out, and a Wan pipeline cannot tell them apart."""

import numpy as np
import pytest
import torch

from backbones import AutoencoderBlockPCA, WanBackbone, sample, tiny


def psnr(a, b):
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def test_a_clip_comes_back_from_the_fitted_basis(backbone, video):
    latent = backbone.encode(video)
    assert latent.shape == (6, 16, 5, 8, 8)
    assert psnr(backbone.decode(latent), video) > 30


def test_all_192_components_lose_nothing(videos, video):
    vae = AutoencoderBlockPCA.fit(videos, z_dim=192)
    assert psnr(vae(video).sample, video) > 100


def test_decoding_is_the_adjoint_of_encoding_up_to_the_copies_of_frame_0(vae):
    video, latent = torch.randn(1, 3, 17, 32, 32) * 0.01, torch.randn(1, 16, 5, 8, 8) * 0.01
    zero = torch.zeros_like(video)
    to_latent = vae.encode(video).latent_dist.mode() - vae.encode(zero).latent_dist.mode()
    base = vae._from_blocks(vae.mean.view(1, -1, 1, 1, 1).expand(1, -1, 5, 8, 8))
    blocks = torch.einsum("kn,bkthw->bnthw", vae.basis, latent) + vae.mean.view(1, -1, 1, 1, 1)
    back = vae._from_blocks(blocks) - base
    back[:, :, 0] *= 4  # the mean of the four copies is a quarter of their sum
    torch.testing.assert_close((to_latent * latent).sum(), (video * back).sum(), rtol=1e-4, atol=1e-6)


def test_a_latent_does_not_see_later_frames(vae, video):
    later = video.clone()
    later[:, :, 9:] = 0
    a, b = (vae.encode(v).latent_dist.mode() for v in (video, later))
    assert torch.equal(a[:, :, :3], b[:, :, :3])
    assert not torch.equal(a[:, :, 3], b[:, :, 3])


def test_a_still_clip_has_equal_latents_at_all_times(vae):
    still = torch.rand(1, 3, 1, 32, 32).expand(-1, -1, 17, -1, -1) * 2 - 1
    latent = vae.encode(still).latent_dist.mode()
    torch.testing.assert_close(latent, latent[:, :, :1].expand_as(latent), atol=1e-5, rtol=0)


def test_channels_lie_between_raw_and_whitened(backbone, vae, video):
    raw = vae.encode(video).latent_dist.mode().std((0, 2, 3, 4), correction=0)
    sd = backbone.encode(video).std((0, 2, 3, 4), correction=0)
    torch.testing.assert_close(sd[0], torch.tensor(1.0), atol=0.05, rtol=0)
    torch.testing.assert_close(sd, (raw / raw[0]).sqrt(), atol=0.05, rtol=0)


def test_sampling_the_distribution_gives_its_mode(vae, video):
    posterior = vae.encode(video).latent_dist
    assert torch.equal(posterior.sample(), posterior.mode())


def test_fitting_to_no_clip_is_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        AutoencoderBlockPCA.fit([])


def test_a_frame_count_that_loses_its_tail_is_refused(vae, backbone):
    with pytest.raises(ValueError, match="Use 13 or 17 frames"):
        vae.encode(torch.zeros(1, 3, 16, 32, 32))
    with pytest.raises(ValueError, match=r"4n\+1 frames, got 16.*Use 13 or 17"):
        backbone.encode(torch.zeros(1, 3, 16, 32, 32))


def test_a_video_in_0_255_is_refused(backbone, videos):
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        backbone.encode(torch.from_numpy(videos).permute(0, 4, 1, 2, 3).float())


def test_a_real_kl_autoencoder_stands_in_the_same_place(video):
    torch.manual_seed(0)
    vae = tiny.kl_vae(base_dim=4)
    vae.register_to_config(latents_mean=[0.5] * 16, latents_std=[2.0] * 16)
    backbone = WanBackbone(tiny.pipeline(["a", "ball"], vae=vae, layers=1))
    with torch.no_grad():
        latent = backbone.encode(video[:1])
        raw = vae.encode(video[:1]).latent_dist.mode()
        torch.testing.assert_close(latent, (raw - 0.5) / 2)
        torch.testing.assert_close(backbone.decode(latent), vae.decode(raw).sample)
    clip = sample(backbone, ["a ball"], seed=0, steps=1, frames=5, height=16, width=16)
    assert clip.shape == (1, 3, 5, 16, 16)
    assert np.isfinite(clip.numpy()).all()
