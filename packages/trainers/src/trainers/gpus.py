"""GPUs by name: how much they hold and how fast they can be at most (`gpus.yaml`, with the source of each figure)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from .config import did_you_mean

__all__ = ["GPU", "find", "known", "named"]

CONTEXT_BYTES = 512 * 2**20
"""What a CUDA context and the libraries' workspaces take before the first tensor: about half a GiB in torch's own
out-of-memory messages (in use by the process, less what torch reserved)."""
DRIVER_SHARE = 0.985
"""Of the driver's total, what torch names as the capacity (39.5 of 40, 44.4 of 45, 23.6 of 24 GiB)."""


@dataclass(frozen=True)
class GPU:
    """A GPU by its maker's figures, operations and bytes a second at the peak, and the share of it that products reach
    in training.
    """

    name: str
    torch: tuple[str, ...]
    memory_mib: int
    bfloat16: float | int
    tf32: float | int
    float32: float | int
    bandwidth: float | int
    link: float | int
    share: float
    source: str

    @property
    def usable(self) -> int:
        """Bytes that tensors can have."""
        return int(self.memory_mib * 2**20 * DRIVER_SHARE) - CONTEXT_BYTES

    def seconds(
        self, flops: Mapping[str, int], traffic: int, *, efficiency: float = 1.0, share_of_bandwidth: float = 1.0
    ) -> float:
        """Time of work at shares of the peak: products by dtype, then everything else by the bytes that it moves.

        Half precision runs on the tensor cores, float32 products do not (torch's default), float32 convolutions do as
        TF32 (cuDNN's default in torch), float64 is taken at half the rate of float32.
        """
        rates = {
            "bfloat16": self.bfloat16,
            "float16": self.bfloat16,
            "float32": self.float32,
            "float32 convolution": self.tf32,
            "float64": self.float32 / 2,
        }
        products = sum(n / (rates[kind if kind in rates else kind.split()[0]] * 1e12) for kind, n in flops.items())
        return products / efficiency + traffic / (self.bandwidth * 1e9) / share_of_bandwidth


@cache
def known() -> tuple[GPU, ...]:
    """Every GPU of the list."""
    listed = yaml.safe_load((Path(__file__).parent / "gpus.yaml").read_text(encoding="utf-8"))
    return tuple(GPU(**(entry | {"torch": tuple(entry["torch"])})) for entry in listed)


def named(name: str) -> GPU:
    """Return a GPU by its name in the list; ValueError with the nearest name.

    >>> named("h100").bandwidth
    3350
    """
    by_name = {gpu.name.lower(): gpu for gpu in known()}
    if name.lower() not in by_name:
        hint = did_you_mean(name.upper(), [gpu.name for gpu in known()])
        raise ValueError(f"there is no GPU {name!r} in the list; {hint}")
    return by_name[name.lower()]


def find(device: str) -> GPU | None:
    """Return the GPU that torch calls `device`, None for one that is not in the list (or a CPU).

    >>> find("NVIDIA H100 80GB HBM3").name
    'H100'
    """
    return next((gpu for gpu in known() if any(part in device for part in gpu.torch)), None)
