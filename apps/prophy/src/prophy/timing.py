"""Seconds a step on random data of the recipe's sizes: what a run will cost on this machine."""

import time
from typing import Any

import torch

from backbones import Backbone, paths
from prophy.adapter import answering, count
from prophy.config import Recipe
from prophy.data import token_grid
from prophy.labels import names
from prophy.quantities import COUNT
from prophy.train import Trainer, fresh, kind_of
from trainers import InMemory, Progress

__all__ = ["measure", "random_data"]


def measure(recipe: Recipe, backbone: Backbone, *, steps: int) -> dict[str, Any]:
    """Wall and CPU seconds of a training step (loss, backward, AdamW), and of the frozen model's forward alone."""
    adapter = fresh(recipe, backbone)
    data = random_data(recipe, backbone)
    batch = {k: v.to(recipe.device) for k, v in data.get_batch(torch.arange(recipe.batch)).items()}
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4, fused=True)
    result: dict[str, Any] = {}
    if recipe.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(recipe, adapter, backbone)
    wall, cpu = _clocks(recipe.device)
    with answering(backbone, adapter):
        adapter.train()
        for i in range(steps + 1):
            if i == 1:  # the first one warms up
                wall, cpu = _clocks(recipe.device)
            progress = Progress("time", i, i, steps, 0.0, torch.Generator().manual_seed(i))
            terms = [t for key, t in trainer.loss(batch, progress).items() if not key.startswith("log/")]
            sum(terms[1:], start=terms[0]).backward()
            optimizer.step()
            optimizer.zero_grad()
    now = _clocks(recipe.device)
    result["step"] = {"wall_s": round((now[0] - wall) / steps, 4), "cpu_s": round((now[1] - cpu) / steps, 4)}
    text, sigma = trainer.text(batch, torch.zeros(recipe.batch, dtype=torch.bool)), torch.full((recipe.batch,), 0.5)
    for i in range(steps + 1):
        if i == 1:
            wall, cpu = _clocks(recipe.device)
        with torch.no_grad():
            backbone.predict(paths.noise(batch["latent"], batch["latent"], sigma), sigma, text)
    now = _clocks(recipe.device)
    result["frozen_forward"] = {"wall_s": round((now[0] - wall) / steps, 4), "cpu_s": round((now[1] - cpu) / steps, 4)}
    peak = torch.cuda.max_memory_allocated() / 2**30 if recipe.device.startswith("cuda") else None
    return {
        "kind": kind_of(recipe),
        "seconds": result,
        "peak_gib": None if peak is None else round(peak, 2),
        "batch": recipe.batch,
        "threads": torch.get_num_threads(),
        "device": recipe.device,
        "backbone": backbone.id,
        "parameters": {name: count(group) for name, group in adapter.groups().items()},
    }


def random_data(recipe: Recipe, backbone: Backbone) -> InMemory:
    """One batch of noise in the shape of a cache; every clip has two labels."""
    d, b, g = recipe.data, recipe.batch, torch.Generator().manual_seed(0)
    latent = backbone.spec.latent.shape(d.frames, d.height, d.width)
    (t, y, x), _ = token_grid(recipe, backbone)
    known = len(names(d.vocabulary))
    with torch.no_grad():
        text = backbone.embed(["a ball"] * b)
    eye = torch.eye(known)
    target = 2 * torch.rand(b, t * y * x, known, generator=g) - 1
    return InMemory(
        {
            "latent": torch.randn(b, *latent, generator=g),
            "text": text.features.float().cpu(),
            "mask": text.mask.cpu(),
            "labels": (eye[torch.arange(b) % known] + eye[(torch.arange(b) + 3) % known]).clamp(max=1),
            "quantities": torch.randn(b, COUNT, generator=g),
            "target": target,
            "active": target > 0,
        }
    )


def _clocks(device: str) -> tuple[float, float]:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()
