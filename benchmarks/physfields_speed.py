"""The speed of `physfields` against other field libraries, in multiples of what the memory allows.

    export OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=8589934592
    uv run python benchmarks/physfields_speed.py [--rounds 12] [--compile] [--only NAME ...]

With the peers, which are no dependencies (each is left out with one line where it is missing):

    export XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    uv run --no-project --with-editable ./packages/physfields --with neuraloperator --with kornia \\
        --with phiflow --with jax --with jax-cfd python benchmarks/physfields_speed.py --compile

Fields: velocity (2, 2, 21, 60, 104), scalars (2, 1, 21, 60, 104), fp32: latents of Wan at 480 x 832, two clips. The
bound of a call is the bytes that it must read and write once, over the copy bandwidth of a 20 MB buffer, measured again
in every round: a figure is time / bound, its median over the rounds and its range. Everything is run in every round, so
that all share the machine's good and bad moments; the clock is the CPU time of the process, on one thread, which other
programs on the machine can lengthen only through the caches. The two MALLOC settings keep freed memory in the process,
as training does after its first steps; without them every temporary of 1 MB is handed back and mapped anew. Peers
differentiate on spatial axes with the edges they have: torch and neuraloperator one-sided, kornia and PhiFlow
replicated, jax-cfd (jit, vmap over frames) periodic.

The bundle is fourteen components of ten operators on u, p, rho, T: gradient, divergence, curl, Laplacian, strain rate,
material derivative, momentum, continuity, heat and wave. A launch is a dispatched operator that is no view.
"""

import argparse
import json
import logging
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import physfields as pf

GRID = pf.Grid((0.25, 1.0, 1.0))
BOUND = {  # units of one scalar field: forward, forward with backward
    "gradient": (3, 6),
    "divergence": (3, 6),
    "curl": (3, 6),
    "laplacian": (2, 4),
    "bundle": (19, 42),
}
GOAL = {
    "eager": {"gradient": (7, 12), "divergence": (7, 12), "curl": (7, 12), "laplacian": (10, 15), "bundle": (20, 30)},
    "compiled": {"gradient": (4, 9), "divergence": (4, 9), "curl": (4, 9), "laplacian": (4, 9), "bundle": (6, 14)},
}
Case = tuple[Callable[[], object], Callable[[], object]]  # forward, forward with backward


def bundle(u: Tensor, p: Tensor, rho: Tensor, T: Tensor, grid: pf.Grid = GRID, *, stacked: bool = False):
    """The ten operators on one bank."""
    bank = pf.Derivatives({"u": u, "p": p, "rho": rho, "T": T}, grid, stacked=stacked)
    advected = bank.T.t + bank.T.advected_by(u)
    grad_p = bank.p.grad
    velocity = torch.addcmul(grad_p, rho, bank.u.t + bank.u.advected_by(u))
    flux = pf.divergence(rho * u, grid)
    return (
        grad_p,
        bank.u.div,
        bank.u.curl,
        bank.p.lap,
        bank.u.strain,
        advected,
        velocity.add(bank.u.lap, alpha=-0.1),
        bank.rho.t + flux,
        advected.add(bank.T.lap, alpha=-0.1),
        bank.p.tt - bank.p.lap,
    )


def bundle_of_torch(u: Tensor, p: Tensor, rho: Tensor, T: Tensor):
    """The same ten by `torch.gradient`."""

    def d(f: Tensor, dim: int) -> Tensor:
        return torch.gradient(f, spacing=0.25 if dim == -3 else 1.0, dim=dim, edge_order=2)[0]

    def lap(f: Tensor) -> Tensor:
        return d(d(f, -2), -2) + d(d(f, -1), -1)

    def along(f: Tensor) -> Tensor:
        return u[:, :1] * d(f, -2) + u[:, 1:] * d(f, -1)

    uy, ux = u[:, :1], u[:, 1:]
    grad_p = torch.cat([d(p, -2), d(p, -1)], dim=1)
    strain = torch.cat([d(uy, -2), d(ux, -1), 0.5 * (d(uy, -1) + d(ux, -2))], dim=1)
    return (
        grad_p,
        d(uy, -2) + d(ux, -1),
        d(uy, -1) - d(ux, -2),
        lap(p),
        strain,
        d(T, -3) + along(T),
        rho * (d(u, -3) + along(u)) + torch.cat([d(p, -2), d(p, -1)], dim=1) - 0.1 * lap(u),
        d(rho, -3) + d(rho * uy, -2) + d(rho * ux, -1),
        d(T, -3) + along(T) - 0.1 * lap(T),
        d(d(p, -3), -3) - lap(p),
    )


