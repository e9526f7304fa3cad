"""Laws of schedules, of the order of samples, and of what is shown."""

import pytest
import torch

from trainers import Length, Optim, Order
from trainers.show import Bar


def test_a_schedule_rises_holds_and_falls_to_its_final_share():
    optim = Optim(schedule="hold_cosine", warmup_steps=4, hold=0.5, final=0.1)
    values = [optim.factor(step, step / 100) for step in range(101)]
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(values[4:51]) == {1.0}
    assert values[50:] == sorted(values[50:], reverse=True)
    assert values[-1] == pytest.approx(0.1)
    assert [Optim().factor(step, step / 10) for step in range(11)] == [1.0] * 11


@pytest.mark.parametrize("wrong", [{}, {"steps": 1, "epochs": 1}, {"steps": -1}, {"minutes": 0}])
def test_a_length_is_exactly_one_of_its_three(wrong):
    with pytest.raises(ValueError, match=r"exactly one|greater than"):
        Length(**wrong)


def test_every_epoch_is_a_new_permutation_and_no_sample_is_lost_at_its_end():
    order = Order(10, seed=1)
    stream = torch.cat([order.take(4) for _ in range(5)])
    assert sorted(stream[:10].tolist()) == sorted(stream[10:].tolist()) == list(range(10))
    assert stream[:10].tolist() != stream[10:].tolist()


@pytest.mark.parametrize("change", [{"seed": 2}, {"digest": "x"}, {"world_size": 2}])
def test_the_order_is_a_function_of_seed_digest_and_world_size(change):
    base = {"seed": 1}
    assert Order(50, **base).take(50).tolist() == Order(50, **base).take(50).tolist()
    assert Order(50, **base).take(20).tolist() != Order(50, **(base | change)).take(20).tolist()


def test_the_state_continues_the_stream_even_with_another_batch_size():
    whole = Order(7, seed=3)
    stream = torch.cat([whole.take(5) for _ in range(4)]).tolist()
    cut = Order(7, seed=3)
    cut.take(5)
    rest = Order(7, **cut.state())
    assert torch.cat([rest.take(3) for _ in range(5)]).tolist() == stream[5:]


def test_the_ranks_share_one_stream_without_overlap():
    ranks = [Order(12, seed=0, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(2):
        assert len(set(torch.cat([order.take(2) for order in ranks]).tolist())) == 6


def test_an_order_of_nothing_is_refused_and_a_batch_larger_than_the_data_wraps():
    with pytest.raises(ValueError, match="empty"):
        Order(0, seed=0)
    assert sorted(Order(2, seed=0).take(6).tolist()) == [0, 0, 0, 1, 1, 1]


def test_the_estimate_comes_from_the_recent_rate():
    bar = Bar("x", 100, quiet=True)
    bar._recent.clear()
    bar._recent.extend([(10.0, 50.0), (11.0, 60.0)])
    assert bar.seconds_left() == pytest.approx(4.0)
    assert Bar("x", None, quiet=True).seconds_left() is None


def test_off_a_terminal_a_bar_is_plain_lines(capsys):
    bar = Bar("cache", 2)
    for done in (1, 2):
        bar.update(done, "fine")
    bar.close()
    assert capsys.readouterr().err == "cache: 2/2 0 s left fine\n"
