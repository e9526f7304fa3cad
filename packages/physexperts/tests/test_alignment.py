import pytest
import torch

from physexperts import PairQueue, collect, label_loss, relative_alignment


def by_hand(rho, q, distance, reduction):
    """Pair by pair."""
    terms = []
    for i in range(len(rho)):
        for j in range(i + 1, len(rho)):
            if q[i].any() and q[j].any():
                p = torch.dot(rho[i], rho[j]) / (rho[i].norm() * rho[j].norm())
                gap = p - torch.dot(q[i], q[j]) / (q[i].norm() * q[j].norm())
                terms.append(gap**2 if distance == "square" else gap.abs())
    total = sum(terms)
    return total if reduction == "sum" else total / len(terms)


def batch(n=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    q = (torch.rand(n, 5, generator=g) > 0.6).double()
    q[:3] = torch.eye(5, dtype=torch.float64)[:3]
    q[3] = 0
    return torch.randn(n, 4, generator=g, dtype=torch.float64).requires_grad_(), q


@pytest.mark.parametrize("distance", ["square", "abs"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_alignment_is_the_formula_pair_by_pair(distance, reduction):
    rho, q = batch()
    got = relative_alignment(rho, q, distance=distance, reduction=reduction)
    torch.testing.assert_close(got, by_hand(rho, q, distance, reduction))
    assert torch.autograd.gradcheck(lambda r: relative_alignment(r, q, distance=distance, reduction=reduction), rho)


def test_rows_without_a_label_leave_the_pairs_even_when_they_hold_nan():
    rho, q = batch()
    kept = q.any(-1)
    want = relative_alignment(rho[kept], q[kept])
    dirty = rho.detach().clone()
    dirty[3] = torch.nan
    dirty.requires_grad_()
    got = relative_alignment(dirty, q)
    got.backward()
    torch.testing.assert_close(got, want)
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[3] == 0).all()


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_videos_have_no_pairs_and_no_gradient(rows):
    rho = torch.randn(rows, 4, requires_grad=True)
    loss = relative_alignment(rho, torch.ones(rows, 5))
    loss.backward()
    assert loss == 0
    assert (rho.grad == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4], [5, 1, 1]])
def test_micro_batches_in_two_passes_give_the_joined_loss_and_gradient(sizes, reduction):
    rho, q = batch()
    want = relative_alignment(rho, q, reduction=reduction)
    (right,) = torch.autograd.grad(want, rho)
    parts = [p.detach().requires_grad_() for p in rho.split(sizes)]
    wholes = collect(parts, q.split(sizes))
    for part, labels, whole in zip(parts, q.split(sizes), wholes, strict=True):
        loss = relative_alignment(part, labels, whole=whole, reduction=reduction)
        torch.testing.assert_close(loss, want, rtol=0, atol=1e-12)
        (loss / len(sizes)).backward()  # as every trainer averages
    torch.testing.assert_close(torch.cat([p.grad for p in parts]), right, rtol=0, atol=1e-12)
    assert right.any()


def test_a_queue_gives_partners_to_single_videos():
    rho, q = batch()
    queue = PairQueue(10)
    losses = []
    for row, label in zip(rho, q, strict=True):
        losses.append(relative_alignment(row[None], label[None], whole=queue(row[None], label[None])).item())
    assert losses[0] == 0
    assert losses[1] > 0
    torch.testing.assert_close(losses[-1], relative_alignment(rho, q).item())


def test_a_queue_forgets_the_oldest_and_keeps_no_graph():
    queue = PairQueue(3)
    for i in range(5):
        whole = queue(torch.full((1, 2), float(i), requires_grad=True), torch.ones(1, 2))
    assert whole.outputs[:, 0].tolist() == [4.0, 1.0, 2.0, 3.0]
    assert not whole.outputs.requires_grad
    with pytest.raises(ValueError, match="at least one row"):
        PairQueue(0)


def test_the_label_loss_is_the_mean_over_labelled_rows_in_one_part_or_many():
    logits, q = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), batch()[1]
    kept = q.any(-1)
    want = torch.nn.functional.binary_cross_entropy_with_logits(logits[kept], q[kept])
    torch.testing.assert_close(label_loss(logits, q), want)
    (right,) = torch.autograd.grad(want, logits)
    parts = [p.detach().requires_grad_() for p in logits.split([2, 5])]
    for part, labels, whole in zip(parts, q.split([2, 5]), collect(parts, q.split([2, 5])), strict=True):
        (label_loss(part, labels, whole=whole) / 2).backward()
    torch.testing.assert_close(torch.cat([p.grad for p in parts]), right)


def test_rows_that_do_not_belong_to_the_whole_are_refused():
    rho, q = batch()
    (whole,) = collect([rho[:2]], [q[:2]])
    with pytest.raises(ValueError, match="collect the same outputs"):
        relative_alignment(rho, q, whole=whole)
    with pytest.raises((ValueError, TypeError)):
        relative_alignment(rho[:3], q)
    with pytest.raises(ValueError, match="as many outputs as labels"):
        collect([], [])
    with pytest.raises((ValueError, TypeError), match="distance"):
        relative_alignment(rho, q, distance="cosine")
