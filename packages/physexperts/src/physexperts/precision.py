"""Which numbers a module multiplies in, where autocast is on, off, or unknown to the device (meta)."""

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["autocast_dtype", "outside_autocast"]


def outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast from choosing the dtype; nothing to do on a device that has no autocast.

    >>> with torch.autocast("cpu", torch.bfloat16), outside_autocast(torch.device("cpu")):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    if not _has_autocast(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_dtype(device: torch.device, otherwise: torch.dtype) -> torch.dtype:
    """What a matrix product computes in here: autocast's dtype inside autocast, else the weight's.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     autocast_dtype(torch.device("cpu"), torch.float32)
    torch.bfloat16
    """
    if _has_autocast(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return otherwise


@torch.compiler.assume_constant_result  # torch 2.11 cannot trace the question
def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)
