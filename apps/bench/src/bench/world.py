"""Measure adapters on the simulated world: pass shares with floors and controls, paired differences, two splits.

Every caption is sampled with each noise seed and by each training run; what is counted is the caption, whose figure is
the mean over its noise seeds, so that n is the number of captions and not of films. Intervals come from resampling
captions and training runs (`physworld.paired`); a share of passes has Wilson's. Of every pair the differences by
mechanism are corrected together for being many (Holm), those over all mechanisms likewise.

One result a split, since captions of another split are another prompt set: `OUT/test/result.json`,
`OUT/ood/result.json`, the videos that are shown beside them, and what was measured in `OUT/parts`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import generate, results
from bench.compare import differences, figure, law
from bench.generate import KEPT, Order, Setting, System
from bench.references import BLIND, MAY_RUN_BACKWARDS, REFERENCES, ROLES
from bench.results import Item, PromptSet, Result
from physworld import MECHANISMS, SIZE, paired
from physworld.evaluation import Scored, noise_seeds
from physworld.metrics import Thresholds
from physworld.simulation import caption
from trainers import show

METRICS = {"pass": "passes", "score": "scores"}
MAPS = {"pila": "--fields", "prophy": "--maps", "phantom": "--save-physics"}
"""What makes the `generate` of an app draw what its adapter saw."""

Figures = Mapping[tuple[str, int, int], Scored]
"""What was measured of a source, by (mechanism, noise seed, training run)."""


def run(
    setting: Setting,
    systems: Sequence[System],
    out: Path,
    *,
    mechanisms: Sequence[str] = MECHANISMS,
    workers: int = 2,
    maps: bool = False,
    title: str = "Physical plausibility on the simulated world",
    notes: Sequence[str] = (),
    badge: str = "",
    quiet: bool = False,
) -> list[Path]:
    """Generate and measure every system on every split and write a result folder for each.

    ValueError before anything is generated when backbone or bundles are missing or do not fit.
    """
    about = fitting(setting, systems)
    orders = [
        order
        for split in setting.splits
        for mechanism in mechanisms
        for order in _orders(setting, systems, split, mechanism, out)
    ]
    orders.sort(key=lambda order: (order.reference, order.bundle is None))  # the slowest first
    with show.bar("generate and measure (clips)", len(orders) * setting.clips, quiet=quiet) as bar:

        def finished(done: int, before: bool) -> None:
            bar.skip(setting.clips * before)
            bar.update(setting.clips * done)

        scored = generate.carry_out_all(orders, workers=workers, done=finished)
    if maps:
        _draw_maps(orders, quiet)
    folders = []
    for split in setting.splits:
        mine = {order: figures for order, figures in scored.items() if order.split == split}
        result = assemble(
            setting, systems, split, mechanisms, mine, about, out=out, title=title, notes=notes, badge=badge
        )
        folders.append(results.write(result, out / split).parent)
    return folders


def fitting(setting: Setting, systems: Sequence[System]) -> dict[str, Any]:
    """Load the backbone and hold every bundle against it; say what the backbone and the bundles are."""
    import backbones
    from backbones import bundle

    names = [system.name for system in systems] + list(REFERENCES)
    if len(set(names)) < len(names):
        raise ValueError(f"expected every system under its own name, none of {', '.join(REFERENCES)}; got {names}")
    backbone = backbones.load(setting.backbone)
    found: dict[str, Any] = {}
    for system in systems:
        stored = []
        for folder in system.bundles:
            try:
                stored.append(bundle.load(folder))
                bundle.check(stored[-1], backbone)
            except ValueError as error:
                raise ValueError(f"{system.name} cannot be compared: {error}") from None
        found[system.name] = stored
    parameters = sum(p.numel() for p in backbone.transformer.parameters())
    return {"bundles": found, "backbone": f"{backbone.id} ({backbone.digest})", "parameters": parameters}


def named(given: Sequence[str]) -> list[System]:
    """Read `[NAME=]BUNDLE` arguments: the same name again is another training run of that system.

    Without a name, what a package ships or the hub holds keeps its own, and a folder's bundle is called by its kind, or
    by its place where that is taken.
    """
    from backbones import bundle

    runs: dict[str, list[Path]] = {}
    for text in given:
        name, _, place = text.rpartition("=")
        folder = bundle.resolve(place)
        if not name:
            parts = [p for p in folder.parts if p not in ("bundle", "bundles")]
            name = bundle.load(folder).kind if Path(place).exists() else place
            name = name if name not in runs else "/".join(parts[-2:])
        runs.setdefault(name, []).append(folder)
    return [System(name, tuple(folders)) for name, folders in runs.items()]


def assemble(
    setting: Setting,
    systems: Sequence[System],
    split: str,
    mechanisms: Sequence[str],
    scored: Mapping[Order, Scored],
    about: Mapping[str, Any],
    *,
    out: Path,
    title: str = "",
    notes: Sequence[str] = (),
    badge: str = "",
) -> Result:
    """Put the parts of one split together and compare the systems."""
    by_source: dict[str, dict[tuple[str, int, int], Scored]] = {}
    videos: dict[tuple[str, str, int], Path] = {}
    for order, figures in scored.items():
        by_source.setdefault(order.name, {})[order.mechanism, order.seed, order.run] = figures
        if order.seed == setting.seeds[0] and order.run == 0:
            for index in range(min(KEPT, setting.clips)):
                videos[order.name, order.mechanism, index] = generate.kept(order, index)
    folder = out / split
    measured, tables = [], dict[str, dict[str, dict[str, np.ndarray]]]()
    for source in [*(s.name for s in systems), *REFERENCES]:
        figures = by_source[source]
        tables[source] = {name: table(figures, what, mechanisms) for name, what in METRICS.items()}
        measured.append(
            results.System(
                name=source,
                role=ROLES.get(source, "system"),
                metrics={name: figure(name, list(by.values())) for name, by in tables[source].items()},
                groups={m: {name: figure(name, [by[m]]) for name, by in tables[source].items()} for m in mechanisms},
                items=tuple(_items(source, figures, split, mechanisms, videos, folder)),
                **_who(source, setting, about),
            )
        )
    said = [caption(m, i, split=split) for m in mechanisms for i in range(setting.clips)]
    result = Result(
        benchmark="world",
        title=f"{title}: {split}" if len(setting.splits) > 1 else title,
        prompt_set=PromptSet(name=f"world {split}", count=len(said), digest=results.digest(said)),
        rater=law(),
        systems=tuple(measured),
        comparisons=tuple(differences({s.name: tables[s.name] for s in systems})),
        settings={
            "group": "mechanism",
            **({"badge": badge} if badge else {}),
            "backbone": about["backbone"],
            "parameters of the backbone": about["parameters"],
            "split": split,
            "clips a mechanism": setting.clips,
            "noise seeds": list(setting.seeds),
            "steps": setting.steps,
            "guidance": setting.guidance,
            "pixels": SIZE * setting.scale,
        },
        versions=results.versions("diffusers", "transformers"),
        notes=tuple(notes),
    )
    return result.model_copy(update={"notes": (*notes, *_warnings(result))})


def table(figures: Figures, what: str, mechanisms: Sequence[str]) -> dict[str, np.ndarray]:
    """Give a source's figures by mechanism as (training runs, captions), each the mean over the noise seeds."""
    runs, seeds = sorted({run for _, _, run in figures}), sorted({seed for _, seed, _ in figures})
    return {
        m: np.array([np.mean([getattr(figures[m, s, r], what) for s in seeds], axis=0) for r in runs], float)
        for m in mechanisms
    }


