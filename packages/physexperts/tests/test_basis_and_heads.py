import pytest
import torch
from torch.nn import functional as F

from physexperts import (
    BasisMaps,
    FloorGate,
    HeadExperts,
    Mixture,
    SoftRouter,
    expert_maps,
    experts_picture,
    heat_picture,
    route,
)


def test_on_their_own_grid_the_maps_are_a_weighted_sum():
    maps, w = BasisMaps(5, 3, (2, 4, 6)), torch.rand(2, 5)
    want = sum(w[:, e, None, None, None, None] * maps.maps[e] for e in range(5))
    torch.testing.assert_close(maps(w), want)
    assert torch.equal(maps(w), maps(w, (2, 4, 6)))


def test_resizing_the_sum_is_summing_the_resized():
    maps, w, grid = BasisMaps(4, 3, (3, 4, 4)).double(), torch.rand(2, 4, dtype=torch.float64), (5, 9, 7)
    each = F.interpolate(maps.maps, grid, mode="trilinear", align_corners=False)
    torch.testing.assert_close(maps(w, grid), torch.einsum("be,ecthw->bcthw", w, each))


def test_a_constant_map_stays_constant_on_every_grid():
    maps = BasisMaps(1, 2, (2, 3, 3))
    torch.nn.init.constant_(maps.maps, 0.7)
    assert torch.allclose(maps(torch.ones(1, 1), (7, 5, 11)), torch.tensor(0.7))


def test_the_semantic_block_is_a_mixture_of_a_soft_router_and_maps():
    mixture = Mixture(SoftRouter(6, 5), BasisMaps(5, 3, (2, 4, 4)), labels=17)
    x, c = torch.randn(2, 3, 3, 6, 5), torch.randn(2, 6)
    mixed = mixture(x, c)
    torch.testing.assert_close(mixed.delta, mixture.experts(mixed.routing.probs, (3, 6, 5)))
    mixed.delta.square().sum().backward()
    assert all(p.grad.any() for p in mixture.parameters())


def test_gates_are_one_for_the_present_and_the_floor_for_the_absent():
    gate, labels = FloorGate(floor=0.1, flip=0.5), torch.tensor([[1.0, 0.0, 1.0]])
    gate.eval()
    torch.testing.assert_close(gate(labels), torch.tensor([[1.0, 0.1, 1.0]]))
    assert torch.equal(gate(labels), gate(labels)), "at inference nothing is random"
    gate.train()
    torch.manual_seed(0)
    many = gate(labels.expand(4000, 3))
    torch.testing.assert_close(many.unique(), torch.tensor([0.1, 1.0]))
    assert (many == 1).float().mean(0).sub(0.5).abs().max() < 0.04  # 5 standard deviations


def test_each_expert_owns_its_heads():
    torch.manual_seed(0)
    block = HeadExperts(8, 3, head_dim=4, heads=2, shared=1)
    torch.nn.init.normal_(block.out.weight)
    x, gates = torch.randn(2, 5, 8), torch.rand(2, 3)
    q, k, v = block.qkv(x).view(2, 5, 3, 7, 4).unbind(2)
    want = torch.zeros(2, 5, 8)
    for h in range(7):
        a = (q[:, :, h] @ k[:, :, h].mT / 2).softmax(-1) @ v[:, :, h]
        loud = gates[:, h // 2] if h < 6 else torch.ones(2)
        want += (a * loud[:, None, None]) @ block.out.weight[:, h * 4 : h * 4 + 4].T
    torch.testing.assert_close(block(x, gates), want, rtol=1e-4, atol=1e-5)


def test_a_fresh_block_adds_nothing_and_a_silent_expert_learns_nothing():
    block = HeadExperts(8, 3, head_dim=4, heads=1)
    x = torch.randn(2, 5, 8)
    assert (block(x, torch.ones(2, 3)) == 0).all()
    block(x, torch.tensor([[1.0, 0.0, 1.0]] * 2)).sum().backward()
    assert (block.out.weight.grad[:, 4:8] == 0).all()
    assert (block.out.weight.grad[:, :4] != 0).any()


def test_heads_mix_by_a_routing():
    mixture = Mixture(SoftRouter(6, 3), HeadExperts(8, 3, head_dim=4))
    torch.nn.init.normal_(mixture.experts.out.weight)
    mixed = mixture(torch.randn(2, 5, 8), torch.randn(2, 6))
    assert mixed.delta.shape == (2, 5, 8)
    assert mixed.delta.any()


def test_maps_of_tokens_lie_where_the_tokens_lie():
    logits = torch.zeros(1, 2 * 3 * 4, 3)
    logits[0, 1 * 12 + 2 * 4 + 3, 2] = 50  # t=1, y=2, x=3
    maps = expert_maps(route(logits, 1), (2, 3, 4))
    assert maps[0, 2].nonzero().tolist() == [[1, 2, 3]]
    assert (maps.sum(1) == 1).all()
    with pytest.raises(ValueError, match="24 tokens"):
        expert_maps(route(torch.zeros(1, 23, 3), 1), (2, 3, 4))


def test_pictures_show_who_answers_and_black_where_nobody_does():
    maps = torch.zeros(3, 1, 2, 2)
    maps[0, 0, 0, 0] = maps[2, 0, 0, 1] = 0.3
    picture = experts_picture(maps, patch=2, palette=[(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    assert picture.shape == (1, 4, 4, 3)
    assert picture[0, 0, 0].tolist() == picture[0, 1, 1].tolist() == [255, 0, 0]
    assert picture[0, 0, 2].tolist() == [0, 0, 255]
    assert picture[0, 2:].sum() == 0
    assert heat_picture(torch.zeros(1, 2, 2)).sum() == 0
    assert heat_picture(torch.ones(1, 1, 1), top=2.0)[0, 0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize(
    "made",
    [
        lambda: BasisMaps(0, 1, (1, 1, 1)),
        lambda: BasisMaps(2, 1, (1, 1, 1))(torch.ones(1, 3)),
        lambda: FloorGate(floor=2.0),
        lambda: HeadExperts(8, 0, head_dim=4),
        lambda: HeadExperts(8, 2, head_dim=4)(torch.zeros(1, 2, 8), torch.ones(1, 3)),
        lambda: heat_picture(torch.ones(1, 1, 1), patch=0),
        lambda: Mixture(SoftRouter(6, 3), torch.nn.Linear(3, 3)),
    ],
)
def test_impossible_sizes_are_refused(made):
    with pytest.raises(ValueError, match="expected"):
        made()
