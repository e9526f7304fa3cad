"""What no training step asks waits in the host's memory: a training holds the transformers alone on its GPU."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

__all__ = ["idle", "parked"]


def idle(backbone: Any) -> dict[str, nn.Module]:
    """Name the modules of a backbone that serve latents and text alone: its VAE, its encoders of text and images."""
    found = {name: m for name, m in backbone.pipe.components.items() if isinstance(m, nn.Module)}
    return {name: m for name, m in found.items() if not any(m is own for own in backbone.transformers)}


@contextmanager
def parked(backbone: Any) -> Iterator[None]:
    """Hold what is `idle` in the host's memory while the block runs; inside it only the transformers answer.

    The UMT5 of Wan takes 10.6 GiB in half precision: more than the whole training of an adapter on a 1.3B model. What
    finds no room afterwards stays where it is with a UserWarning: a training shall not end by that.
    """
    places = [(m, next(chain(m.parameters(), m.buffers())).device) for m in idle(backbone).values()]
    away = [(module, place) for module, place in places if place.type not in ("cpu", "meta")]
    for module, _ in away:
        module.to("cpu")
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for module, place in away:
            try:
                module.to(place)
            except torch.OutOfMemoryError:
                module.to("cpu")
                name = type(module).__name__
                warnings.warn(f"{name} stays in the host's memory: {place} has no room for it now", stacklevel=2)
