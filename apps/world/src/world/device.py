"""The device that a model trains or samples on: the CPU, where every draw is as it always was, or an accelerator.

On an accelerator the noise is drawn there, by a generator that one draw of the step's own generator seeds: a resumed
run still sees the same noise, but it is not that of the CPU.
"""

import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

Autocast = Literal["none", "bfloat16"]


def usable(name: str) -> torch.device:
    """Give the device of a name.

    Raises:
        ValueError: if torch knows no such device or this machine has none.

    >>> usable("cpu")
    device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # the name alone says nothing about the machine (and "meta" holds nothing)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected a device of this machine such as cpu or cuda, got {name!r} ({reason})") from error
    return device


def one_thread_on(device: torch.device) -> None:
    """Use one torch thread on the CPU: two OpenMP teams on two cores spin against each other, several times slower."""
    if device.type == "cpu":
        torch.set_num_threads(1)


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Give a generator that draws on the device: on the CPU the same one, elsewhere one that a draw of it seeds."""
    if device.type == generator.device.type:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(device).manual_seed(seed)


def precision(device: torch.device, autocast: Autocast) -> AbstractContextManager[Any]:
    """Give the context that forward passes run in; weights, sums and losses stay float32."""
    return nullcontext() if autocast == "none" else torch.autocast(device.type, getattr(torch, autocast))


def hardware(name: str = "cpu") -> str:
    """Name the processor (or the accelerator) and the software that a number was measured on.

    >>> "torch" in hardware()
    True
    """
    software = f"torch {torch.__version__.split('+')[0]}"
    if torch.device(name).type == "cuda" and torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name(name)}, {software}"
    if torch.device(name).type != "cpu":
        return f"one {name} device, {software}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"one core of {model}, {software}"
