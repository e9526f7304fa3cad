"""Laws of the loss: pairs over the whole step, the backbone's own diffusion loss, masked maps."""

import pytest
import torch

from backbones import paths
from physexperts import relative_alignment, route
from prophy import losses
from prophy.config import Losses
from prophy.partners import Partners
from prophy.refine import RefinementExpertBlock
from prophy.semantic import Semantics


def semantics(output):
    return Semantics(routing=route(torch.zeros(len(output), 2), 1), output=output)


def test_a_step_of_one_micro_batch_has_its_own_pairs():
    out, labels = torch.randn(6, 4), torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    whole = Partners(rows=0, width=4, labels=3, micro_batches=1)(out, labels)
    value = losses.coarse(semantics(out), labels, whole, Losses())
    assert value == relative_alignment(out, labels)


def test_micro_batches_of_one_have_partners_and_the_gradient_of_the_whole_batch():
    """Rows of earlier micro-batches are constants; once the queue is full, the averaged gradient is the whole one's."""
    torch.manual_seed(0)
    rows, labels = torch.randn(4, 5, requires_grad=True), torch.eye(2)[[0, 1, 0, 1]]
    (exact,) = torch.autograd.grad(relative_alignment(rows, labels), rows)
    queue = Partners(rows=3, width=5, labels=2, micro_batches=4)
    for i in range(4):  # a step that fills the queue
        queue(rows[i : i + 1].detach(), labels[i : i + 1])
    total = torch.zeros_like(rows)
    for i in range(4):
        whole = queue(rows[i : i + 1], labels[i : i + 1])
        value = losses.coarse(semantics(rows[i : i + 1]), labels[i : i + 1], whole, Losses()) / 4
        (part,) = torch.autograd.grad(value, rows)
        total += part
    torch.testing.assert_close(total, exact)


def test_the_queue_is_part_of_the_state():
    queue = Partners(rows=2, width=3, labels=2, micro_batches=3)
    queue(torch.ones(1, 3), torch.ones(1, 2))
    other = Partners(rows=2, width=3, labels=2, micro_batches=3)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(
        other(torch.zeros(1, 3), torch.ones(1, 2)).outputs, queue(torch.zeros(1, 3), torch.ones(1, 2)).outputs
    )


@pytest.mark.parametrize("kind", ["relative", "bce"])
def test_a_video_without_labels_teaches_nothing(kind):
    out, labels = torch.randn(4, 3, requires_grad=True), torch.eye(3)[[0, 1, 2, 0]]
    labels[3] = 0
    whole = Partners(rows=0, width=3, labels=3, micro_batches=1)(out, labels)
    losses.coarse(semantics(out), labels, whole, Losses(coarse_kind=kind)).backward()
    assert not out.grad[3].any()
    assert out.grad[:3].any()


def test_the_loss_of_a_v_prediction_model_is_the_error_of_v():
    torch.manual_seed(0)
    x0, eps = torch.randn(2, 3, 4, 2, 2, 2).unbind(0)
    sigma = torch.tensor([0.3, 0.7, 0.999])
    alpha = (1 - sigma) / ((1 - sigma) ** 2 + sigma**2).sqrt()
    r = (1 - alpha**2).sqrt()
    a, r = (x.view(-1, 1, 1, 1, 1) for x in (alpha, r))
    v, wrong = a * eps - r * x0, torch.randn_like(x0)
    x_t = a * x0 + r * eps
    u = paths.to_flow(x_t, wrong, sigma)[1]
    value = losses.diffusion(u, paths.target(x0, eps), sigma, "v")
    torch.testing.assert_close(value, (wrong - v).square().mean())


def test_only_marked_entries_of_a_map_are_compared():
    torch.manual_seed(0)
    block = RefinementExpertBlock(dim=4, experts=3, k=1, labels=2, hidden=4)
    _, refinement = block(torch.randn(1, 6, 4), (1, 2, 3))
    target, active = torch.rand(1, 6, 2), torch.zeros(1, 6, 2, dtype=torch.bool)
    active[0, :2, 0] = True
    other = target.clone()
    other[~active] = 9.0
    assert losses.fine(refinement, target, active, Losses()) == losses.fine(refinement, other, active, Losses())
    assert losses.fine(refinement, target, torch.zeros_like(active), Losses()) == 0
    square, absolute = (
        losses.fine(refinement, target, active, Losses(align_distance=d)) for d in ("squared", "absolute")
    )
    assert square != absolute


def test_balance_is_near_one_for_even_loads_and_grows_with_collapse():
    torch.manual_seed(0)
    block, tokens = RefinementExpertBlock(dim=4, experts=4, k=1, labels=2, hidden=4), torch.randn(1, 500, 4)
    _, spread = block(tokens, (1, 1, 500))
    with torch.no_grad():
        block.router.gate.weight.zero_()
        block.router.gate.weight[0, 0] = 9.0
    tokens[..., 0] = 50.0
    _, collapsed = block(tokens, (1, 1, 500))
    assert 1 <= losses.balance(spread).item() < 1.5
    assert losses.balance(collapsed).item() > 3.9
