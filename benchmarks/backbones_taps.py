"""What the own block loop and its taps cost against the stock forward of diffusers, interleaved in one run.

    OMP_NUM_THREADS=1 uv run python benchmarks/backbones_taps.py [--rounds 40] [--device cuda --real] [--out FILE.json]
    uv run python benchmarks/backbones_taps.py --toy --rounds 2        # tries the script

Each round runs every variant once, in an order that rotates, and divides its time by that round's stock forward: median
ratio and quartiles over the rounds. "stock again" is the stock forward a second time: the noise of the measurement.
On a CPU the time is CPU time of the process, which other work on the machine disturbs least, and the process keeps its
heap between forwards, as a GPU's caching allocator does: with glibc's defaults the memory that taps hold is given back
and mapped anew in every forward, which alone costs some per cent. On a GPU it is wall time, synchronised.
`--real` takes Wan 2.1 1.3B at 81 x 480 x 832 and CogVideoX 5B at 49 x 480 x 720 with random bfloat16 weights. One JSON
line a variant.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.utils import logging

from backbones import blocks_of, taps

HEAP = {f"MALLOC_{name}_": "8000000000" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD")}  # glibc: keep the heap


def wan(*, real: bool, toy: bool, device: str) -> tuple[Any, dict[str, Any]]:
    """Build a Wan and its inputs: 1.3 B on 32,760 tokens, or 8 blocks of width 256 on 1,280 (a toy: 2 on 20)."""
    dtype = torch.bfloat16 if real else torch.float32
    heads, head, layers, ffn, text = (12, 128, 30, 8960, 4096) if real else (4, 64, 8, 1024, 64)
    layers, size = (layers, (21, 60, 104) if real else (5, 32, 32)) if not toy else (2, (5, 4, 4))
    with torch.device(device):
        model: Any = WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=head, num_layers=layers, ffn_dim=ffn, text_dim=text
        )
        return model.to(dtype), {
            "hidden_states": torch.randn(1, 16, *size, dtype=dtype),
            "timestep": torch.tensor([700.0]),
            "encoder_hidden_states": torch.randn(1, 512 if real else 64, text, dtype=dtype),
        }


def cogvideox(*, real: bool, toy: bool, device: str) -> tuple[Any, dict[str, Any]]:
    """Build a CogVideoX and its inputs: 5 B on 17,550 tokens, or 8 blocks of width 256 on 1,280 (a toy: 2 on 20)."""
    dtype = torch.bfloat16 if real else torch.float32
    heads, layers, text = (48, 42, 4096) if real else (4, 8, 64)
    layers, (t, y, x) = (layers, (13, 60, 90) if real else (5, 32, 32)) if not toy else (2, (5, 4, 4))
    with torch.device(device):
        model: Any = CogVideoXTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=64,
            num_layers=layers,
            text_embed_dim=text,
            use_rotary_positional_embeddings=True,
        )
        half = (y // 2, x // 2)
        return model.to(dtype), {
            "hidden_states": torch.randn(1, t, 16, y, x, dtype=dtype),
            "timestep": torch.tensor([700]),
            "encoder_hidden_states": torch.randn(1, 226 if real else 64, text, dtype=dtype),
            "image_rotary_emb": get_3d_rotary_pos_embed(64, ((0, 0), half), half, t, device=torch.device(device)),
        }


def variants(model: Any, kwargs: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Name what is timed; the first is the measure of the others."""
    stack = blocks_of(model)
    after = [f"block.{k}" for k in range(len(stack))]
    inside = [f"block.{k}.{place}" for k in range(len(stack)) for place in ("self_attention", "cross_attention")]
    return {
        "stock": lambda: model(**kwargs, return_dict=False)[0],
        "stock again": lambda: model(**kwargs, return_dict=False)[0],
        "own loop": lambda: taps.run(stack, kwargs).output,
        "own loop, a tap after every block": lambda: taps.run(stack, kwargs, taps=after).output,
        "own loop, two taps inside every block": lambda: taps.run(stack, kwargs, taps=inside).output,
    }


def measure(todo: dict[str, Callable[[], Any]], *, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Time all variants in turn and give each one's ratio to the stock forward of the same round."""
    names = list(todo)
    outputs = [todo[name]() for name in names]  # warm, and the same bits before any time counts
    if not all(torch.equal(outputs[0], out) for out in outputs):
        raise RuntimeError("the variants do not give the same output: their times cannot be compared")
    del outputs
    ratios: dict[str, list[float]] = {name: [] for name in names}
    seconds = []
    for i in range(rounds):
        took = {}
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if device == "cpu":
                start = time.process_time()
                todo[name]()
                took[name] = time.process_time() - start
            else:
                torch.cuda.synchronize()
                start = time.perf_counter()
                todo[name]()
                torch.cuda.synchronize()
                took[name] = time.perf_counter() - start
        seconds.append(took["stock"])
        for name in names:
            ratios[name].append(took[name] / took["stock"])
    table = {"stock": {"seconds": round(statistics.median(seconds), 4)}}
    for name in names[1:]:
        low, median, high = statistics.quantiles(ratios[name], n=4)
        table[name] = {"ratio": round(median, 4), "quartile_1": round(low, 4), "quartile_3": round(high, 4)}
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--real", action="store_true", help="the real sizes (needs about 40 GB)")
    sizes.add_argument("--toy", action="store_true", help="two blocks on 20 tokens, to try the script")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    if args.device == "cpu":
        if not HEAP.keys() <= os.environ.keys():
            os.execve(sys.executable, [sys.executable, *sys.argv], {**HEAP, **os.environ})  # read at start-up alone
        torch.set_num_threads(1)
    logging.set_verbosity_error()  # it warns of casts
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu, one thread"
    about = {"torch": torch.__version__, "device": device, "rounds": args.rounds, "real": args.real, "toy": args.toy}
    lines = []
    for name, build in (("wan", wan), ("cogvideox", cogvideox)):
        torch.manual_seed(0)
        model, kwargs = build(real=args.real, toy=args.toy, device=args.device)
        model.eval().requires_grad_(False)
        with torch.no_grad():
            found = measure(variants(model, kwargs), rounds=args.rounds, device=args.device)
        stock = found.pop("stock")["seconds"]
        for variant, row in found.items():
            lines.append({**about, "model": name, "variant": variant, **row, "stock_seconds": stock})
            print(json.dumps(lines[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
