"""From clips to what training reads: latents of the video and of its perception, text, and features of an encoder.

Everything is made once by cache jobs (`trainers.cache_job`): they go on where they stopped, and several processes share
them. Video and perception are items of their own, so another modality, or another expert, makes its own latents beside
the video's. A clip that cannot be used is listed and left out; the rest goes on.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

import physworld
from mmphysvideo.config import Data, Recipe
from mmphysvideo.features import digest
from mmphysvideo.pseudo import encode
from mmphysvideo.pseudo_world import of_clip
from trainers import ClipSpec, Record, cache_job, read_records, video
from trainers.cache import Cache, Producer, Source
from trainers.data import Skipped
from trainers.engine import Engine
from trainers.heldout import kept_back, parted
from trainers.records import table_in

__all__ = ["Clips", "Prepared", "prepare", "producers", "records_of"]

SCHEMA = 1
"""Part of every producer: raise it when what is stored changes its meaning."""
PERCEPTION = "perception"
"""Key of a record under which the path of its pseudo-RGB video stands, as MMPhysPipe writes it."""
LISTED = 5
"""Left-out clips that an error names."""
DRAWN_BY = ("pseudo", "pseudo_world", "perception", "colours")
"""Modules of this app whose code decides how a perception looks."""


@dataclass(frozen=True)
class Loaded:
    """The pixels of a clip."""

    frames: UInt8[np.ndarray, "t h w 3"]


@dataclass(frozen=True)
class Prepared:
    """A data set ready to train on, and what was left out; of one's own films some are `held` back."""

    data: "Clips"
    clips: int
    computed: int
    skipped: tuple[Skipped, ...]
    held: "Clips | None" = None
    held_clips: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keys:
    """The entries of one clip in the cache; no perception where none is needed."""

    video: str
    perception: str | None
    text: str


class Clips:
    """Entries of the cache as training reads them: `latent`, `text`, and where the recipe needs them `perception` (a
    latent, too) and `features`.
    """

    def __init__(self, cache: Cache, keys: Sequence[Keys], made: Mapping[str, Producer], *, text_length: int) -> None:
        self.cache, self.keys, self.made, self.length = cache, list(keys), made, text_length
        about = [[vars(k) for k in keys], [p.digest for p in made.values()]]
        self.digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        keys = self.keys[index]
        text = self.cache.get(keys.text, "text", self.made["text"])
        item = {
            "latent": self.cache.get(keys.video, "latent", self.made["latent"]),
            "text": torch.nn.functional.pad(text, (0, 0, 0, self.length - len(text))),
        }
        if keys.perception is not None:
            item["perception"] = self.cache.get(keys.perception, "latent", self.made["latent"])
        if "features" in self.made:
            item["features"] = self.cache.get(keys.video, "features", self.made["features"])
        return item


def producers(recipe: Recipe, backbone: Any, encoder: Any = None) -> dict[str, Producer]:
    """Name what makes each artefact: another backbone or encoder makes another one beside it."""
    made = {
        "latent": Producer(backbone.id, backbone.digest, dtype="float32", schema=SCHEMA, shape="_ t _ _"),
        "text": Producer(f"{backbone.id}/text", backbone.text_digest, dtype="float32", schema=SCHEMA, shape="_ _"),
    }
    if encoder is not None:
        settings = {"size": recipe.student.align.size}
        made["features"] = Producer(
            encoder.id, digest(encoder), dtype="float16", schema=SCHEMA, shape="_ _ _ _", settings=settings
        )
    return made


