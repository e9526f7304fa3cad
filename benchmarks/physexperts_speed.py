"""Token-level experts against one dense product of the same routed work, and against transformers' own experts.

    OMP_NUM_THREADS=1 uv run python benchmarks/physexperts_speed.py [--tokens 8190] [--dim 384] [--repeats 15]

Every row times all its candidates in turn, `--repeats` times over, so that whatever else the machine does falls on all
of them; x is the median of the ratios to the dense product of the same round, with the middle half of them in brackets.
The dense product is one matrix product with as many rows as there are (token, expert) pairs: for linear experts (n k,
dim) @ (dim, dim), for gated ones both products without the activation. Sorting, gathering and summing are in; the
router is timed alone. With one thread the clock is the process's own CPU time, so that other processes cost caches and
not minutes. One JSON line a row.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from physexperts import GLUExperts, LinearExperts, TokenTopKRouter


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate, round by round; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(repeats):
        for name, run in candidates.items():
            synchronize()
            started = clock()
            run()
            synchronize()
            times[name].append(clock() - started)
    return times


def clock() -> float:
    """Seconds of work on one CPU thread (waiting for a core is not work), else of the wall."""
    one = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if one else time.perf_counter()


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median and middle half of each candidate's time over the base's of the same round, and the fastest in ms."""
    out = {}
    for name, values in times.items():
        x = [a / b for a, b in zip(values, times[base], strict=True)]
        low, _, high = statistics.quantiles(x, n=4, method="inclusive")
        out[name] = {
            "x": round(statistics.median(x), 2),
            "low": round(low, 2),
            "high": round(high, 2),
            "ms": round(1e3 * statistics.median(values), 2),
        }
    return out


def backward(module: torch.nn.Module, x: Tensor, index: Tensor, weights: Tensor, seed: Tensor) -> Callable[[], None]:
    """One forward and backward to the tokens, the weights of the routing and the experts."""

    def run() -> None:
        module.zero_grad()
        x.grad = weights.grad = None
        module(x, index, weights).backward(seed)

    return run


def linear(
    n: int, c: int, k: int, experts: int, dtype: torch.dtype, device: str, repeats: int, peers: bool
) -> list[dict]:
    """Linear experts, one product."""
    torch.manual_seed(0)
    module = LinearExperts(experts, c).to(device, dtype)
    x, index, weights, seed = sample(n, c, k, experts, dtype, device)
    rows, matrix = x.detach().repeat(k, 1).requires_grad_(), module.weight[0].detach().clone().requires_grad_()
    rows_seed = seed.repeat(k, 1)

    def dense() -> None:
        rows.grad = matrix.grad = None
        (rows @ matrix.t()).backward(rows_seed)

    with torch.no_grad():
        forward = {"dense product": lambda: rows @ matrix.t(), "physexperts": lambda: module(x, index, weights)}
        forward = ratios(interleaved(forward, repeats), "dense product")
    both = {"dense product": dense, "physexperts": backward(module, x, index, weights, seed)}
    both = ratios(interleaved(both, repeats), "dense product")
    head = {"experts": experts, "kind": "linear", "dtype": str(dtype).removeprefix("torch.")}
    return [head | {"pass": "forward"} | forward, head | {"pass": "forward+backward"} | both]


def gated(
    n: int, c: int, k: int, experts: int, dtype: torch.dtype, device: str, repeats: int, peers: bool
) -> list[dict]:
    """Gated experts of hidden width c / 2, beside transformers' class with the same weights and routing."""
    torch.manual_seed(0)
    hidden = c // 2
    module = GLUExperts(experts, c, hidden).to(device, dtype)
    x, index, weights, seed = sample(n, c, k, experts, dtype, device)
    rows = x.detach().repeat(k, 1).requires_grad_()
    up, down = (w[0].detach().clone().requires_grad_() for w in (module.gate_up_proj, module.down_proj))
    rows_seed = seed.repeat(k, 1)

    def product() -> Tensor:
        return (rows @ up.t())[:, :hidden] @ down.t()

    def dense() -> None:
        rows.grad = up.grad = down.grad = None
        product().backward(rows_seed)

    modules: dict[str, torch.nn.Module] = {"physexperts": module}
    for name in ["eager", "grouped_mm", *(["sonicmoe"] if device == "cuda" else [])] if peers else []:
        peer = theirs(module, c, hidden, name, device, dtype)
        try:
            peer(x, index, weights.to(dtype))
        except Exception as error:  # a kernel that does not install here is a row without a figure, not a crash
            print(json.dumps({"peer": f"transformers {name}", "skipped": f"{type(error).__name__}: {error}"[:200]}))
            continue
        modules[f"transformers {name}"] = peer
    with torch.no_grad():
        for peer in modules.values():
            close = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}  # eager sums in half precision
            torch.testing.assert_close(peer(x, index, weights.to(dtype)), module(x, index, weights), **close)
        run = {name: (lambda peer=peer: peer(x, index, weights.to(dtype))) for name, peer in modules.items()}
        forward = ratios(interleaved({"dense product": product} | run, repeats), "dense product")
    low = weights.detach().to(dtype).requires_grad_()
    run = {name: backward(peer, x, index, low, seed) for name, peer in modules.items()}
    both = ratios(interleaved({"dense product": dense} | run, repeats), "dense product")
    head = {"experts": experts, "kind": "gated", "dtype": str(dtype).removeprefix("torch.")}
    return [head | {"pass": "forward"} | forward, head | {"pass": "forward+backward"} | both]


def sample(
    n: int, c: int, k: int, experts: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, a random routing, and the gradient that comes back."""
    x = torch.randn(n, c, dtype=dtype, device=device, requires_grad=True)
    gates, index = torch.randn(n, experts, device=device).softmax(-1).topk(k)
    return x, index, gates.detach().requires_grad_(), torch.randn(n, c, dtype=dtype, device=device)


def theirs(module: GLUExperts, c: int, hidden: int, name: str, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """Transformers' grouped experts with the same weights."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = SimpleNamespace(
        num_experts=len(module),
        num_local_experts=len(module),
        hidden_size=c,
        moe_intermediate_size=hidden,
        hidden_act="silu",
        _experts_implementation=name,
    )
    peer = Qwen3MoeExperts(config).to(device, dtype)
    peer.load_state_dict(module.state_dict())
    return peer


def router(
    n: int, c: int, k: int, experts: int, dtype: torch.dtype, device: str, repeats: int, peers: bool
) -> list[dict]:
    """The router alone, as a share of the linear experts' forward."""
    gate = TokenTopKRouter(c, experts, k).to(device, dtype)
    module = LinearExperts(experts, c).to(device, dtype)
    x, index, weights, _ = sample(n, c, k, experts, dtype, device)
    with torch.no_grad():
        runs = {"linear experts": lambda: module(x, index, weights), "router": lambda: gate(x)}
        row = ratios(interleaved(runs, repeats), "linear experts")
    return [{"experts": experts, "kind": "router", "dtype": str(dtype).removeprefix("torch."), "pass": "forward"} | row]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8190)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kinds", nargs="+", default=["linear", "gated", "router"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-peers", action="store_true", help="leave transformers out")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    print(json.dumps({"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__} | vars(args)))
    kinds = {"linear": linear, "gated": gated, "router": router}
    for kind in args.kinds:
        for name in args.dtypes:
            for experts in args.experts:
                dtype = getattr(torch, name)
                for row in kinds[kind](
                    args.tokens, args.dim, args.k, experts, dtype, args.device, args.repeats, not args.no_peers
                ):
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