def case(function: Callable, *inputs: Tensor) -> Case:
    """Forward without a graph; forward and the gradient of all inputs against fixed cotangents."""
    leaves = [f.clone().requires_grad_() for f in inputs]
    with torch.no_grad():
        made = function(*inputs)
    made = made if isinstance(made, tuple) else (made,)
    cotangents = [torch.randn_like(out) for out in made]

    def forward() -> object:
        with torch.no_grad():
            return function(*inputs)

    def both() -> object:
        out = function(*leaves)
        return torch.autograd.grad(out if isinstance(out, tuple) else (out,), leaves, cotangents)

    return forward, both


def of_physfields(u: Tensor, p: Tensor, rho: Tensor, T: Tensor, *, compiled: bool = False) -> dict[str, Case]:
    """This package; compiled by inductor without graph breaks where asked."""

    def maybe(function: Callable) -> Callable:
        return torch.compile(function, fullgraph=True, dynamic=False) if compiled else function

    return {
        "gradient": case(maybe(lambda f: pf.gradient(f, GRID)), p),
        "divergence": case(maybe(lambda f: pf.divergence(f, GRID)), u),
        "curl": case(maybe(lambda f: pf.curl(f, GRID)), u),
        "laplacian": case(maybe(lambda f: pf.laplacian(f, GRID)), p),
        "bundle": case(maybe(bundle), u, p, rho, T),
    }


def of_torch(u: Tensor, p: Tensor, rho: Tensor, T: Tensor) -> dict[str, Case]:
    """`torch.gradient`, edges of second order."""

    def d(f: Tensor, dim: int) -> Tensor:
        return torch.gradient(f, dim=dim, edge_order=2)[0]

    return {
        "gradient": case(lambda f: torch.stack(torch.gradient(f, dim=(-2, -1), edge_order=2), dim=2), p),
        "divergence": case(lambda f: d(f[:, :1], -2) + d(f[:, 1:], -1), u),
        "curl": case(lambda f: d(f[:, :1], -1) - d(f[:, 1:], -2), u),
        "laplacian": case(lambda f: d(d(f, -2), -2) + d(d(f, -1), -1), p),
        "bundle": case(bundle_of_torch, u, p, rho, T),
    }


def of_neuraloperator(u: Tensor, p: Tensor, rho: Tensor, T: Tensor) -> dict[str, Case]:
    """`neuralop.losses.differentiation.FiniteDiff`, not periodic."""
    from neuralop.losses.differentiation import FiniteDiff

    fd = FiniteDiff(dim=2, h=(1.0, 1.0), periodic_in_x=False, periodic_in_y=False)
    frames = u.movedim(1, 2).flatten(0, 1).contiguous()  # (b t, 2, y, x)
    scalar = p.movedim(1, 2).flatten(0, 2).contiguous()
    return {
        "gradient": case(fd.gradient, scalar),
        "divergence": case(fd.divergence, frames),
        "curl": case(fd.curl, frames),
        "laplacian": case(fd.laplacian, scalar),
    }


def of_kornia(u: Tensor, p: Tensor, rho: Tensor, T: Tensor) -> dict[str, Case]:
    """`kornia.filters.spatial_gradient`: two axes, frames as channels."""
    from kornia.filters import spatial_gradient

    frames = p.flatten(1, 2).contiguous()
    cases = {"gradient": case(lambda f: spatial_gradient(f, mode="diff", order=1, normalized=True), frames)}

    def lap(f: Tensor) -> Tensor:
        second = spatial_gradient(f, mode="diff", order=2, normalized=True)
        return second[:, :, 0] + second[:, :, 2]

    return {**cases, "laplacian": case(lap, frames)}


