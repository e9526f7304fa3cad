"""One of two gloo ranks: runs every joined loss on its half of a batch and writes values and gradients.

Started by test_ranks.py as a process of its own: two_ranks.py RANK FOLDER.
"""

import sys
from pathlib import Path

import torch
from torch import distributed as dist

from physexperts import (
    ExpertParallel,
    GLUExperts,
    RouterStats,
    TokenTopKRouter,
    collect,
    importance_loss,
    label_loss,
    load_balancing_loss,
    relative_alignment,
    route,
    router_z_loss,
    tally,
)

ROWS, CUT, E, K = 11, 5, 6, 2  # rank 0 has 5 rows, rank 1 has 6
LOSSES = {"balance": load_balancing_loss, "z": router_z_loss, "importance": importance_loss}


def batch():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, 4, E, generator=g, dtype=torch.float64) * 2
    mask = torch.rand(ROWS, 4, generator=g) > 0.3
    rho = torch.randn(ROWS, 4, generator=g, dtype=torch.float64)
    q = (torch.rand(ROWS, 5, generator=g) > 0.5).double()
    q[2] = 0
    tokens = torch.randn(ROWS, 8, generator=g, dtype=torch.float64)
    return logits, mask, rho, q, tokens


def experts():
    torch.manual_seed(1)
    return GLUExperts(E, 8, 4).double()


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group = dist.group.WORLD
    mine = slice(0, CUT) if rank == 0 else slice(CUT, ROWS)
    logits, mask, rho, q, tokens = (x[mine] for x in batch())
    out = {}

    # Two micro-batches a rank, of uneven size; every gradient is averaged over micro-batches and ranks.
    pieces = [slice(0, 2), slice(2, None)]
    for name, loss in LOSSES.items():
        leaf = logits.clone().requires_grad_()
        routings = [route(leaf[p], K, mask=mask[p]) for p in pieces]
        with torch.no_grad():
            whole = (tally(routings[0]) + tally(routings[1])).over(group)
        values = [loss(routing, whole=whole) for routing in routings]
        (sum(values) / 2).backward()
        out[name], out[f"{name}.grad"] = torch.stack(values).detach(), leaf.grad
    for name, loss in {"alignment": relative_alignment, "labels": label_loss}.items():
        head = q[:, :4] if name == "labels" else q
        leaf = rho.clone().requires_grad_()
        wholes = collect([leaf[p] for p in pieces], [head[p] for p in pieces], group=group)
        values = [loss(leaf[p], head[p], whole=w) for p, w in zip(pieces, wholes, strict=True)]
        (sum(values) / 2).backward()
        out[name], out[f"{name}.grad"] = torch.stack(values).detach(), leaf.grad

    # Experts spread over the ranks; all tokens of rank 1 ask one expert of rank 0, so rank 1 gets few rows.
    full = experts()
    local = GLUExperts(E // 2, 8, 4).double()
    share = slice(0, E // 2) if rank == 0 else slice(E // 2, E)
    local.load_state_dict({name: weight[share] for name, weight in full.state_dict().items()})
    x = tokens.clone().requires_grad_()
    routing = route(logits[:, 0], K, mask=mask[:, 0])
    said = ExpertParallel(local, group).mix(x, routing)
    said.square().sum().backward()
    out |= {"parallel": said.detach(), "parallel.grad": x.grad}
    out |= {f"parallel.{name}": weight.grad for name, weight in local.named_parameters()}

    stats = RouterStats(E, labels=5)
    stats.update(route(logits[:, 0], K, mask=mask[:, 0]), q)
    health = stats.read(group=group)
    again = stats.read(group=group)
    assert health.rows == again.rows, "reading must not add up"
    out |= {"load": health.load, "label_weight": health.label_weight, "rows": torch.tensor(health.rows)}
    out["alone"] = torch.tensor(stats.read().rows)

    router = TokenTopKRouter(8, E, K, expert_bias=True)
    router.update_bias(stats.selections, 0.5, group=group)
    out["bias"] = router.expert_bias
    torch.save(out, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
