"""What takes the steps: one process, several that average their gradients (DDP), or DeepSpeed's ZeRO (`zero`).

An engine is given the groups that a stage trains and the stage's loss; the loop asks it for a forward, a backward and
a step, and for whole tensors when it saves: a checkpoint holds the same names and shapes whatever engine wrote it, so
that a run begun under one can go on under another. Frozen models stay outside: an engine never sees them.

Start several processes with `torchrun --nproc_per_node N ...` or `accelerate launch --config_file FILE ...`; `launched`
reads which engine that asked for from the environment. `batch_size` of a stage is per process.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from . import weights
from .stage import Optim, Progress

__all__ = ["Engine", "Replicated", "Steps", "launched"]

Loss = Callable[[dict[str, Any], Progress], Mapping[str, Tensor]]


class Steps(nn.Module):
    """A stage's loss as the forward of one module whose children are the trained groups: what DDP and ZeRO wrap."""

    def __init__(self, trained: Mapping[str, nn.Module], loss: Loss) -> None:
        super().__init__()
        self.groups = nn.ModuleList(trained.values())
        self.loss = loss

    def forward(self, batch: dict[str, Any], progress: Progress) -> dict[str, Tensor]:
        """Return the terms of the loss."""
        return dict(self.loss(batch, progress))


class Engine:
    """One process. Subclasses change how many there are, not what a step means."""

    name = "one process"
    rank = 0
    world_size = 1
    spares = True
    """Whether the weights are as before after a step whose gradient is not a number."""

    trained: dict[str, nn.Module]
    optimizer: weights.Optimizer

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def begin(
        self,
        trained: Mapping[str, nn.Module],
        optim: Optim,
        moments: Mapping[str, Tensor],
        *,
        loss: Loss,
        batch_size: int,
        accumulate: int,
    ) -> None:
        """Take over groups, all of which move from now on; `moments` are continued where they fit."""
        self.trained, self.loss = dict(trained), loss
        self.optimizer = weights.Optimizer(trained, optim)
        self.optimizer.load(trained, moments)

    def forget(self) -> None:
        """Forget gradients."""
        for p in self._parameters():
            p.grad = None

    def forward(self, batch: dict[str, Any], progress: Progress, *, last: bool) -> dict[str, Tensor]:
        """Return the terms of the loss on one batch; `last`: its gradients complete an accumulated step."""
        return dict(self.loss(batch, progress))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one batch."""
        with self._alone(last):
            loss.backward()

    def connected(self, group: str) -> bool:
        """Whether any gradient of a group is not zero."""
        return any(p.grad is not None and bool(p.grad.any()) for p in self.trained[group].parameters())

    def gradient(self, term: Tensor, group: str) -> list[Tensor]:
        """Return the gradient of one term alone on a group, of this process's batch: a tensor a parameter.

        It is asked for between `forward` and `backward` and leaves both as they are: the graph stays, no `.grad`
        changes, nothing is exchanged. The loop adds up what the batches of a step give and asks `norm_of` of the sum.
        An engine whose parameters are in pieces may return its pieces, as long as its `norm_of` knows them.
        """
        found = torch.autograd.grad(
            term, list(self.trained[group].parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return [grad.detach().float() for grad in found]

    def norm_of(self, gradient: Sequence[Tensor]) -> float:
        """Return the norm of the mean over the processes of what `gradient` gave: the same bits in each."""
        flat = torch.cat([grad.reshape(-1) for grad in gradient])
        return float(torch.linalg.vector_norm(self.mean(flat)))

    def whole(self) -> AbstractContextManager[Any]:
        """Have the groups' weights whole in every process while the block runs: to read them, or to evaluate modules
        outside a step. Nothing may be changed in it.
        """
        return nullcontext()

    def step(self, rates: Mapping[str, float], clip: float | None) -> float:
        """Step, each group at its own rate times the optimizer's, with the gradient clipped over all groups.

        Returns the norm of the gradient before clipping; nothing is updated where it is not a number.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rates[group["name"]]
        parameters = self._parameters()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if norm.isfinite():
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            self.optimizer.step()
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        """Return the whole tensors of the groups by `group/name`. Every process asks at once."""
        return weights.tensors(self.trained)

    def moments(self) -> dict[str, Tensor]:
        """Return the whole state of the optimizer by `group/name#moment`. Every process asks at once."""
        return weights.moments(self.trained, self.optimizer)

    def check_average(self) -> None:
        """Raise ValueError where weights cannot be averaged over time."""

    def end(self) -> None:
        """Give the groups back as plain modules that hold the result."""

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, the same bits in each."""
        return values

    def barrier(self) -> None:
        """Wait until every process is here."""

    def _alone(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.trained.values() for p in group.parameters()]


class Replicated(Engine):
    """Several processes with the whole weights each; gradients are averaged over them (torch's DDP)."""

    name = "DDP"

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes

    def begin(
        self,
        trained: Mapping[str, nn.Module],
        optim: Optim,
        moments: Mapping[str, Tensor],
        *,
        loss: Loss,
        batch_size: int,
        accumulate: int,
    ) -> None:
        """Take over groups; every process begins with the weights of the first."""
        super().begin(trained, optim, moments, loss=loss, batch_size=batch_size, accumulate=accumulate)
        device = self.accelerator.device
        self.wrapped = nn.parallel.DistributedDataParallel(
            Steps(trained, loss),
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=True,  # an expert that no sample of the batch selected
        )

    def forward(self, batch: dict[str, Any], progress: Progress, *, last: bool) -> dict[str, Tensor]:
        """Return the terms of the loss; gradients travel with the last batch of a step alone."""
        with self._alone(last):
            return self.wrapped(batch, progress)

    def end(self) -> None:
        """Take the averaging of gradients off the groups again."""
        del self.wrapped

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, the same bits in each."""
        total = values.to(self.accelerator.device).clone()
        torch.distributed.all_reduce(total)
        return total.to(values.device) / self.world_size

    def barrier(self) -> None:
        """Wait until every process is here."""
        torch.distributed.barrier()

    def _alone(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.wrapped.no_sync()


def launched() -> Engine:
    """Return the engine that `torchrun` or `accelerate launch` asked for: one process where neither did.

    Raises:
        ValueError: where accelerate, or the DeepSpeed that the launch asks for, is not installed.
    """
    zero = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not zero:
        return Engine()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ValueError(
            "expected a launch with DDP or DeepSpeed, got FSDP: choose ZeRO-2 or ZeRO-3 in accelerate config"
        )
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError:
        raise ValueError("several processes need accelerate: pip install 'phystrainers[scale]'") from None
    # without this a CPU build of DeepSpeed looks for a backend of its own
    handlers: list[Any] = [] if torch.cuda.is_available() else [InitProcessGroupKwargs(backend="gloo")]
    if not zero:
        return Replicated(Accelerator(kwargs_handlers=handlers))
    from .zero import Zero

    return Zero(Accelerator(kwargs_handlers=handlers))
