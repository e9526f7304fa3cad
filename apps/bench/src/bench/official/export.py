"""Videos and tables laid out as an official script wants them, beside the videos: nothing is renamed or overwritten.

Tables hold absolute paths. A layout of files is made of symbolic links (or copies, for another machine).
"""

import filecmp
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.official import tables
from bench.official.folder import Clip
from bench.official.prompts import Prompt

LONGEST = 255
"""Bytes of a file name on every usual file system."""


def write_tables(made: Mapping[str, str], out: Path) -> list[Path]:
    """Write tables by file name."""
    return [tables.put(out / name, words) for name, words in made.items()]


def lay_out(
    clips: Sequence[Clip],
    out: Path,
    layout: Callable[[Prompt, int, str, str], tuple[str, ...]],
    *,
    model: str,
    copy: bool = False,
) -> list[Path]:
    """Link or copy videos to the names that `layout(prompt, sample, suffix, model)` gives, folder by folder.

    The videos of one prompt are numbered in the order of their own numbers, from 0.

    Raises:
        ValueError: before anything is made, if a name is none of one file, is too long, or is another file's.
    """
    plan: dict[Path, Path] = {}
    counted: dict[int, int] = {}
    for clip in clips:
        sample = counted.get(clip.prompt.number, 0)
        counted[clip.prompt.number] = sample + 1
        parts = layout(clip.prompt, sample, clip.path.suffix.lower(), model)
        for part in parts:
            if part in ("", ".", "..") or set(part) & set("/\\\0") or len(part.encode()) > LONGEST:
                raise ValueError(f"expected a name that one file can have (no slash, {LONGEST} bytes), got {part!r}")
        target = out.joinpath(*parts)
        if target in plan:
            raise ValueError(f"expected one video a name, got {plan[target].name} and {clip.path.name} for {target}")
        if os.path.lexists(target) and not _same(target, clip.path):
            raise ValueError(f"{target} exists and is another video: choose another --out, nothing is overwritten")
        plan[target] = clip.path.resolve()
    for target, source in plan.items():
        if os.path.lexists(target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{os.getpid()}.tmp")
        if copy:
            shutil.copyfile(source, part)
        else:
            part.symlink_to(source)
        part.replace(target)
    return list(plan)


def _same(target: Path, source: Path) -> bool:
    return target.is_file() and (target.resolve() == source.resolve() or filecmp.cmp(target, source, shallow=False))