def of_phiflow(u: Tensor, p: Tensor, rho: Tensor, T: Tensor) -> dict[str, Case]:
    """`phi.math` on the torch backend."""
    from phi.torch.flow import batch, extrapolation, math, spatial

    axes = batch("b,t"), spatial("y,x")

    def d(f: Tensor, dims: str):
        wrapped = math.wrap(f, *axes)
        return math.spatial_gradient(wrapped, 1.0, padding=extrapolation.BOUNDARY, dims=dims)

    def gradient(f: Tensor) -> Tensor:
        return d(f, "y,x").native("b,t,y,x,gradient")

    def divergence(f: Tensor) -> Tensor:
        parts = d(f[:, 0], "y").gradient[0] + d(f[:, 1], "x").gradient[0]
        return parts.native("b,t,y,x")

    def curl(f: Tensor) -> Tensor:
        parts = d(f[:, 0], "x").gradient[0] - d(f[:, 1], "y").gradient[0]
        return parts.native("b,t,y,x")

    def laplacian(f: Tensor) -> Tensor:
        return math.laplace(math.wrap(f, *axes), 1.0, padding=extrapolation.BOUNDARY).native("b,t,y,x")

    scalar = p[:, 0].contiguous()
    return {
        "gradient": case(gradient, scalar),
        "divergence": case(divergence, u),
        "curl": case(curl, u),
        "laplacian": case(laplacian, scalar),
    }


def of_jax_cfd(u: Tensor, p: Tensor, rho: Tensor, T: Tensor) -> dict[str, Case]:
    """`jax_cfd.base.finite_differences` under jit, vmapped over frames; periodic."""
    import jax
    import jax.numpy as jnp
    from jax_cfd.base import boundaries, finite_differences, grids

    sizes = p.shape[-2:]
    grid = grids.Grid(sizes, step=(1.0, 1.0))
    around = boundaries.periodic_boundary_conditions(2)

    def field(a):
        return grids.GridVariable(grids.GridArray(a, grid.cell_center, grid), around)

    def d(a, axis: int):
        return finite_differences.central_difference(field(a), axis).data

    def jitted(function: Callable, a) -> Case:
        over = jax.vmap(function)
        forward = jax.jit(over)
        cotangent = jnp.ones_like(forward(a))

        @jax.jit
        def both(a, g):
            out, back = jax.vjp(over, a)
            return out, back(g)

        return (
            lambda: forward(a).block_until_ready(),
            lambda: jax.block_until_ready(both(a, cotangent)),
        )

    scalar = jnp.asarray(p.reshape(-1, *sizes).numpy())
    vector = jnp.asarray(u.movedim(1, 2).reshape(-1, 2, *sizes).numpy())
    return {
        "gradient": jitted(lambda a: jnp.stack([d(a, 0), d(a, 1)]), scalar),
        "divergence": jitted(lambda a: d(a[0], 0) + d(a[1], 1), vector),
        "curl": jitted(lambda a: d(a[0], 1) - d(a[1], 0), vector),
        "laplacian": jitted(lambda a: finite_differences.laplacian(field(a)).data, scalar),
    }


PEERS = {
    "torch.gradient": of_torch,
    "neuraloperator": of_neuraloperator,
    "kornia": of_kornia,
    "PhiFlow": of_phiflow,
    "jax-cfd, jit": of_jax_cfd,
}


class Launches(TorchDispatchMode):
    """Counts dispatched operators, and those of them that are no view."""

    dispatched = 0
    launched = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.dispatched += 1
        empty = func.overloadpacket in (torch.ops.aten.empty, torch.ops.aten.new_empty, torch.ops.aten.detach)
        self.launched += not (func.is_view or empty)
        return func(*args, **(kwargs or {}))


def count(function: Callable[[], object]) -> dict[str, int]:
    """Operators that one call dispatches, after a first call that fills the caches."""
    function()
    with Launches() as mode:
        function()
    return {"launches": mode.launched, "with_views": mode.dispatched}


def seconds(function: Callable[[], object], calls: int) -> float:
    """The fastest of some calls, in CPU time."""
    best = float("inf")
    for _ in range(calls):
        started = time.process_time()
        function()
        best = min(best, time.process_time() - started)
    return best


