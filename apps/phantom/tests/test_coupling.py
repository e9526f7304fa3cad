"""The coupling: where tokens are in seconds and fractions, and that only where they are to one another matters."""

import pytest
import torch

from phantom.coupling import Coupling, Stream, coordinates, rotate

SCALE = (4.0, 16.0, 16.0)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def coupling():
    torch.manual_seed(0)
    made = Coupling(24, 16, heads=2, head_dim=12, scale=SCALE)
    with torch.no_grad():
        for side in (made.video, made.physics):
            side.out.weight.normal_()
    return made


def test_shifting_both_grids_by_the_same_time_changes_nothing(coupling):
    a, b = drawn(1, 12, 24), drawn(1, 6, 16, seed=1)
    times = torch.tensor([0.0, 0.3, 0.9])
    found = []
    for shift in (0.0, 5.0):
        at = coordinates(times + shift, 2, 2), coordinates(times + shift, 1, 2)
        found.append(coupling(a, b, *at))
    for before, after in zip(*found, strict=True):
        assert torch.allclose(before, after, atol=1e-4)
    moved = coupling(a, b, coordinates(times + 5, 2, 2), coordinates(times, 1, 2))
    assert not torch.allclose(moved[0], found[0][0], atol=1e-2)


def test_another_resolution_of_the_same_frame_has_the_same_coordinates():
    times = torch.tensor([0.0, 0.25])
    coarse, fine = coordinates(times, 2, 3), coordinates(times, 4, 6)
    averaged = fine.unflatten(0, (2, 2, 2, 3, 2)).mean((2, 4)).flatten(0, 2)
    assert torch.allclose(averaged, coarse)
    assert float(fine[:, 1:].min()) > 0
    assert float(fine[:, 1:].max()) < 1
    assert coarse[:, 0].unique().tolist() == [0.0, 0.25]  # seconds, whatever the frame rate


def test_a_rotation_keeps_lengths_and_each_axis_turns_features():
    x = drawn(1, 1, 1, 12)
    for axis in range(3):
        at = torch.zeros(1, 3)
        at[0, axis] = 0.3
        turned = rotate(x, at, SCALE)
        assert torch.allclose(turned.norm(), x.norm())
        assert not torch.allclose(turned, x, atol=1e-2)
    assert torch.equal(rotate(x, torch.zeros(1, 3), SCALE), x)


def test_queries_and_keys_have_unit_size_however_loud_their_stream_is():
    torch.manual_seed(0)
    stream = Stream(24, 2, 12)
    with torch.no_grad():
        for layer in (stream.q, stream.k):
            layer.bias.zero_()
    a, at = drawn(1, 5, 24), torch.zeros(5, 3)
    quiet, loud = (stream.project(a * size, at, SCALE) for size in (1.0, 100.0))
    assert torch.allclose(quiet.q, loud.q, atol=1e-4)
    assert torch.allclose(quiet.k, loud.k, atol=1e-4)
    assert torch.allclose(quiet.q.flatten(2).square().mean(-1), torch.ones(1, 5), atol=1e-4)
    assert not torch.allclose(quiet.v, loud.v)


def test_both_directions_read_the_other_before_it_is_coupled(coupling):
    a, b = drawn(1, 4, 24), drawn(1, 2, 16, seed=1)
    at = coordinates(torch.zeros(1), 2, 2), coordinates(torch.zeros(1), 1, 2)
    both = coupling(a, b, *at)
    coupling.way = "to_video"
    assert torch.allclose(coupling(a, b, *at)[0], both[0])
    assert torch.equal(coupling(a, b, *at)[1], b)
    coupling.way = "to_physics"
    assert torch.allclose(coupling(a, b, *at)[1], both[1])
    assert torch.equal(coupling(a, b, *at)[0], a)


def test_joint_attention_sees_its_own_stream_too(coupling):
    a, b = drawn(1, 4, 24), drawn(1, 2, 16, seed=1)
    at = coordinates(torch.zeros(1), 2, 2), coordinates(torch.zeros(1), 1, 2)
    both = coupling(a, b, *at)[0]
    coupling.way = "joint"
    assert not torch.allclose(coupling(a, b, *at)[0], both, atol=1e-2)


def test_a_head_must_hold_a_pair_for_each_axis():
    with pytest.raises(ValueError, match="expected an even head_dim of 6 or more"):
        Coupling(24, 16, heads=2, head_dim=4)
