"""Futures of a folder of beginnings, laid out as Physics-IQ's official script takes them: `NNNN_NAME.mp4`, all of one
length and rate, nothing else in the folder.

A beginning is a video, of which the *last* frames are observed, or a picture. Its number is that of its name where it
has one (`0007_...`), else its place in the folder; its prompt stands beside it (`NAME.txt`) or in a table with the
columns `generated_video_name` and `description`, matched by number, as Physics-IQ's own are. Only what was made is
written, not what was observed. What a folder was made with stands in `FOLDER.json` beside it; the same command goes on
where it stopped, another one is refused, since the official script reads old masks of a folder it knows.

References: Physics-IQ (Motamed et al., 2025), its `run_physics_iq.py`: 198 videos of exactly 5 s.
"""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from backbones import WanBackbone
from phantom.config import Recipe, kind_of
from phantom.generate import observe
from phantom.latent import observed_latents
from phantom.sample import cut, sample
from trainers import ClipSpec, show, video, write_text
from trainers.data import Skipped
from trainers.records import VIDEOS

__all__ = ["Beginning", "beginnings", "lengthened", "make"]

PICTURES = (".jpg", ".jpeg", ".png")
NUMBERED = re.compile(r"(\d{4})_.+")
LAST = 1 - 1e-9  # of what a file has to spare: the clip ends with its last frame


@dataclass(frozen=True)
class Beginning:
    """What is to go on: a video or picture, the prompt, and the name of its future."""

    path: Path
    name: str
    prompt: str


def beginnings(folder: Path, prompts: Path | None = None) -> tuple[list[Beginning], list[Skipped]]:
    """List the beginnings in a folder by number, and what is left out: what has no prompt, a second one of a number.

    ValueError for a folder without any, or a table that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder of videos or pictures to go on from, got {folder}")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (*VIDEOS, *PICTURES))
    said = _prompts(prompts) if prompts is not None else None
    found: dict[str, Beginning] = {}
    skipped: list[Skipped] = []
    for place, path in enumerate(files, 1):
        match = NUMBERED.fullmatch(path.stem)
        name = f"{path.stem}.mp4" if match else f"{place:04d}_{path.stem}.mp4"
        number, beside = name[:4], path.with_suffix(".txt")
        if number in found:
            skipped.append(Skipped(path.name, f"number {number} is {found[number].path.name} already"))
            continue
        prompt = said.get(number, "") if said is not None else beside.read_text("utf-8") if beside.is_file() else ""
        if not prompt.strip():
            where = f"in {prompts} (number {number})" if prompts is not None else f"beside it ({beside.name})"
            skipped.append(Skipped(path.name, f"expected a prompt {where}, found none"))
            continue
        found[number] = Beginning(path, name, prompt.strip())
    if not found:
        why = f" ({skipped[0].path}: {skipped[0].why})" if skipped else ""
        raise ValueError(f"{folder} holds nothing to go on from: expected {', '.join((*VIDEOS, *PICTURES))}{why}")
    return list(found.values()), skipped


def lengthened(recipe: Recipe, *, observed: int, seconds: float | int | None) -> tuple[Recipe, int]:
    """Give the recipe with as many frames as `seconds` after `observed` ones need, and how many of them are kept.

    None: what the recipe's own clip leaves. ValueError for a count that is not 4m + 1, or seconds without a whole
    number of frames.

    >>> longer, kept = lengthened(Recipe(), observed=5, seconds=1.0)
    >>> longer.data.frames, kept
    (21, 16)
    """
    observed_latents(observed)
    d = recipe.data
    if seconds is None:
        if observed >= d.frames:
            raise ValueError(f"expected fewer observed frames than the {d.frames} of a clip, got {observed}")
        return recipe, d.frames - observed
    kept = round(seconds * d.fps)
    if kept < 1 or abs(kept - seconds * d.fps) > 1e-6:
        raise ValueError(f"expected seconds with a whole number of frames at {d.fps:g} fps, got {seconds:g}")
    frames = cut(observed + kept + 3)
    return recipe.model_copy(update={"data": d.model_copy(update={"frames": frames})}), kept


def make(
    backbone: WanBackbone,
    adapter: Any | None,
    recipe: Recipe,
    found: Sequence[Beginning],
    *,
    out: Path,
    observed: int,
    kept: int,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[list[Path], list[Skipped]]:
    """Write the future of each beginning, `kept` frames after `observed` ones, into `out` (`adapter` None: the base's);
    give the files, made now or before, and what could not be read.

    ValueError for a folder that holds something else, or was made otherwise.
    """
    about = {
        "shows": "base" if adapter is None else kind_of(recipe),
        "observed_frames": observed,
        "frames": kept,
        "fps": recipe.data.fps,
        "seed": seed,
        "backbone": {"id": backbone.id, "digest": backbone.digest},
        "bundle": {} if adapter is None else adapter.origin,
        "config": recipe.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("phantom", "physbackbones", "torch", "diffusers")},
    }
    story = out.with_name(f"{out.name}.json")
    if out.exists() and (not out.is_dir() or any(p.suffix != ".mp4" for p in out.iterdir())):
        raise ValueError(f"expected a folder for the mp4 files alone, got {out}: name a new one")
    if out.exists() and any(out.iterdir()):
        before = json.loads(story.read_text(encoding="utf-8")) if story.is_file() else {}
        if {**before, "prompts": None} != {**about, "prompts": None}:
            raise ValueError(f"{out} holds videos of another bundle or setting: name a new folder, --out DIR")
    prompts = {b.name: b.prompt for b in found}
    write_text(story, json.dumps(about | {"prompts": prompts}, indent=1) + "\n")
    written: list[Path] = []
    skipped: list[Skipped] = []
    with show.bar("continue", len(found), quiet=quiet) as bar:
        for done, beginning in enumerate(found, 1):
            path = out / beginning.name
            if path.exists():
                bar.skip()
            else:
                try:
                    begun = _observed(recipe, beginning.path, observed)
                except ValueError as error:
                    skipped.append(Skipped(beginning.path.name, str(error)))
                    continue
                whole = sample(backbone, adapter, [beginning.prompt], [seed], recipe, observed=begun)[0]
                video.write(path, video.to_bytes(whole[:, observed : observed + kept]), recipe.data.fps)
            written.append(path)
            bar.update(done)
    return written, skipped


def _observed(recipe: Recipe, path: Path, frames: int) -> Any:
    """The last frames of a video, or a picture, (1, 3, p, h, w)."""
    if path.suffix.lower() in PICTURES:
        if frames != 1:
            raise ValueError(f"expected a video of {frames} frames to be observed, got a picture")
        return observe(recipe, image=path, film=None)[0]
    d = recipe.data
    spec = ClipSpec(frames=frames, fps=d.fps, height=d.height, width=d.width)
    return video.from_bytes(video.load(path, spec, share=LAST).frames[None])


def _prompts(table: Path) -> dict[str, str]:
    """Prompts by the number of the wanted name."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"expected a table of prompts at {table}, but it cannot be read: {error}") from None
    wanted = ("generated_video_name", "description")
    if not rows or any(key not in rows[0] for key in wanted):
        raise ValueError(f"expected the columns {' and '.join(wanted)} in {table}, got {list(rows[0]) if rows else []}")
    return {(row[wanted[0]] or "")[:4]: row[wanted[1]] or "" for row in rows}
