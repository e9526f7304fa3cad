"""DeepSpeed's ZeRO under the loop: optimizer state (1), gradients (2) and weights (3) shared out over the processes.

Only the trained groups are inside the engine, so a frozen model is neither sharded nor saved. Whole tensors are put
together for a checkpoint and taken apart at a resume, so the files are those of any other engine: nothing of
DeepSpeed's own (pickled) format is written or read.

What surprises: DeepSpeed steps before it tells the norm of the gradient, so that after one that is not a number the
weights in memory are lost (the checkpoint is not). With CPU offload DeepSpeed compiles its own Adam, some minutes the
first time; `zero_force_ds_cpu_optimizer: false` in its config keeps torch's AdamW.

References: ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (Rajbhandari et al., 2020).
"""

import gc
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import weights
from .engine import Replicated, whole_modules
from .stage import Loss, Optim, Progress
from .wrapped import Alike, Steps

__all__ = ["Zero"]

MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero(Replicated):
    """DeepSpeed, with the config that `accelerate launch` was given."""

    spares = False

    def __init__(self, accelerator: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its own imports
                import deepspeed  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError("this launch asks for DeepSpeed: pip install 'phystrainers[deepspeed]'") from None
        super().__init__(accelerator)
        self.deepspeed = deepspeed
        self.config = dict(accelerator.state.deepspeed_plugin.deepspeed_config)
        self.sharing = dict(self.config.get("zero_optimization", {}))
        self.stage = int(self.sharing.get("stage", 0))
        self.name = f"DeepSpeed ZeRO-{self.stage}"
        if dict(self.config.get("fp16", {})).get("enabled") is True:
            raise ValueError("expected fp16 off in the config of DeepSpeed, got on: choose bf16, or neither")
        self.bf16 = dict(self.config.get("bf16", {})).get("enabled") is True  # mixed_precision: bf16 is written there

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
        if optim.muon is not None:
            raise ValueError("expected AdamW alone under DeepSpeed, which shares out flat weights, got optim.muon")
        if optim.kind != "adamw":
            raise ValueError(f"expected kind 'adamw' under DeepSpeed, which shares moments out, got {optim.kind!r}")
        self.trained = dict(trained)
        if self.stage == 3:
            whole_modules(trained, self.name)
        params = [{"name": name, "params": list(group.parameters())} for name, group in trained.items()]
        settings: Any = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
        config = self.config | {
            "train_micro_batch_size_per_gpu": batch_size,
            "gradient_accumulation_steps": accumulate,
            "train_batch_size": batch_size * accumulate * self.world_size,
            "gradient_clipping": optim.clip or 0.0,
            "steps_per_print": 2**60,
        }
        offloaded = self.sharing.get("offload_optimizer", {}).get("device", "none") != "none"
        if offloaded and self.config.get("zero_force_ds_cpu_optimizer", True):
            optimizer: Any = self.deepspeed.ops.adam.DeepSpeedCPUAdam(params, adamw_mode=True, **settings)
        else:
            optimizer = torch.optim.AdamW(params, **settings)
        for entry in optimizer.param_groups:
            entry["base_lr"] = optim.lr
        whole = {key: p.detach().clone() for key, p in weights.parameters(trained).items()} if self.bf16 else {}
        buffers = [(module, dict(module._buffers)) for group in trained.values() for module in group.modules()]
        self.steps: Any = (Steps if self.stage == 3 else Alike)(trained, loss, bf16=self.bf16)
        made: Any = self.deepspeed.initialize(
            model=self.steps, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.engine, self.inner, self.said = made[0], made[1], {}
        for module, found in buffers:  # bf16 has rounded them
            module._buffers.update(found)
        for key, p in weights.parameters(trained).items():
            if key in whole:  # the float32 copy that steps was made of rounded weights
                self._set(p, whole[key])
        self._continue(moments)

    def forget(self) -> None:
        """Forget gradients."""
        self.engine.zero_grad()

    def forward(self, batch: dict[str, Any], progress: Progress, *, last: bool) -> dict[str, Tensor]:
        """Return the terms of the loss."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.said = self.engine(batch, progress)
        return dict(self.said)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one batch; the loop has divided by the number of batches already."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def gradient(self, term: Tensor, group: str) -> list[Tensor]:
        """Return the gradient of a term that `forward` returned on a group, of this process's batch.

        It goes around what DeepSpeed has hung on the term, which would take it for the step's backward.
        """
        if self.stage == 3:
            raise ValueError("a recursive ramp needs whole gradients, which ZeRO-3 takes apart: use ZeRO-2")
        own = next(self.steps.made[name] for name, said in self.said.items() if said is term)
        return super().gradient(own, group)

    def connected(self, group: str) -> bool:
        """Whether any gradient of a group is not zero. Every process asks at once."""
        full = [self.deepspeed.utils.safe_get_full_grad(p) for p in self.trained[group].parameters()]
        return any(grad is not None and bool(grad.any()) for grad in full)

    def step(self, rates: Mapping[str, float], clip: float | None) -> float:
        """Step, each group at its own rate times the optimizer's; the gradient is clipped as the stage said."""
        for group in self.inner.param_groups:
            group["lr"] = group["base_lr"] * rates[group["name"]]
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or 0.0)

    def weights(self) -> dict[str, Tensor]:
        """Return the whole tensors of the groups by `group/name`. Every process asks at once."""
        if self.bf16:  # what is stepped is a float32 copy
            masters: dict[str, Any] = {
                key: self.deepspeed.utils.safe_get_full_fp32_param(p)
                for key, p in weights.parameters(self.trained).items()
            }
            return weights.tensors(self.trained) | {key: value.clone() for key, value in masters.items()}
        with self.whole():
            return {name: value.detach().clone() for name, value in weights.tensors(self.trained).items()}

    def moments(self) -> dict[str, Tensor]:
        """Return the whole state of the optimizer by `group/name#moment`. Every process asks at once."""
        found: dict[str, Tensor] = {}
        self._link()
        for name, group in self.trained.items():
            step = self._step_of(name)
            if step is None:
                continue
            for key, p in group.named_parameters():
                found[f"{name}/{key}#step"] = step.clone()
                for moment in MOMENTS:
                    value: Any = self.deepspeed.utils.safe_get_full_optimizer_state(p, moment)
                    found[f"{name}/{key}#{moment}"] = value
        return found

    def whole(self) -> AbstractContextManager[Any]:
        """Have the groups' weights whole in every process while the block runs."""
        return self.deepspeed.zero.GatheredParameters(self._parameters()) if self.stage == 3 else nullcontext()

    def check_average(self) -> None:
        """Raise ValueError under ZeRO-3 and bf16."""
        if self.stage == 3 or self.bf16:
            why = "which ZeRO-3 takes apart" if self.stage == 3 else "whose only copy DeepSpeed's bf16 shares out"
            raise ValueError(f"an average (ema) needs whole float32 weights, {why}: use FSDP2 or DDP, or no ema")

    def end(self) -> None:
        """Give the groups back whole, without DeepSpeed's hooks."""
        whole = self.weights()
        self.engine.destroy()
        if self.stage == 3:
            for group in self.trained.values():
                for module in group.modules():
                    if "_original_parameters" in vars(module):
                        module._parameters = dict(module._parameters)
                        del module._original_parameters
        for key, p in weights.parameters(self.trained).items():
            p.data = whole[key].detach().clone()  # no longer a view of DeepSpeed's flat buffers
            p.grad = None
            for name in [name for name in vars(p) if name.startswith(("ds_", "_hp", "_z3", "_zero"))]:
                delattr(p, name)
        # A dead engine that the garbage collector finds later would destroy itself once more, and with it what the next
        # engine has hung on the same parameters.
        self.engine.optimizer = None
        del self.engine, self.inner, self.steps, self.said
        gc.collect()

    def _continue(self, moments: Mapping[str, Tensor]) -> None:
        """Take saved moments apart over the processes."""
        known = {key: p for key, p in weights.parameters(self.trained).items() if f"{key}#exp_avg" in moments}
        if not known:
            return
        state = self.inner.optimizer.state
        for flat, name in self._flat():
            step = next((moments[f"{key}#step"] for key in known if key.startswith(f"{name}/")), torch.zeros(()))
            state[flat] = {"step": step.clone()} | {moment: torch.zeros_like(flat) for moment in MOMENTS}
        self._link()
        for key, p in known.items():
            for moment in MOMENTS:
                self._set(p, moments[f"{key}#{moment}"].to(p.device), moment)

    def _set(self, p: nn.Parameter, value: Tensor, *moment: str) -> None:
        """Take a whole tensor apart over the processes: the weight that is stepped, or one of its moments."""
        what = "optimizer_state" if moment else "fp32_param"
        if self.stage < 3:
            getattr(self.deepspeed.utils, f"safe_set_full_{what}")(p, value, *moment)
            return
        share: Any = p.ds_tensor.numel()  # pyright: ignore[reportAttributeAccessIssue]
        padded = functional.pad(value.flatten(), (0, share * self.world_size - value.numel()))
        own = padded.narrow(0, share * self.rank, share)
        getattr(self.deepspeed.utils, f"safe_set_local_{what}")(p, own, *moment)

    def _link(self) -> None:
        """Let DeepSpeed find every group's moments: by itself it looks once, after the first group's first step."""
        if self.stage < 3:
            self.inner._hp_optimizer_states_linked = False
            self.inner._lazy_init_hp_params_optimizer_state()

    def _flat(self) -> list[tuple[Tensor, str]]:
        """This process's flat pieces of the optimizer, each with its group's name."""
        names = [group["name"] for group in self.inner.param_groups]
        if self.stage < 3:
            return list(zip(self.inner.single_partition_of_fp32_groups, names, strict=True))
        owners = self.inner.sub_group_to_group_id
        return [(flat, names[owners[i]]) for i, flat in enumerate(self.inner.fp32_partitioned_groups_flat)]

    def _step_of(self, name: str) -> Tensor | None:
        """How many steps the optimizer has taken with a group, None before the first."""
        states = [self.inner.optimizer.state.get(flat, {}) for flat, owner in self._flat() if owner == name]
        return next((torch.as_tensor(state["step"], dtype=torch.float32) for state in states if "step" in state), None)
