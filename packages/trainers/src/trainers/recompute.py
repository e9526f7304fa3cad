"""Modules whose activations are computed again in the backward instead of being kept: less memory for one more forward.

What a module computes must be a function of its arguments, its weights and torch's generators (dropout is repeated
exactly); a draw from `progress.generator` inside of it would not be the same the second time.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn
from torch.utils.checkpoint import checkpoint

from .config import did_you_mean

__all__ = ["recomputed"]


@contextmanager
def recomputed(groups: Mapping[str, nn.Module], patterns: Sequence[str]) -> Iterator[None]:
    """Recompute the modules that `patterns` (`fnmatch` over `group/module`) name while the block runs.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    >>> with recomputed({"net": net}, ["net/0"]):
    ...     net(torch.ones(1, 2)).shape
    torch.Size([1, 2])

    Raises:
        ValueError: for a pattern that matches no module.

    References: Training Deep Nets with Sublinear Memory Cost (Chen et al., 2016).
    """
    named = {f"{name}/{key}".rstrip("/"): m for name, group in groups.items() for key, m in group.named_modules()}
    chosen: dict[nn.Module, None] = {}
    for pattern in patterns:
        found = [module for key, module in named.items() if fnmatchcase(key, pattern)]
        if not found:
            hint = did_you_mean(pattern, list(named))
            raise ValueError(f"expected a pattern that matches a module of the trained groups, got {pattern!r}; {hint}")
        chosen.update(dict.fromkeys(found))
    for module in chosen:
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)
    try:
        yield
    finally:
        for module in chosen:
            del module.forward
