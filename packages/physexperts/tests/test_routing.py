import math

import pytest
import torch

from physexperts import LabelPriorRouter, UniformRouter, random_labels, route, router_z_loss

SIZES = [(1, 0), (1, 1), (3, 2), (8, 0), (8, 1), (8, 4), (8, 8), (33, 5)]


def reference(logits, k, temperature, allowed):
    """One row in plain Python: the k best allowed experts by (-logit, index), and a softmax over them."""
    order = sorted((i for i in range(len(logits)) if allowed[i]), key=lambda i: (-logits[i], i))[:k]
    if not order:
        return {}
    top = logits[order[0]]
    exps = {i: math.exp((logits[i] - top) / temperature) for i in order}
    return {i: e / sum(exps.values()) for i, e in exps.items()}


@pytest.mark.parametrize(("experts", "k"), SIZES)
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_routing_equals_a_reference_row_by_row(experts, k, temperature):
    g = torch.Generator().manual_seed(experts * 100 + k)
    # Rounded logits give many ties; a third of the experts is not allowed, and in the last row none is.
    logits = (torch.randn(6, 5, experts, generator=g, dtype=torch.float64) * 2).round() / 2
    allowed = torch.rand(6, 5, experts, generator=g) > 0.33
    allowed[-1, -1] = False
    routing = route(logits, k, temperature=temperature, allowed=allowed)
    dense = routing.dense()
    assert routing.weights.shape == routing.indices.shape == (6, 5, k)
    for b in range(6):
        for n in range(5):
            expected = reference(logits[b, n].tolist(), k, temperature, allowed[b, n].tolist())
            want = torch.tensor([expected.get(i, 0.0) for i in range(experts)], dtype=torch.float64)
            torch.testing.assert_close(dense[b, n], want, rtol=0, atol=1e-14)
            assert torch.nonzero(routing.selected[b, n]).flatten().tolist() == sorted(expected)


def test_equal_logits_are_taken_in_the_order_of_their_index():
    routing = route(torch.zeros(1000, 64), 5)
    assert (routing.indices == torch.arange(5)).all()


def test_a_row_with_nothing_allowed_gives_zeros_and_a_finite_gradient():
    logits = torch.randn(2, 4, requires_grad=True)
    allowed = torch.tensor([[False] * 4, [True] * 4])
    routing = route(logits, 2, temperature=0.1, allowed=allowed)
    assert (routing.weights[0] == 0).all()
    assert (routing.probs[0] == 0).all()
    torch.testing.assert_close(routing.weights[1].sum(), torch.tensor(1.0))
    (routing.weights.square().sum() + routing.probs.square().sum()).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[0] == 0).all()


def test_with_fewer_experts_allowed_than_k_the_weights_are_renormalised():
    routing = route(torch.tensor([3.0, 1.0, 2.0, 0.0]), 3, allowed=torch.tensor([False, True, False, True]))
    expected = torch.tensor([0.0, 1.0, 0.0, 0.0]).masked_fill(torch.tensor([True, False, True, False]), -math.inf)
    torch.testing.assert_close(routing.dense(), expected.softmax(-1))
    assert routing.selected.sum() == 2


def test_masked_rows_select_nothing():
    mask = torch.tensor([True, False, True])
    routing = route(torch.randn(3, 4), 2, mask=mask)
    assert routing.selected.sum(-1).tolist() == [2, 0, 2]
    assert routing.weights[1].tolist() == [0, 0]


def test_nan_in_a_masked_row_reaches_neither_the_result_nor_a_gradient():
    logits = torch.randn(2, 4)
    logits[1] = float("nan")
    logits.requires_grad_()
    routing = route(logits, 2, mask=torch.tensor([True, False]))
    (routing.weights.square().sum() + routing.probs.square().sum() + router_z_loss(routing)).backward()
    assert routing.weights.isfinite().all()
    assert logits.grad.isfinite().all()
    assert (logits.grad[0] != 0).any()


def test_nan_in_a_masked_condition_or_label_reaches_no_weight_of_the_router():
    router = LabelPriorRouter(4, experts=3, k=2)
    condition, labels = torch.randn(2, 4), torch.zeros(2, 3)
    condition[1], labels[1] = float("nan"), float("nan")
    routing = router(condition, labels, mask=torch.tensor([True, False]))
    (routing.weights.square().sum() + router_z_loss(routing)).backward()
    assert all(p.grad.isfinite().all() for p in router.parameters())
    assert router.inner.weight.grad.any()
    alone = router(condition[:1], labels[:1])
    torch.testing.assert_close(routing.weights[:1], alone.weights)


