"""Generation and measurement, in processes of one torch thread each.

Every system gets the same captions and, clip by clip, the same noise: what differs is the system alone. Two processes
with one thread each are faster than one process with two, whose OpenMP teams spin against each other at these sizes.

The parts that are measured lie in `FOLDER/parts` and are named by what they were measured of (bundle, backbone,
sampling, world), so that a run which was stopped goes on and a second one measures only what is new. The first clips of
each mechanism are kept as videos that a browser plays, with what there is to see in them (`bench.evidence`).
"""

import json
import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bench.evidence import evidence
from bench.references import Film, reference, to_bytes
from physworld import FPS, SIZE
from physworld.evaluation import Maker, Scored, evaluate, noise_seeds
from trainers import video, write_text

KEPT = 3
"""Clips a mechanism that are kept as videos, of the first noise seed and training run: the first ones, not the best."""
VISIBLE = 192
"""Least side of a kept video in pixels (our choice)."""


@dataclass(frozen=True)
class System:
    """What is compared: a name, and a bundle's folder for each training run (none: the bare backbone)."""

    name: str
    bundles: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What all systems share; `clips` a mechanism, `seeds` of the noise."""

    backbone: str
    clips: int
    splits: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    scale: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Order:
    """One piece of work: a source's clips of one mechanism. `bundle` belongs to training run `run` of a system; without
    one, `reference` names a reference, or nothing the bare backbone.
    """

    folder: Path
    setting: Setting
    mechanism: str
    split: str
    seed: int
    name: str
    run: int = 0
    bundle: Path | None = None
    reference: bool = False


def carry_out(order: Order) -> tuple[Scored, bool]:
    """Make and measure the clips of one order, or read what was measured before; whether all of it was."""
    torch.set_num_threads(1)
    backbone = _backbone(order.setting.backbone, order.setting.device)
    maker, about = _maker(order, backbone)
    first = order.seed == order.setting.seeds[0] and order.run == 0
    found: list[int] = []
    evaluation = evaluate(
        {order.name: _keeping(maker, order) if first else maker},
        clips=order.setting.clips,
        split=order.split,
        seed=order.seed,
        scale=order.setting.scale,
        mechanisms=(order.mechanism,),
        about={order.name: [about]},
        folder=order.folder / "parts",
        kept=found.append,
    )
    return evaluation.methods[order.name][0].scored[order.mechanism], sum(found) >= order.setting.clips


def kept(order: Order, index: int) -> Path:
    """Name the video of a clip that is kept; beside it lies a json with what there is to see in it."""
    clip = f"{order.mechanism}-{index:06d}"
    return order.folder / order.split / "clips" / clip / f"{slug(order.name)}.mp4"


def slug(name: str) -> str:
    """Turn any name into one of a file.

    >>> slug("PILA (1.3B)/../x")
    'PILA-1.3B-x'
    """
    words = re.findall(r"[A-Za-z0-9]+(?:\.[A-Za-z0-9]+)*", name)
    return "-".join(words)[:60] or "system"


def carry_out_all(orders: Sequence[Order], *, workers: int, done: Callable[[int, bool], Any]) -> dict[Order, Scored]:
    """Carry out every order; `done` is called with the number that are finished, and whether the last was before."""
    scored: dict[Order, Scored] = {}
    for order, (part, before) in _finished(orders, workers):
        scored[order] = part
        done(len(scored), before)
    return scored


def _maker(order: Order, backbone: Any) -> tuple[Maker, dict[str, Any]]:
    first = noise_seeds(order.mechanism, 1, order.seed).start
    setting = order.setting
    if order.reference:
        maker = reference(order.name, backbone, order.mechanism, order.split, setting.scale, first)
        needs = {"autoencoder": backbone.digest} if order.name == "VAE" else {}
        return maker, {"reference": order.name, **needs}
    about = {"backbone": backbone.digest, "steps": setting.steps, "guidance": setting.guidance}
    if order.bundle is not None:
        from backbones import bundle

        about["bundle"] = bundle.load(order.bundle).meta["sha256"]

    def make(captions: Sequence[str], seeds: range) -> list[Film]:
        import backbones

        side = SIZE * setting.scale
        with nullcontext() if order.bundle is None else backbones.attach(backbone, order.bundle):
            films = backbones.sample(
                backbone,
                list(captions),
                noise=backbones.noise(backbone, list(seeds), height=side, width=side),
                steps=setting.steps,
                guidance=setting.guidance,
                height=side,
                width=side,
            )
        return list(to_bytes(films))

    return make, about


def _keeping(make: Maker, order: Order) -> Maker:
    """Keep the first films on the way to the measure, before the part says that they are measured."""
    first = noise_seeds(order.mechanism, 1, order.seed).start

    def keep(captions: Sequence[str], seeds: range) -> list[Film]:
        films = list(make(captions, seeds))
        for caption, seed, film in zip(captions, seeds, films, strict=True):
            if seed - first < KEPT:
                path = kept(order, seed - first)
                video.write(path, film, FPS, scale=max(1, -(-VISIBLE // film.shape[1])), crf=16)
                write_text(path.with_suffix(".json"), json.dumps(evidence(caption, film)))
        return films

    return keep


def _finished(orders: Sequence[Order], workers: int) -> Iterator[tuple[Order, tuple[Scored, bool]]]:
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
def _backbone(name: str, device: str) -> Any:
    import backbones

    return backbones.load(name, device=device)