def prepare(
    recipe: Recipe,
    backbone: Any,
    root: Path,
    *,
    perceived: bool,
    encoder: Any = None,
    quiet: bool = False,
    engine: Engine | None = None,
) -> Prepared:
    """Fill the cache at `root` with what a recipe needs and open it; `perceived`: the latents of the perception, too,
    `encoder`: its features. `engine` knows the other processes, which must all come here.

    ValueError for sizes that the backbone does not take, an empty source, or when no clip can be used.
    """
    d = recipe.data
    backbone.spec.latent.shape(d.frames, d.height, d.width)
    engine, skipped = engine or Engine(), []
    made = producers(recipe, backbone, encoder)
    place: dict[str, Any] = {"rank": engine.rank, "world": engine.world_size, "quiet": quiet or not engine.main}
    place |= {"batch": d.encode_batch, "stale": "add"}
    pairs = list(_items(recipe, skipped, perceived=perceived))
    if not pairs:
        raise _none_left(d.source, skipped)
    seen = {name: producer for name, producer in made.items() if name != "text"}
    reports = [cache_job.make(root, [v for v, _ in pairs], partial(_encoder, recipe, backbone, encoder), seen, **place)]
    if perceived:
        shown = [p for _, p in pairs if p is not None]
        latent = {"latent": made["latent"]}
        build = partial(_encoder, recipe, backbone, None)
        reports.append(cache_job.make(root, shown, build, latent, name="perception", **place))
    captions = {item.id: str(item.noted["caption"]) for item, _ in pairs}
    wanted = sorted(set(captions.values()))
    said = [cache_job.Item(c, c.encode(), partial(str, c)) for c in wanted]
    backbone.check_words(wanted)
    cache_job.make(root, said, partial(_writer, backbone), {"text": made["text"]}, name="text", **place)
    mine = [sum(r.made for r in reports), [[s.path, s.why] for r in reports for s in r.failed]]
    everyone = engine.exchange(mine)  # all have closed their shards
    failed = [Skipped(path, why) for _, rows in everyone for path, why in rows]
    skipped, lost = [*skipped, *failed], {s.path for s in failed}  # a row that repeats a clip loses the row alone
    kept = [(i, shown) for i, shown in pairs if i.id not in lost and (shown is None or shown.id not in lost)]
    keys = [
        Keys(
            video=Source.of(item.media, spec=item.spec).key,
            perception=None if shown is None else Source.of(shown.media, spec=shown.spec).key,
            text=Source.of(captions[item.id].encode()).key,
        )
        for item, shown in kept
    ]
    if not keys:
        raise _none_left(d.source, skipped)
    films: dict[str, str] = {}  # of twins the first one's
    back = kept_back(
        [films.setdefault(k.video, str(i.noted.get("film", ""))) for k, (i, _) in zip(keys, kept, strict=True)],
        d.held_out if d.source != "world" else 0.0,
    )
    trained, held = parted(keys, back)
    opened = partial(Clips, Cache(root), made=made, text_length=backbone.spec.text_length)
    return Prepared(
        opened(trained),
        len(trained),
        sum(count for count, _ in everyone),
        tuple(skipped),
        opened(held) if held else None,
        tuple(item.id for item, _ in parted(kept, back)[1]),
    )


def _none_left(source: str, skipped: Sequence[Skipped]) -> ValueError:
    why = "".join(f"\n  {s.path}: {s.why}" for s in skipped[:LISTED])
    more = f"\n  and {len(skipped) - LISTED} more" if len(skipped) > LISTED else ""
    return ValueError(f"none of the {len(skipped)} clips of {source!r} can be used:{why}{more}")


Pairs = Iterator[tuple[cache_job.Item, cache_job.Item | None]]


def _items(recipe: Recipe, skipped: list[Skipped], *, perceived: bool) -> Pairs:
    """Each clip as an item, and its perception as another one."""
    d = recipe.data
    if d.source != "world":
        yield from _recorded(recipe, skipped, perceived=perceived)
        return
    scale = physworld.scale_of(d.frames, d.height, d.width)
    each, rest = divmod(d.clips, len(physworld.MECHANISMS))
    for index, mechanism in enumerate(physworld.MECHANISMS):
        for seed in range(each + (index < rest)):
            clip = partial(physworld.simulate, mechanism, seed, split=d.split, scale=scale)
            about = [physworld.code(), mechanism, seed, d.split, scale]
            name = f"{d.split}-{mechanism}-{seed:06d}"
            sizes = {"height": d.height, "frames": d.frames}
            noted = {"caption": physworld.caption(mechanism, seed, split=d.split)}
            item = cache_job.Item(name, json.dumps(about).encode(), partial(_filmed, clip), sizes, noted)
            if not perceived:
                yield item, None
                continue
            drawn = json.dumps([*about, _drawn_by(d.perception), d.modality, d.perception, d.checked]).encode()
            load = partial(_perceived, clip, d)
            yield item, cache_job.Item(f"{name} ({d.modality})", drawn, load, sizes, noted)


