"""What `trainers.fit` costs beside a bare PyTorch loop over the same model, interleaved in one run.

    OMP_NUM_THREADS=1 uv run python benchmarks/trainers_overhead.py [--rounds 20] [--out FILE.json]

A step is a batch cut from memory, forward, backward, clipping, fused AdamW and the loss as a number: the bare loop does
that and nothing else; `fit` also keeps the order, seeds every step, watches, times and logs, with its defaults. A round
runs every variant for some steps, in an order that rotates, and divides each one's CPU time a step by that round's bare
one: median ratio and quartiles. "bare again" is the noise of the measurement. Beginning, ending and checkpoints are
left out: the clock runs between two calls of the loss.

As the noise is larger than what is measured, the loop is timed a second time by itself: around a model of one weight,
where the difference to the bare loop is the loop's own work a step. `--profile` shows where it goes.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers import EMA, InMemory, Length, Optim, Order, RecursiveRamp, Stage, fit

BATCH, SAMPLES = 4, 64
LR, CLIP = 1e-4, 1.0


class Clock:
    """CPU time between the first and the last call, apart from those that warm up."""

    def __init__(self, steps: int, warm: int) -> None:
        self.steps, self.warm, self.calls, self.begun, self.ended = steps, warm, 0, 0.0, 0.0

    def tick(self) -> None:
        """Note one step."""
        if self.calls == self.warm:
            self.begun = time.process_time()
        if self.calls == self.steps - 1:
            self.ended = time.process_time()
        self.calls += 1

    @property
    def ms(self) -> float:
        """CPU milliseconds a step."""
        return 1e3 * (self.ended - self.begun) / (self.steps - 1 - self.warm)


def problem(width: int, layers: int, tokens: int) -> tuple[nn.Module, InMemory]:
    """Build a transformer encoder (no layers: one weight) and data for it."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(width, max(1, width // 32), 4 * width, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(block, layers, enable_nested_tensor=False) if layers else nn.Linear(1, 1)
    shape = (SAMPLES, tokens, width) if layers else (SAMPLES, 1)
    return model, InMemory({"x": torch.randn(shape), "y": torch.randn(shape)})


def bare(model: nn.Module, data: InMemory, steps: int, warm: int) -> float:
    """Train by hand; return CPU milliseconds a step."""
    clock, order = Clock(steps, warm), Order(SAMPLES, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    model.train()
    for _ in range(steps):
        batch = data.get_batch(order.take(BATCH))
        optimizer.zero_grad()
        clock.tick()
        loss = (model(batch["x"]) - batch["y"]).square().mean()
        loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return clock.ms


def fitted(model: nn.Module, data: InMemory, steps: int, warm: int, **rest: Any) -> float:
    """Train with `fit`; return CPU milliseconds a step."""
    clock = Clock(steps, warm)

    def loss(batch: dict[str, Any], progress: Any) -> dict[str, Tensor]:
        clock.tick()
        flow = (model(batch["x"]) - batch["y"]).square().mean()
        return {"flow": flow} if "ramps" not in rest else {"flow": flow, "log/flow": flow}

    stage = Stage("a", {"model": 1.0}, loss, data, BATCH, Length(steps=steps), Optim(lr=LR, clip=CLIP), **rest)
    with tempfile.TemporaryDirectory() as out:
        fit([stage], {"model": model}, out=out, quiet=True)
    return clock.ms


def compared(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Run every variant once a round; return quartiles of its ratio to that round's first, and its milliseconds."""
    names = list(variants)
    ms: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            ms[name].append(variants[name]())
    found = {}
    for name in names:
        low, mid, high = statistics.quantiles([a / b for a, b in zip(ms[name], ms[names[0]], strict=True)], n=4)
        found[name] = {"ratio": mid, "low": low, "high": high, "ms": statistics.median(ms[name])}
        found[name]["over_ms"] = statistics.median(a - b for a, b in zip(ms[name], ms[names[0]], strict=True))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, and print one JSON line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="of a round at full size; 30 times as many by itself")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", action="store_true", help="show where the loop's own time goes, and end")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    small, short = problem(1, 0, 1), 30 * given.steps
    if given.profile:
        fitted(*small, short, 10)  # imports
        with cProfile.Profile() as profile:
            fitted(*small, short, 10)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    large, warm = problem(256, 2, 96), 2
    ramp = RecursiveRamp(end=1.0, steps=10, term="log/flow", group="model", measure_every=10)
    measured = {
        "a step of about 50 ms": compared(
            {
                "bare": lambda: bare(*large, given.steps, warm),
                "bare again": lambda: bare(*large, given.steps, warm),
                "fit": lambda: fitted(*large, given.steps, warm),
            },
            given.rounds,
        ),
        "by itself": compared(
            {
                "bare": lambda: bare(*small, short, 10),
                "bare again": lambda: bare(*small, short, 10),
                "fit": lambda: fitted(*small, short, 10),
                "fit, average": lambda: fitted(*small, short, 10, ema=EMA(0.99)),
                "fit, recursive ramp": lambda: fitted(*small, short, 10, ramps={"w": ramp}),
            },
            given.rounds,
        ),
    }
    step = measured["a step of about 50 ms"]["bare"]["ms"]
    lines = []
    for name, found in measured.items():
        for variant, values in found.items():
            share = 100 * values["over_ms"] / step  # of the large step
            rounded = {key: round(value, 4) for key, value in values.items()}
            lines.append({"measured": name, "variant": variant, **rounded, "percent_of_step": round(share, 3)})
    for line in lines:
        print(json.dumps(line))
    if given.out:
        given.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
