"""The flow-matching objective with clean prefixes."""

import torch

from backbones import tiny
from world.objective import corrupt, drop_captions, flow_loss, prefixes, token_timesteps, training_sigma, velocity


def batch(prefix: list[int], seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(len(prefix), 4, 5, 4, 4, generator=generator)
    sigma = torch.full((len(prefix),), 0.7)
    return x0, corrupt(x0, sigma, torch.tensor(prefix), generator)


def test_a_clean_prefix_is_the_data_itself_and_has_sigma_zero():
    x0, noised = batch([0, 2])
    assert torch.equal(noised.x_s[1, :, :2], x0[1, :, :2])
    assert noised.sigma.tolist() == torch.tensor([[0.7] * 5, [0, 0, 0.7, 0.7, 0.7]]).tolist()
    assert not torch.allclose(noised.x_s[0, :, :2], x0[0, :, :2])


def test_the_target_leads_from_data_to_noise():
    x0, noised = batch([0])
    assert torch.allclose(noised.x_s - noised.sigma[:, None, :, None, None] * noised.target, x0, atol=1e-6)


def test_the_velocity_of_a_prefix_does_not_count():
    _, noised = batch([0, 3])
    wrong = noised.target.clone()
    wrong[1, :, :3] += 100
    assert flow_loss(wrong, noised) == 0
    wrong[1, :, 3] += 1
    assert flow_loss(wrong, noised) > 0


def test_timesteps_follow_the_tokens_of_the_transformer():
    sigma = torch.tensor([[0.0, 0.5, 1.0]])
    assert token_timesteps(sigma, 2).tolist() == [[0, 0, 500, 500, 1000, 1000]]


def test_uniform_per_token_time_equals_one_time_for_all():
    model = tiny.transformer(8, layers=1, heads=2, ffn_dim=64)
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 8, 3, 4, 4, generator=generator), torch.randn(2, 6, 64, generator=generator)
    sigma = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        ours = velocity(model, x, sigma[:, None].expand(2, 3), text, (1, 2, 2))
        stock = model(x, 1000 * sigma, text, return_dict=False)[0]
    assert torch.allclose(ours, stock, atol=1e-5)


def test_half_the_samples_have_a_prefix_of_every_length():
    lengths = prefixes(4000, 0.5, 3, torch.Generator().manual_seed(0))
    assert set(lengths.tolist()) == {0, 1, 2, 3}
    assert abs((lengths > 0).float().mean() - 0.5) < 0.03


def test_shift_leans_towards_noise_and_stays_in_range():
    plain = training_sigma(4000, 1.0, torch.Generator().manual_seed(0))
    shifted = training_sigma(4000, 3.0, torch.Generator().manual_seed(0))
    assert abs(plain.mean() - 0.5) < 0.02
    assert shifted.mean() > plain.mean() + 0.1
    assert 0 <= shifted.min() <= shifted.max() <= 1


def test_a_share_of_captions_becomes_the_empty_one():
    ids, mask = torch.full((1000, 3), 7), torch.ones(1000, 3, dtype=torch.long)
    empty = (torch.tensor([1, 0, 0]), torch.tensor([1, 0, 0]))
    dropped, dropped_mask = drop_captions(ids, mask, empty, 0.1, torch.Generator().manual_seed(0))
    gone = (dropped == empty[0]).all(dim=1)
    assert abs(gone.float().mean() - 0.1) < 0.03
    assert torch.equal(dropped_mask[gone], empty[1].expand(int(gone.sum()), 3))
    assert (dropped[~gone] == 7).all()
