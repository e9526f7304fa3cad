"""The folder of a run, in one way for every app.

`recipe.yaml` is the resolved recipe, there from the first moment; at the end it is the one that the run was
finished with. `checkpoints/`, `log.jsonl` and `samples/` are `fit`'s, `bundle/` is what was trained. Of several
processes the first writes.
"""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from . import checkpoint
from .config import dump_config
from .engine import Engine

__all__ = ["begin", "finish", "unused"]


def unused(out: Path, *, resume: bool) -> None:
    """Refuse a folder that holds a run, unless it is resumed: asked before hours go into a cache, `fit` asks again."""
    if not resume and (found := checkpoint.latest(out / "checkpoints")) is not None:
        raise ValueError(f"{out} already holds a run ({found.name}): resume it with --resume, or choose another --out")


def begin(out: Path, recipe: BaseModel, engine: Engine) -> None:
    """Write the recipe where there is none yet."""
    if engine.main and not (out / "recipe.yaml").exists():
        dump_config(recipe, out / "recipe.yaml")


def finish(out: Path, recipe: BaseModel, engine: Engine, save_bundle: Callable[[Path], object]) -> None:
    """Write the recipe as it was in the end, and `save_bundle` into `out/bundle`; every process waits for it."""
    if engine.main:
        dump_config(recipe, out / "recipe.yaml")
        save_bundle(out / "bundle")
    engine.barrier()
