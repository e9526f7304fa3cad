"""Peak memory and time of reading attention beside plain generation, and beside eager attention, in one run.

    OMP_NUM_THREADS=1 uv run python benchmarks/vlmdistill_memory.py [--side 24] [--tokens 16] [--rounds 3]

A Qwen2.5-VL and a Qwen3-VL of 8 layers, width 512, 8 heads (2 of keys) and a small vision tower, random weights,
float32, answer one question about one clip of 5 x side x side cells (24: 2,880 video tokens). Peaks are what torch's
CPU allocator hands out above what was there before (weights do not count), from the profiler's record of every
allocation, and so the same each time; times are CPU time of runs without the profiler, in turns, each divided by the
plain generation of its round.

- plain: the clip read, then `generate` with SDPA
- probe: `Vlm.look`, which generates the same and reads the middle third of the layers, all heads
- forced: `Vlm.look` with the answer given
- eager: one forward with `output_attentions=True`, what the probe replaces
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import logging

from vlmdistill import Clip, Vlm, tiny, wrap

QUESTION = "Describe the collision phenomenon in the video."


def build(family: str) -> Vlm:
    """Widen the tiny model of a family: its tokenizer and layout, but sizes at which attention is what costs."""
    vlm = tiny(family)  # type: ignore[arg-type]
    config = vlm.model.config
    text = {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "head_dim": 64,
    }
    for key, value in text.items():
        setattr(config.text_config, key, value)
    config.text_config.layer_types = ["full_attention"] * 8
    config.text_config.initializer_range = 0.02
    config.text_config.rope_parameters = {**config.text_config.rope_parameters, "mrope_section": [8, 12, 12]}
    config.vision_config.out_hidden_size = 512
    torch.manual_seed(0)
    model = type(vlm.model)(config).eval()
    model.generation_config.suppress_tokens = [config.text_config.eos_token_id]  # every answer has the same length
    return wrap(model, vlm.reader.tokenizer, name=family, tokens=(1, 4096))


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes above the start at the highest point, counted over the allocator's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def variants(vlm: Vlm, clip: Clip, new_tokens: int) -> dict[str, Callable[[], Any]]:
    """Name what is measured; the first is the measure of the others."""
    answer = vlm.look(clip, QUESTION, new_tokens=new_tokens)[0].answer
    forced = vlm.reader([clip], [QUESTION], [answer]).tensors

    def clean(run: Callable[[], Any]) -> None:
        vlm.model.model.rope_deltas = None
        with torch.inference_mode():
            run()

    def plain() -> None:  # the clip is read anew, as in the probe
        inputs = vlm.reader([clip], [QUESTION]).tensors
        vlm.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)

    def eager() -> None:
        vlm.model.set_attn_implementation("eager")
        try:
            vlm.model.model(**forced, use_cache=False, output_attentions=True)
        finally:
            vlm.model.set_attn_implementation("sdpa")

    return {
        "plain": lambda: clean(plain),
        "probe": lambda: vlm.look(clip, QUESTION, new_tokens=new_tokens),
        "forced": lambda: vlm.look(clip, QUESTION, answers=answer),
        "eager": lambda: clean(eager),
    }


def main() -> None:
    """Measure and print one JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=24, help="cells down and across")
    parser.add_argument("--tokens", type=int, default=16, help="of the answer")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    for family in ("qwen2_5_vl", "qwen3_vl"):
        vlm = build(family)
        cell = vlm.reader.patch * vlm.reader.merge
        g = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (10, args.side * cell, args.side * cell, 3), generator=g, dtype=torch.uint8)
        todo = variants(vlm, Clip.at(pixels, 2.0), args.tokens)
        seconds: dict[str, list[float]] = {name: [] for name in todo}
        for _ in range(args.rounds):
            for name, run in todo.items():
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
        peaks = {name: peak_of(run) for name, run in todo.items()}
        for name in todo:
            ratios = sorted(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
            row = {
                "family": family,
                "video_tokens": 5 * args.side**2,
                "variant": name,
                "peak_mib": round(peaks[name] / 2**20, 1),
                "peak_ratio": round(peaks[name] / peaks["plain"], 4),
                "seconds_ratio": round(statistics.median(ratios), 3),
                "lowest": round(ratios[0], 3),
                "highest": round(ratios[-1], 3),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
