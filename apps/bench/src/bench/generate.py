"""Generation and measurement, in two processes of one torch thread each.

Every system gets the same captions and, clip by clip, the same noise: what differs is the system alone. Two processes
with one thread each are faster than one process with two, whose OpenMP teams spin against each other at these sizes.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bench.measure import REFERENCES, Videos, held_out_clips, references, to_bytes
from physworld.evaluation import Scored, noise_seeds, score
from physworld.metrics import Thresholds


@dataclass(frozen=True)
class System:
    """What is compared: a name, and the folder of an adapter's bundle (none: the bare backbone)."""

    name: str
    bundle: Path | None = None


@dataclass(frozen=True)
class Setting:
    """What all systems share."""

    backbone: str
    clips: int
    split: str
    seed: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Made:
    """Clips of one source for one mechanism and what was measured on them."""

    source: str
    mechanism: str
    videos: Videos
    scored: Scored


@dataclass(frozen=True)
class Order:
    """One piece of work: a system's clips of one mechanism, or (no system) the references of that mechanism."""

    setting: Setting
    mechanism: str
    system: System | None

    @property
    def clips(self) -> int:
        """Number of clips that the order generates or reads."""
        return self.setting.clips * (1 if self.system else len(REFERENCES))


def carry_out(order: Order) -> list[Made]:
    """Make and measure the clips of one order."""
    torch.set_num_threads(1)
    backbone = _backbone(order.setting.backbone)
    clips = held_out_clips(order.mechanism, order.setting.clips, order.setting.split)
    prompts = [clip.caption for clip in clips]
    if order.system is None:
        sources = {name: make(clips) for name, make in references(backbone).items()}
    else:
        sources = {order.system.name: sample(backbone, order.system, prompts, order.setting, order.mechanism)}
    return [
        Made(name, order.mechanism, videos, score(order.mechanism, prompts, videos, Thresholds.load()))
        for name, videos in sources.items()
    ]


def sample(backbone: Any, system: System, prompts: list[str], setting: Setting, mechanism: str) -> Videos:
    """Sample one clip a prompt with a system, through the stock pipeline."""
    import backbones

    with nullcontext() if system.bundle is None else backbones.attach(backbone, system.bundle):
        video = backbones.sample(
            backbone,
            prompts,
            noise=backbones.noise(backbone, noise_seeds(mechanism, setting.clips, setting.seed)),
            steps=setting.steps,
            guidance=setting.guidance,
        )
    return to_bytes(video)


def carry_out_all(orders: Sequence[Order], *, workers: int, done: Callable[[Order], Any]) -> list[Made]:
    """Carry out every order; `done` is called as each one is finished."""
    made: list[Made] = []
    for order, part in _finished(orders, workers):
        made += part
        done(order)
    return made


def _finished(orders: Sequence[Order], workers: int) -> Iterator[tuple[Order, list[Made]]]:
    if workers == 1:
        for order in orders:
            yield order, carry_out(order)
        return
    # Spawned: a forked child would inherit the lock of the progress bar's thread.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(carry_out, order): order for order in orders}
        for future in as_completed(futures):
            yield futures[future], future.result()


@lru_cache(maxsize=1)
def _backbone(name: str) -> Any:
    import backbones

    return backbones.load(name)
