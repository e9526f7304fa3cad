"""Named groups of weights out of one module, by patterns over the names of its parameters.

Whole groups may also be given to `fit` as modules; patterns serve where what is trained lies scattered in a model, as
LoRA does. Nothing is copied: a group holds the module's own parameters, under their own names.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

__all__ = ["named_groups"]


def named_groups(module: nn.Module, patterns: Mapping[str, str | Sequence[str]]) -> dict[str, nn.Module]:
    """Return {group: module with the matching parameters}, for `fit`, checkpoints and engines.

    Patterns are those of `fnmatch` over the dotted names of parameters and persistent buffers. A part of the module
    that is named whole is taken as it is, with its mode (dropout); one that is named in part keeps its own mode.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    >>> groups = named_groups(net, {"norm": "1.*", "biases": ["0.bias"]})
    >>> {name: [key for key, _ in group.named_parameters()] for name, group in groups.items()}
    {'norm': ['1.weight', '1.bias'], 'biases': ['0.bias']}

    Raises:
        ValueError: for a pattern that matches no parameter, and a parameter that two groups match.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    names = [*parameters, *(key for key in module.state_dict() if key not in parameters)]
    owner: dict[int, str] = {}
    chosen: dict[str, set[str]] = {}
    for group, given in patterns.items():
        listed = [given] if isinstance(given, str) else list(given)
        for pattern in listed or [""]:
            if not any(fnmatchcase(key, pattern) for key in parameters):
                raise ValueError(
                    f"group {group!r}: expected a pattern that matches a parameter, got {pattern!r}; parameters are, "
                    f"among others, {', '.join(list(parameters)[:5]) or 'none'}"
                )
        chosen[group] = {key for key in names if any(fnmatchcase(key, pattern) for pattern in listed)}
        for key in (key for key in parameters if key in chosen[group]):
            if (other := owner.setdefault(id(parameters[key]), group)) != group:
                raise ValueError(f"groups {other!r} and {group!r} both match {key!r}: groups may not overlap")
    return {group: _part(module, "", keys) or nn.Module() for group, keys in chosen.items()}


def _part(module: nn.Module, prefix: str, wanted: set[str]) -> nn.Module | None:
    """The module itself where all of its tensors are wanted, else a bare module with those that are, else None."""
    tensors = {prefix + key for key in module.state_dict()}
    if not tensors & wanted:
        return None
    if tensors <= wanted:
        return module
    part = nn.Module()
    for key, p in module.named_parameters(recurse=False):
        if prefix + key in wanted:
            part.register_parameter(key, p)
    for key, buffer in module.named_buffers(recurse=False):
        if prefix + key in wanted:
            part.register_buffer(key, buffer)
    for key, child in module.named_children():
        if (found := _part(child, f"{prefix}{key}.", wanted)) is not None:
            part.add_module(key, found)
    return part
