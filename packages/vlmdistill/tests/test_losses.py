import pytest
import torch
from torch.nn import functional as F

from vlmdistill import map_alignment

KINDS = ["squared", "absolute", "bce"]


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (2, 6, 3)
    predicted = torch.randn(shape, generator=g, requires_grad=True)
    return predicted, torch.rand(shape, generator=g), torch.rand(shape, generator=g) > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_over_active_entries(kind):
    p, q, mask = batch()
    terms = {
        "squared": (p - q) ** 2,
        "absolute": (p - q).abs(),
        "bce": -(q * F.logsigmoid(p) + (1 - q) * F.logsigmoid(-p)),
    }[kind]
    torch.testing.assert_close(map_alignment(p, q, mask, kind=kind), terms[mask].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_the_mask_is_trained(kind):
    p, q, mask = batch()
    (gradient,) = torch.autograd.grad(map_alignment(p, q, mask, kind=kind), p)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_active_entries_gives_zero_and_a_zero_gradient(kind):
    p, q, mask = batch()
    loss = map_alignment(p, q, torch.zeros_like(mask), kind=kind)
    (gradient,) = torch.autograd.grad(loss, p)
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_outside_the_mask_does_no_harm(kind):
    p, q, mask = batch()
    spoilt = torch.where(mask, p, float("nan"))
    loss = map_alignment(spoilt, torch.where(mask, q, float("inf")), mask, kind=kind)
    (gradient,) = torch.autograd.grad(loss, p)
    torch.testing.assert_close(loss, map_alignment(p, q, mask, kind=kind))
    assert torch.isfinite(gradient).all()


def test_the_scale_of_the_loss_does_not_depend_on_the_number_of_tokens():
    p, q, mask = batch()
    wide = [x.repeat(1, 50, 1) for x in (p, q, mask)]
    torch.testing.assert_close(map_alignment(*wide), map_alignment(p, q, mask))


def test_half_precision_is_summed_in_single():
    p = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    loss = map_alignment(p, torch.zeros_like(p), torch.ones(1, 4096, 1, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss == 1


def test_another_kind_is_refused():
    p, q, mask = batch()
    with pytest.raises((ValueError, TypeError), match="kind"):
        map_alignment(p, q, mask, kind="cosine")
