"""A run of MMPhysPipe over a pool of files: one process, or many that each take their share.

Files are sorted by id and dealt out over the processes (RANK and WORLD_SIZE as torchrun sets them, or Slurm's), so each
knows its share without asking the others; all write under one folder. On several machines, `ray` runs the same stages.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2

from mmphysvideo.pipe import manifest
from mmphysvideo.pipe.experts import Crew, crew_of
from mmphysvideo.pipe.settings import Settings
from mmphysvideo.pipe.stages import Source, Watch, process
from trainers import Skipped, read_records, show
from trainers.cache_job import place
from trainers.records import VIDEOS, caption_in, path_in, table_in
from trainers.tables import rows

__all__ = ["run", "sources_of"]


def sources_of(where: str | Path, *, root: str | Path | None = None) -> tuple[list[Source], list[Skipped]]:
    """List the videos of a folder, or of a table of records (JSON, JSONL, CSV, parquet), with what cannot be used.

    A folder's videos need no caption; one comes from its table (`captions.json`) or a `NAME.txt` beside the video.
    Links out of the folder are refused. ValueError where there is nothing.
    """
    where = Path(where)
    if where.is_file() and where.suffix.lower() not in VIDEOS:
        records, skipped = read_records(where, root=root)
        noted = ({"labels": list(r.labels), "film": r.source or r.path.name} for r in records)
        return [Source(r.id, r.path, r.caption, more) for r, more in zip(records, noted, strict=True)], skipped
    if where.is_file():
        return [Source(where.name, where)], []
    if not where.is_dir():
        raise ValueError(f"expected a folder of videos, a video or a table of records at {where}, found nothing")
    home = where.resolve()
    found, skipped = [], []
    table = table_in(where)
    raws = [raw for raw in (rows(table) if table else ()) if isinstance(raw, dict)]
    told = {path_in(raw): caption_in(raw) for raw in raws if isinstance(path_in(raw), str)}
    for path in sorted(where.rglob("*")):
        name = path.relative_to(where).as_posix()
        if path.suffix.lower() not in VIDEOS or any(part.startswith(".") for part in path.relative_to(where).parts):
            continue
        text = path.with_suffix(".txt")
        caption = told.get(name)
        if not isinstance(caption, str):
            caption = text.read_text(encoding="utf-8", errors="replace").strip() if _inside(home, text) else ""
        if _inside(home, path):
            found.append(Source(name, path, caption))
        else:
            skipped.append(Skipped(name, f"it is no file in {home}: move it in"))
    if not found:
        raise ValueError(f"{where} holds no videos ({', '.join(VIDEOS)})")
    return found, skipped


def run(
    sources: Iterable[Source],
    out: str | Path,
    settings: Settings,
    *,
    skipped: Iterable[Skipped] = (),
    crew: Crew | None = None,
    rank: int | None = None,
    world: int | None = None,
    watch: Watch | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Take this process's share of the files through all stages; returns the manifest of all that is done so far.

    The last process to end writes the whole one. What is done is not done again.
    """
    out, crew = Path(out), crew or crew_of(settings)
    rank, world = place(rank, world)
    sources = sorted({s.id: s for s in sources}.values(), key=lambda s: s.id)
    cv2.setNumThreads(1)  # a process a core: OpenCV's own threads would stand in one another's way
    own = sources[rank::world]
    with show.bar(f"pipe {rank}/{world}", len(own), quiet=quiet) as bar:
        for done, source in enumerate(own, 1):
            bar.skip("there" in process(source, out, settings, crew, watch))
            bar.update(done)
    return manifest.write(out, sources, list(skipped), settings, crew)


def _inside(home: Path, path: Path) -> bool:
    try:
        real = path.resolve()
        return real.is_relative_to(home) and real.is_file()
    except (OSError, RuntimeError):
        return False
