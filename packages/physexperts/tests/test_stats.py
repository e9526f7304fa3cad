import math

import torch

from physexperts import RouterStats, route


def test_the_load_counts_selections_and_dead_experts_are_named():
    stats = RouterStats(4)
    stats.update(route(torch.tensor([[5.0, 4, 0, 0], [5.0, 0, 4, 0]]), 2))
    stats.update(route(torch.tensor([[5.0, 4, 0, 0], [9.0, 0, 0, 8]]), 2, mask=torch.tensor([True, False])))
    health = stats.read()
    assert health.rows == 3
    torch.testing.assert_close(health.load, torch.tensor([3, 2, 1, 0], dtype=torch.float64) / 6)
    assert health.dead == (3,)
    assert math.isclose(health.max_violation, 1.0)


def test_entropy_is_one_for_an_undecided_router_and_zero_for_a_certain_one():
    flat, sure = RouterStats(8), RouterStats(8)
    flat.update(route(torch.zeros(5, 8), 2))
    sure.update(route(torch.eye(8) * 200, 2))
    assert math.isclose(flat.read().entropy, 1.0, rel_tol=1e-6)
    assert sure.read().entropy < 1e-12


def test_the_matrix_is_the_share_of_a_label_s_rows_that_select_an_expert():
    stats = RouterStats(3, labels=2)
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    stats.update(route(torch.tensor([[9.0, 0, 0], [0, 9.0, 0]]), 1), labels)
    stats.update(route(torch.zeros(1, 3), 1, mask=torch.tensor([False])), torch.tensor([[1.0, 1.0]]))
    matrix = stats.read().label_expert
    assert matrix[0].tolist() == [0.5, 0.5, 0.0]
    assert matrix[1].isnan().all()


def test_many_small_updates_equal_one_large_one():
    logits, labels = torch.randn(20, 6), (torch.rand(20, 6) > 0.5).float()
    whole, parts = RouterStats(6), RouterStats(6)
    whole.update(route(logits, 2), labels)
    for i in range(0, 20, 5):
        parts.update(route(logits[i : i + 5], 2), labels[i : i + 5])
    assert torch.equal(whole.read().load, parts.read().load)
    torch.testing.assert_close(whole.read().label_expert, parts.read().label_expert)
    assert math.isclose(whole.read().entropy, parts.read().entropy)


def test_statistics_are_not_saved_with_the_model_and_can_start_anew():
    stats = RouterStats(4)
    assert not stats.state_dict()
    stats.update(route(torch.randn(3, 4), 2))
    stats.reset()
    assert stats.read().rows == 0
    assert stats.read().load.tolist() == [0, 0, 0, 0]


def test_nan_labels_of_a_masked_row_count_nowhere():
    stats = RouterStats(experts=2)
    labels = torch.tensor([[1.0, 0.0], [float("nan"), float("nan")]])
    stats.update(route(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1, mask=torch.tensor([True, False])), labels)
    matrix = stats.read().label_expert
    assert matrix[0].tolist() == [1.0, 0.0]
    assert stats.labelled.tolist() == [1.0, 0.0]
