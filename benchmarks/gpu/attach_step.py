"""Seconds a sampling step and peak memory of stock diffusers, with an empty adapter, and with PILA, k = 0..8.

    uv run python benchmarks/gpu/attach_step.py --model wan2.1-t2v-1.3b [--steps 5] [--rounds 3] [--out FILE.json]
    uv run python benchmarks/gpu/attach_step.py --model cogvideox-5b

Models have their real size and random bfloat16 weights, made from the configurations in `backbones.configs`; random
text features of the real length stand for the prompt, and no video is decoded: a step is the transformer under guidance
(two calls of a Wan, one call of two rows of a CogVideoX) and the scheduler. Sizes are the usual clips, 81 x 480 x 832
and 49 x 480 x 720. The variants take turns, round by round, and the first step of each sampling is not timed: median
and range over the rounds of the ratio to stock. PILA has the sizes of its recipe for Wan2.1-1.3B and fresh weights: it
computes all that a trained one does. `--toy` shrinks everything and runs on a CPU.
"""

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones import Text, attach, configs, tiny_families
from backbones.loading import wrap
from pila.adapter import PilaAdapter
from pila.config import load_recipe

PROMPT = "a red ball falls on a wooden floor and bounces"
SIZES = {"wan2.1-t2v-1.3b": (81, 480, 832), "cogvideox-5b": (49, 480, 720)}
TINY = {"wan2.1-t2v-1.3b": "wan21_t2v", "cogvideox-5b": "cogvideox_5b"}


class Empty(nn.Module):
    """An adapter of the velocity that gives zero."""

    kind = "empty"

    def prepare(self, prompts: list[str], text: Text) -> None:
        pass

    def correction(self, x_s: Any, v: Any, sigma: Any, text: Text) -> Any:
        return torch.zeros_like(v)

    def groups(self) -> dict[str, nn.Module]:
        return {"empty": self}


def build(name: str, *, toy: bool, device: str) -> Any:
    """Build the stock pipeline around a transformer of the real size; the other parts stay tiny, none of them runs."""
    pipe = tiny_families.family(TINY[name])
    if not toy:
        pipe.register_modules(transformer=configs.transformer(name, device=device).to(torch.bfloat16))
    pipe.transformer.requires_grad_(False)
    return pipe.to(device)


def prompt_of(pipe: Any, length: int, width: int) -> dict[str, torch.Tensor]:
    """Random text features where a text encoder's would be; Wan's are zero after the prompt."""
    out = {}
    for key, words in (("prompt_embeds", 12), ("negative_prompt_embeds", 1)):
        features = torch.randn(1, length, width, generator=torch.Generator().manual_seed(words))
        if "Wan" in type(pipe).__name__:
            features[:, words:] = 0
        out[key] = features.to(pipe.transformer.device, pipe.transformer.dtype)
    return out


def sample(pipe: Any, attached: Any, size: tuple[int, int, int], steps: int) -> tuple[list[float], float]:
    """Sample latents; give the seconds of each step after the first, and the peak memory in GiB (0 on a CPU)."""
    config, cuda = pipe.transformer.config, pipe.transformer.device.type == "cuda"
    wan = "Wan" in type(pipe).__name__
    texts = prompt_of(
        pipe, 512 if wan else config.max_text_seq_length, config.text_dim if wan else config.text_embed_dim
    )
    if attached is not None:
        attached.backbone.text_of([""], texts["negative_prompt_embeds"], "uncond")
        attached.prepare([PROMPT], attached.backbone.text_of([PROMPT], texts["prompt_embeds"], "cond"))
    times: list[float] = []

    def clock(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        return {}

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    frames, height, width = size
    pipe(
        **texts,
        num_frames=frames,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=5.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=clock,
    )
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return [b - a for a, b in pairwise(times)], peak


def measure(pipe: Any, size: tuple[int, int, int], ks: list[int], *, steps: int, rounds: int) -> dict[str, Any]:
    """Let the variants take turns; ratios are those of one round."""
    spec, device = wrap(pipe).spec, str(pipe.transformer.device.type)
    variants: dict[str, Any] = {"stock": None, "stock again": None, "empty": Empty()}
    for k in ks:
        recipe = load_recipe("wan2.1-1.3b", [f"routing.k={k}", f"device={device}"])
        variants[f"PILA k={k}"] = PilaAdapter(spec, recipe).to(device)
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, float] = {}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if variants[name] is None:
                took, peak = sample(pipe, None, size, steps)
            else:
                with attach(pipe, variants[name]) as attached:
                    took, peak = sample(pipe, attached, size, steps)
            seconds[name].append(statistics.median(took))
            peaks[name] = max(peak, peaks.get(name, 0.0))
            print(f"round {i} {name}: {seconds[name][-1]:.4f} s a step, {peak:.2f} GiB", flush=True)
    table = {}
    for name in names:
        ratios = sorted(a / b for a, b in zip(seconds[name], seconds["stock"], strict=True))
        table[name] = {
            "seconds_a_step": round(statistics.median(seconds[name]), 4),
            "ratio": round(statistics.median(ratios), 4),
            "lowest": round(ratios[0], 4),
            "highest": round(ratios[-1], 4),
            "peak_gib": round(peaks[name], 3),
        }
    return table


def main() -> None:
    """Measure and print one JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), required=True)
    parser.add_argument("--steps", type=int, default=5, help="of one sampling; the first is not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--k", type=int, nargs="*", default=list(range(9)), help="experts of PILA that are chosen")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    device = "cpu" if args.toy else "cuda"
    torch.manual_seed(0)
    pipe = build(args.model, toy=args.toy, device=device)
    size = (9, 32, 32) if args.toy else SIZES[args.model]
    with torch.no_grad():
        table = measure(pipe, size, args.k, steps=args.steps, rounds=args.rounds)
    about = {"model": args.model, "size": size, "torch": torch.__version__, "toy": args.toy}
    about["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    for name, row in table.items():
        print(json.dumps({**about, "variant": name, **row}))
    if args.out:
        args.out.write_text(json.dumps({**about, "variants": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
