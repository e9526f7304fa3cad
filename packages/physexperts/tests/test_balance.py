import pytest
import torch

from physexperts import Routing, importance_loss, load_balancing_loss, route, router_z_loss, tally


def balanced(experts, k, rows=None):
    """Every expert selected equally often, with flat probabilities."""
    rows = experts if rows is None else rows
    indices = (torch.arange(rows)[:, None] + torch.arange(k)) % experts
    flat = torch.full((rows, experts), 1 / experts)
    return Routing(torch.full((rows, k), 1 / k), indices, flat, flat.log(), torch.ones(rows, dtype=torch.bool))


@pytest.mark.parametrize(("experts", "k"), [(2, 1), (8, 1), (8, 4), (8, 8), (64, 2)])
def test_the_load_is_one_at_balance_for_every_k(experts, k):
    torch.testing.assert_close(load_balancing_loss(balanced(experts, k)), torch.tensor(1.0))


def test_the_load_is_the_number_of_experts_at_collapse():
    logits = torch.zeros(10, 8)
    logits[:, 3] = 50
    torch.testing.assert_close(load_balancing_loss(route(logits, 1)), torch.tensor(8.0))


def test_masked_rows_do_not_change_any_loss():
    logits = torch.randn(6, 4)
    mask = torch.tensor([True] * 4 + [False] * 2)
    for loss in (load_balancing_loss, router_z_loss, importance_loss):
        torch.testing.assert_close(loss(route(logits, 2, mask=mask)), loss(route(logits[:4], 2)))


def test_no_valid_row_gives_zero_and_no_nan():
    logits = torch.randn(3, 4, requires_grad=True)
    routing = route(logits, 2, mask=torch.zeros(3, dtype=torch.bool))
    total = load_balancing_loss(routing) + router_z_loss(routing) + importance_loss(routing)
    total.backward()
    assert total == 0
    assert (logits.grad == 0).all()


def test_the_load_is_the_formula_of_the_switch_transformer():
    logits = torch.randn(50, 6, dtype=torch.float64)
    f = torch.bincount(logits.argmax(-1), minlength=6) / 50
    want = 6 * (f * logits.softmax(-1).mean(0)).sum()
    torch.testing.assert_close(load_balancing_loss(route(logits, 1)), want)


def test_a_starved_expert_is_pulled_up():
    logits = torch.tensor([[2.0, 0.0, -1.0]] * 5, requires_grad=True)
    load_balancing_loss(route(logits, 1)).backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1:] < 0).all()


def test_by_sequence_a_batch_of_opposite_collapses_is_not_balanced():
    logits = torch.zeros(2, 7, 2)
    logits[0, :, 0] = logits[1, :, 1] = 50
    routing = route(logits, 1)
    torch.testing.assert_close(load_balancing_loss(routing), torch.tensor(1.0))
    torch.testing.assert_close(load_balancing_loss(routing, reduction="sequence"), torch.tensor(2.0))


def test_the_z_loss_is_the_squared_log_partition():
    torch.testing.assert_close(router_z_loss(route(torch.zeros(3, 4), 2)), torch.tensor(4.0).log().square())


def test_equal_importance_costs_nothing_and_collapse_costs_most():
    assert importance_loss(balanced(8, 2)) < 1e-10
    logits = torch.zeros(10, 8)
    logits[:, 3] = 50
    torch.testing.assert_close(importance_loss(route(logits, 1)), torch.tensor(7.0))


LOSSES = [load_balancing_loss, router_z_loss, importance_loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sizes", [[6, 6], [1, 4, 7], [12]])
def test_accumulation_in_two_passes_gives_the_loss_and_gradient_of_the_whole(loss, sizes):
    logits = (torch.randn(12, 5, dtype=torch.float64) * 2).requires_grad_()
    mask = torch.rand(12) > 0.3
    want = loss(route(logits, 2, mask=mask))
    (right,) = torch.autograd.grad(want, logits)
    leaf = logits.detach().requires_grad_()
    routings = [route(x, 2, mask=m) for x, m in zip(leaf.split(sizes), mask.split(sizes), strict=True)]
    whole = sum((tally(r) for r in routings[1:]), tally(routings[0]))
    for routing in routings:
        value = loss(routing, whole=whole.over(None))
        torch.testing.assert_close(value, want)
        (value / len(sizes)).backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, right, rtol=0, atol=1e-12)


def test_micro_batches_that_collapse_in_turn_are_balanced_as_a_whole():
    a, b = torch.zeros(4, 2), torch.zeros(4, 2)
    a[:, 0] = b[:, 1] = 50
    parts = [route(a, 1), route(b, 1)]
    whole = tally(parts[0]) + tally(parts[1])
    assert [round(load_balancing_loss(p).item(), 4) for p in parts] == [2.0, 2.0]
    assert [round(load_balancing_loss(p, whole=whole).item(), 4) for p in parts] == [1.0, 1.0]


def test_padding_changes_no_balance():
    logits = torch.randn(6, 4)
    padded = torch.cat([logits, torch.full((9, 4), torch.nan)])
    mask = torch.arange(15) < 6
    for loss in LOSSES:
        torch.testing.assert_close(loss(route(padded, 2, mask=mask)), loss(route(logits, 2)))


def test_a_tally_stands_for_its_routing_and_sequences_need_the_routing():
    routing = route(torch.randn(3, 6, 4), 2)
    for loss in LOSSES:
        assert torch.equal(loss(routing), loss(tally(routing)))
    with pytest.raises(ValueError, match="summed the sequences up"):
        load_balancing_loss(tally(routing), reduction="sequence")
    with pytest.raises(ValueError, match="means already"):
        load_balancing_loss(routing, reduction="sequence", whole=tally(routing))
