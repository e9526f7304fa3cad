"""Named tensors of groups: weights as `group/name`, moments of the optimizer as `group/name#exp_avg`, and the
average."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .stage import EMA, Optim

__all__ = ["Average", "Optimizer", "moments", "parameters", "split", "tensors"]


def parameters(groups: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return every parameter by `group/name`."""
    return {f"{name}/{key}": p for name, group in groups.items() for key, p in group.named_parameters()}


def tensors(groups: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return every parameter and persistent buffer by `group/name`; they share memory with the modules."""
    named = ((f"{name}/{key}", value) for name, group in groups.items() for key, value in group.state_dict().items())
    return {key: value for key, value in named if isinstance(value, Tensor)}


def split(named: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Turn {`group/name`: tensor} into {group: state dict}.

    >>> split({"encoder/weight": torch.ones(1), "encoder/bias": torch.zeros(1)})
    {'encoder': {'weight': tensor([1.]), 'bias': tensor([0.])}}
    """
    result: dict[str, dict[str, Tensor]] = {}
    for name, value in named.items():
        group, _, key = name.partition("/")
        result.setdefault(group, {})[key] = value
    return result


class Optimizer:
    """AdamW and, where a stage names matrices, Muon, stepped as one.

    `param_groups` are those of both, named after the trained groups; `base_lr` is a group's rate before its factor and
    the schedule.
    """

    def __init__(self, groups: Mapping[str, nn.Module], optim: Optim) -> None:
        matrices = _matrices(groups, optim)
        rest, hidden = (
            [
                {"name": name, "params": chosen, "base_lr": lr}
                for name, group in groups.items()
                if (chosen := [p for p in group.parameters() if (p in matrices) == wanted])
            ]
            for wanted, lr in ((False, optim.lr), (True, optim.muon.lr if optim.muon else 0.0))
        )
        self._parts: list[torch.optim.Optimizer] = []
        if rest:
            adam: Any = {"betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
            eight = optim.kind == "adamw8bit"
            made = eight_bit().AdamW8bit(rest, lr=optim.lr, **adam) if eight else None
            self._parts.append(made or torch.optim.AdamW(rest, lr=optim.lr, fused=True, **adam))
        if hidden and optim.muon:
            settings: Any = {"weight_decay": optim.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
            self._parts.append(torch.optim.Muon(hidden, lr=optim.muon.lr, momentum=optim.muon.momentum, **settings))
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        """Take one step with the gradients that are there."""
        for part in self._parts:
            part.step()

    def rate(self, rates: Mapping[str, float]) -> None:
        """Set each group's rate for the next step, `rates` times its own."""
        for group in self.param_groups:
            lr = group["base_lr"] * rates[group["name"]]
            if isinstance(group["lr"], Tensor):  # torchao's, which compiles its step once for all rates
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def state(self, p: nn.Parameter) -> dict[str, Tensor]:
        """Return the moments of a parameter, none before its first step; of 8-bit ones codes and scales."""
        found = next((part.state[p] for part in self._parts if p in part.state), {})
        result = {}
        for moment, value in found.items():
            if hasattr(value, "codes"):
                result |= {f"{moment}.codes": value.codes, f"{moment}.scale": value.scale}
            else:
                result[moment] = value
        return result

    def load(self, groups: Mapping[str, nn.Module], moments: Mapping[str, Tensor]) -> None:
        """Continue from saved moments, for the parameters that they know and the optimizer that made them; a parameter
        whose moments another kind of optimizer made begins afresh.
        """
        named = parameters(groups)
        owner = {p: part for part in self._parts for group in part.param_groups for p in group["params"]}
        saved: dict[str, dict[str, Tensor]] = {}
        for key, value in moments.items():
            name, _, moment = key.rpartition("#")
            saved.setdefault(name, {})[moment] = value
        for name, found in saved.items():
            if name in named and found.keys() == self._wanted(owner[named[name]], named[name]):
                p = named[name]
                owner[p].state[p] = _unpacked({m: value.to(p.device, copy=True) for m, value in found.items()}, p)

    def _wanted(self, part: torch.optim.Optimizer, p: nn.Parameter) -> set[str]:
        """The names of the moments that an optimizer keeps of a parameter."""
        if isinstance(part, torch.optim.Muon):
            return {"momentum_buffer"}
        if isinstance(part, torch.optim.AdamW) or not packed(p):
            return {"step", "exp_avg", "exp_avg_sq"}
        return {"step", *(f"{moment}.{piece}" for moment in ("exp_avg", "exp_avg_sq") for piece in ("codes", "scale"))}


BLOCK = 256
"""Elements of a moment that share a scale (torchao's)."""


def eight_bit() -> Any:
    """Return torchao's optimizers; ValueError where torchao is not installed."""
    try:
        from torchao import optim  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("Optim(kind='adamw8bit') needs torchao: pip install 'phystrainers[torchao]'") from None
    return optim


def packed(p: Tensor) -> bool:
    """Return whether AdamW8bit keeps a parameter's moments in 8 bits: small tensors it leaves as they are."""
    return p.numel() >= 4096 and p.numel() % BLOCK == 0


def _unpacked(moments: dict[str, Tensor], p: Tensor) -> dict[str, Tensor]:
    """Put codes and scales together to torchao's tensors; the table of code values is a constant of its own."""
    if "exp_avg.codes" not in moments:
        return moments
    from torchao.optim.subclass_8bit import OptimState8bit  # pyright: ignore[reportMissingImports]

    result = {"step": moments["step"].cpu()}
    for moment, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        made = OptimState8bit.zeros(p.shape, signed, BLOCK, p.device, dtype=p.dtype)
        made.codes.copy_(moments[f"{moment}.codes"])
        made.scale.copy_(moments[f"{moment}.scale"])
        result[moment] = made
    return result


def _matrices(groups: Mapping[str, nn.Module], optim: Optim) -> set[nn.Parameter]:
    if optim.muon is None:
        return set()
    named = {key: p for key, p in parameters(groups).items() if p.ndim == 2}
    for pattern in optim.muon.names:
        if not any(fnmatchcase(key, pattern) for key in named):
            raise ValueError(
                f"expected a pattern that matches a matrix of the groups {', '.join(groups)}, got {pattern!r}; "
                f"matrices are, among others, {', '.join(list(named)[:3]) or 'none'}"
            )
    return {p for key, p in named.items() if any(fnmatchcase(key, pattern) for pattern in optim.muon.names)}


def moments(groups: Mapping[str, nn.Module], optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state by `group/name#moment`."""
    return {f"{key}#{m}": value for key, p in parameters(groups).items() for m, value in optimizer.state(p).items()}


class Average:
    """The exponential moving average of a stage's groups; integer buffers are copied, not averaged."""

    def __init__(self, ema: EMA, groups: Mapping[str, nn.Module], saved: Mapping[str, Tensor] | None = None) -> None:
        self.ema = ema
        self.follow(groups)
        begin = self._current if saved is None else saved
        self.named = {key: begin[key].detach().to(v.device, copy=True) for key, v in self._current.items()}

    def follow(self, groups: Mapping[str, nn.Module]) -> None:
        """Average these tensors from now on: an engine may have moved the weights to memory of its own."""
        self._current = tensors(groups)
        kinds: dict[type, list[str]] = {}
        for key, value in self._current.items():
            if value.is_floating_point():
                kinds.setdefault(type(value), []).append(key)
        self._alike = list(kinds.values())  # one call cannot take whole tensors and FSDP2's parts

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` of the stage."""
        for keys in self._alike:
            averages, currents = ([named[key] for key in keys] for named in (self.named, self._current))
            torch._foreach_lerp_(averages, currents, 1 - self.ema.at(step))
        for key, value in self._current.items():
            if not value.is_floating_point():
                self.named[key].copy_(value)

    @torch.no_grad()
    def write(self) -> None:
        """Make the weights the average."""
        for key, value in self._current.items():
            value.copy_(self.named[key])
