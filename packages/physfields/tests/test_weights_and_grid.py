"""Weights are exact rationals; a grid says what it is and refuses what it cannot be."""

from fractions import Fraction

import pytest
import torch

import physfields as pf


@pytest.mark.parametrize("offsets", [(-1, 0, 1), (0, 1, 2, 3), (-2.5, -1.0, 0.25, 1.125, 4.0), (0.625, -1, 2, 7, 3, 9)])
@pytest.mark.parametrize("m", [0, 1, 2])
def test_weights_differentiate_every_monomial_exactly(offsets, m):
    weights = pf.fd_weights(offsets, m)
    for degree in range(len(offsets)):
        truth = Fraction({0: 1, 1: 1, 2: 2}[m]) if degree == m else Fraction(0)
        assert sum(w * Fraction(s) ** degree for w, s in zip(weights, offsets, strict=True)) == truth


@pytest.mark.parametrize(("offsets", "m"), [((0, 1), 2), ((0, 0, 1), 1), ((0, 1), -1)])
def test_weights_refuse_too_few_or_repeated_points(offsets, m):
    with pytest.raises(ValueError, match="expected"):
        pf.fd_weights(offsets, m)


def test_equal_grids_are_equal_and_hash_alike():
    a = pf.Grid(([0.0, 0.5, 2.0], 1, 1.0), boundary="reflect", order=4)
    b = pf.Grid((torch.tensor([0.0, 0.5, 2.0]), 1.0, 1), boundary=("reflect",) * 3, order=(4, 4, 4))
    assert a == b
    assert hash(a) == hash(b)
    assert a != pf.Grid(([0.0, 0.5, 2.0], 1, 1.0), boundary="reflect", order=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"spacing": (1.0, 0.0, 1.0)},
        {"spacing": (1.0, -2.0, 1.0)},
        {"spacing": (1.0, float("nan"), 1.0)},
        {"spacing": (1.0, 1.0)},
        {"spacing": ((0.0, 2.0, 1.0), 1.0, 1.0)},
        {"spacing": ((0.0, 0.0, 1.0), 1.0, 1.0)},
        {"spacing": ((0.0, 1.0, 2.0), 1.0, 1.0), "boundary": "periodic"},
        {"boundary": "mirror"},
        {"order": 3},
        {"singleton": "drop"},
    ],
)
def test_a_grid_refuses_what_it_cannot_be(arguments):
    with pytest.raises(ValueError, match="Grid: "):
        pf.Grid(**arguments)


def test_latent_times_keep_their_short_first_gap():
    grid = pf.Grid.from_latent_times(torch.tensor([0.0, 0.625, 1.625, 2.625]), (1.0, 2.0))
    assert grid.gaps("t", 4) == (0.625, 1.0, 1.0)
    assert grid.gaps("x", 3) == (2.0, 2.0)
    with pytest.raises(ValueError, match="4 coordinates, the field has 5"):
        pf.partial(torch.zeros(1, 1, 5, 4, 4), {"t": 1}, grid)
