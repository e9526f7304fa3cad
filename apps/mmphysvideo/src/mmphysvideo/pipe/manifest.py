"""What a run kept, dropped and failed at, and why: `manifest.json`, and `records.jsonl` of what is kept.

Both are made from the files under `items`, so any process of a run can write them and a later run adds to them; they
hold no clock and no machine, so the same work gives the same bytes. `records.jsonl` is what `trainers.read_records`
reads: path, caption, the film it was cut from, and under `perception` the pseudo-RGB video.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmphysvideo.pipe import sheet
from mmphysvideo.pipe.experts import Crew
from mmphysvideo.pipe.filters import NOT_MEASURED
from mmphysvideo.pipe.settings import Settings
from mmphysvideo.pipe.stages import ITEMS, Source, slug
from trainers import Skipped
from trainers.atomic import write_text

__all__ = ["write"]

ON_SHEET = 40
"""Clips on the contact sheet at most: as many kept as there are, then dropped ones."""
RECORD = (
    "path",
    "caption",
    "perception",
    "coding",
    "process",
    "subjects",
    "camera_motion",
    "source_caption",
    "tensors",
)


def write(
    out: Path, sources: Sequence[Source], skipped: Sequence[Skipped], settings: Settings, crew: Crew
) -> dict[str, Any]:
    """Write manifest, records and contact sheet of all that is done so far; returns the manifest."""
    items: list[dict[str, Any]] = []
    pending = []
    for source in sorted(sources, key=lambda s: s.id):
        place = out / ITEMS / f"{slug(source.id)}.json"
        if place.is_file():
            items.append(json.loads(place.read_text(encoding="utf-8")))
        else:
            pending.append(source.id)
    clips = [clip for item in items for clip in item["clips"]]
    by = {status: [c for c in clips if c["status"] == status] for status in ("kept", "dropped", "failed")}
    files = [{"file": item["id"], "why": item["why"], "failed": bool(item.get("failed"))} for item in items]
    whole = [f for f in files if f["why"]]
    manifest = {
        "format": 1,
        "version": version("mmphysvideo"),
        "settings": settings.model_dump(mode="json"),
        "experts": crew.names,
        "not_measured": list(NOT_MEASURED),
        "totals": {
            "files": len(sources),
            "clips": len(clips),
            **{status: len(found) for status, found in by.items()},
            "files_without_clips": len(whole),
            "skipped": len(skipped),
            "pending": len(pending),
        },
        **by,
        "files_without_clips": whole,
        "skipped": [vars(one) for one in skipped],
        "pending": pending,
    }
    write_text(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    films = {source.id: source.noted.get("film", source.id) for source in sources}  # two rows of a table may be of one
    lines = [{"id": c["clip"], "source": films[c["file"]], **{k: c[k] for k in RECORD}} for c in by["kept"]]
    write_text(out / "records.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    shown = [*by["kept"], *by["dropped"], *by["failed"]][:ON_SHEET]
    totals = manifest["totals"]
    title = f"MMPhysPipe: {totals['kept']} kept, {totals['dropped']} dropped, {totals['failed']} failed of {len(clips)}"
    title += f" clips; {', '.join(f'{k}: {v}' for k, v in crew.names.items())}"
    sheet.draw(out / "sheet.png", out, shown, title=title)
    return manifest
