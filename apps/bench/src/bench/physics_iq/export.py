"""Generated videos under the names that the official script gives them, in a new folder; yours stay as they are."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.physics_iq.layout import View, official_name

__all__ = ["export"]


def export(views: Sequence[View], out: Path) -> list[Path]:
    """Link each generated video into the new folder `out` as `{number}_{view}_{scenario}.mp4`; copy where the file
    system cannot link. ValueError where `out` holds anything.

    The official script renames the files of the folder that it is given: links keep that away from yours. It keeps
    masks and tables by the folder's name, so give each set of videos a name of its own.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"expected a new folder to write to, got {out}: name another one")
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    part.mkdir(parents=True)
    try:
        for view in views:
            try:
                (part / official_name(view)).hardlink_to(view.generated.resolve())
            except OSError:
                shutil.copyfile(view.generated, part / official_name(view))
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [out / official_name(view) for view in views]
