"""What a training step occupies on one GPU, part by part, under each engine.

Frozen models lie whole on every GPU: they are outside the engine. Of the trained weights W, gradients G and the
optimizer's state O, DDP keeps all on each of N processes (and a second copy of G, its buckets); ZeRO-1 shares out O,
ZeRO-2 G too, ZeRO-3 and FSDP2 W as well, and gather what a step needs; offloading puts O and G into the host's
memory. DeepSpeed keeps a float32 copy of the weights with O even where they are float32, and reduces gradients
through a bucket of `reduce_bucket_size` values (5e8 unless its config says otherwise: 1.9 GiB in float32).

References: ZeRO (Rajbhandari et al., 2020), Section 5; DeepSpeed 0.19, runtime/zero/stage_1_and_2.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil

from torch import nn

from .config import did_you_mean
from .dryrun import Work
from .stage import Optim
from .weights import parameters

__all__ = ["ENGINES", "OPTIMIZERS", "Footprint", "Trained", "check_engine", "exchanged", "footprint"]

ENGINES = ("one", "ddp", "zero1", "zero2", "zero2-offload", "zero3", "zero3-offload", "fsdp2")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
LARGE = 4096
"""Elements from which on a tensor has moments of 8 bits."""
BUCKET = 500_000_000
"""Values of DeepSpeed's `reduce_bucket_size`."""
FRAGMENTATION = 0.05
"""Of all tensors, what an allocator loses between them: our choice, replaced where a measurement says better."""


@dataclass(frozen=True)
class Trained:
    """What is trained: parameters by group, bytes of a value, and how it is optimized.

    AdamW keeps two values a parameter. `apart` counts the parameters that another rule keeps less for: 8-bit AdamW
    (torchao) two bytes and two float32 scales a block of 256, for tensors of 4,096 or more; Muon one value, for its
    matrices.
    """

    groups: Mapping[str, int]
    bytes_a_value: int = 4
    optimizer: str = "adamw"
    apart: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            hint = did_you_mean(self.optimizer, OPTIMIZERS)
            raise ValueError(f"expected an optimizer among {', '.join(OPTIMIZERS)}, got {self.optimizer!r}; {hint}")
        if not 0 <= self.apart <= self.parameters:
            raise ValueError(f"expected at most {self.parameters} parameters apart, got {self.apart}")

    @classmethod
    def of(cls, groups: Mapping[str, nn.Module], optim: Optim) -> "Trained":
        """Count groups (on any device, meta too) under a stage's optimizer.

        >>> Trained.of({"head": nn.Linear(64, 64)}, Optim(kind="adamw8bit")).apart
        4096
        """
        named = parameters(groups)
        counts = {name: sum(p.numel() for p in group.parameters()) for name, group in groups.items()}
        size = max((p.element_size() for p in named.values()), default=4)
        if optim.muon is not None:
            matrices = (
                p for key, p in named.items() if p.ndim == 2 and any(fnmatchcase(key, n) for n in optim.muon.names)
            )
            return cls(counts, size, "muon", sum(p.numel() for p in matrices))
        if optim.kind == "adamw8bit":
            return cls(counts, size, "adamw8bit", sum(p.numel() for p in named.values() if p.numel() >= LARGE))
        return cls(counts, size)

    @property
    def parameters(self) -> int:
        return sum(self.groups.values())

    @property
    def state(self) -> int:
        """Bytes of the optimizer's state.

        >>> Trained({"a": 5120}).state, Trained({"a": 5120}, optimizer="adamw8bit", apart=4096).state
        (40960, 16512)
        """
        less = {
            "adamw": 0,
            "adamw8bit": 2 * self.apart + 8 * ceil(self.apart / 256),
            "muon": self.bytes_a_value * self.apart,
        }
        return 2 * self.bytes_a_value * (self.parameters - self.apart) + less[self.optimizer]


