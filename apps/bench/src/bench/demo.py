"""The demo: base, plain adapter and PILA on the embedded backbone, generated, measured and compared in minutes.

One seed, a few clips, a tiny backbone: it shows that the machinery works and what its figures look like. It is headed
"demo, not a claim" because it is one. The adapters of the other papers join when asked (`also`), each for up to 40 s.
"""

import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from rich.table import Column, Table

from bench import live, results, world
from bench.generate import Setting, System
from bench.results import Comparison, Result
from physworld import MECHANISMS, paired
from trainers import show

MAIN = {"plain": "plain", "PILA": "pila"}
"""What is always compared with the base: names and shipped bundles."""
TITLE = "Does a physics adapter make a tiny video generator more plausible?"
BADGE = "demo, not a claim"


def further() -> list[str]:
    """Name the other bundles that installed packages ship and that are there."""
    from backbones import bundle

    shipped = [e.name for e in entry_points(group=bundle.SHIPPED) if e.name not in MAIN.values()]
    return sorted(name for name in shipped if (bundle.shipped(name) / bundle.META).is_file())


def shipped_systems(also: Sequence[str] = ()) -> tuple[System, ...]:
    """Name the systems of the demo: the bare backbone, the plain adapter, PILA, and the bundles of `also` ("all")."""
    from backbones import bundle

    known = further()
    if strange := set(also) - {*known, "all"}:
        raise ValueError(f"expected --also among {', '.join([*known, 'all'])}, got {', '.join(sorted(strange))}")
    chosen = known if "all" in also else list(dict.fromkeys(also))
    named = {**MAIN, **{name: name for name in chosen}}
    return System("base"), *(System(name, (bundle.shipped(shipped),)) for name, shipped in named.items())


def run(
    setting: Setting,
    systems: Sequence[System],
    out: Path,
    *,
    mechanisms: Sequence[str] = MECHANISMS,
    workers: int = 2,
    train_live: bool = True,
    quiet: bool = False,
) -> Path:
    """Train a few live steps, generate, measure and compare every system; give the folder of the result.

    ValueError before anything is trained or generated when backbone or bundles are missing or do not fit.
    """
    about = world.fitting(setting, systems)
    notes = [limits(setting, about["parameters"])]
    log = None
    if train_live:
        trained = _train_live(setting, out, quiet)
        log = out / "live.jsonl"
        notes.append(
            f"Just before the comparison this run trained {trained.steps} steps of PILA from scratch in "
            f"{trained.seconds:.0f} s, to show the loop (see “Training”). These weights are thrown away: the compared "
            "adapters are the shipped ones."
        )
    said = {"title": TITLE, "notes": notes, "badge": BADGE}
    (folder,) = world.run(setting, systems, out, mechanisms=mechanisms, workers=workers, quiet=quiet, **said)
    result = results.read(folder)
    if text := control_of(result):
        results.write(result.model_copy(update={"notes": (*result.notes, text)}), folder)
    if log is not None:
        log.replace(folder / "log.jsonl")
    return folder


def limits(setting: Setting, parameters: int) -> str:
    """Say what a demo cannot show."""
    clips = f"{setting.clips} clip{'s' if setting.clips != 1 else ''} a mechanism"
    margin = paired.share_margin(setting.clips)
    return (
        "This run shows that generation, correction and measurement work end to end, and roughly which laws the frozen "
        "backbone breaks. It cannot show that a physics structure helps video generation: the backbone has "
        f"{parameters / 1e6:.1f} million parameters and 32-pixel pictures, there is one noise seed and one training "
        f"run a system, and with {clips} a share near one half is uncertain by ±{margin:.2f}."
    )


def control_of(result: Result) -> str:
    """Say how the compared adapters differ, from what their bundles hold."""
    trained = {s.name: (s.parameters, s.steps) for s in result.systems if s.steps is not None}
    if "plain" not in trained or len(trained) < 2:
        return ""
    alike = [name for name, about in trained.items() if name != "plain" and about == trained["plain"]]
    others = [name for name in trained if name != "plain" and name not in alike]
    said = []
    if alike:
        them = " and ".join(alike)
        said.append(
            f"plain has the same size as {them} and as many training steps, but only the generator’s own loss: what "
            f"{them} gains beyond plain is what the physics may have brought; what plain gains over base is training "
            "alone."
        )
    if others:
        said.append(
            f"{' and '.join(others)} and plain do not have equal size and steps (see “Systems”): a difference between "
            "them may come from that alone."
        )
    return " ".join(said)


def tables(result: Result) -> list[Table]:
    """Show pass shares and paired differences on the terminal."""
    names = [system.name for system in result.systems]
    groups = list(dict.fromkeys(group for system in result.systems for group in system.groups))
    n = min((m["pass"].n for s in result.systems for m in s.groups.values()), default=0)
    heading = f"{result.settings['badge']}: " if "badge" in result.settings else ""
    title = f"{heading}share of clips that obey their law ({n} a mechanism, {result.prompt_set.name})"
    shares = Table(Column("mechanism", no_wrap=True), *names, title=title)
    for group in groups:
        shares.add_row(group, *(_value(s.groups[group]["pass"].value) for s in result.systems))
    shares.add_row("mean", *(_value(s.metrics["pass"].value) for s in result.systems), style="bold")
    shares.add_row("mean score", *(_value(s.metrics["score"].value) for s in result.systems), style="dim")
    return [shares, *([differences(result.comparisons)] if result.comparisons else [])]


def differences(comparisons: Sequence[Comparison], metric: str = "score") -> Table:
    """Show paired differences of one metric, pairs as columns."""
    found = [c for c in comparisons if c.metric == metric]
    pairs = list(dict.fromkeys((c.a, c.b) for c in found))
    by_key = {(c.a, c.b, c.group): c for c in found}
    table = Table(
        Column("group", no_wrap=True),
        *(f"{a} - {b}" for a, b in pairs),
        title=f"paired difference in {metric}, 95 % bootstrap interval",
        caption=f"* p below .05 after Holm's correction; no interval below {paired.LEAST} clips a group",
    )
    for group in sorted(dict.fromkeys(c.group for c in found), key=lambda g: g == ""):
        cells = [_interval(by_key.get((a, b, group))) for a, b in pairs]
        table.add_row(group or "all", *cells, style="bold" if group == "" else None)
    return table


def _train_live(setting: Setting, out: Path, quiet: bool) -> live.LiveRun:
    with (
        tempfile.TemporaryDirectory(prefix="bench-live-") as folder,
        show.bar("train PILA live", 60, quiet=quiet) as bar,
    ):
        place = Path(folder) / "run"
        command = live.pila_command(place, setting.backbone, setting.seeds[0])
        trained = live.run(
            command,
            place,
            shown="pila train",
            watch=lambda step, stage, loss: bar.update(step, f"{stage}: loss {loss:.3f}"),
        )
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / "log.jsonl", out / "live.jsonl")
        return trained


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(one: Comparison | None) -> str:
    if one is None or one.mean is None:
        return "–"
    if one.low is None or one.high is None:
        return f"{one.mean:+.3f}"
    star = " *" if one.p_corrected is not None and one.p_corrected < 0.05 else ""
    return f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]{star}"