def blind(result: Result) -> list[str]:
    """Name the controls that pass where their gate should stop them."""
    found = []
    for system in result.systems:
        for group, metrics in system.groups.items() if system.role == "control" else ():
            share = metrics["pass"].value or 0.0
            excused = system.name == "reversed" and group in MAY_RUN_BACKWARDS
            if share > BLIND and not excused:
                passed = round(share * metrics["pass"].n)
                found.append(f"{group.replace('_', ' ')}, {system.name}: {passed} of {metrics['pass'].n}")
    return found


def _orders(setting: Setting, systems: Sequence[System], split: str, mechanism: str, out: Path) -> Iterator[Order]:
    for name in REFERENCES:  # no noise in them
        yield Order(out, setting, mechanism, split, setting.seeds[0], name, reference=True)
    for system in systems:
        for run, bundle in enumerate(system.bundles or (None,)):
            for seed in setting.seeds:
                yield Order(out, setting, mechanism, split, seed, system.name, run, bundle)


def _items(
    source: str,
    figures: Figures,
    split: str,
    mechanisms: Sequence[str],
    videos: Mapping[tuple[str, str, int], Path],
    folder: Path,
) -> Iterator[Item]:
    thresholds, several = Thresholds.load(), len({run for _, _, run in figures}) > 1
    for (mechanism, seed, run), scored in sorted(figures.items(), key=lambda f: (mechanisms.index(f[0][0]), f[0][1:])):
        noise = noise_seeds(mechanism, len(scored.scores), seed)
        for index, measures in enumerate(scored.measures):
            values: dict[str, float | None] = {"score": scored.scores[index], "pass": float(scored.passes[index])}
            details: dict[str, Any] = {"failed": thresholds.why_not(mechanism, measures)}
            path = videos.get((source, mechanism, index)) if (seed, run) == min(k[1:] for k in figures) else None
            pictures = {}
            if path is not None and path.is_file():
                details |= json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) | {"tiny": True}
                drawn = sorted(path.parent.glob(f"{path.stem}-*.png"))
                pictures = {p.stem.removeprefix(f"{path.stem}-"): p.relative_to(folder).as_posix() for p in drawn}
            yield Item(
                id=f"{split}-{mechanism}-{index:06d}",
                group=mechanism,
                prompt=caption(mechanism, index, split=split),
                video=None if path is None or not path.is_file() else path.relative_to(folder).as_posix(),
                pictures=pictures,
                seed=None if source in ROLES else noise[index],
                run=run if several else None,
                values=values | measures,
                details=details,
            )


