"""From clips to what training reads: latents, text features, flow on the latent grid, labels; made once and kept in a
cache.

Sources: `world`, simulated clips made on the fly; a folder of videos with captions; a JSON or JSONL of records, plain
or annotated as WISA does. Labels of a record come from its annotation; without one, from the caption (keywords, or a
language model). No ground truth of the simulator is read: targets are optical flow of the pixels, as for any video.

Keys hash content, so a renamed clip is the same and another size, backbone or flow is another entry. A clip that
cannot be used is skipped and listed; the rest goes on. Of several processes each reads and encodes its share, every
n-th clip, and all open the same data set.
"""

import hashlib
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

import physworld
from backbones import WanBackbone, flow
from physexperts import MECHANISMS, Labels, from_wisa
from pila.config import Recipe
from pila.labels import read_caption, shuffle
from trainers import InMemory, MapStyle, TrainingWarning, show, video
from trainers.cache import Cache
from trainers.data import Record, Skipped, read_records
from trainers.engine import Engine
from trainers.heldout import kept_back, parted

__all__ = ["Clip", "Clips", "Prepared", "labels_of", "prepare"]

T = TypeVar("T")

FORMAT = "pila-2"
"""Part of every key: raise it when what is stored changes its meaning."""
BATCH = 16
CHUNK = 64
IN_MEMORY_BYTES = 2 * 1024**3
FLUSH_S = 60.0
"""A kill loses no more seconds of work than this and one batch."""
LISTED = 10
"""Left-out clips that an error names."""


@dataclass(frozen=True)
class Clip:
    """One clip before it is encoded: what names its content, its caption and labels, and how to get its pixels."""

    id: str
    content: str
    caption: str
    labels: Labels
    decoded: Callable[[], video.Decoded]
    twin: bool = False  # of an earlier clip with the same content, which is read instead
    film: str = ""  # that it was cut from; none of a simulated clip


@dataclass(frozen=True)
class Prepared:
    """A data set ready to train on, which clips had to be left out, and what was dropped of clips that stay; of one's
    own films some are `held` back.
    """

    data: MapStyle
    clips: int
    computed: int
    skipped: tuple[Skipped, ...]
    labels: dict[str, int]
    notes: tuple[Skipped, ...] = ()
    held: MapStyle | None = None
    held_clips: tuple[str, ...] = ()


