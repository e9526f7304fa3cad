"""Random numbers as functions of (seed, stage, step, rank), and what is kept from touching them."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from .order import derive_seed

__all__ = ["generator_of", "isolated", "reseed"]


def reseed(*where: int) -> torch.Generator:
    """Seed torch's generators for a step at (seed, stage, step, rank), and return the loss's own generator."""
    seed = derive_seed("torch", *where)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    return generator_of("loss", *where)


def generator_of(*parts: object) -> torch.Generator:
    """Return a CPU generator that is a function of the parts' text.

    >>> torch.rand(1, generator=generator_of("a", 1)) == torch.rand(1, generator=generator_of("a", 1))
    tensor([True])
    """
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def isolated(groups: Iterable[nn.Module]) -> Iterator[None]:
    """Look at a run from outside: no gradient, groups in eval mode, and afterwards every mode and every generator
    (torch's, Python's, numpy's) is what it was.
    """
    modes = [(module, module.training) for group in groups for module in group.modules()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            for module, _ in modes:
                module.training = False
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for module, mode in modes:
            module.training = mode