def measure(cases: dict[str, dict[str, Case]], unit_bytes: int, rounds: int, calls: int) -> dict:
    """Every case in every round: times over the bound of the same round."""
    source = torch.randn(5_000_000)
    target = torch.empty_like(source)
    names = [(library, operator) for library, each in cases.items() for operator in each]
    ratios: dict = {name: ([], []) for name in names}
    micros: dict = {name: ([], []) for name in names}
    bandwidth = []
    for round_ in range(rounds + 1):
        rate = 2 * source.nbytes / seconds(lambda: target.copy_(source), 4)
        for library, operator in names:
            for k in (0, 1):
                taken = seconds(cases[library][operator][k], calls if operator != "bundle" else max(2, calls // 3))
                if round_:  # the first one warms up
                    ratios[library, operator][k].append(taken * rate / (BOUND[operator][k] * unit_bytes))
                    micros[library, operator][k].append(taken * 1e6)
        if round_:
            bandwidth.append(rate / 1e9)
    return {"ratios": ratios, "micros": micros, "bandwidth": bandwidth}


def import_milliseconds(repeats: int = 5) -> list[float]:
    """CPU time of `import physfields` where torch and jaxtyping are loaded, each in a fresh process."""
    code = (
        "import time, torch, jaxtyping; started = time.process_time();"
        "import physfields; print((time.process_time() - started) * 1e3)"
    )
    return [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(repeats)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": round(statistics.median(values), 2), "low": round(min(values), 2), "high": round(max(values), 2)}


def main() -> None:
    """Measure, print a line a case and the ratios to the peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=9, help="calls in a round, of which the fastest counts")
    parser.add_argument("--compile", action="store_true", help="also compiled by inductor (a minute more)")
    parser.add_argument("--only", nargs="*", help="peers, by name")
    parser.add_argument("--shape", type=int, nargs=4, default=(2, 21, 60, 104), metavar=("B", "T", "Y", "X"))
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")  # the peers'
    logging.disable(logging.WARNING)

    b, *axes = args.shape
    u, p, rho, T = (torch.randn(b, c, *axes) for c in (2, 1, 1, 1))
    cases = {"physfields, eager": of_physfields(u, p, rho, T)}
    cases["physfields, stacked"] = {"bundle": case(lambda *f: bundle(*f, stacked=True), u, p, rho, T)}
    if args.compile:
        cases["physfields, compiled"] = of_physfields(u, p, rho, T, compiled=True)
    for name, make in PEERS.items():
        if args.only is not None and name not in args.only:
            continue
        try:
            cases[name] = make(u, p, rho, T)
        except ImportError as error:
            print(f"left out {name}: {error}")

    launches = {}
    for name, grid_path, stacked in (("fields one by one", "rows", False), ("stacked, blocks", "blocks", True)):
        grid = pf.Grid(GRID.spacing, path=grid_path)
        forward, both = case(lambda *f, g=grid, s=stacked: bundle(*f, g, stacked=s), u, p, rho, T)
        launches[name] = {"forward": count(forward), "with_backward": count(both)}
    forward, both = case(bundle_of_torch, u, p, rho, T)
    launches["torch.gradient"] = {"forward": count(forward), "with_backward": count(both)}

    found = measure(cases, p.nbytes, args.rounds, args.calls)
    about = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "device": "cpu, one thread",
    }
    lines: list[dict[str, object]] = []

    def report(**line: object) -> None:
        lines.append(about | line)
        print(json.dumps(lines[-1]), flush=True)

    report(what="copy bandwidth, GB/s", **spread(found["bandwidth"]))
    for (library, operator), (forward_x, both_x) in found["ratios"].items():
        goal = GOAL.get(library.removeprefix("physfields, "), {}).get(operator)
        figures = {"forward": spread(forward_x), "with_backward": spread(both_x), "goal": goal}
        report(what="multiples of the bound", library=library, operator=operator, **figures)
    for name in cases:
        if name.startswith("physfields"):
            continue
        for operator in cases[name]:
            mine = found["micros"]["physfields, eager", operator][1]
            ratios = [theirs / own for theirs, own in zip(found["micros"][name, operator][1], mine, strict=True)]
            report(what="times as long as physfields, eager", library=name, operator=operator, **spread(ratios))
    for name, each in launches.items():
        report(what="launches of the bundle", library=name, **each)
    report(what="import beyond torch and jaxtyping, ms of CPU time", goal=50, **spread(import_milliseconds()))
    if args.out:
        args.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
