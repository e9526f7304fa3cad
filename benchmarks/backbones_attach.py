"""What an attached adapter that does nothing costs, against the stock pipeline's calls, interleaved in one run.

    OMP_NUM_THREADS=1 uv run python benchmarks/backbones_attach.py [--rounds 12] [--out FILE.json]

One step of guidance is timed as the stock pipeline makes it: two calls of a Wan (cond, uncond), one batched call of a
CogVideoX, each 0.5 to 1 s on one CPU thread. Each round runs every variant once, in an order that rotates, and divides
its CPU time by that round's stock step: median ratio and quartiles. "stock again" is the noise of the measurement. As
that noise is larger than what is measured, the host's own work is timed a second time by itself: the model's forward is
replaced by one that returns a kept output, and what attaching adds to a call is divided by the time of a stock call.
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
from torch import nn

from backbones import Text, attach, tiny_families

HEAP = {f"MALLOC_{name}_": "8000000000" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD")}  # glibc: keep the heap
KEPT_CALLS = 200  # of the host by itself


class Empty(nn.Module):
    """An adapter of the velocity that gives zero."""

    kind = "empty"

    def prepare(self, prompts: list[str], text: Text) -> None:
        pass

    def correction(self, x_s: Any, v: Any, sigma: Any, text: Text) -> Any:
        return torch.zeros_like(v)

    def groups(self) -> dict[str, nn.Module]:
        return {"empty": self}


class EmptyBlocks(nn.Module):
    """An adapter of the hidden states that gives them back."""

    kind, needs_blocks = "empty-blocks", True

    def prepare(self, prompts: list[str], text: Text) -> None:
        pass

    def begin(self, call: Any, tokens: Any, stack: Any) -> None:
        return None

    def after_block(self, k: int, tokens: Any, state: None, stack: Any) -> tuple[Any, None]:
        return tokens, state

    def groups(self) -> dict[str, nn.Module]:
        return {"empty": self}


def wan() -> tuple[Any, Callable[[], list[Any]], Callable[[], None]]:
    """Build a tiny Wan2.1 pipeline around 4 blocks of width 384 on 1,280 tokens, and its step."""
    pipe = tiny_families.family("wan21_t2v")
    model = WanTransformer3DModel(
        num_attention_heads=6, attention_head_dim=64, num_layers=4, ffn_dim=1536, text_dim=32
    ).eval()
    pipe.register_modules(transformer=model)
    x, t = torch.randn(1, 16, 5, 32, 32), torch.tensor([700.0])
    texts = {branch: torch.randn(1, 512, 32) for branch in ("cond", "uncond")}

    def step() -> list[Any]:
        out = []
        for branch, text in texts.items():
            with pipe.transformer.cache_context(branch, step_index=0, sigma=0.7, num_inference_steps=1):
                out.append(pipe.transformer(hidden_states=x, timestep=t, encoder_hidden_states=text, return_dict=False))
        return out

    return pipe, step, teller(pipe, texts["cond"], ["a ball"])


def cogvideox() -> tuple[Any, Callable[[], list[Any]], Callable[[], None]]:
    """Build a tiny CogVideoX pipeline around 4 blocks of width 384 on 1,280 tokens, and its step."""
    pipe = tiny_families.family("cogvideox_5b")
    model = CogVideoXTransformer3DModel(
        num_attention_heads=6,
        attention_head_dim=64,
        num_layers=4,
        text_embed_dim=32,
        use_rotary_positional_embeddings=True,
    ).eval()
    pipe.register_modules(transformer=model)
    pipe._guidance_scale = 6.0  # what a call of the pipeline sets
    x, t = torch.randn(1, 5, 16, 32, 32).repeat(2, 1, 1, 1, 1), torch.tensor([700, 700])
    text = torch.randn(2, 226, 32)
    rotary = get_3d_rotary_pos_embed(64, ((0, 0), (16, 16)), (16, 16), 5)

    def step() -> list[Any]:
        with pipe.transformer.cache_context("cond_uncond"):
            return [
                pipe.transformer(
                    hidden_states=x,
                    encoder_hidden_states=text,
                    timestep=t,
                    image_rotary_emb=rotary,
                    return_dict=False,
                )
            ]

    return pipe, step, teller(pipe, text, ["", "a ball"])


def teller(pipe: Any, text: torch.Tensor, prompts: list[str]) -> Callable[[], None]:
    """Make what tells an attached adapter the prompts, as the pipeline's `encode_prompt` does before the first step."""

    def tell() -> None:
        attached = vars(pipe.transformer).get("phys_attached")
        if attached is not None:
            known = attached.backbone.text_of(prompts, text)
            attached.prepare(prompts[-1:], known[len(prompts) - 1 :])

    return tell


