import pytest
import torch

from physexperts import Routing, importance_loss, load_balancing_loss, route, router_z_loss


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
