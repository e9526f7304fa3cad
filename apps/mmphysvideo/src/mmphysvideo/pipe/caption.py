"""The command `mmphysvideo caption`: captions for the clips of a folder that have none, for whatever recipe.

The witness of `mmphysvideo pipe` says what a clip shows, in one or two sentences: a vision-language model in a folder,
or an OpenAI-compatible server. Without a model only the files' names are left, where the user asks for them.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from jaxtyping import UInt8

from trainers.commands import friendly, hint, left_out, line
from trainers.options import Chosen, Quiet, Set

__all__ = ["QUESTION", "caption"]

QUESTION = (
    "These are {count} frames of one video clip, in order. Say in one or two plain sentences what happens in it: which"
    " things there are, what they are made of where that shows, and how they move, change or touch. Write what the"
    " frames show and nothing else: no guess, no style, no mention of frames."
)

Videos = Annotated[Path, typer.Argument(help="folder of videos, or a table of records")]
Root = Annotated[Path | None, typer.Option("--root", help="folder that the records' paths are relative to")]
Filled = Annotated[Path | None, typer.Option("--out", help="table to write (none: captions.json in the folder)")]
Seconds = Annotated[
    float | None, typer.Option("--seconds", min=0, help="of each clip's beginning that is looked at (none: all of it)")
]
Names = Annotated[bool, typer.Option("--names", help="take the files' names for captions, no model")]
Settings_ = Annotated[
    Path | None, typer.Option("--settings", help="YAML file of pipe's settings (its witness is asked)")
]


@friendly
def caption(
    videos: Videos,
    out: Filled = None,
    settings: Settings_ = None,
    set_: Set = None,
    root: Root = None,
    seconds: Seconds = None,
    names: Names = False,
    quiet: Quiet = False,
) -> None:
    """Write the captions that clips lack; those that are there stay. Run again, it goes on where it stopped.

    A server: --set witness.kind=server --set witness.url=http://localhost:8000/v1 --set witness.model=NAME; a model of
    transformers: --set witness.kind=local --set witness.model=FOLDER; --names: the files' names.
    """
    from mmphysvideo.pipe.evidence import NoEvidence
    from mmphysvideo.pipe.experts import witness_of
    from mmphysvideo.pipe.settings import Settings
    from trainers import captions, load_config

    witness = load_config(Settings, settings, set_ or []).witness
    if names:
        done = captions.fill(videos, captions.from_name, captions.NAMES, root=root, out=out, frames=0, quiet=quiet)
    else:
        if witness.kind == "rules":
            raise ValueError(
                "expected who says what the clips show: a server (--set witness.kind=server --set witness.url=URL --set"
                " witness.model=NAME), a model (--set witness.kind=local --set witness.model=FOLDER), or --names for"
                " the files' names; or write a NAME.txt beside each clip"
            )
        model = witness_of(witness)

        def say(path: Path, frames: UInt8[np.ndarray, "n h w 3"]) -> str:
            try:
                return model.answer(frames, range(len(frames)), QUESTION.format(count=len(frames)), [])
            except NoEvidence as error:
                raise ValueError(str(error)) from None

        how = {"root": root, "out": out, "frames": witness.frames, "seconds": seconds, "quiet": quiet}
        done = captions.fill(videos, say, Path(witness.model).name, **how)  # where a folder lies is nobody's
    left_out(done.skipped)
    print(
        json.dumps({"captions": str(done.path), "made": done.made, "there": done.there, "without": len(done.skipped)})
    )
    home = root if out is None else root or (videos if videos.is_dir() else videos.parent)
    chosen = Chosen(set_=[f"data.source={videos if out is None else out}", *([f"data.root={home}"] if home else [])])
    hint(f"read and mend {done.path}, then {line('pila', 'check', chosen=chosen)} (or prophy, phantom, or `pipe` here)")
