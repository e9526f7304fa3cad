"""The demo: base, plain adapter and PILA on the embedded backbone, generated, measured and compared in minutes.

One seed, a few clips, a tiny backbone: it shows that the machinery works and what its figures look like. It is headed
"demo, not a claim" because it is one.
"""

import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from bench import live
from bench.generate import Made, Order, Setting, System, carry_out_all
from bench.measure import REFERENCES
from physworld import MECHANISMS
from physworld.evaluation import Scored
from physworld.paired import LEAST, Difference, by_mechanism

BASE = System("base")


@dataclass(frozen=True)
class Result:
    """Everything that the report shows. `scored[mechanism][source]`, `comparisons[pair][mechanism or "all"]`."""

    setting: Setting
    systems: tuple[str, ...]
    scored: dict[str, dict[str, Scored]]
    comparisons: tuple[dict[str, Difference], ...]
    videos: dict[str, dict[str, np.ndarray]]
    live: live.LiveRun | None
    bundles: dict[str, dict[str, Any]]
    backbone: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[str, ...]:
        """References first, then systems."""
        return (*REFERENCES, *self.systems)

    def mean(self, source: str, what: str) -> float:
        """Mean over mechanisms of a source's `pass_share` or `score`."""
        return float(np.mean([getattr(by_source[source], what) for by_source in self.scored.values()]))

    def to_json(self) -> str:
        """Write every figure, clip by clip, but no video."""
        content = {
            "what": "demo, not a claim",
            "setting": asdict(self.setting),
            "systems": self.systems,
            "backbone": self.backbone,
            "bundles": self.bundles,
            "pass_share": {m: {s: v.pass_share for s, v in by.items()} for m, by in self.scored.items()},
            "score": {m: {s: v.score for s, v in by.items()} for m, by in self.scored.items()},
            "differences": [{m: asdict(d) for m, d in compared.items()} for compared in self.comparisons],
            "clips": {m: {s: asdict(v) for s, v in by.items()} for m, by in self.scored.items()},
            "live": None if self.live is None else asdict(self.live),
            "seconds": self.seconds,
            "environment": environment(),
        }
        return json.dumps(_finite(content), indent=1) + "\n"


def shipped_systems() -> tuple[System, ...]:
    """Name the systems of the demo: the bare backbone, the plain adapter, PILA (bundles found by entry point)."""
    from backbones import bundle

    return BASE, System("plain", bundle.shipped("plain")), System("PILA", bundle.shipped("pila"))


def pairs(systems: Sequence[str]) -> list[tuple[str, str]]:
    """List what is compared with what: the last system with the base first, then every other pair.

    >>> pairs(["base", "plain", "PILA"])
    [('PILA', 'base'), ('plain', 'base'), ('PILA', 'plain')]
    """
    later = list(reversed(systems[1:]))
    return [(name, systems[0]) for name in later] + [
        (a, b) for index, a in enumerate(later) for b in later[index + 1 :]
    ]


def run(
    setting: Setting,
    systems: Sequence[System],
    *,
    mechanisms: Sequence[str] = MECHANISMS,
    workers: int = 2,
    train_live: bool = True,
    console: Console | None = None,
) -> Result:
    """Train a few live steps, generate and measure every system, compare them clip by clip.

    ValueError before anything is trained or generated when backbone or bundles are missing or do not fit.
    """
    console = console or Console(stderr=True)
    backbone = _fitting(setting, systems)
    seconds: dict[str, float] = {}
    began = time.monotonic()
    trained = _train_live(setting, console) if train_live else None
    seconds["live training"] = time.monotonic() - began
    orders = [Order(setting, mechanism, system) for system in (*systems, None) for mechanism in mechanisms]
    orders.sort(key=lambda order: order.system is None or order.system.bundle is None)  # the slowest first
    began = time.monotonic()
    with _bar(console, "generate and measure", sum(order.clips for order in orders)) as advance:
        made = carry_out_all(orders, workers=workers, done=lambda order: advance(order.clips))
    seconds["generation and measurement"] = time.monotonic() - began
    return assemble(setting, systems, mechanisms, made, trained, backbone, seconds)


