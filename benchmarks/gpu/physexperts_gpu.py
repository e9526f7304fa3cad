"""Token-level experts on a GPU: beside transformers' kernels and scattermoe, the router's share, waits, and bits.

    uv run python benchmarks/gpu/physexperts_gpu.py [--out runs/physexperts_gpu.json]
    OMP_NUM_THREADS=1 uv run python benchmarks/gpu/physexperts_gpu.py --device cpu --tokens 64 --dim 32 --repeats 2

Gated experts in bf16 with the same weights and the same routing: physexperts (its native and its own loop, eager and
compiled), transformers' eager, grouped_mm and sonicmoe, and scattermoe; what does not install is a line that says so.
One JSON line a measurement.
Checks before any timing: every candidate gives the same output, two runs of ours give the same bits, and a forward and
backward under CUDA's sync detector waits for nothing. Medians over interleaved rounds, timed by events on a GPU. The
goals: within 10 % of the best peer, router and statistics at most 5 % of the mixture.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from physexperts import GLUExperts, Mixture, TokenTopKRouter

PEERS = ("eager", "grouped_mm", "sonicmoe")


def seconds(run: Callable[[], object], device: str) -> float:
    """One run, timed on the device."""
    if device == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


def interleaved(runs: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, dict[str, float]]:
    """Median and middle half in ms of each, round by round, after three rounds of warming up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 3):
        for name, run in runs.items():
            took = seconds(run, device)
            if turn >= 3:
                times[name].append(1e3 * took)
    out = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        out[name] = {"ms": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}
    return out


def theirs(module: GLUExperts, name: str, device: str) -> torch.nn.Module:
    """Transformers' experts with the same weights, run by the kernel of that name."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    _, double, dim = module.gate_up_proj.shape
    config = SimpleNamespace(
        num_experts=len(module),
        num_local_experts=len(module),
        hidden_size=dim,
        moe_intermediate_size=double // 2,
        hidden_act="silu",
        _experts_implementation=name,
    )
    peer = Qwen3MoeExperts(config).to(device, module.gate_up_proj.dtype)
    peer.load_state_dict(module.state_dict())
    return peer


def scattermoe(module: GLUExperts, k: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """scattermoe's gated MLP with the same weights; its order is (up, gate), ours (gate, up)."""
    from scattermoe.mlp import GLUMLP

    experts, double, dim = module.gate_up_proj.shape
    peer = GLUMLP(dim, double // 2, experts, k, activation=torch.nn.SiLU()).to(module.gate_up_proj)
    gate, up = module.gate_up_proj.detach().chunk(2, 1)
    with torch.no_grad():
        peer.experts.weight.copy_(torch.cat([up, gate], 1))
        peer.output_experts.weight.copy_(module.down_proj)
    return lambda x, index, weights: peer(x, weights, index)


def candidates(
    module: GLUExperts, sample: tuple[Tensor, Tensor, Tensor], k: int, device: str, *, eager: bool
) -> dict[str, Callable]:
    """Every way to run that installs and agrees with the loop; with `eager` without what is compiled."""
    native = GLUExperts(len(module), module.down_proj.shape[1], module.down_proj.shape[2], implementation="grouped_mm")
    loop = GLUExperts(len(module), module.down_proj.shape[1], module.down_proj.shape[2], implementation="loop")
    makers: dict[str, Callable[[], Callable]] = {
        "physexperts native": lambda: native,
        "physexperts loop": lambda: loop,
        "physexperts native compiled": lambda: torch.compile(native, fullgraph=True),
        **{f"transformers {name}": (lambda name=name: theirs(module, name, device)) for name in PEERS},
        "scattermoe": lambda: scattermoe(module, k),
    }
    if eager:
        del makers["physexperts native compiled"]
    for made in (native, loop):
        made.to(device, module.down_proj.dtype).load_state_dict(module.state_dict())
    found: dict[str, Callable] = {"physexperts auto": module}
    want = loop(*sample).detach().float()
    for name, make in makers.items():
        try:
            run = make()
            got = run(*sample)
            got.sum().backward()
            close = {"rtol": 0.05, "atol": 0.05 * float(want.abs().mean()) + 1e-2}
            torch.testing.assert_close(got.detach().float(), want, **close)
        except Exception as error:  # what does not install or run here has no figure
            print(json.dumps({"skipped": name, "why": f"{type(error).__name__}: {error}"[:300]}), flush=True)
            continue
        found[name] = run
    return found


def check(module: Mixture, x: Tensor, device: str) -> dict[str, bool]:
    """Equal bits twice, forward and backward; and no wait for the device."""

    def run() -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_()
        out = module(leaf).delta
        return out, *torch.autograd.grad(out.float().square().mean(), (leaf, *module.parameters()))

    first = run()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        second = run()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    found = {"equal bits twice": same, "finite": all(bool(t.isfinite().all()) for t in second)}
    return found | ({"no wait": True} if device == "cuda" else {})  # a wait would have raised


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32760)
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="without what is compiled")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    n, c, k, device = args.tokens, args.dim, args.k, args.device
    if device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    about = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__}
    lines: list[dict[str, object]] = []

    def report(experts: int, what: str, found: dict[str, dict]) -> None:
        for who, figures in found.items():
            lines.append(
                {**about, "experts": experts, "tokens": n, "dim": c, "k": k, "what": what, "who": who, **figures}
            )
            print(json.dumps(lines[-1]), flush=True)

    for experts in args.experts:
        torch.manual_seed(0)
        module = GLUExperts(experts, c, c // 2).to(device, torch.bfloat16)
        router = TokenTopKRouter(c, experts, k).to(device, torch.bfloat16)
        mixture = Mixture(router, module).train()
        x = torch.randn(n, c, device=device, dtype=torch.bfloat16, requires_grad=True)
        seed = torch.randn_like(x)
        with torch.no_grad():
            routing = router(x)
        sample = (x, routing.indices, routing.weights.to(x.dtype))
        report(experts, "checks", {"mixture": check(mixture, x, device)})
        runs = candidates(module, sample, k, device, eager=args.eager)

        def forward(run: Callable, sample: tuple[Tensor, Tensor, Tensor] = sample) -> Callable[[], None]:
            def once() -> None:
                with torch.no_grad():
                    run(*sample)

            return once

        def both(
            run: Callable, sample: tuple[Tensor, Tensor, Tensor] = sample, seed: Tensor = seed
        ) -> Callable[[], None]:
            return lambda: run(*sample).backward(seed)

        for what, form in (("forward", forward), ("forward and backward", both)):
            timed = interleaved({name: form(run) for name, run in runs.items()}, args.repeats, device)
            report(experts, what, timed)

        def experts_alone(module: GLUExperts = module, sample: tuple = sample, seed: Tensor = seed) -> None:
            module(*sample).backward(seed)

        def whole(mixture: Mixture = mixture, x: Tensor = x, seed: Tensor = seed) -> None:
            mixed = mixture(x)
            torch.autograd.backward([mixed.delta, sum(mixed.losses.values(), mixed.losses["z"] * 0)], [seed, None])

        routed = {"experts": experts_alone, "mixture": whole}
        report(experts, "forward and backward, with its router", interleaved(routed, args.repeats, device))
    if args.out:
        part = args.out.with_name(args.out.name + ".part")
        part.write_text(json.dumps(lines, indent=1) + "\n")
        part.replace(args.out)


if __name__ == "__main__":
    main()
