"""Seconds and peak memory of a sampling step and of a training step: base, ProPhy, its control.

    uv run python benchmarks/gpu/prophy_step.py --model wan2.1-t2v-1.3b [--blocks 10] [--rounds 3] [--out FILE.json]
    uv run python benchmarks/gpu/prophy_step.py --model cogvideox-5b

Models have their real size and random bfloat16 weights, made from the configurations in `backbones.configs`; random
text features of the real length stand for the prompt. A sampling step is one forward of one branch of the guidance; a
training step is loss, backward with checkpointing and AdamW at batch 1 on random latents and targets. Sizes are the
usual clips, 81 x 480 x 832 and 49 x 480 x 720. The variants take turns, round by round; the first step of each is not
timed. `--toy` shrinks everything and runs on a CPU.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from backbones import Text, attach, configs, paths, tiny_families
from backbones.loading import wrap
from prophy.config import Recipe, load_recipe
from prophy.data import token_grid
from prophy.labels import names
from prophy.quantities import COUNT
from prophy.train import Trainer, fresh
from trainers import Progress

SIZES = {"wan2.1-t2v-1.3b": (81, 480, 832), "cogvideox-5b": (49, 480, 720)}
TINY = {"wan2.1-t2v-1.3b": "wan21_t2v", "cogvideox-5b": "cogvideox_5b"}
RECIPES = {"wan2.1-t2v-1.3b": "wan2.1-1.3b", "cogvideox-5b": "cogvideox-5b"}


def build(name: str, *, toy: bool, device: str) -> Any:
    """The stock pipeline around a transformer of the real size; the other parts stay tiny, none of them runs."""
    pipe = tiny_families.family(TINY[name], layers=3)
    if not toy:
        pipe.register_modules(transformer=configs.transformer(name, device=device).to(torch.bfloat16))
    pipe.transformer.requires_grad_(False)
    return wrap(pipe.to(device))


def batch_of(recipe: Recipe, backbone: Any, device: str) -> dict[str, torch.Tensor]:
    """One clip of noise with random text, two labels and random targets."""
    d, spec, g = recipe.data, backbone.spec, torch.Generator().manual_seed(0)
    (t, y, x), _ = token_grid(recipe, backbone)
    known = len(names(d.vocabulary))
    text = torch.randn(1, spec.text_length, spec.text_dim, generator=g)
    mask = torch.arange(spec.text_length)[None] < 12
    target = 2 * torch.rand(1, t * y * x, known, generator=g) - 1
    batch = {
        "latent": torch.randn(1, *spec.latent.shape(d.frames, d.height, d.width), generator=g),
        "text": text * mask[..., None],
        "mask": mask,
        "labels": torch.eye(known)[:1] + torch.eye(known)[1:2],
        "target": target,
        "active": target > 0,
        "quantities": torch.randn(1, COUNT, generator=g),
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


def one_round(backbone: Any, recipes: dict[str, Recipe], device: str, steps: int) -> dict[str, tuple[float, float]]:
    """Every variant once: forwards of the base and with each adapter, then a training step of each."""
    found: dict[str, tuple[float, float]] = {}
    base = recipes["ProPhy"]
    batch = batch_of(base, backbone, device)
    text, sigma = Text(batch["text"], batch["mask"]), torch.full((1,), 0.5, device=device)
    backbone.remember(text)
    x_s = paths.noise(batch["latent"], torch.randn_like(batch["latent"]), sigma)
    with torch.no_grad():
        found["base, forward"] = timed(device, lambda _: backbone.predict(x_s, sigma, text), steps)
    for name, recipe in recipes.items():
        adapter = fresh(recipe, backbone)
        with torch.no_grad(), attach(backbone, adapter, in_predict=True) as attached:
            attached.prepare(["a ball"], text)
            found[f"{name}, forward"] = timed(device, lambda _: backbone.predict(x_s, sigma, text), steps)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-5, fused=True)
        backbone.transformer.enable_gradient_checkpointing()
        with attach(backbone, adapter, in_predict=True):
            adapter.train()
            trainer = Trainer.__new__(Trainer)  # its own text encoder is not there
            trainer.recipe, trainer.adapter, trainer.backbone, trainer.empty = recipe, adapter, backbone, text

            def step(i: int, trainer: Any = trainer, optimizer: Any = optimizer) -> None:
                progress = Progress("time", i, i, steps, 0.0, torch.Generator().manual_seed(i))
                terms = [t for key, t in trainer.loss(batch, progress).items() if not key.startswith("log/")]
                sum(terms[1:], start=terms[0]).backward()
                optimizer.step()
                optimizer.zero_grad()

            found[f"{name}, training step"] = timed(device, step, steps)
        backbone.transformer.disable_gradient_checkpointing()
        del adapter, optimizer
    return found


def main() -> None:
    """Measure and print one JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), required=True)
    parser.add_argument("--blocks", type=int, default=10, help="physical blocks")
    parser.add_argument("--steps", type=int, default=3, help="timed a round and variant, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    device = "cpu" if args.toy else "cuda"
    torch.manual_seed(0)
    backbone = build(args.model, toy=args.toy, device=device)
    frames, height, width = (9, 32, 32) if args.toy else SIZES[args.model]
    sets = [f"device={device}", f"data.frames={frames}", f"data.height={height}", f"data.width={width}"]
    sets += ["branch.blocks=2", "dtype=float32"] if args.toy else [f"branch.blocks={args.blocks}"]
    recipes = {
        "ProPhy": load_recipe(RECIPES[args.model], sets),
        "plain": load_recipe(RECIPES[args.model], [*sets, "adapter=plain"]),
    }
    rounds = [one_round(backbone, recipes, device, args.steps) for _ in range(args.rounds)]
    about = {"model": args.model, "size": [frames, height, width], "blocks": recipes["ProPhy"].branch.blocks}
    about |= {"torch": torch.__version__, "toy": args.toy}
    about["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    table = {}
    for name in rounds[0]:
        ratios = sorted(r[name][0] / r["base, forward"][0] for r in rounds)
        table[name] = {
            "seconds": round(statistics.median(r[name][0] for r in rounds), 4),
            "ratio_to_base_forward": round(statistics.median(ratios), 3),
            "lowest": round(ratios[0], 3),
            "highest": round(ratios[-1], 3),
            "peak_gib": round(max(r[name][1] for r in rounds), 2),
        }
        print(json.dumps({**about, "variant": name, **table[name]}))
    if args.out:
        args.out.write_text(json.dumps({**about, "variants": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