@dataclass(frozen=True)
class Footprint:
    """Bytes by part on one GPU, and in the memory of the host for each process."""

    parts: Mapping[str, int]
    host: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def check_engine(engine: str, processes: int) -> None:
    """Raise ValueError for an engine that is not there, or not with so many processes."""
    if engine not in ENGINES:
        raise ValueError(
            f"expected an engine among {', '.join(ENGINES)}, got {engine!r}; {did_you_mean(engine, ENGINES)}"
        )
    if processes < 1 or (engine == "one" and processes > 1):
        raise ValueError(f"expected one process for engine 'one' and one or more for others, got {processes}: use ddp")


def footprint(
    trained: Trained,
    work: Work,
    *,
    frozen: Mapping[str, int],
    engine: str = "one",
    processes: int = 1,
    loss: float = FRAGMENTATION,
) -> Footprint:
    """Add up what one GPU holds at the fullest moment of a step.

    Gradients are counted as there during the whole step, as they are from the second of accumulated batches on.

    >>> work = Work(kept=3000, peak=4000, flops={}, traffic=0)
    >>> footprint(Trained({"adapter": 100}), work, frozen={"backbone": 5000}).parts["optimizer's state"]
    800
    """
    check_engine(engine, processes)
    zero = int(engine[4]) if engine.startswith("zero") else 0
    offload = engine.endswith("offload")
    size = trained.bytes_a_value
    w = g = trained.parameters * size
    state = trained.state + (4 * trained.parameters if zero else 0)  # DeepSpeed's own float32 weights
    share = ceil(1 / processes * state)
    shared_w = ceil(w / processes) if zero == 3 or engine == "fsdp2" else w
    shared_g = ceil(g / processes) if zero >= 2 or engine == "fsdp2" else g
    on_host = (share + shared_g if offload else 0) + (shared_w if engine == "zero3-offload" else 0)
    largest = max(trained.groups.values(), default=0) * size
    buffers = {
        "ddp": g,  # its buckets
        "fsdp2": 2 * largest if processes > 1 else 0,  # one group gathered, and its gradient before it is shared out
        **dict.fromkeys(("zero1", "zero2", "zero2-offload"), BUCKET * size),
        **dict.fromkeys(("zero3", "zero3-offload"), BUCKET * size + w),  # gathered weights
    }
    tensors = {
        **{f"frozen: {name}": n for name, n in frozen.items()},
        "trained weights": 0 if engine == "zero3-offload" else shared_w,
        "gradients": 0 if offload else shared_g,
        "optimizer's state": 0 if offload else (share if zero or engine == "fsdp2" else state),
        "buckets and gathered weights": buffers.get(engine, 0),
        "activations": work.kept,
        "workspace of the step": work.peak - work.kept,
    }
    return Footprint(tensors | {"lost by the allocator": int(loss * sum(tensors.values()))}, on_host)


def exchanged(trained: Trained, *, engine: str, processes: int, accumulate: int) -> tuple[int, int]:
    """Count the bytes that one GPU sends to others in an optimizer's step, and to and from the host.

    A ring sends (N - 1)/N of a tensor to share out its sum, and as much to gather it. DDP does both with the gradients
    of the last micro-batch; ZeRO-1 gathers weights instead; ZeRO-2 shares out the gradients of every micro-batch;
    ZeRO-3 and FSDP2 also gather the weights in every forward and backward. Offloading copies a share of the gradients
    of every micro-batch to the host, and the weights back once.

    References: ZeRO (Rajbhandari et al., 2020), Section 7; ZeRO-Offload (Ren et al., 2021).

    >>> exchanged(Trained({"a": 1000}), engine="ddp", processes=4, accumulate=8)
    (6000, 0)
    """
    check_engine(engine, processes)
    part = trained.parameters * trained.bytes_a_value
    between = part * (processes - 1) // processes
    times = {
        "one": 0,
        "ddp": 2,
        "zero1": 2,
        "zero2": accumulate + 1,
        "zero3": 3 * accumulate,
        "fsdp2": 3 * accumulate,
    }[engine.removesuffix("-offload")]
    offloaded = (accumulate + 1) * ceil(part / processes) if engine.endswith("offload") else 0
    return times * between, offloaded
