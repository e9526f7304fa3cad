"""Sums and rows of several ranks, for losses over the batch of all of them.

Data-parallel training averages gradients over ranks (and over micro-batches). A loss of the joined batch therefore
needs more than the joined value: each part's gradient must be multiplied by the number of parts, or the average is too
small by that factor. `joined` does both: the value of the whole, the gradient of this part times the parts. It needs no
communication in the backward pass. A group of None is this process alone.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch import distributed as dist

__all__ = ["Group", "gathered", "joined", "summed", "world"]

Group = dist.ProcessGroup | None


def world(group: Group) -> int:
    """How many ranks the group has; one without a group.

    >>> world(None)
    1
    """
    return 1 if group is None else dist.get_world_size(group)


def summed(x: Shaped[Tensor, "*s"], group: Group) -> Shaped[Tensor, "*s"]:
    """The sum over the ranks, without gradient and without changing x.

    >>> summed(torch.ones(2, requires_grad=True), None)
    tensor([1., 1.])
    """
    if group is None:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total, group=group)
    return total


def gathered(x: Float[Tensor, "n d"], group: Group) -> tuple[Float[Tensor, "m d"], int]:
    """The rows of all ranks in their order, without gradient, and where this rank's begin; lengths may differ.

    >>> gathered(torch.ones(2, 1), None)
    (tensor([[1.],
            [1.]]), 0)
    """
    x = x.detach().contiguous()
    if group is None:
        return x, 0
    lengths = [torch.zeros((), dtype=torch.long, device=x.device) for _ in range(world(group))]
    dist.all_gather(lengths, torch.tensor(len(x), device=x.device), group=group)
    sizes = [int(length) for length in lengths]
    longest = max(sizes)
    padded = torch.cat([x, x.new_zeros(longest - len(x), x.shape[1])])
    everyone = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(everyone, padded, group=group)
    start = sum(sizes[: dist.get_rank(group)])
    return torch.cat([rows[:size] for rows, size in zip(everyone, sizes, strict=True)]), start


def joined(
    whole: Float[Tensor, "*s"], part: Float[Tensor, "*s"], parts: int | Shaped[Tensor, ""]
) -> Float[Tensor, "*s"]:
    """The value of the whole with the gradient of the part, times the number of parts.

    >>> part = torch.tensor(2.0, requires_grad=True)
    >>> total = joined(torch.tensor(10.0), part, 4)
    >>> total.item(), torch.autograd.grad(total, part)[0].item()
    (10.0, 4.0)
    """
    return whole.detach() + parts * (part - part.detach())
