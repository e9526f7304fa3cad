"""The device that a model trains or samples on: the CPU, where every draw is as it always was, or an accelerator.

On an accelerator the noise is drawn there, by a generator that one draw of the step's own generator seeds: a resumed
run still sees the same noise, but it is not that of the CPU.
"""

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

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


@contextmanager
def precision(device: torch.device, autocast: Autocast) -> Iterator[None]:
    """Run forward passes in a lower precision; weights, sums and losses stay float32.

    On the CPU attention stays float32, too: its backward in bfloat16 has no fast kernel there and takes longer than all
    the rest of a step.
    """
    if autocast == "none":
        yield
    else:
        attention = Float32Attention() if device.type == "cpu" else nullcontext()
        with warnings.catch_warnings(), torch.autocast(device.type, getattr(torch, autocast)), attention:
            # a norm with a float32 weight is computed in several kernels instead of one: nothing a user could change
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            yield


class Float32Attention(TorchFunctionMode):
    """Keeps `scaled_dot_product_attention` out of autocast while it is entered."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Widen the inputs of attention, pass everything else on."""
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        widened = [a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        named = {
            k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in kwargs.items()
        }
        query = args[0] if args else kwargs["query"]
        with torch.autocast("cpu", enabled=False):
            return func(*widened, **named).to(query.dtype)


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