class Clips:
    """Entries of the cache, read when they are asked for (data sets that do not fit into memory)."""

    def __init__(self, cache: Cache, rows: Sequence[tuple[str, str, Tensor]], length: int) -> None:
        self.cache, self.rows, self.length = cache, list(rows), length
        self.digest = hashlib.sha256(json.dumps([(v, t, y.tolist()) for v, t, y in rows]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        seen, said, labels = self.rows[index]
        text = self.cache.get(said, "text")
        text = torch.nn.functional.pad(text, (0, 0, 0, self.length - len(text)))
        return {
            "latent": self.cache.get(seen, "latent"),
            "flow": self.cache.get(seen, "flow"),
            "times_s": self.cache.get(seen, "times_s"),
            "text": text,
            "labels": labels,
        }


def prepare(
    recipe: Recipe, backbone: WanBackbone, root: Path, *, quiet: bool = False, engine: Engine | None = None
) -> Prepared:
    """Fill the cache at `root` with what a recipe needs and open it as a data set.

    `engine` knows the other processes, which must all come here (`trainers.engine.launched`; none: this one is alone).

    ValueError for a frame count or size that the backbone does not take, an empty source, an unknown category
    (`data.on_unknown=error`).
    """
    engine = engine or Engine()
    d = recipe.data
    backbone.spec.latent.shape(d.frames, d.height, d.width)
    # the shared index of SQLite is locked within one machine only
    store = _Store(recipe, backbone, Cache(root, private_index=engine.world_size > 1), engine)
    clips, total = _world(recipe, store) if d.source == "world" else _folder(recipe, store)
    seen: list[tuple[int, str, str, str, tuple[str, ...], str]] = []
    waiting: list[tuple[Clip, str]] = []
    with show.bar("cache", total, quiet=quiet or not engine.main) as bar, store.kept():
        for position, clip in clips:
            key = store.key(clip.content)
            seen.append((position, clip.id, key, clip.caption, clip.labels.mechanisms, clip.film))
            if not clip.twin and not store.cache.has(key, ("latent", "flow", "times_s")):
                waiting.append((clip, key))
            else:
                bar.skip()
            if len(waiting) == d.encode_batch or len(seen) == total:
                store.encode(waiting)
                waiting = []
            bar.update(len(seen) - len(waiting))
    said = {"seen": seen, "failed": store.failed, "notes": [asdict(note) for note in store.notes]}
    everyone = engine.exchange(said | {"computed": store.computed})  # all have flushed
    store.cache.refresh()
    everything = sorted(row for one in everyone for row in one["seen"])
    failed = {key: why for one in everyone for key, why in one["failed"].items()}
    notes = tuple(Skipped(**note) for one in everyone for note in one["notes"])
    skipped = (*store.left_out, *(Skipped(name, failed[key]) for _, name, key, *_ in everything if key in failed))
    if engine.main:
        listed = json.dumps([asdict(s) for s in (*skipped, *notes)], indent=1)
        (root / "skipped.json").write_text(listed + "\n")
    kept = [(name, key, said, Labels.of(m), film) for _, name, key, said, m, film in everything if store.cache.has(key)]
    if not kept:
        why = "".join(f"\n  {s.path}: {s.why}" for s in skipped[:LISTED])
        more = f"\n  and {len(skipped) - LISTED} more, see {root / 'skipped.json'}" if len(skipped) > LISTED else ""
        raise ValueError(f"none of the {len(skipped)} clips of {d.source!r} can be used:{why}{more}")
    texts = store.embed([caption for _, _, caption, *_ in kept])
    rows = [(key, texts[caption], _vector(name, labels, recipe)) for name, key, caption, labels, _ in kept]
    back = kept_back([film for *_, film in kept], d.held_out if d.source != "world" else 0.0)
    trained, held = parted(rows, back)
    counts = {m: int(sum(y[i] for _, _, y in trained)) for i, m in enumerate(MECHANISMS)}
    return Prepared(
        store.opened(trained),
        len(trained),
        sum(one["computed"] for one in everyone),
        skipped,
        counts,
        notes,
        store.opened(held) if held else None,
        tuple(name for name, *_ in parted(kept, back)[1]),
    )


class _Store:
    """The cache with what makes its entries, of the share of one process."""

    def __init__(self, recipe: Recipe, backbone: WanBackbone, cache: Cache, engine: Engine) -> None:
        d = recipe.data
        self.recipe, self.backbone, self.cache, self.engine = recipe, backbone, cache, engine
        self.failed: dict[str, str] = {}  # why, by key
        self.left_out: list[Skipped] = []  # before they had a key; the same in every process
        self.notes: list[Skipped] = []
        self.producer = f"{FORMAT}/{backbone.digest}/{d.flow}"
        self.spec = {"frames": d.frames, "height": d.height, "width": d.width, "fps": d.fps}
        self.computed, self.flushed = 0, time.monotonic()

    def mine(self, items: Iterable[T]) -> Iterator[tuple[int, T]]:
        """This process's items, each with its position among all."""
        return ((i, item) for i, item in enumerate(items) if i % self.engine.world_size == self.engine.rank)

    def key(self, content: str) -> str:
        """The key of latents and flow of a clip."""
        return Cache.key(content.encode(), spec=self.spec, producer=self.producer)

    def meta(self, content: str) -> dict[str, Any] | None:
        """What was noted of a clip that is there."""
        key = self.key(content)
        return self.cache.meta(key) if self.cache.has(key, ("latent", "flow", "times_s")) else None

    def encode(self, waiting: Sequence[tuple[Clip, str]]) -> None:
        """Put latents and flow of clips into the cache; list those that cannot be read."""
        read: list[tuple[Clip, str, video.Decoded]] = []
        for clip, key in waiting:
            try:
                read.append((clip, key, clip.decoded()))
            except ValueError as error:
                if self.recipe.data.short == "error" and not isinstance(error, video.VideoError):
                    raise ValueError(f"{clip.id}: {error}") from None
                self.failed[key] = str(error)
        if not read:
            return
        frames = torch.from_numpy(np.stack([one.frames for *_, one in read])).permute(0, 4, 1, 2, 3)
        with torch.no_grad():
            latents = self.backbone.encode(frames.float().to(self.recipe.device) / 127.5 - 1)
        for (clip, key, one), latent in zip(read, latents, strict=True):
            d = self.recipe.data
            pixel_flow = flow.optical_flow(one.frames, d.flow, weights=d.flow_weights)
            motion = flow.latent_flow(pixel_flow, self.backbone.spec)
            about = {"caption": clip.caption, "labels": list(clip.labels.mechanisms), "id": clip.id}
            made = {"latent": latent.float(), "flow": motion, "times_s": torch.from_numpy(one.times_s)}
            self.cache.put(key, made, about)
            self.computed += 1
        if time.monotonic() - self.flushed > FLUSH_S:
            self.cache.flush()
            self.flushed = time.monotonic()

    def opened(self, rows: Sequence[tuple[str, str, Tensor]]) -> MapStyle:
        """Clips of the cache as a data set, in memory where they fit."""
        data = Clips(self.cache, rows, self.backbone.spec.text_length)
        if len(rows) * sum(t.nbytes for t in data[0].values()) * self.engine.world_size >= IN_MEMORY_BYTES:
            return data
        items = [data[i] for i in range(len(rows))]
        return InMemory({name: torch.stack([item[name] for item in items]) for name in items[0]})

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what was computed when the block is left, by an error or by Ctrl-C too."""
        try:
            yield
        finally:
            self.cache.flush()

    def embed(self, captions: Sequence[str]) -> dict[str, str]:
        """Put text features into the cache without their padding; give the key of each caption. All processes come."""
        producer = f"{FORMAT}/text/{self.backbone.digest}"
        keys = {c: Cache.key(c.encode(), producer=producer) for c in dict.fromkeys(captions)}
        lacking = {c for c, key in keys.items() if not self.cache.has(key, ("text",))}
        if lacking and self.engine.main:
            self.backbone.check_words([c for c in keys if c in lacking])  # one warning for all
        waiting = [c for _, c in self.mine(keys) if c in lacking]
        for start in range(0, len(waiting), BATCH):
            part = waiting[start : start + BATCH]
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                text = self.backbone.embed(part)
            for caption, features, mask in zip(part, text.features.float(), text.mask, strict=True):
                length = int(mask.nonzero().max()) + 1 if bool(mask.any()) else 1
                self.cache.put(keys[caption], {"text": features[:length]})
        self.cache.flush()
        self.engine.barrier()
        self.cache.refresh()
        return keys


def labels_of(record: Record, recipe: Recipe) -> Labels:
    """The mechanisms of a record: its own labels, its WISA answers, or what its caption says."""
    if record.labels and all(label in MECHANISMS for label in record.labels):
        return Labels.of(record.labels)
    if record.labels or record.annotation:
        annotation = {**record.annotation, "label": record.labels[0] if record.labels else ""}
        return from_wisa(annotation, unknown=recipe.data.on_unknown)
    return read_caption(record.caption, how=recipe.data.fallback, parser=recipe.parser)


def _world(recipe: Recipe, store: _Store) -> tuple[Iterator[tuple[int, Clip]], int]:
    """Clips of the simulated world; only those that the cache lacks are simulated, some at a time."""
    d = recipe.data
    scale = physworld.scale_of(d.frames, d.height, d.width)
    mine = list(store.mine(physworld.spread(d.clips, split=d.split, scale=scale)))
    return _simulated(store, mine), len(mine)


def _simulated(store: _Store, mine: Sequence[tuple[int, physworld.Planned]]) -> Iterator[tuple[int, Clip]]:
    for mechanism, group in itertools.groupby(mine, lambda item: item[1].mechanism):
        for part in _parts(list(group), CHUNK):
            known = {one.seed: store.meta(one.content) for _, one in part}
            missing, like = [seed for seed, meta in known.items() if meta is None], part[0][1]
            made = physworld.simulate_many(mechanism, missing, split=like.split, scale=like.scale)
            by_seed = {clip.seed: clip for clip in made}
            for position, one in part:
                meta = known[one.seed]
                if meta is None:
                    clip = by_seed[one.seed]
                    decoded = partial(video.Decoded, clip.video, clip.times_s)
                    yield position, Clip(one.name, one.content, clip.caption, Labels.of(clip.labels), decoded)
                else:
                    yield position, Clip(one.name, one.content, meta["caption"], Labels.of(meta["labels"]), _never)


def _never() -> video.Decoded:
    raise AssertionError("a clip that is in the cache has no need of its pixels")


def _folder(recipe: Recipe, store: _Store) -> tuple[Iterator[tuple[int, Clip]], int]:
    """Clips of a folder or of a list of records."""
    d = recipe.data
    spec = video.ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width)
    try:
        records, store.left_out = read_records(d.source, root=d.root)
    except ValueError as error:
        if "there is no file" not in str(error):
            raise
        raise ValueError(f"{error}; set data.root to the folder that the paths are relative to") from None
    hashed = [(position, _sha(record.path)) for position, record in store.mine(records)]
    everyone = dict(pair for one in store.engine.exchange(hashed) for pair in one)
    first: dict[str, int] = {}
    for position in sorted(everyone):
        first.setdefault(everyone[position], position)
    clips = []
    for position, record in store.mine(records):
        try:
            labels = labels_of(record, recipe)
        except ValueError as error:
            raise ValueError(
                f"{record.id}: {error} (correct it, or list and drop it with data.on_unknown=list)"
            ) from None
        store.notes += [Skipped(record.id, f"category {name!r} is unknown and was dropped") for name in labels.unknown]
        content = everyone[position]
        twin = first[content] != position
        cut = partial(_decoded, record.path, spec)
        film = records[first[content]].source
        clips.append((position, Clip(record.id, content, record.caption, labels, cut, twin, film)))
    return iter(clips), len(clips)


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decoded(path: Path, spec: video.ClipSpec) -> video.Decoded:
    """Cut a clip with the true times of its frames. ValueError for one that is too short, and for one whose frames
    would lie unevenly: the residuals of a batch share one grid in time.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainingWarning)  # of the spacing, which is refused below
            found = video.load(path, spec)
    except video.VideoError:
        raise
    except ValueError:
        whole = video.read(path)
        raise ValueError(
            f"expected {spec.frames} frames at {spec.fps:g} fps ({(spec.frames - 1) / spec.fps:.2f} s), got "
            f"{len(whole.frames)} at {whole.fps:.4g} fps ({whole.times_s[-1]:.2f} s): lower data.frames or data.fps "
            "(to the file's own rate at most), or leave it out"
        ) from None
    if (spread := video.jitter(found.times_s)) > video.JITTER_LIMIT:
        raise ValueError(
            f"its frames would be spaced unevenly, by {100 * spread:.0f} %, at {spec.fps:g} fps: set data.fps to the "
            "file's own rate or a whole part of it, or leave it out"
        )
    return found


def _vector(name: str, labels: Labels, recipe: Recipe) -> Tensor:
    if recipe.data.labels == "none":
        return torch.zeros(len(MECHANISMS))
    return shuffle(labels.multi_hot, name) if recipe.data.labels == "random" else labels.multi_hot


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))
