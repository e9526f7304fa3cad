"""FSDP2 under the loop: weights, gradients and optimizer state of the trained groups lie in equal parts on every
process, and come together for the forward and the backward (torch's `fully_shard`).

All trained groups are one unit, gathered at once, since a loss may ask any part of them by any method; classes named in
`fsdp_transformer_layer_cls_to_wrap` become units of their own, gathered one after another, and must then be called in
the same order by every process. Under bf16 the gathered weights are bfloat16; the parts, their gradients and the
optimizer stay float32.

What surprises: a group's parameters are replaced while a stage trains and put back, as the same objects, at its end. A
group that names single parameters of a module that the loss uses from elsewhere cannot be trained this way and is
refused.

References: PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Zhao et al., 2023).
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from . import weights
from .engine import Replicated, whole_modules
from .stage import Loss, Optim, Progress
from .wrapped import Together

__all__ = ["Sharded"]


class Sharded(Replicated):
    """FSDP2, with the config that `accelerate launch` was given."""

    name = "FSDP2"
    spares = False  # gradients of earlier batches of a step cannot be taken back

    def __init__(self, accelerator: Any) -> None:
        super().__init__(accelerator)
        from accelerate import FullyShardedDataParallelPlugin

        plugin: Any = FullyShardedDataParallelPlugin()  # from the environment; the accelerator's own is for GPUs alone
        wrong = {
            "fsdp_offload_params: true (choose ZeRO-2 with offload)": type(plugin.cpu_offload) is not OffloadPolicy,
            "fsdp_activation_checkpointing: true (a stage names what it recomputes)": plugin.activation_checkpointing,
            "fsdp_auto_wrap_policy: SIZE_BASED_WRAP (name classes, or nothing)": plugin.min_num_params,
        }
        if found := [what for what, there in wrong.items() if there]:
            raise ValueError(f"expected an FSDP2 config without {'; '.join(found)}")
        self.blocks = frozenset(plugin.transformer_cls_names_to_wrap or ())
        self.settings: Any = {
            "mesh": init_device_mesh(accelerator.device.type, (self.world_size,)),
            "reshard_after_forward": plugin.reshard_after_forward,
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=torch.bfloat16 if self.bf16 else None,
                reduce_dtype=torch.float32 if self.bf16 else None,
                cast_forward_inputs=False,  # targets stay float32, autocast does the rest
            ),
        }

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
        if optim.kind != "adamw":
            raise ValueError(f"expected AdamW's moments whole under FSDP2, which takes them apart, got {optim.kind!r}")
        self.trained = dict(trained)
        whole_modules(trained, self.name)
        for p in self._parameters():
            torch.distributed.broadcast(p.data, 0)
        self.found = [_Found(module) for group in trained.values() for module in group.modules()]
        names = {type(found.module).__name__ for found in self.found}
        if strangers := sorted(self.blocks - names):
            raise ValueError(
                f"expected fsdp_transformer_layer_cls_to_wrap out of the classes in the trained groups "
                f"({', '.join(sorted(names))}), got {', '.join(strangers)}"
            )
        self.wrapped: Any = Together(trained, loss, bf16=self.bf16)
        for found in reversed(self.found):  # children before their parents
            if type(found.module).__name__ in self.blocks:
                fully_shard(found.module, **self.settings)
        fully_shard(self.wrapped, **self.settings)
        for found in self.found:
            found.release()
        self.optimizer = weights.Optimizer(trained, optim)
        self.optimizer.load(trained, self.apart(moments))
        self.forget()

    def forget(self) -> None:
        """Forget gradients."""
        super().forget()
        self.used = torch.zeros(len(self._parameters()), device=self.accelerator.device)

    def forward(self, batch: dict[str, Any], progress: Progress, *, last: bool) -> dict[str, Tensor]:
        """Return the terms of the loss; gradients travel with the last batch of a step alone."""
        self.last = last
        self.wrapped.set_requires_gradient_sync(last)
        terms = self.wrapped(batch, progress)
        self.used += torch.tensor(self.wrapped.used, device=self.used.device)
        return terms

    def gradient(self, term: Tensor, group: str) -> list[Tensor]:
        """Return the gradient of one term alone on a group, of this process's batch: a tensor a parameter."""
        if self.blocks:
            raise ValueError(
                "expected no fsdp_transformer_layer_cls_to_wrap beside a recursive ramp, which needs whole gradients: "
                "leave it out, or train under DDP or ZeRO-2"
            )
        wanted = set(self.trained[group].parameters())
        inputs = [now for now, p in zip(self.wrapped.every, self._parameters(), strict=True) if p in wanted]
        self.wrapped.set_requires_gradient_sync(False)
        found = torch.autograd.grad(term, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
        self.wrapped.set_requires_gradient_sync(self.last)
        return [grad.detach().float() for grad in found]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have the groups' weights whole in every process while the block runs."""
        units = [module for module in self.wrapped.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                unit.reshard()

    def connected(self, group: str) -> bool:
        """Whether any gradient of a group is not zero. Every process asks at once."""
        gradients = [p.grad for p in self.trained[group].parameters() if isinstance(p.grad, DTensor)]
        return bool(self.mean(torch.tensor(float(any(bool(g.to_local().any()) for g in gradients)))))

    def step(self, rates: Mapping[str, float], clip: float | None) -> float:
        """Step, each group at its own rate times the optimizer's, with the gradient clipped over all groups.

        What no process used keeps its weights and its moments, as it does in one process.
        """
        torch.distributed.all_reduce(self.used)
        for p, used in zip(self._parameters(), self.used.tolist(), strict=True):
            if not used:
                p.grad = None
        return super().step(rates, clip)

    def apart(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's parts of whole tensors, laid out as the weights of their names are."""
        here: dict[str, Any] = dict(weights.parameters(self.trained))
        result = {}
        for key, value in named.items():
            p = here.get(key.partition("#")[0])
            if p is not None and value.ndim and value.shape == p.shape:
                value = distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
            result[key] = value
        return result

    def joined(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undo `apart`. Every process asks at once, for the same names."""
        return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in named.items()}

    def moments(self) -> dict[str, Tensor]:
        """Return the whole state of the optimizer by `group/name#moment`, in main memory, since a GPU that needs
        FSDP2 has no room for it. Every process asks at once.
        """
        parts = weights.moments(self.trained, self.optimizer)
        return {key: self.joined({key: part})[key].cpu() for key, part in parts.items()}

    def end(self) -> None:
        """Give the groups back as plain modules that hold the result."""
        whole = self.weights()
        for found in self.found:
            found.restore()
        for key, p in weights.parameters(self.trained).items():
            p.data = whole[key]
            p.grad = None
        del self.wrapped, self.optimizer, self.found

    def _alone(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()  # `forward` has said it

    def _number(self, norm: Tensor) -> float:
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


class _Found:
    """A module as it was found: its class, its own parameters and its hooks, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind, self.names = module, type(module), set(vars(module))
        self.parameters = dict(module._parameters)
        self.hooks = {name: dict(found) for name, found in vars(module).items() if "_hooks" in name}

    def release(self) -> None:
        """Free the memory of weights that now lie elsewhere, in parts."""
        for p in self.parameters.values():
            if p is not None:
                p.data = p.data.new_empty(0)

    def restore(self) -> None:
        """Put class, parameters and hooks back; the parameters are still empty."""
        self.module.__class__ = self.kind
        self.module._parameters.update(self.parameters)
        for name, hooks in self.hooks.items():
            vars(self.module)[name].clear()
            vars(self.module)[name].update(hooks)
        for name in set(vars(self.module)) - self.names:
            if name.startswith(("_is_fsdp", "_fsdp", "__composable")):
                delattr(self.module, name)
