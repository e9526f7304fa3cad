import pytest
import torch

from physexperts import (
    LabelPriorRouter,
    SoftRouter,
    TokenTopKRouter,
    load_balancing_loss,
    masked_mean,
    multi_hot,
    route,
    tally,
)


def test_sigmoid_scores_are_divided_by_their_sum_or_kept_raw():
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]])
    s = logits.sigmoid()
    raw, shared = route(logits, 2, score="sigmoid", renormalize=False), route(logits, 2, score="sigmoid")
    torch.testing.assert_close(raw.dense(), s * torch.tensor([1.0, 0, 1, 0]))
    torch.testing.assert_close(shared.weights, raw.weights / raw.weights.sum())
    torch.testing.assert_close(raw.probs, s)


def test_raw_softmax_weights_are_the_probabilities_of_the_selected():
    logits = torch.randn(20, 6)
    routing = route(logits, 3, renormalize=False)
    torch.testing.assert_close(routing.dense(), logits.softmax(-1) * routing.selected)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("k", [0, 1, 3, 6, 7])
def test_every_kind_of_score_has_the_right_gradient(score, renormalize, k):
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    allowed = torch.rand(4, 7) > 0.3
    allowed[0] = False
    run = lambda x: route(x, k, score=score, renormalize=renormalize, allowed=allowed).dense() + 0 * x  # noqa: E731
    assert torch.autograd.gradcheck(run, logits)
    assert (run(logits)[0] == 0).all()


@pytest.mark.parametrize("k", [1, 2, 4, 5, 8])
def test_few_passes_of_argmax_choose_as_a_stable_sort_does(k):
    logits = (torch.randn(500, 8) * 2).round()
    logits[0] = -torch.inf
    logits[0, 3] = 1.0
    want = logits.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(route(logits, k).indices[1:], want[1:])
    assert route(logits, k).indices[0, 0] == 3


def test_the_bias_decides_who_is_asked_and_never_the_weights():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    routing = route(logits, 1, bias=torch.tensor([0.0, 0.0, 5.0]), renormalize=False)
    assert routing.indices.item() == 2
    torch.testing.assert_close(routing.weights, logits.softmax(-1)[:, 2:])
    torch.testing.assert_close(routing.probs, logits.softmax(-1))


def test_the_bias_balances_a_router_that_would_collapse():
    torch.manual_seed(0)
    router = TokenTopKRouter(8, 4, 1, expert_bias=True)
    x = torch.randn(400, 8) + 1
    with torch.no_grad():
        router.gate.weight[2] += 0.5
    before = tally(router(x)).selections
    for step in range(300):
        router.update_bias(tally(router(x)).selections.long(), rate=1e-2 * 0.98**step)
    after = tally(router(x)).selections
    assert before.max() > 250
    assert after.max() < 130
    assert "expert_bias" in router.state_dict()
    with pytest.raises(ValueError, match="without a bias"):
        TokenTopKRouter(8, 4, 1).update_bias(torch.zeros(4, dtype=torch.long))


def test_jitter_is_for_training_alone():
    router, x = TokenTopKRouter(8, 4, 2, jitter=0.3), torch.randn(50, 8)
    assert not torch.equal(router(x).logits, router(x).logits)
    router.eval()
    assert torch.equal(router(x).logits, router(x).logits)
    torch.testing.assert_close(router(x).logits, x @ router.gate.weight.T)


def test_the_gate_is_fp32_inside_autocast_and_half_tokens_give_fp32_logits():
    router, x = TokenTopKRouter(16, 4, 2), torch.randn(30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(x).logits, router(x.clone()).logits)
        inside = router(x)
    assert inside.weights.dtype == torch.float32
    assert torch.equal(inside.logits, router(x).logits)
    assert router(x.bfloat16()).logits.dtype == torch.float32
    exact = TokenTopKRouter(16, 4, 2, fp32_gate=True)
    exact.load_state_dict(router.state_dict())
    torch.testing.assert_close(exact(x.bfloat16()).logits, x.bfloat16().float() @ router.gate.weight.T)


def test_masked_tokens_may_hold_nan():
    router, x = TokenTopKRouter(8, 4, 2), torch.randn(2, 3, 8)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x[~mask] = torch.nan
    routing = router(x, mask=mask)
    routing.weights.square().sum().backward()
    assert (routing.weights[~mask] == 0).all()
    assert router.gate.weight.grad.isfinite().all()


def test_a_soft_router_asks_everybody_in_order():
    router = SoftRouter(5, 7, temperature=0.5)
    routing = router(torch.randn(3, 5), allowed=torch.tensor([True] * 6 + [False]))
    assert (routing.indices == torch.arange(7)).all()
    torch.testing.assert_close(routing.weights[:, :6], (routing.logits / 0.5)[:, :6].softmax(-1))
    assert (routing.weights[:, 6] == 0).all()
    torch.testing.assert_close(routing.dense(), routing.probs)


def test_inverted_routing_asks_most_whom_it_asked_least():
    router, c = SoftRouter(5, 7), torch.randn(3, 5)
    straight, inverted = router(c), router(c, inverted=True)
    assert torch.equal(straight.weights.argmax(-1), inverted.weights.argmin(-1))
    torch.testing.assert_close(inverted.logits, -straight.logits)


def test_labels_as_a_mask_are_an_order_where_there_are_any():
    router = LabelPriorRouter(5, 4, 2, prior="mask")
    labels = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]])
    selected = router(torch.randn(3, 5), labels).selected
    assert selected[0].tolist() == [False, False, True, False]
    assert selected[1].sum() == 2
    assert not selected[2, 2]


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match=r"label numbers in 0\.\.3, got 4 for sample 1"):
        multi_hot([[0], [4]], 4)
    with pytest.raises((ValueError, TypeError)):
        LabelPriorRouter(5, 4, 2)(torch.zeros(1, 5), torch.zeros(1, 3))
    with pytest.raises((ValueError, TypeError), match="prior"):
        LabelPriorRouter(5, 4, 2, prior="hard")


def test_a_prior_raises_the_selection_of_its_expert_monotonically():
    torch.manual_seed(0)
    router = LabelPriorRouter(5, 8, 2)
    c, labels = torch.randn(300, 5) * 4, torch.zeros(300, 8)
    labels[:, 6] = 1
    asked = [router(c, labels, prior_scale=s).selected[:, 6].sum().item() for s in (0.0, 0.2, 0.5, 1.0, 2.0, 20.0)]
    assert asked == sorted(asked)
    assert asked[0] < asked[-1] == 300


def test_a_text_without_tokens_is_zero_and_its_padding_is_not_read():
    tokens = torch.full((2, 3, 4), torch.nan)
    tokens[0, :2] = 1.0
    assert masked_mean(tokens, torch.tensor([[True, True, False], [False] * 3])).tolist() == [[1.0] * 4, [0.0] * 4]


def test_the_balance_of_sigmoid_scores_is_one_at_balance_too():
    logits = torch.full((8, 4), 3.0)
    routing = route(logits + 1e-3 * torch.eye(4).repeat(2, 1), 1, score="sigmoid")
    torch.testing.assert_close(load_balancing_loss(routing), torch.tensor(1.0))


@pytest.mark.parametrize("made", [{"k": 5}, {"k": 1, "jitter": 1.0}, {"k": -1}])
def test_impossible_routers_are_refused(made):
    with pytest.raises(ValueError, match="expected"):
        TokenTopKRouter(8, 4, **made)
    with pytest.raises((ValueError, TypeError), match="score"):
        route(torch.zeros(4), 1, score="tanh")
