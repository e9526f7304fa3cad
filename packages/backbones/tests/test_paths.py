"""The two noising paths and the exact map between them."""

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from backbones import paths


def schedule(snr_shift):
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=snr_shift, clip_sample=False
    )


@pytest.fixture(params=[1.0, 3.0])
def alpha_bar(request):
    """alpha_bar of all 1000 timesteps as CogVideoX-5B (SNR shift 1) and -2B (3) have it; the last is 0."""
    return schedule(request.param).alphas_cumprod.double()


@pytest.fixture
def levels(alpha_bar):
    return alpha_bar[[0, 1, 250, 700, 998, 999]]


@pytest.fixture
def ends(levels):
    x0, eps = torch.randn(2, len(levels), 3, 4, dtype=torch.float64)
    return x0, eps


def v_path(x0, eps, alpha_bar):
    a, r = (paths.spread(f, x0) for f in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
    return a * x0 + r * eps, a * eps - r * x0


def test_the_table_is_scaled_linear_with_the_snr_shifted_and_its_end_at_zero():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    plain = (1 - betas).cumprod(0)
    shifted = plain / (3 + (1 - 3) * plain)  # SNR / 3
    torch.testing.assert_close(shifted / (1 - shifted), plain / (1 - plain) / 3)
    root = shifted.sqrt()
    zero_end = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    torch.testing.assert_close(schedule(3.0).alphas_cumprod, zero_end)
    assert schedule(3.0).alphas_cumprod[-1] == 0


def test_the_known_levels_of_cogvideox():
    found = [float(paths.level(schedule(s).alphas_cumprod[700])) for s in (3.0, 1.0)]
    assert [round(f, 3) for f in found] == [0.879, 0.805]


def test_v_prediction_maps_on_the_flow_path(levels, ends):
    sigma = paths.level(levels)
    x_s, v = paths.to_flow(*v_path(*ends, levels), sigma)
    torch.testing.assert_close(x_s, paths.noise(*ends, sigma))
    torch.testing.assert_close(v, paths.target(*ends))


def test_the_two_maps_are_inverse(levels, ends):
    sigma, (x_t, v_t) = paths.level(levels), v_path(*ends, levels)
    back = paths.from_flow(*paths.to_flow(x_t, v_t, sigma), sigma)
    torch.testing.assert_close(back, (x_t, v_t), rtol=0, atol=1e-14)


def test_zero_terminal_snr_is_pure_noise(ends):
    x0, eps = (e[-1:] for e in ends)
    nothing = torch.zeros(1, dtype=torch.float64)
    sigma = paths.level(nothing)
    x_s, v = paths.to_flow(*v_path(x0, eps, nothing), sigma)
    assert sigma == 1
    assert paths.v_scale(sigma) == 1
    torch.testing.assert_close(x_s, eps)
    torch.testing.assert_close(v, eps - x0)


def test_x0_is_the_same_from_both_forms_of_any_prediction(levels, ends):
    x_t, _ = v_path(*ends, levels)
    anything, sigma = torch.randn_like(x_t), paths.level(levels)
    a, r = (paths.spread(f, x_t) for f in (levels.sqrt(), (1 - levels).sqrt()))
    x_s, v = paths.to_flow(x_t, anything, sigma)
    torch.testing.assert_close(paths.to_x0(x_s, v, sigma), a * x_t - r * anything)
    torch.testing.assert_close(paths.to_eps(x_s, v, sigma), a * anything + r * x_t)


def test_guidance_commutes_with_the_map(levels, ends):
    sigma, (x_t, _) = paths.level(levels), v_path(*ends, levels)
    cond, uncond = torch.randn(2, *x_t.shape, dtype=torch.float64)
    flows = [paths.to_flow(x_t, v_t, sigma)[1] for v_t in (cond, uncond, uncond + 6 * (cond - uncond))]
    torch.testing.assert_close(flows[2], flows[1] + 6 * (flows[0] - flows[1]))


def test_a_correction_of_the_flow_velocity_is_divided_by_the_scale(levels, ends):
    sigma, (x_t, v_t) = paths.level(levels), v_path(*ends, levels)
    delta = torch.randn_like(x_t)
    scale = paths.spread(levels.sqrt() + (1 - levels).sqrt(), x_t)
    torch.testing.assert_close(paths.spread(paths.v_scale(sigma), x_t), scale)
    moved = paths.to_flow(x_t, v_t + delta / scale, sigma)[1] - paths.to_flow(x_t, v_t, sigma)[1]
    torch.testing.assert_close(moved, delta)
