"""Ask a vision-language model where each labelled phenomenon of a clip is, and keep its maps in the cache.

Only the categories that a clip is labelled with are asked for, beside the neutral question. Clips are divided among the
processes of a launch (RANK, WORLD_SIZE: every process takes its own, all write into one cache); what is there is left
alone, so that a stopped run goes on. A clip that cannot be read is skipped and listed.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prophy.config import Recipe
from prophy.data import FLUSH_S, named, teacher_of
from prophy.labels import vector
from prophy.sources import Refused, clips_of
from trainers import show
from trainers.cache import Cache, Source
from trainers.data import Skipped
from vlmdistill import pack
from vlmdistill.clips import Clip as Seen
from vlmdistill.vlm import Vlm, annotate, load

__all__ = ["Annotated", "annotate_clips", "load_vlm"]


@dataclass(frozen=True)
class Annotated:
    """What one process did: clips of its part, maps made now, clips left out, clips without anything to look for."""

    clips: int
    computed: int
    placeless: int
    skipped: tuple[Skipped, ...]
    rank: int
    world_size: int


def load_vlm(recipe: Recipe) -> Vlm:
    """Load the recipe's vision-language model; ValueError without one, and for a folder that holds another model."""
    t = recipe.targets
    if not t.vlm:
        raise ValueError(
            "expected a vision-language model to annotate with: --set targets.vlm=FOLDER (a Qwen2.5-VL or Qwen3-VL). "
            "The simulated world needs none: `prophy train` reads its exact fields"
        )
    from transformers.utils import logging

    logging.disable_progress_bar()
    return load(t.vlm, device=t.vlm_device or recipe.device, fps=t.fps)


def annotate_clips(recipe: Recipe, root: Path, vlm: Vlm | None = None, *, quiet: bool = False) -> Annotated:
    """Fill the cache at `root` with the maps of this process's part of the clips."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    vlm = vlm or load_vlm(recipe)
    chosen = recipe.targets.model_copy(update={"source": "vlm", "vlm": recipe.targets.vlm or vlm.name})
    recipe = recipe.model_copy(update={"targets": chosen})
    _, key = teacher_of(recipe, always=True)
    assert key is not None
    cache = Cache(root)
    source = clips_of(recipe)
    skipped: list[Skipped] = []
    mine = computed = placeless = 0
    flushed = time.monotonic()
    try:
        own = source.clips[rank::world_size]
        with show.bar("annotate", len(own), quiet=quiet) as bar:
            for clip in own:
                bar.update(mine)
                mine += 1
                present = named(vector(clip.labels, recipe.data.vocabulary), recipe)
                placeless += not present
                maps_key = key(Source.of(clip.item.media).content, present)
                if cache.has(maps_key):
                    bar.skip()
                    continue
                try:
                    frames = torch.from_numpy(clip.item.load().frames)
                except (ValueError, Refused) as error:
                    skipped.append(Skipped(clip.id, str(error)))
                    continue
                maps = annotate(
                    vlm,
                    Seen.at(frames, recipe.data.fps),
                    present,
                    layers=recipe.targets.layers,
                    new_tokens=recipe.targets.max_new_tokens,
                )
                tensors, meta = pack(maps)
                cache.put(maps_key, tensors, meta)
                computed += 1
                if time.monotonic() - flushed > FLUSH_S:
                    cache.flush()
                    flushed = time.monotonic()
            bar.update(mine)
    finally:
        cache.flush()
    _list(root, rank, [*source.skipped, *skipped])
    return Annotated(mine, computed, placeless, (*source.skipped, *skipped), rank, world_size)


def _list(root: Path, rank: int, skipped: Sequence[Skipped]) -> None:
    listed: list[Any] = [asdict(s) for s in skipped]
    (root / f"annotate-skipped-{rank}.json").write_text(json.dumps(listed, indent=1) + "\n")
