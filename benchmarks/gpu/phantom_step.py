"""Seconds and peak memory of a sampling step and a training step: the frozen base, and Phantom by width of its branch.

    uv run python benchmarks/gpu/phantom_step.py [--widths 1024 1536 3072] [--rounds 3] [--out FILE.json]

Wan2.2-TI2V-5B has its real size and random bfloat16 weights, made from the configuration in `backbones.configs`; random
text features of the real length stand for the prompt, random z for V-JEPA 2. Sizes are those of the recipe
wan2.2-ti2v-5b: 121 x 480 x 832, z of 256 channels on 31 x 8 x 14 cells. A forward is one branch of the guidance; a
training step is loss, backward with checkpointing of both streams, and AdamW at batch 1. The branch computes in
bfloat16 under autocast and is stored and stepped in float32. Base and widths take turns, round by round; the first step
of each is not timed. `--toy` shrinks everything and runs on a CPU.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backbones import Text, configs, tiny_families
from backbones.loading import wrap
from phantom.config import Recipe, load_recipe
from phantom.latent import Basis, cells_of
from phantom.train import Trainer, fresh
from trainers import Progress, Ramp

TOY = ["data.frames=17", "data.height=32", "data.width=32", "physics.size=[32,32]", "physics.pool=1"]
TOY += ["physics.channels=8", "branch.freq_dim=32", "couple.heads=1", "condition.most_latents=2", "dtype=float32"]


def build(*, toy: bool, device: str) -> Any:
    """The stock pipeline around a transformer of the real size; the other parts stay tiny, none of them runs."""
    pipe = tiny_families.family("wan22_ti2v", layers=3)
    if not toy:
        pipe.register_modules(transformer=configs.transformer("wan2.2-ti2v-5b", device=device).to(torch.bfloat16))
    pipe.transformer.requires_grad_(False)
    return wrap(pipe.to(device))


def batch_of(recipe: Recipe, backbone: Any, device: str) -> dict[str, torch.Tensor]:
    """One clip of noise in the shape of a cache."""
    d, spec, most, g = recipe.data, backbone.spec, recipe.condition.most_latents, torch.Generator().manual_seed(0)
    shape = spec.latent.shape(d.frames, d.height, d.width)
    z = (1, recipe.physics.channels)
    batch = {
        "latent": torch.randn(1, *shape, generator=g),
        "text": torch.randn(1, spec.text_length, spec.text_dim, generator=g),
        "z": torch.randn(*z, shape[1], *cells_of(recipe.physics), generator=g),
        "observed": torch.randn(*z, most * (most + 1) // 2, *cells_of(recipe.physics), generator=g),
    }
    return {name: value.to(device) for name, value in batch.items()}


def timed(device: str, once: Any, steps: int) -> tuple[float, float]:
    """Median seconds of `once` after a first call, and the peak memory in GiB (0 on a CPU)."""
    cuda, seconds = device == "cuda", []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for i in range(steps + 1):
        start = time.perf_counter()
        once(i)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0


def one_round(
    backbone: Any, recipes: dict[int, Recipe], device: str, steps: int
) -> dict[str, tuple[float, float, int]]:
    """The base's forward, then a forward and a training step of each width: (seconds, GiB, parameters)."""
    first = next(iter(recipes.values()))
    batch = batch_of(first, backbone, device)  # the width changes nothing in it
    x, text = batch["latent"], Text.of(batch["text"])
    sigma = torch.full((1, x.shape[2]), 0.5, device=device)
    patch = backbone.spec.latent.patch
    per_token = sigma.repeat_interleave((x.shape[3] // patch[1]) * (x.shape[4] // patch[2]), 1)
    with torch.no_grad():
        found = {"base, forward": (*timed(device, lambda _: backbone.predict(x, per_token, text), steps), 0)}
    for width, recipe in recipes.items():
        forward, training, size = of_width(backbone, recipe, batch, device, steps)
        found |= {f"d_z {width}, forward": (*forward, size), f"d_z {width}, training step": (*training, size)}
    return found


def of_width(backbone: Any, recipe: Recipe, batch: Any, device: str, steps: int) -> tuple[Any, Any, int]:
    """A forward, a training step, and the parameters of one width."""
    adapter = fresh(recipe, backbone, Basis(recipe.physics.channels, recipe.physics.channels), None)
    sigma = torch.full(batch["latent"].shape[:1] + batch["latent"].shape[2:3], 0.5, device=device)
    half = partial(torch.autocast, device, dtype=torch.bfloat16)
    text = Text.of(batch["text"])
    with torch.no_grad(), half():
        forward = timed(device, lambda _: adapter.velocities(batch["latent"], batch["z"], sigma, text), steps)
    optimizer = torch.optim.AdamW(adapter.branch.parameters(), lr=1e-4, fused=True)
    models = (backbone.transformer, adapter.branch.stream)
    for model in models:
        model.enable_gradient_checkpointing()
    adapter.train()
    trainer = Trainer.__new__(Trainer)  # its own text encoder is not there
    trainer.recipe, trainer.adapter, trainer.backbone = recipe, adapter, backbone
    trainer.shift, trainer.empty = 5.0, batch["text"]

    def step(i: int) -> None:
        ramps = {"physics": Ramp(1.0, 1.0)}
        progress = Progress("time", i, i, steps, 0.0, torch.Generator().manual_seed(i), ramps=ramps)
        with half():
            terms = [t for key, t in trainer.loss(batch, progress).items() if not key.startswith("log/")]
        sum(terms[1:], start=terms[0]).backward()
        optimizer.step()
        optimizer.zero_grad()

    training = timed(device, step, steps)
    for model in models:
        model.disable_gradient_checkpointing()
    return forward, training, sum(p.numel() for p in adapter.branch.parameters())


def main() -> None:
    """Measure and print one JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 1536, 3072], help="d_z, multiples of 64")
    parser.add_argument("--steps", type=int, default=3, help="timed a round and variant, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    device = "cpu" if args.toy else "cuda"
    torch.manual_seed(0)
    backbone = build(toy=args.toy, device=device)
    sets = [f"device={device}", *(TOY if args.toy else [])]
    recipes = {
        width: load_recipe("wan2.2-ti2v-5b", [*sets, f"branch.heads={width // 64}", f"branch.ffn_dim={4 * width}"])
        for width in args.widths
    }
    rounds = [one_round(backbone, recipes, device, args.steps) for _ in range(args.rounds)]
    d = recipes[args.widths[0]].data
    about = {"size": [d.frames, d.height, d.width], "torch": torch.__version__, "toy": args.toy}
    about["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    table = {}
    for name, (*_, parameters) in rounds[0].items():
        ratios = sorted(r[name][0] / r["base, forward"][0] for r in rounds)
        table[name] = {
            "seconds": round(statistics.median(r[name][0] for r in rounds), 4),
            "ratio_to_base_forward": round(statistics.median(ratios), 3),
            "lowest": round(ratios[0], 3),
            "highest": round(ratios[-1], 3),
            "peak_gib": round(max(r[name][1] for r in rounds), 2),
            "parameters": parameters,
        }
        print(json.dumps({**about, "variant": name, **table[name]}))
    if args.out:
        args.out.write_text(json.dumps({**about, "variants": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
