import pytest
import torch
from torch import nn

from physexperts import LabelPriorRouter, Mixture, OperatorExpert, SampleExperts, UniformRouter, route

CHANNELS, COND = 4, 3


def woken(experts=5, hidden=6, seed=0):
    """Experts in fp64 whose last layer is not zero, each with its own recipe."""
    torch.manual_seed(seed)
    made = [
        OperatorExpert(CHANNELS, COND, hidden, recipe=[i != e % CHANNELS for i in range(CHANNELS)])
        for e in range(experts)
    ]
    for expert in made:
        nn.init.normal_(expert.out.weight)
        nn.init.normal_(expert.out.bias)
    return SampleExperts(made).double()


class Counter(nn.Module):
    """Multiplies by its number and remembers how many samples it saw."""

    def __init__(self, number):
        super().__init__()
        self.number, self.seen = number, 0

    def forward(self, x, _):
        self.seen += len(x)
        return x * self.number


@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_running_the_selected_pairs_equals_running_all_and_weighing(k):
    experts, g = woken(), torch.Generator().manual_seed(k)
    x = torch.randn(4, CHANNELS, 3, 4, 5, generator=g, dtype=torch.float64)
    c = torch.randn(4, COND, generator=g, dtype=torch.float64)
    allowed = torch.rand(4, 5, generator=g) > 0.3
    allowed[2] = False
    routing = route(torch.randn(4, 5, generator=g, dtype=torch.float64), k, allowed=allowed)
    pairs = experts(x, routing, c)
    dense = routing.dense()
    want = sum(dense[:, e, None, None, None, None] * expert(x, c) for e, expert in enumerate(experts.experts))
    torch.testing.assert_close(pairs.combine(), want, rtol=0, atol=1e-12)
    assert (pairs.combine()[2] == 0).all()
    for value, n, e in zip(pairs.values, pairs.samples.tolist(), pairs.experts.tolist(), strict=True):
        torch.testing.assert_close(value, experts.experts[e](x, c)[n], rtol=0, atol=1e-12)


def test_each_expert_sees_only_the_samples_that_selected_it():
    counters = [Counter(e) for e in range(4)]
    logits = torch.tensor([[9.0, 8, 0, 0], [9.0, 0, 0, 8], [9.0, 8, 0, 0]])
    SampleExperts(counters)(torch.ones(3, 2), route(logits, 2), torch.ones(3, 1))
    assert [counter.seen for counter in counters] == [3, 2, 0, 1]


def test_an_expert_that_nobody_selected_gets_no_gradient():
    experts = woken()
    x, c = torch.randn(2, CHANNELS, 3, 3, 3, dtype=torch.float64), torch.randn(2, COND, dtype=torch.float64)
    logits = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([0.0, 5, 0, 4, 0], dtype=torch.float64)
    experts(x, route(logits + bias, 2), c).combine().square().sum().backward()
    reached = [e for e, expert in enumerate(experts.experts) if expert.local.weight.grad is not None]
    assert reached == [1, 3]
    assert (logits.grad[:, [1, 3]] != 0).all()
    assert (logits.grad[:, [0, 2, 4]] == 0).all()


def test_the_gradient_through_routing_and_experts_is_right():
    experts = woken(experts=3, hidden=2)
    x = torch.randn(2, CHANNELS, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, COND, dtype=torch.float64, requires_grad=True)
    router = LabelPriorRouter(COND, 3, 2).double()
    mixture = Mixture(router, experts)
    labels = torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0]])
    assert torch.autograd.gradcheck(lambda x, c: mixture(x, c, labels).delta, (x, c), fast_mode=True)


def test_permuting_the_experts_permutes_nothing_but_their_numbers():
    experts = woken()
    x, c = torch.randn(3, CHANNELS, 3, 3, 3, dtype=torch.float64), torch.randn(3, COND, dtype=torch.float64)
    logits, order = torch.randn(3, 5, dtype=torch.float64), torch.tensor([3, 0, 4, 1, 2])
    moved = SampleExperts(experts.experts[i] for i in order.tolist())
    before, after = experts(x, route(logits, 3), c), moved(x, route(logits[:, order], 3), c)
    torch.testing.assert_close(before.combine(), after.combine(), rtol=0, atol=1e-12)


def test_a_fresh_mixture_proposes_exactly_nothing():
    mixture = Mixture(LabelPriorRouter(COND, 8, 4), SampleExperts(OperatorExpert(CHANNELS, COND, 8) for _ in range(8)))
    mixed = mixture(torch.randn(2, CHANNELS, 3, 4, 4), torch.randn(2, COND))
    assert (mixed.delta == 0).all()
    assert mixed.pairs.values.shape == (8, CHANNELS, 3, 4, 4)
    assert mixed.routing.selected.sum(-1).tolist() == [4, 4]


def test_a_mixture_without_experts_to_ask_proposes_nothing():
    mixture = Mixture(LabelPriorRouter(COND, 2, 0), SampleExperts(OperatorExpert(CHANNELS, COND, 8) for _ in range(2)))
    mixed = mixture(torch.randn(2, CHANNELS, 3, 4, 4), torch.randn(2, COND))
    assert mixed.pairs.values.shape == (0, CHANNELS, 3, 4, 4)
    assert (mixed.delta == 0).all()
    assert mixed.delta.shape == (2, CHANNELS, 3, 4, 4)


def test_an_expert_changes_the_channels_of_its_recipe_alone():
    experts = woken()
    proposal = experts.experts[1](torch.randn(2, CHANNELS, 3, 4, 4).double(), torch.randn(2, COND).double())
    assert (proposal[:, 1] == 0).all()
    assert (proposal[:, [0, 2, 3]] != 0).any()


def test_a_moved_field_moves_the_proposal():
    # Away from the edges a convolutional expert does not know where it is.
    expert = woken().experts[0]
    x, c = torch.randn(1, CHANNELS, 5, 12, 12, dtype=torch.float64), torch.randn(1, COND, dtype=torch.float64)
    here, there = expert(x, c), expert(x.roll((1, 2), (-2, -1)), c)
    torch.testing.assert_close(here[..., 3:7, 3:7], there[..., 4:8, 5:9])


def test_half_precision_experts_are_summed_in_fp32():
    mixture = Mixture(UniformRouter(2), SampleExperts(OperatorExpert(CHANNELS, COND, 8) for _ in range(2))).bfloat16()
    mixed = mixture(torch.randn(1, CHANNELS, 2, 3, 3).bfloat16(), torch.randn(1, COND).bfloat16())
    assert mixed.delta.dtype == torch.float32


def test_a_recipe_of_the_wrong_width_is_refused():
    with pytest.raises(ValueError, match="recipe of 4 flags"):
        OperatorExpert(4, 3, recipe=[True, False])


def test_a_routing_of_tokens_is_refused_by_experts_of_samples():
    with pytest.raises(ValueError, match="one decision a sample"):
        SampleExperts([Counter(1)])(torch.ones(2, 3), route(torch.zeros(3, 1), 1), torch.ones(2, 1))


def test_a_router_over_another_number_of_experts_is_refused():
    with pytest.raises(ValueError, match="router over 3 experts"):
        Mixture(UniformRouter(2), SampleExperts(Counter(i) for i in range(3)))