def test_nan_logits_give_nan_weights_that_count_as_selected():
    routing = route(torch.tensor([float("nan"), 0.0, 1.0]), 2)
    assert routing.weights.isnan().all()
    assert routing.selected.sum() == 2


def test_the_gradient_passes_through_the_weights():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.9], [1.5, 0.2, -0.4, 0.7]], dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[True, True, True, True], [True, True, False, True]])
    assert torch.autograd.gradcheck(lambda x: route(x, 2, temperature=0.7, allowed=allowed).dense(), logits)
    assert torch.autograd.gradcheck(lambda x: route(x, 2, allowed=allowed).probs, logits)


def test_an_expert_that_is_not_selected_gets_no_gradient_from_the_weights():
    logits = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    route(logits, 2).dense()[2].backward()
    assert logits.grad[0] == 0
    assert logits.grad[1] != 0


def test_a_label_adds_its_strength_to_the_logit():
    router = LabelPriorRouter(5, 8, 4, prior_strength=1.7)
    c, labels = torch.randn(3, 5), torch.eye(8)[:3]
    torch.testing.assert_close(router(c, labels).logits - router(c).logits, 1.7 * labels)
    torch.testing.assert_close(router(c, labels, prior_scale=0.0).logits, router(c).logits)


def test_a_stronger_prior_never_lowers_the_weight_of_its_expert():
    torch.manual_seed(0)
    router = LabelPriorRouter(5, 8, 3)
    c, labels = torch.randn(40, 5) * 5, torch.zeros(40, 8)
    labels[:, 6] = 1
    weights = torch.stack([router(c, labels, prior_scale=s).dense()[:, 6] for s in (0.0, 0.5, 1.0, 2.0, 8.0)])
    assert (weights.diff(dim=0) >= 0).all()
    assert (weights[-1] > weights[0]).all()


def test_the_router_is_the_paper_s_two_layers():
    router = LabelPriorRouter(4, 8, 8, hidden=6).double()
    c = torch.randn(2, 4, dtype=torch.float64)
    h = c @ router.inner.weight.T + router.inner.bias
    logits = (h / (1 + (-h).exp())) @ router.outer.weight.T + router.outer.bias
    routing = router(c)
    assert routing.logits.dtype == torch.float64
    torch.testing.assert_close(routing.logits, logits)
    torch.testing.assert_close(routing.dense(), logits.softmax(-1))


def test_the_router_computes_in_fp32_inside_autocast_and_with_half_weights():
    router = LabelPriorRouter(16, 8, 4)
    c = torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = router(c)
    assert inside.logits.dtype == inside.weights.dtype == torch.float32
    assert torch.equal(inside.logits, router(c).logits)
    half = router.bfloat16()
    rounded = half(c.bfloat16())
    assert rounded.logits.dtype == torch.float32
    assert torch.equal(rounded.logits, half.float()(c.bfloat16().float()).logits)


def test_the_uniform_router_shares_between_those_allowed():
    allowed = torch.tensor([[True, True, False, True], [False] * 4])
    dense = UniformRouter(4)(torch.randn(2, 3), torch.ones(2, 4), allowed=allowed).dense()
    torch.testing.assert_close(dense, torch.tensor([[1 / 3, 1 / 3, 0, 1 / 3], [0.0] * 4]))


def test_random_labels_keep_their_number_and_lose_their_place():
    labels = torch.zeros(400, 8)
    labels[:, 0] = labels[:, 5] = 1
    shuffled = random_labels(labels, torch.Generator().manual_seed(3))
    assert (shuffled.sum(-1) == 2).all()
    # Each expert is labelled in a quarter of the rows: 100 of 400, standard deviation 9.
    assert ((shuffled.sum(0) - 100).abs() < 45).all()
    assert torch.equal(shuffled, random_labels(labels, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("k", [-1, 5])
def test_an_impossible_k_is_refused(k):
    with pytest.raises(ValueError, match=r"expected k in 0\.\.4"):
        LabelPriorRouter(3, 4, k)
    with pytest.raises(ValueError, match=r"expected k in 0\.\.4"):
        route(torch.zeros(4), k)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="positive temperature"):
        LabelPriorRouter(3, 4, 2, temperature=0.0)(torch.zeros(1, 3))