def measure(pipe: Any, step: Callable[[], list[Any]], tell: Callable[[], None], *, rounds: int) -> dict[str, Any]:
    """Time the variants in turn; attaching and detaching is not timed."""
    adapters: dict[str, Callable[[], Any]] = {
        "stock": lambda: None,
        "stock again": lambda: None,
        "empty": Empty,
        "empty, after guidance": Empty,
        "empty, between blocks": EmptyBlocks,
    }
    names = list(adapters)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    outputs: dict[str, Any] = {}
    for i in range(rounds + 1):  # the first one warms up
        for name in names[i % len(names) :] + names[: i % len(names)]:
            adapter = adapters[name]()
            mode = "after_guidance" if "guidance" in name else None
            attached = None if adapter is None else attach(pipe, adapter, mode=mode)
            tell()
            start = time.process_time()
            out = step()
            took = time.process_time() - start
            if attached is not None:
                attached.detach()
            if i:
                seconds[name].append(took)
            outputs[name] = out
    for name in names:
        if not all(torch.equal(a[0], b[0]) for a, b in zip(outputs["stock"], outputs[name], strict=True)):
            raise RuntimeError(f"{name} does not give the stock output: its time cannot be compared")
    stock = statistics.median(seconds["stock"])
    table: dict[str, Any] = {"stock": {"seconds": round(stock, 4)}}
    for name in names[1:]:
        ratios = [a / b for a, b in zip(seconds[name], seconds["stock"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        table[name] = {"ratio": round(median, 4), "quartile_1": round(low, 4), "quartile_3": round(high, 4)}
    for name, mode in (("empty", "conditional"), ("empty, after guidance", "after_guidance")):
        extra = by_itself(pipe, step, tell, outputs["stock"], mode)
        table[name] |= {"host_ms": round(1e3 * extra, 3), "host_share": round(extra / stock, 5)}
    return table


def by_itself(pipe: Any, step: Callable[[], list[Any]], tell: Callable[[], None], kept: list[Any], mode: str) -> float:
    """Give the CPU seconds that attaching adds to a step, with a model that answers at once."""
    stock = type(pipe.transformer)
    forward, answers = stock.forward, list(kept)

    def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        answers.append(answers.pop(0))
        return answers[-1]

    def clock() -> float:
        tell()
        step()
        times = []
        for _ in range(KEPT_CALLS):
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
        return statistics.median(times)

    with attach(pipe, Empty(), mode=mode):
        stock.forward = answer
        try:
            attached = clock()
        finally:
            stock.forward = forward
    stock.forward = answer
    try:
        return attached - clock()
    finally:
        stock.forward = forward


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    if not HEAP.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**HEAP, **os.environ})  # read at start-up alone
    torch.set_num_threads(1)
    about = {"torch": torch.__version__, "device": "cpu, one thread", "rounds": args.rounds}
    lines = []
    for name, build in (("wan", wan), ("cogvideox", cogvideox)):
        torch.manual_seed(0)
        with torch.no_grad():
            found = measure(*build(), rounds=args.rounds)
        stock = found.pop("stock")["seconds"]
        for variant, row in found.items():
            lines.append({**about, "model": name, "variant": variant, **row, "stock_seconds": stock})
            print(json.dumps(lines[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
