"""A simulated data set on disk: clips, exact fields, captions, labels, in a folder that any trainer here can read.

```
DIR/dataset.json                    split, scale and whether fields are kept: what a resumed run must agree with
DIR/records.jsonl                   one WISA-80K record a line (plus labels, seed, law's parameters), sorted by id
DIR/clips/<mechanism>/<id>.mp4      lossless RGB: the colours ARE the fields, so a lossy codec would bend the physics
DIR/fields/<mechanism>/<id>.npz     `<slot>` float16 (t, h, w, components) and `<slot>.valid` bool (t, h, w); no pickles
DIR/sheet-<mechanism>.png           what a person looks at
```

Clips are spread evenly over the eight mechanisms with seeds 0, 1, 2, ...; the same call makes the same files. Every
file appears by rename, and a record is written only after its files, so that a killed run is continued by the same
command.
"""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import physworld
from physworld import MECHANISMS, Clip
from trainers import show
from world.sheet import save_sheet

SEEDS_PER_JOB = 25
"""Seeds simulated together: enough for the batched solvers, few enough to lose little when killed (our choice)."""


@dataclass(frozen=True)
class Job:
    """Clips of one mechanism that one worker makes in one go."""

    folder: Path
    mechanism: str
    seeds: tuple[int, ...]
    split: str
    scale: int
    fields: bool


@dataclass(frozen=True)
class Made:
    """What a call of `make` did: clips written now, clips found complete, and the picture of each mechanism."""

    written: int
    kept: int
    sheets: tuple[Path, ...]


def clip_id(mechanism: str, seed: int, split: str) -> str:
    """Name a clip.

    >>> clip_id("fluid", 7, "train")
    'train-fluid-000007'
    """
    return f"{split}-{mechanism}-{seed:06d}"


def share(clips: int) -> dict[str, int]:
    """Spread a number of clips over the mechanisms, the first ones taking what is left over.

    >>> share(10)["rigid_body"], share(10)["optical"]
    (2, 1)
    """
    each, rest = divmod(clips, len(MECHANISMS))
    return {mechanism: each + (index < rest) for index, mechanism in enumerate(MECHANISMS)}


def make(
    folder: Path,
    *,
    clips: int,
    split: str = "train",
    scale: int = 1,
    fields: bool = True,
    workers: int = 1,
    sheets: bool = True,
    quiet: bool = True,
) -> Made:
    """Make or complete a data set; a bar shows the clips unless it is `quiet`.

    Raises:
        ValueError: if there is no such split, or the folder holds a data set of another split, scale or kind.
    """
    if split not in physworld.SPLITS:  # before the folder says so
        raise ValueError(f"expected a split, one of {', '.join(physworld.SPLITS)}, got {split!r}")
    folder.mkdir(parents=True, exist_ok=True)
    _agree(folder / "dataset.json", {"split": split, "scale": scale, "fields": fields})
    known = _known(folder)
    wanted = {m: [s for s in range(n) if clip_id(m, s, split) not in known] for m, n in share(clips).items()}
    jobs = [
        Job(folder, mechanism, tuple(seeds[start : start + SEEDS_PER_JOB]), split, scale, fields)
        for mechanism, seeds in wanted.items()
        for start in range(0, len(seeds), SEEDS_PER_JOB)
    ]
    jobs.sort(key=lambda job: job.seeds[0])  # mechanisms in turn: what is left takes as long as what was done
    written, kept = 0, clips - sum(len(seeds) for seeds in wanted.values())
    with (
        (folder / "records.jsonl").open("a", encoding="utf-8") as lines,
        show.bar("clips", clips, quiet=quiet) as bar,
    ):
        bar.skip(kept)
        bar.update(kept)
        for records in _run(jobs, workers):
            lines.writelines(json.dumps(record) + "\n" for record in records)
            lines.flush()
            known |= {record["id"]: record for record in records}
            written += len(records)
            bar.update(kept + written)
    _write_lines(folder / "records.jsonl", [known[key] for key in sorted(known)])
    pictures = (
        tuple(sheet_of(folder, mechanism) for mechanism in MECHANISMS if share(clips)[mechanism]) if sheets else ()
    )
    return Made(written=written, kept=kept, sheets=pictures)


def make_job(job: Job) -> list[dict[str, Any]]:
    """Simulate and write the clips of one job; return their records."""
    records = []
    for clip in physworld.simulate_many(job.mechanism, list(job.seeds), split=job.split, scale=job.scale):
        name = clip_id(clip.mechanism, clip.seed, clip.split)
        _write_clip(job.folder / "clips" / clip.mechanism / f"{name}.mp4", clip)
        if job.fields:
            _write_fields(job.folder / "fields" / clip.mechanism / f"{name}.npz", clip)
        records.append(_record(clip, name, fields=job.fields))
    return records


def sheet_of(folder: Path, mechanism: str, clips: int = 6) -> Path:
    """Draw the first clips of one mechanism of a data set."""
    from trainers import video

    records = [record for record in read_lines(folder / "records.jsonl") if record["category"] == mechanism][:clips]
    rows = [(record["captions"], video.read(folder / record["file"]).frames) for record in records]
    return save_sheet(folder / f"sheet-{mechanism}.png", rows, title=mechanism)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a records file; a last line cut short by a kill is left out.

    Raises:
        ValueError: if another line is not JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}:{number}: expected one JSON record a line, got {line[:60]!r}; "
                    "remove the line and make the data set again to refill it"
                ) from error
    return records


def read_fields(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read fields and their validity masks, by slot."""
    with np.load(path, allow_pickle=False) as stored:
        valid = {key.removesuffix(".valid"): stored[key] for key in stored.files if key.endswith(".valid")}
        return {key: stored[key] for key in stored.files if not key.endswith(".valid")}, valid


def _agree(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        from trainers import write_text

        write_text(path, json.dumps(settings, indent=1))
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != settings:
        raise ValueError(
            f"{path.parent}: expected to continue a data set with {settings}, got one with {found}; "
            "give the same options or another --out"
        )


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "records.jsonl"
    if not path.exists():
        return {}
    records = {r["id"]: r for r in read_lines(path) if (folder / r["file"]).exists()}
    _write_lines(path, list(records.values()))  # without a torn last line, or the next line would be glued to it
    return records


def _run(jobs: list[Job], workers: int) -> Iterator[list[dict[str, Any]]]:
    if workers == 1:
        yield from map(make_job, jobs)
        return
    # Spawned, not forked: the progress bar already runs a thread here, and forking a process with threads can hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(make_job, job) for job in jobs]):
            yield future.result()


def _record(clip: Clip, name: str, *, fields: bool) -> dict[str, Any]:
    record = clip.record()
    record |= {"id": name, "video_id": name, "file": f"clips/{clip.mechanism}/{name}.mp4"}
    if fields:
        record["fields"] = f"fields/{clip.mechanism}/{name}.npz"
    return record


def _write_clip(path: Path, clip: Clip) -> None:
    from trainers import video

    path.parent.mkdir(parents=True, exist_ok=True)
    video.write(path, clip.video, physworld.FPS, lossless=True)


def _write_fields(path: Path, clip: Clip) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    valid = {f"{slot}.valid": mask for slot, mask in clip.valid.items()}
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **clip.fields, **valid)  # pyright: ignore[reportArgumentType]
    temporary.replace(path)


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    from trainers import write_text

    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
