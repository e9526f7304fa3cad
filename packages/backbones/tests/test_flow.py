"""Optical flow against known motions, and its form on the latent grid."""

import cv2
import numpy as np
import pytest
import torch

from backbones import flow

COLOURS = {"light on dark": ((200, 220, 240), (30, 30, 35)), "equal grey": ((220, 60, 60), (60, 141, 60))}


def disc(velocity, colours, size=32, frames=6):
    """A disc of radius 5 that moves by `velocity` (y, x) px a frame, with the masks of its inside."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    video, inside = [], []
    for t in range(frames):
        r = np.hypot(y - 12 - velocity[0] * t, x - 18 - velocity[1] * t)
        a = np.clip(5.5 - r, 0, 1)[..., None]
        video.append(a * np.array(colours[0]) + (1 - a) * np.array(colours[1]))
        inside.append(r < 4.5)
    return np.round(np.stack(video)).astype(np.uint8), np.stack(inside)


@pytest.mark.parametrize("colours", COLOURS.values(), ids=COLOURS)
@pytest.mark.parametrize("velocity", [(1.3, -0.8), (0.3, 0.2), (2.5, 2.0), (-0.9, 1.7)])
def test_the_flow_of_a_translating_disc_is_its_velocity_y_first(velocity, colours):
    video, inside = disc(velocity, colours)
    found = flow.optical_flow(video).numpy()
    errors = [np.abs(f[:, m] - np.array(velocity)[:, None]).max(0) for f, m in zip(found, inside[:-1], strict=True)]
    assert np.median(np.concatenate(errors)) < 0.2


def test_the_flow_of_a_rotating_texture_is_a_rotation():
    omega, size = 0.06, 32  # radians a frame, y down: positive turns +x towards +y
    noise = np.random.default_rng(0).normal(size=(128, 128, 3))
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 10), None, 0, 255, cv2.NORM_MINMAX).astype(np.float32)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    frames = []
    for t in range(6):
        a = -omega * t
        at_y, at_x = np.cos(a) * y + np.sin(a) * x, -np.sin(a) * y + np.cos(a) * x
        frames.append(cv2.remap(texture, np.float32(2 * at_x + 64), np.float32(2 * at_y + 64), cv2.INTER_CUBIC))
    found = flow.optical_flow(np.stack(frames).clip(0, 255).astype(np.uint8)).numpy()
    error = np.hypot(*(found - np.stack([omega * x, -omega * y])).transpose(1, 0, 2, 3))
    assert np.median(error[:, np.hypot(y, x) < 13]) < 0.2


def test_a_picture_that_needs_no_enlarging_is_measured_as_well():
    rng = np.random.default_rng(1)
    ground = cv2.normalize(cv2.GaussianBlur(rng.normal(size=(160, 160, 3)), (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    video = np.stack([ground[8 - t : 144 - t, 8 + 2 * t : 144 + 2 * t] for t in range(3)]).astype(np.uint8)
    found = flow.optical_flow(video)
    assert found.shape == (2, 2, 136, 136)
    assert torch.allclose(found.median(-1)[0].median(-1)[0], torch.tensor([1.0, -2.0]), atol=0.1)


def test_a_constant_motion_has_one_velocity_on_the_latent_grid(backbone):
    field = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1).expand(16, 2, 32, 32)
    found = flow.latent_flow(field, backbone.spec)
    assert found.shape == (2, 5, 8, 8)
    # px a frame -> latent px per 4 frames: times 4 frames, over 4 px
    torch.testing.assert_close(found, torch.tensor([0.5, -1.0]).view(2, 1, 1, 1).expand(2, 5, 8, 8))


def test_a_growing_motion_is_measured_at_the_latent_times(backbone):
    """A rate f + 1/2 between frames f and f + 1 is 4 tau at latent time tau, away from the ends."""
    field = (torch.arange(16) + 0.5).view(-1, 1, 1, 1).expand(16, 2, 32, 32)
    found = flow.latent_flow(field, backbone.spec)[0, :, 0, 0]
    tau = backbone.spec.time.latent_times(17)
    torch.testing.assert_close(found[1:4], 4 * tau[1:4])
    assert found[0] == 0.5  # forward flow 0 -> 1 times 4 frames over 4 px


def test_flow_wants_two_frames_and_a_known_method():
    with pytest.raises(ValueError, match="at least 2 frames"):
        flow.optical_flow(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="'dis' or 'raft'"):
        flow.optical_flow(np.zeros((2, 32, 32, 3), np.uint8), "farneback")
    with pytest.raises(ValueError, match="RAFT needs its weights and found none at None"):
        flow.optical_flow(np.zeros((2, 32, 32, 3), np.uint8), "raft")


def test_weights_that_would_have_to_be_unpickled_are_refused(tmp_path):
    (tmp_path / "raft.pth").write_bytes(b"not looked at")
    with pytest.raises(ValueError, match=r"as \.safetensors, got raft\.pth"):
        flow.optical_flow(np.zeros((2, 32, 32, 3), np.uint8), "raft", weights=tmp_path / "raft.pth")


def test_a_frame_count_that_the_vae_does_not_take_is_refused(backbone):
    with pytest.raises(ValueError, match="Use 13 or 17 frames"):
        flow.latent_flow(torch.zeros(14, 2, 32, 32), backbone.spec)


def test_raft_runs_from_safetensors_and_gives_y_first(tmp_path):
    """With random weights the numbers mean nothing: the form does, and that (x, y) is swapped."""
    optical = pytest.importorskip("torchvision.models.optical_flow", reason="RAFT needs torchvision (extra `raft`)")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = optical.raft_large(weights=None).eval()
    save_file(model.state_dict(), tmp_path / "raft.safetensors")
    video = np.random.default_rng(0).integers(0, 255, (2, 128, 136, 3)).astype(np.uint8)
    found = flow.optical_flow(video, "raft", weights=tmp_path / "raft.safetensors")
    with torch.no_grad():
        frames = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 127.5 - 1
        expected = model(frames[:1], frames[1:])[-1]
    assert found.shape == (1, 2, 128, 136)
    torch.testing.assert_close(found, expected.flip(1))