def _who(source: str, setting: Setting, about: Mapping[str, Any]) -> dict[str, Any]:
    if source in ROLES:
        return {"kind": "reference"}
    stored = about["bundles"][source]
    who = {"backbone": about["backbone"], "sampling_seeds": setting.seeds}
    if not stored:
        return who | {"kind": "frozen backbone", "parameters": 0}
    seeds = [one.config.get("seed") for one in stored]
    return who | {
        "kind": stored[0].kind,
        "bundle": ", ".join(one.meta["sha256"][:16] for one in stored),
        "config_hash": results.digest(stored[0].config | {"seed": None}),
        "training_seeds": tuple(seed for seed in seeds if isinstance(seed, int)),
        "parameters": sum(t.numel() for group in stored[0].tensors.values() for t in group.values()),
        "steps": sum(stage["steps"] for stage in stored[0].meta["stages"]),
    }


def _warnings(result: Result) -> list[str]:
    said = []
    if found := blind(result):
        said.append(
            f"Controls pass where they should fail: {'; '.join(found)}. Trust these rows less, or take more clips."
        )
    if min(m["pass"].n for s in result.systems for m in s.groups.values()) < paired.LEAST:
        said.append(f"No interval is given below {paired.LEAST} clips a mechanism.")
    return said


def _draw_maps(orders: Sequence[Order], quiet: bool) -> None:
    """Let the apps draw what their adapters saw, for the first clip of each mechanism that has no picture yet."""
    from backbones import bundle

    wanted = []
    for order in orders:
        first = order.bundle is not None and order.run == 0 and order.seed == order.setting.seeds[0]
        kind = bundle.load(order.bundle).kind if first and order.bundle is not None else ""
        if kind in MAPS and not list(generate.kept(order, 0).parent.glob(f"{generate.slug(order.name)}-*.png")):
            wanted.append((order, kind))
    with show.bar("draw maps", len(wanted), quiet=quiet) as bar:
        for done, (order, kind) in enumerate(wanted):
            out = generate.kept(order, 0)
            part = out.with_name(f"maps-{out.name}")
            (seed,) = noise_seeds(order.mechanism, 1, order.seed)
            text = caption(order.mechanism, 0, split=order.split)
            command = [sys.executable, "-m", f"{kind}.cli", "generate", text, "--bundle", str(order.bundle)]
            command += ["--seed", str(seed), MAPS[kind], "--out", str(part)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if ended.returncode:
                raise ValueError(
                    f"expected `{kind} generate {MAPS[kind]}` to draw maps, it said: {ended.stderr.strip()}"
                )
            for picture in part.parent.glob(f"{part.stem}-*.png"):
                picture.replace(picture.with_name(picture.name.removeprefix("maps-")))
            for rest in part.parent.glob(f"{part.stem}*"):
                rest.unlink()
            bar.update(done + 1)
