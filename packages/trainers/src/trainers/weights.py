"""Named tensors of groups: weights as `group/name`, moments of the optimizer as `group/name#exp_avg`, and the
average."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .stage import EMA, Optim

__all__ = ["Average", "Optimizer", "moments", "parameters", "split", "tensors"]

MUON = ("momentum_buffer",)
"""Moments that Muon keeps; all others are AdamW's."""


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
            adam: Any = {"betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay, "fused": True}
            self._parts.append(torch.optim.AdamW(rest, lr=optim.lr, **adam))
        if hidden and optim.muon:
            settings: Any = {"weight_decay": optim.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
            self._parts.append(torch.optim.Muon(hidden, lr=optim.muon.lr, momentum=optim.muon.momentum, **settings))
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        """Take one step with the gradients that are there."""
        for part in self._parts:
            part.step()

    def state(self, p: nn.Parameter) -> dict[str, Tensor]:
        """Return the moments of a parameter, none before its first step."""
        return next((part.state[p] for part in self._parts if p in part.state), {})

    def load(self, groups: Mapping[str, nn.Module], moments: Mapping[str, Tensor]) -> None:
        """Continue from saved moments, for the parameters that they know and the optimizer that made them."""
        named = parameters(groups)
        owner = {p: part for part in self._parts for group in part.param_groups for p in group["params"]}
        for key, value in moments.items():
            name, _, moment = key.rpartition("#")
            if name in named and (moment in MUON) == isinstance(owner[named[name]], torch.optim.Muon):
                owner[named[name]].state[named[name]][moment] = value.to(named[name].device, copy=True)


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