def records_of(recipe: Recipe) -> tuple[list[Record], list[Skipped]]:
    """Read the clips of a source that is not the world; ValueError for a folder of plain videos."""
    d = recipe.data
    if Path(d.source).is_dir() and table_in(Path(d.source)) is None:
        raise ValueError(
            f"expected a table of clips with their perception, got the folder {d.source}: make one with `mmphysvideo"
            f" pipe {shlex.quote(d.source)} --out runs/pipe`, then --set data.source=runs/pipe/records.jsonl"
        )
    return read_records(d.source, root=d.root)


def _recorded(recipe: Recipe, skipped: list[Skipped], *, perceived: bool) -> Pairs:
    d = recipe.data
    spec = ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width)
    records, left_out = records_of(recipe)
    skipped += left_out
    home = Path(d.root) if d.root else Path(d.source).parent if Path(d.source).is_file() else Path(d.source)
    for record, item in zip(records, cache_job.clip_items(records, spec), strict=True):
        if not perceived:
            yield item, None
            continue
        try:
            path = _perception_path(record, home)
        except ValueError as error:
            skipped.append(Skipped(record.id, str(error)))
            continue
        yield item, cache_job.Item(f"{record.id} ({PERCEPTION})", path, partial(video.load, path, spec), spec)


def _perception_path(record: Record, home: Path) -> Path:
    """The pseudo-RGB video of a record, inside the data folder."""
    name = record.extra.get(PERCEPTION)
    if not isinstance(name, str) or not name:
        raise ValueError(f"it has no {PERCEPTION!r} (a pseudo-RGB video): make it with `mmphysvideo pipe`")
    path = (home / name).resolve()
    if not path.is_relative_to(home.resolve()) or not path.is_file():
        raise ValueError(f"expected its {PERCEPTION} {name} in the data folder {home}, found none there")
    return path


def _filmed(clip: Any) -> Loaded:
    return Loaded(clip().video)


def _perceived(clip: Any, d: Data) -> Loaded:
    """A simulated clip's perception: what is true, or what the embedded experts see; ValueError for one that the
    pipeline's filters, evidence or checks drop, where the recipe asks them.
    """
    made = clip()
    if d.perception == "exact":
        return Loaded(of_clip(made, d.modality).frames)
    from mmphysvideo.pipe.experts import perceive

    seen, why = perceive(made.video, made.times_s)
    if why and d.checked:
        raise ValueError(f"MMPhysPipe drops it: {why}")
    return Loaded(encode(seen, d.modality).frames)


@torch.no_grad()
def _encoder(recipe: Recipe, backbone: Any, encoder: Any) -> cache_job.Produce:
    """Make the latents of a batch of clips, and what an encoder sees in them."""

    @torch.no_grad()
    def produce(clips: list[Any]) -> list[dict[str, Tensor]]:
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips])).permute(0, 4, 1, 2, 3)
        signed: Float[Tensor, "b 3 t h w"] = frames.to(recipe.device).float() / 127.5 - 1
        made = [{"latent": latent} for latent in backbone.encode(signed).float().cpu()]
        if encoder is not None:
            for entry, seen in zip(made, encoder(signed).half().cpu(), strict=True):
                entry["features"] = seen
        return made

    return produce


def _writer(backbone: Any) -> cache_job.Produce:
    """Make text features without their zero rows."""

    @torch.no_grad()
    def produce(captions: list[Any]) -> list[dict[str, Tensor]]:
        text = backbone.embed(list(captions))
        rows = (text.features.abs().sum(-1) > 0) | text.mask  # behind its mask a T5 of CogVideoX has rows that are read
        lengths = [int(row.nonzero().max()) + 1 if bool(row.any()) else 1 for row in rows]
        return [{"text": f[:n].float().cpu()} for f, n in zip(text.features, lengths, strict=True)]

    return produce


@cache
def _drawn_by(perception: str) -> str:
    """Name the code that makes and draws perceptions: other code, other pictures."""
    sha, home = hashlib.sha256(), Path(__file__).parent
    experts = sorted((home / "pipe").glob("*.py")) if perception == "experts" else []
    for file in [*(home / f"{name}.py" for name in DRAWN_BY), *experts]:
        sha.update(file.read_bytes())
    return sha.hexdigest()
