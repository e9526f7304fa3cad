import math

import pytest
import torch

from physexperts import Limits, RouterStats, route


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


def test_a_soft_collapse_shows_in_the_weights():
    stats = RouterStats(4)
    logits = torch.zeros(200, 4)
    logits[:, 1] = 6
    routing = route(logits, 4)
    stats.update(routing)
    health = stats.read()
    assert health.max_violation == 0
    assert health.dominant == (1,)
    torch.testing.assert_close(health.importance, logits.double().softmax(-1)[0], rtol=1e-6, atol=1e-7)


def test_an_unhealthy_router_warns_and_a_healthy_one_is_silent():
    sick, well = RouterStats(8), RouterStats(8)
    logits = torch.zeros(200, 8)
    logits[:, 2] = 100
    sick.update(route(logits, 1))
    well.update(route(torch.randn(2000, 8), 2))
    with pytest.warns(UserWarning, match="layer 3 after 200 rows: 7 of 8 experts were never .*expert 2 has 100%"):
        sick.read().warn("layer 3")
    assert len(sick.read().complaints) == 4
    assert sick.read(limits=Limits(dead=7, dominant=1.0, max_violation=7.0, entropy=0.0)).complaints == ()
    assert sick.read(limits=Limits(rows=201)).complaints == ()
    assert well.read().complaints == ()
    well.read().warn()


def test_pearson_is_one_for_labels_that_route_alike():
    stats = RouterStats(4, labels=4)
    logits = torch.tensor([[3.0, 1, 0, 0], [3.0, 1, 0, 0], [0.0, 1, 3, 0]])
    stats.update(route(logits, 4), torch.eye(4)[:3])
    health = stats.read()
    torch.testing.assert_close(health.label_weight[:3], logits.softmax(-1).double(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(health.pearson[:3, :3], torch.corrcoef(health.label_weight[:3]))
    assert math.isclose(health.pearson[0, 1], 1.0)
    assert health.pearson[3].isnan().all()


def test_counts_stay_exact_when_the_model_is_cast():
    stats = RouterStats(4)
    stats.update(route(torch.randn(1001, 4), 2), torch.rand(1001, 4))
    before = stats.read()
    stats.bfloat16()
    stats.update(route(torch.zeros(0, 4), 2))
    assert torch.equal(stats.read().importance, before.importance)
    assert stats.labelled.dtype == torch.float64


def test_labels_of_another_width_are_refused():
    with pytest.raises((ValueError, TypeError)):
        RouterStats(4, labels=3).update(route(torch.zeros(2, 4), 1), torch.zeros(2, 4))


def test_a_router_that_saw_nan_is_called_unhealthy():
    stats = RouterStats(4)
    stats.update(route(torch.randn(200, 4).index_fill(0, torch.tensor([7]), torch.nan), 2))
    with pytest.warns(UserWarning, match="NaN or infinite logits"):
        stats.read().warn()
