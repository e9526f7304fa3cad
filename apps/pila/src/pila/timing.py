"""Seconds a step of each kind of stage, on random data of the recipe's sizes: what a run will cost on this machine."""

import time
from typing import Any

import torch

from backbones import WanBackbone
from pila.config import Recipe
from pila.train import Trainer, fresh
from trainers import InMemory, Progress, Ramp

__all__ = ["measure", "random_data"]


def measure(recipe: Recipe, backbone: WanBackbone, *, steps: int) -> dict[str, Any]:
    """Wall and CPU seconds of a step (loss, backward, AdamW) of stages A, B, C, the plain control, and the frozen
    model alone.
    """
    adapter = fresh(recipe, backbone)
    trainer = Trainer(recipe, adapter, backbone)
    data = random_data(recipe, backbone)
    batch = {k: v.to(recipe.device) for k, v in data.get_batch(torch.arange(recipe.batch)).items()}
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4, fused=True)
    ramps = {name: Ramp(1.0, 1.0) for name in ("physics", "condition", "mask")}
    kinds = {
        "observe": lambda p: trainer.observe(batch, p, between=(0.0, 1.0)),
        "recover": lambda p: trainer.recover(batch, p, phase="wave"),
        "couple": lambda p: trainer.couple(batch, p),
        "plain": lambda p: trainer.plain(batch, p),
        "frozen": lambda p: {"none": trainer.estimate(batch, (0.0, 1.0), p.generator).velocity.sum()},
    }
    result: dict[str, Any] = {}
    for name, loss in kinds.items():
        wall, cpu = _clocks(recipe.device)
        for i in range(steps + 1):
            if i == 1:  # the first one warms up
                wall, cpu = _clocks(recipe.device)
            progress = Progress(name, i, i, steps, 0.0, torch.Generator().manual_seed(i), ramps=ramps)
            terms = [t for key, t in loss(progress).items() if not key.startswith("log/")]
            if name != "frozen":
                sum(terms[1:], start=terms[0]).backward()
                optimizer.step()
                optimizer.zero_grad()
        now = _clocks(recipe.device)
        result[name] = {"wall_s": round((now[0] - wall) / steps, 4), "cpu_s": round((now[1] - cpu) / steps, 4)}
    return {
        "seconds_a_step": result,
        "batch": recipe.batch,
        "threads": torch.get_num_threads(),
        "device": recipe.device,
        "backbone": backbone.id,
        "parameters": sum(p.numel() for p in adapter.parameters()),
    }


def random_data(recipe: Recipe, backbone: WanBackbone) -> InMemory:
    """One batch of noise in the shape of a cache; every clip has two labels."""
    d, b, g = recipe.data, recipe.batch, torch.Generator().manual_seed(0)
    shape = backbone.spec.latent.shape(d.frames, d.height, d.width)
    with torch.no_grad():
        text = backbone.embed(["a ball"] * b).features.float().cpu()
    eye = torch.eye(8)
    return InMemory(
        {
            "latent": torch.randn(b, *shape, generator=g),
            "flow": 0.3 * torch.randn(b, 2, *shape[1:], generator=g),
            "text": text,
            "labels": (eye[torch.arange(b) % 8] + eye[(torch.arange(b) + 3) % 8]).clamp(max=1),
        }
    )


def _clocks(device: str) -> tuple[float, float]:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()
