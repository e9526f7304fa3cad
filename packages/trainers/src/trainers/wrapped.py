"""A stage's loss as the forward of one module whose children are the trained groups: what DDP, FSDP2 and ZeRO wrap."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .stage import Loss, Progress

__all__ = ["Alike", "Steps", "Together"]


class Steps(nn.Module):
    """The loss, computed under autocast where bf16 was asked for."""

    def __init__(self, trained: Mapping[str, nn.Module], loss: Loss, *, bf16: bool = False) -> None:
        super().__init__()
        self.groups = nn.ModuleList(trained.values())
        self.loss, self.bf16 = loss, bf16

    def forward(self, batch: dict[str, Any], progress: Progress) -> dict[str, Tensor]:
        """Return the terms of the loss."""
        device = next(self.groups.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            return dict(self.loss(batch, progress))


class Together(Steps):
    """A loss in which every parameter takes part, for an engine that exchanges those gradients that are there (FSDP2):
    where processes use different parameters (an expert that no sample of a batch selected) they would not fit together.

    What the loss did not use adds the sum of none of its elements, and so has a gradient of zero. After a forward,
    `every` are the parameters as the loss found them and `used` tells for each whether it depends on it.
    """

    every: list[nn.Parameter]
    used: list[float]

    def forward(self, batch: dict[str, Any], progress: Progress) -> dict[str, Tensor]:
        """Return the terms of the loss."""
        terms = super().forward(batch, progress)
        reached = set(_leaves(terms.values()))
        self.every = list(self.groups.parameters())
        # FSDP2's parts belong to blocks that are units of their own, which every process calls
        self.used = [float(p in reached or hasattr(p, "full_tensor")) for p in self.every]
        idle = [p.reshape(-1)[:0].sum() for p, used in zip(self.every, self.used, strict=True) if not used]
        first = next((n for n, term in terms.items() if term.requires_grad and not n.startswith("log/")), None)
        if idle and first is not None:
            terms[first] = terms[first] + torch.stack(idle).sum()
        return terms


class Alike(Steps):
    """A loss whose gradients arrive in the same order in every process, for an engine that fills its buckets as they
    come (ZeRO-1 and 2): where the graphs of two processes differ, gradients of different parameters would be averaged.

    Where they do, the gradients are computed at once and handed on by one node, a zero for what was not used. `made`
    are the terms as the loss made them.
    """

    made: dict[str, Tensor]

    def forward(self, batch: dict[str, Any], progress: Progress) -> dict[str, Tensor]:
        """Return the terms of the loss. Every process asks at once."""
        self.made = super().forward(batch, progress)
        summed = {n: term for n, term in self.made.items() if term.requires_grad and not n.startswith("log/")}
        every = list(self.groups.parameters())
        if not summed or _same_everywhere(_signature(self.made.values(), every), every[0].device):
            return {name: term.view_as(term) for name, term in self.made.items()}
        total = torch.stack([term.reshape(()) for term in summed.values()]).sum()
        grads = torch.autograd.grad(total, every, retain_graph=True, allow_unused=True, materialize_grads=True)
        said = {name: term.detach() for name, term in self.made.items()}
        first = next(iter(summed))
        said[first] = _HandOn.apply(said[first], len(every), *every, *grads)  # pyright: ignore[reportArgumentType]
        return said


class _HandOn(torch.autograd.Function):
    """A value whose gradients with regard to some tensors are given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given[count:])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        made = ctx.saved_tensors
        return (None, None, *(grads[0] * grad for grad in made), *(None for _ in made))


def _same_everywhere(number: int, device: torch.device) -> bool:
    both = torch.tensor([number, -number], device=device)
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
    return int(both[0]) == -int(both[1])


def _signature(terms: Iterable[Tensor], every: list[nn.Parameter]) -> int:
    """A number for the graph of terms: its nodes in the order of their making, and which parameters they reach."""
    position = {p: i for i, p in enumerate(every)}
    nodes = sorted(_nodes(terms), key=lambda node: node._sequence_nr())
    lines = []
    for node in nodes:
        leaves = [getattr(child, "variable", None) for child, _ in node.next_functions]
        lines.append(f"{node.name()} {[position.get(leaf) for leaf in leaves if leaf is not None]}")
    return int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:7], "big")


def _leaves(terms: Iterable[Tensor]) -> Iterator[Tensor]:
    """The parameters that terms depend on."""
    return (leaf for node in _nodes(terms) if (leaf := getattr(node, "variable", None)) is not None)


def _nodes(terms: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of the graph of terms."""
    todo: list[Any] = [term.grad_fn for term in terms if term.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        yield node
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                todo.append(child)
