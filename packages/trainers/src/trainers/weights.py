"""Named tensors of groups: weights as `group/name`, moments of the optimizer as `group/name#exp_avg`, and the
average."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .stage import EMA, Optim

__all__ = ["Average", "adamw", "moments", "parameters", "split", "tensors"]


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


def adamw(groups: Mapping[str, nn.Module], optim: Optim, state: Mapping[str, Tensor]) -> torch.optim.AdamW:
    """Build the optimizer with one parameter group a name, continuing from `state` for the parameters that it knows."""
    params = [{"name": name, "params": list(group.parameters())} for name, group in groups.items()]
    optimizer = torch.optim.AdamW(
        params, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
    )
    named = parameters(groups)
    for key, value in state.items():
        name, _, moment = key.rpartition("#")
        if name in named:
            optimizer.state[named[name]][moment] = value.to(named[name].device, copy=True)
    return optimizer


def moments(groups: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state by `group/name#moment`."""
    state = optimizer.state
    return {f"{key}#{m}": value for key, p in parameters(groups).items() for m, value in state.get(p, {}).items()}


class Average:
    """The exponential moving average of a stage's groups; integer buffers are copied, not averaged."""

    def __init__(self, ema: EMA, groups: Mapping[str, nn.Module], saved: Mapping[str, Tensor] | None = None) -> None:
        self.ema = ema
        self._current = tensors(groups)
        self._real = [key for key, value in self._current.items() if value.is_floating_point()]
        begin = self._current if saved is None else saved
        self.named = {key: begin[key].detach().to(v.device, copy=True) for key, v in self._current.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` of the stage."""
        averages, currents = ([named[key] for key in self._real] for named in (self.named, self._current))
        torch._foreach_lerp_(averages, currents, 1 - self.ema.at(step))
        for key in self._current.keys() - set(self._real):
            self.named[key].copy_(self._current[key])

    @torch.no_grad()
    def write(self) -> None:
        """Make the weights the average."""
        for key, value in self._current.items():
            value.copy_(self.named[key])
