"""Peak memory and time of reading a 7B language model's attention against plain generation, on one GPU.

    uv run python benchmarks/gpu/vlm_probe.py [--model qwen2.5-vl-7b] [--cells 5 17 30] [--rounds 3] [--out FILE.json]

The sizes of Qwen2.5-VL-7B-Instruct or Qwen3-VL-8B-Instruct, written below, with random bfloat16 weights that are made
on the GPU, so that neither the hub nor the host's memory is needed. One question about one clip of cells (t, h, w):
5 x 17 x 30 is 81 frames of 480 x 832 at 16 a second, read at two a second. Variants take turns; peaks are
`max_memory_allocated`, with the weights and without; times are of whole calls, synchronised, the first round not
counted. The goal is a peak (without weights) of at most 1.05 times plain generation. `--toy` shrinks all and runs on a
CPU, without peaks.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from vlmdistill import Clip, Vlm, tiny, wrap

QUESTION = "Describe the collision phenomenon in the video."
TEXT = {
    "qwen2.5-vl-7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "qwen3-vl-8b": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False,
    },
}  # fmt: skip
VISION = {
    "qwen2.5-vl-7b": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
        "out_hidden_size": 3584, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "qwen3-vl-8b": {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
        "out_hidden_size": 4096, "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
    },
}  # fmt: skip
ROPE = {"qwen2.5-vl-7b": ([16, 24, 24], 1e6), "qwen3-vl-8b": ([24, 20, 20], 5e6)}
FAMILY = {"qwen2.5-vl-7b": "qwen2_5_vl", "qwen3-vl-8b": "qwen3_vl"}


def build(name: str, *, toy: bool, device: str) -> Vlm:
    """Fill a model of the real size with random numbers where it will run; the tokenizer is the byte-wise one."""
    vlm = tiny(FAMILY[name])  # type: ignore[arg-type]
    model = vlm.model
    if not toy:
        config = model.config
        for part, sizes in ((config.text_config, TEXT[name]), (config.vision_config, VISION[name])):
            for key, value in sizes.items():
                setattr(part, key, value)
        config.tie_word_embeddings = False
        section, theta = ROPE[name]
        config.text_config.rope_parameters = {"rope_type": "default", "mrope_section": section, "rope_theta": theta}
        config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):  # random weights are made where they will be used: the host never holds them
            model = type(model)(config).eval()
        torch.set_default_dtype(torch.float32)
        model.requires_grad_(False)
    model.generation_config.suppress_tokens = [model.config.text_config.eos_token_id]  # answers of one length
    return wrap(model.to(device), vlm.reader.tokenizer, name=name, tokens=(1, 4096))


def run_of(vlm: Vlm, clip: Clip, new_tokens: int) -> dict[str, Callable[[], Any]]:
    """Name what is measured; the first is the measure of the others."""
    inputs = {k: v.to(vlm.model.device) for k, v in vlm.reader([clip], [QUESTION]).tensors.items()}
    words = "a" * new_tokens

    def plain() -> None:
        vlm.model.model.rope_deltas = None
        with torch.inference_mode():
            vlm.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)

    return {
        "plain": plain,
        "plain again": plain,
        "probe": lambda: vlm.look(clip, QUESTION, new_tokens=new_tokens),
        "forced": lambda: vlm.look(clip, QUESTION, answers=words),
    }


def main() -> None:
    """Measure and print one JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(TEXT), default="qwen2.5-vl-7b")
    parser.add_argument("--cells", type=int, nargs=3, default=(5, 17, 30), metavar=("T", "H", "W"))
    parser.add_argument("--tokens", type=int, default=64, help="of the answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    logging.set_verbosity_error()
    device = "cpu" if args.toy else "cuda"
    torch.manual_seed(0)
    vlm = build(args.model, toy=args.toy, device=device)
    t, h, w = (2, 4, 6) if args.toy else args.cells
    cell = vlm.reader.patch * vlm.reader.merge
    pixels = torch.randint(0, 256, (2 * t, h * cell, w * cell, 3), dtype=torch.uint8)
    todo = run_of(vlm, Clip.at(pixels, 2.0), args.tokens)
    weights = 0 if args.toy else torch.cuda.memory_allocated()
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    peaks = dict.fromkeys(todo, 0)
    for i in range(args.rounds + 1):
        for name, run in todo.items():
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated()
            if i:
                seconds[name].append(time.perf_counter() - start)
            print(f"round {i} {name}: {time.perf_counter() - start:.3f} s, {peaks[name] / 2**30:.2f} GiB", flush=True)
    about = {
        "model": args.model,
        "cells": (t, h, w),
        "tokens": args.tokens,
        "torch": torch.__version__,
        "toy": args.toy,
    }
    about["device"] = "cpu" if args.toy else torch.cuda.get_device_name()
    rows = []
    for name in todo:
        ratios = sorted(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
        row = {"variant": name, "seconds": round(statistics.median(seconds[name]), 3)}
        row |= {
            "ratio": round(statistics.median(ratios), 3),
            "lowest": round(ratios[0], 3),
            "highest": round(ratios[-1], 3),
        }
        if not args.toy:
            row |= {
                "peak_gib": round(peaks[name] / 2**30, 3),
                "peak_ratio": round(peaks[name] / peaks["plain"], 4),
                "peak_ratio_without_weights": round((peaks[name] - weights) / (peaks["plain"] - weights), 4),
            }
        rows.append({**about, **row})
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