def assemble(
    setting: Setting,
    systems: Sequence[System],
    mechanisms: Sequence[str],
    made: Sequence[Made],
    trained: live.LiveRun | None,
    backbone: dict[str, Any],
    seconds: dict[str, float],
) -> Result:
    """Put the pieces together and compare the systems."""
    by_source = {(one.mechanism, one.source): one for one in made}
    names = [system.name for system in systems]
    scored = {m: {s: by_source[m, s].scored for s in (*REFERENCES, *names)} for m in mechanisms}
    comparisons = tuple(
        by_mechanism(
            a,
            b,
            {m: scored[m][a].scores for m in mechanisms},
            {m: scored[m][b].scores for m in mechanisms},
            seed=setting.seed,
        )
        for a, b in pairs(names)
    )
    return Result(
        setting=setting,
        systems=tuple(names),
        scored=scored,
        comparisons=comparisons,
        videos={m: {s: by_source[m, s].videos for s in (*names, "real")} for m in mechanisms},
        live=trained,
        bundles={system.name: _about(system) for system in systems},
        backbone=backbone,
        seconds=seconds,
    )


def tables(result: Result) -> list[Table]:
    """Show pass shares and paired differences on the terminal."""
    title = f"demo, not a claim: share of clips that obey their law ({result.setting.clips} a mechanism, one seed)"
    shares = Table(Column("mechanism", no_wrap=True), *result.sources, title=title)
    for mechanism, by_source in result.scored.items():
        shares.add_row(mechanism, *(f"{by_source[s].pass_share:.2f}" for s in result.sources))
    shares.add_row("mean", *(f"{result.mean(s, 'pass_share'):.2f}" for s in result.sources), style="bold")
    shares.add_row("mean score", *(f"{result.mean(s, 'score'):.2f}" for s in result.sources), style="dim")
    differences = Table(
        Column("mechanism", no_wrap=True),
        title="paired difference in score, 95 % bootstrap interval",
        caption=f"* excludes zero; no interval below {LEAST} clips a mechanism",
    )
    for compared in result.comparisons:
        first = next(iter(compared.values()))
        differences.add_column(f"{first.a} - {first.b}")
    for name in result.comparisons[0] if result.comparisons else ():
        cells = [_interval(compared[name]) for compared in result.comparisons]
        differences.add_row(name, *cells, style="bold" if name == "all" else None)
    return [shares, differences] if result.comparisons else [shares]


def environment() -> dict[str, str]:
    """Name the machine and the versions that the figures belong to."""
    names = ("torch", "diffusers", "transformers", "numpy", "physworld", "physbackbones")
    unit = 1024**2 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "processor": _processor(),
        "python": platform.python_version(),
        "largest process": f"{peak / unit:.0f} MiB",
        **{name: version(name) for name in names},
    }


def _train_live(setting: Setting, console: Console) -> live.LiveRun:
    with tempfile.TemporaryDirectory(prefix="bench-live-") as folder:
        out = Path(folder) / "run"
        with _bar(console, "train PILA live", 60, note="starting") as advance:
            at = 0

            def watch(step: int, stage: str, loss: float) -> None:
                nonlocal at
                advance(step - at, f"{stage}: loss {loss:.3f}")
                at = step

            command = live.pila_command(out, setting.backbone, setting.seed)
            return live.run(command, out, shown="pila train", watch=watch)


@contextmanager
def _bar(console: Console, name: str, total: int, note: str = "") -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, note=note)
        yield lambda amount, text="": progress.update(task, advance=amount, note=text)


def _fitting(setting: Setting, systems: Sequence[System]) -> dict[str, Any]:
    """Load the backbone and hold every bundle against it; say what the backbone is."""
    import backbones
    from backbones import bundle

    backbone = backbones.load(setting.backbone)
    for system in systems:
        if system.bundle is not None:
            try:
                bundle.check(bundle.load(system.bundle), backbone)
            except ValueError as error:
                raise ValueError(f"{system.name} cannot be compared: {error}") from None
    parameters = sum(p.numel() for p in backbone.transformer.parameters())
    return {"id": backbone.id, "digest": backbone.digest, "parameters": parameters}


def _about(system: System) -> dict[str, Any]:
    if system.bundle is None:
        return {"kind": "frozen backbone"}
    from backbones import bundle

    stored = bundle.load(system.bundle)
    parameters = sum(tensor.numel() for group in stored.tensors.values() for tensor in group.values())
    return {"kind": stored.kind, "parameters": parameters, "stages": stored.meta["stages"]}


def _interval(difference: Difference) -> str:
    return f"{difference} *" if difference.clear else str(difference)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _finite(value: Any) -> Any:
    """Turn what JSON cannot say (NaN, infinities) into null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value if not isinstance(value, float) or np.isfinite(value) else None
