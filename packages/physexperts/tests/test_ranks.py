"""Two ranks with two micro-batches each say what one process says of the joined batch, gradients included."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from physexperts import RouterStats, label_loss, relative_alignment, route

SCRIPT = Path(__file__).with_name("two_ranks.py")
spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
two_ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(two_ranks)
E, K = two_ranks.E, two_ranks.K


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "error", str(SCRIPT)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*command, str(rank), str(folder)], env=env) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=600) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def both(ranks, key):
    return torch.cat([rank[key] for rank in ranks])


def close(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", list(two_ranks.LOSSES))
def test_two_ranks_with_micro_batches_have_the_loss_and_gradient_of_the_joined_batch(ranks, name):
    logits, mask, *_ = two_ranks.batch()
    logits.requires_grad_()
    want = two_ranks.LOSSES[name](route(logits, K, mask=mask))
    want.backward()
    close(both(ranks, name), want.detach().expand(4))
    close(both(ranks, f"{name}.grad") / 2, logits.grad)  # averaged over the ranks
    assert logits.grad.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["alignment", "labels"])
def test_pairs_and_labels_of_two_ranks_are_those_of_the_joined_batch(ranks, name):
    _, _, rho, q, _ = two_ranks.batch()
    rho.requires_grad_()
    want = relative_alignment(rho, q) if name == "alignment" else label_loss(rho, q[:, :4])
    want.backward()
    close(both(ranks, name), want.detach().expand(4))
    close(both(ranks, f"{name}.grad") / 2, rho.grad)


def test_experts_spread_over_ranks_are_the_experts_of_one(ranks):
    logits, mask, _, _, tokens = two_ranks.batch()
    experts, x = two_ranks.experts(), tokens.requires_grad_()
    said = experts.mix(x, route(logits[:, 0], K, mask=mask[:, 0]))
    said.square().sum().backward()
    close(both(ranks, "parallel"), said.detach())
    close(both(ranks, "parallel.grad"), x.grad)
    for name, weight in experts.named_parameters():
        close(both(ranks, f"parallel.{name}"), weight.grad)  # the sum over both ranks' tokens


def test_statistics_are_read_over_the_ranks_and_kept_by_each(ranks):
    logits, mask, _, q, _ = two_ranks.batch()
    stats = RouterStats(E, labels=5)
    stats.update(route(logits[:, 0], K, mask=mask[:, 0]), q)
    want = stats.read()
    for rank in ranks:
        close(rank["load"], want.load)
        torch.testing.assert_close(rank["label_weight"], want.label_weight, equal_nan=True)
        assert rank["rows"] == want.rows
    assert sum(rank["alone"] for rank in ranks) == want.rows
    assert torch.equal(ranks[0]["bias"], ranks[1]["bias"])
    assert ranks[0]["bias"].abs().sum() > 0
