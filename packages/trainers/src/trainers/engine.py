"""What takes the steps: one process, several that average their gradients (DDP), FSDP2 (`fsdp`) or DeepSpeed's ZeRO
(`zero`).

An engine is given the groups that a stage trains and the stage's loss; the loop asks it for a forward, a backward and
a step, and for whole tensors when it saves: a checkpoint holds the same names and shapes whatever engine wrote it, so
that a run begun under one can go on under another. Frozen models stay outside: an engine never sees them.

Start several processes with `torchrun --nproc_per_node N ...` or `accelerate launch --config_file FILE ...`; `launched`
reads which engine that asked for from the environment. `batch_size` of a stage is per process.

Under `mixed_precision: bf16` the loss runs under torch's autocast, while weights and optimizer stay in float32 (ZeRO
and FSDP2 compute with bfloat16 copies of them).
"""

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from . import weights
from .guards import TrainingWarning
from .stage import Loss, Optim, Progress
from .wrapped import Steps

__all__ = ["Engine", "Replicated", "launched"]


class Engine:
    """One process. Subclasses change how many there are, not what a step means."""

    name = "one process"
    rank = 0
    world_size = 1
    spares = True
    """Whether the weights are as before after a step whose gradient is not a number."""

    trained: dict[str, nn.Module]
    optimizer: weights.Optimizer

    def __init__(self, *, bf16: bool = False) -> None:
        self.bf16 = bf16

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
        self.trained = dict(trained)
        self.wrapped: Any = Steps(trained, loss, bf16=self.bf16)
        self.optimizer = weights.Optimizer(trained, optim)
        self.optimizer.load(trained, moments)

    def forget(self) -> None:
        """Forget gradients."""
        for p in self._parameters():
            p.grad = None

    def forward(self, batch: dict[str, Any], progress: Progress, *, last: bool) -> dict[str, Tensor]:
        """Return the terms of the loss on one batch; `last`: its gradients complete an accumulated step."""
        return self.wrapped(batch, progress)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one batch."""
        with self._alone(last):
            loss.backward()

    def connected(self, group: str) -> bool:
        """Whether any gradient of a group is not zero."""
        return any(p.grad is not None and bool(p.grad.any()) for p in self.trained[group].parameters())

    def gradient(self, term: Tensor, group: str) -> list[Tensor]:
        """Return the gradient on a group of a term that `forward` returned, of this process alone, by parameter.

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
        self.optimizer.rate(rates)
        parameters = self._parameters()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        value = self._number(norm)
        if math.isfinite(value):
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            self.optimizer.step()
        return value

    def weights(self) -> dict[str, Tensor]:
        """Return the whole tensors of the groups by `group/name`. Every process asks at once."""
        return self.joined(self.parts())

    def moments(self) -> dict[str, Tensor]:
        """Return the whole state of the optimizer by `group/name#moment`. Every process asks at once."""
        return self.joined(weights.moments(self.trained, self.optimizer))

    def parts(self) -> dict[str, Tensor]:
        """Return what this process holds of the groups by `group/name`, in the memory that the steps change."""
        return weights.tensors(self.trained)

    def apart(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's parts of whole tensors, laid out as the weights of their names are."""
        return dict(named)

    def joined(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undo `apart`. Every process asks at once, for the same names."""
        return dict(named)

    def check_average(self) -> None:
        """Raise ValueError where weights cannot be averaged over time."""

    def end(self) -> None:
        """Give the groups back as plain modules that hold the result."""
        del self.wrapped, self.optimizer

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, the same bits in each."""
        return values

    def level(self, groups: Iterable[nn.Module]) -> None:
        """Give every process the buffers (running statistics) of the first, which are what a checkpoint holds."""

    def barrier(self) -> None:
        """Wait until every process is here."""

    def exchange(self, said: Any) -> list[Any]:
        """Return what every process said (anything that JSON holds), in the order of their ranks.

        >>> Engine().exchange({"rows": (1, 2)})
        [{'rows': [1, 2]}]
        """
        return [json.loads(json.dumps(said))]

    def leave(self) -> None:
        """Take leave of the other processes, at the end of a program that went well."""

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Let an error name the process that it comes from, and warn in the first alone, while the block runs."""
        yield

    def _alone(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def _number(self, norm: Tensor) -> float:
        return float(norm)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.trained.values() for p in group.parameters()]


class Replicated(Engine):
    """Several processes with the whole weights each; gradients are averaged over them (torch's DDP)."""

    name = "DDP"

    def __init__(self, accelerator: Any) -> None:
        super().__init__(bf16=accelerator.mixed_precision == "bf16")
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
            self.wrapped,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=True,  # an expert that no sample of the batch selected
        )

    def forward(self, batch: dict[str, Any], progress: Progress, *, last: bool) -> dict[str, Tensor]:
        """Return the terms of the loss; gradients travel with the last batch of a step alone."""
        with self._alone(last):
            return self.wrapped(batch, progress)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, the same bits in each."""
        total = values.to(self.accelerator.device).clone()
        torch.distributed.all_reduce(total)
        return total.to(values.device) / self.world_size

    def level(self, groups: Iterable[nn.Module]) -> None:
        """Give every process the buffers (running statistics) of the first, which are what a checkpoint holds."""
        for group in groups:
            for buffer in group.buffers():
                torch.distributed.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait until every process is here."""
        torch.distributed.barrier()

    def exchange(self, said: Any) -> list[Any]:
        """Return what every process said (anything that JSON holds), in the order of their ranks."""
        device = self.accelerator.device
        text = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8).to(device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.world_size)]
        torch.distributed.all_gather(sizes, torch.tensor([len(text)], device=device))
        room = [torch.zeros(int(max(sizes)), dtype=torch.uint8, device=device) for _ in sizes]
        torch.distributed.all_gather(room, nn.functional.pad(text, (0, len(room[0]) - len(text))))
        return [json.loads(bytes(r[: int(n)].tolist())) for r, n in zip(room, sizes, strict=True)]

    def leave(self) -> None:
        """Take leave of the other processes, at the end of a program that went well."""
        self.accelerator.end_training()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Let an error name the process that it comes from, and warn in the first alone, while the block runs."""
        with warnings.catch_warnings():
            if not self.main:
                warnings.simplefilter("ignore", TrainingWarning)
            try:
                yield
            except Exception as error:
                error.add_note(f"in process {self.rank} of {self.world_size}")
                raise

    def _alone(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.wrapped.no_sync()


def whole_modules(groups: Mapping[str, nn.Module], engine: str) -> None:
    """Raise ValueError for a group of single parameters, whose module the engine does not see being called."""
    for name, group in groups.items():
        for path, module in group.named_modules():
            if type(module) is nn.Module and module._parameters:
                keys = ", ".join(".".join(filter(None, (path, key))) for key in module._parameters)
                raise ValueError(
                    f"expected groups of whole modules under {engine}, got single parameters in {name!r} ({keys}): "
                    f"use DDP or ZeRO-2"
                )


def launched() -> Engine:
    """Return the engine that `torchrun` or `accelerate launch` asked for: one process where neither did.

    Raises:
        ValueError: where accelerate, or the DeepSpeed that the launch asks for, is not installed; for FSDP1 and fp16.
    """
    zero, fsdp = (os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("DEEPSPEED", "FSDP"))
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16"):
        raise ValueError(f"expected mixed_precision no or bf16, got {precision}: physics losses leave fp16's range")
    if fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("expected FSDP2, got FSDP1: write fsdp_version: 2 into the config of accelerate launch")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not zero and not fsdp:
        return Engine(bf16=precision == "bf16")
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError:
        raise ValueError("several processes need accelerate: pip install 'phystrainers[scale]'") from None
    # without this a CPU build of DeepSpeed looks for a backend of its own
    handlers: list[Any] = [] if torch.cuda.is_available() else [InitProcessGroupKwargs(backend="gloo")]
    accelerator = Accelerator(kwargs_handlers=handlers)
    if fsdp:
        from .fsdp import Sharded

        return Sharded(accelerator)
    if zero:
        from .zero import Zero

        return Zero(accelerator)
    return Replicated(accelerator)
