"""From clips to what training reads: latents, text, labels, and where each phenomenon is on the token grid.

Latents, text features and maps are made once and kept in a cache under keys of their content. Maps come from a
vision-language model (`prophy annotate` puts them there) or, for simulated clips without one, from their exact fields;
`Prepared.teacher` says which. They are kept on their teacher's grid and laid on the backbone's token grid when opened,
with the true times of both. A clip that cannot be used is skipped and listed; the rest goes on.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from backbones import Backbone, Text, blocks_of
from prophy import where
from prophy.config import Recipe
from prophy.labels import names, shuffled, vector
from prophy.quantities import numbers
from prophy.rewordings import Sentences, sentences
from prophy.sources import Clip, batches, clips_of
from trainers import InMemory, MapStyle, show, video
from trainers.cache import Cache
from trainers.data import Skipped
from vlmdistill import PLACELESS, Contrast, pack, token_targets, unpack

__all__ = ["Clips", "MapsKey", "Prepared", "Row", "prepare", "teacher_of", "token_grid"]

FORMAT = "prophy-1"
"""Part of every key: raise it when what is stored changes its meaning."""
BATCH = 16
IN_MEMORY_BYTES = 2 * 1024**3
FLUSH_S = 60.0
"""A kill loses no more seconds of work than this and one batch."""
LISTED = 10
"""Left-out clips that an error names."""


MapsKey = Callable[[str, Sequence[str]], str]
"""From a clip's content and its categories to the key of its maps: other labels, other questions."""


@dataclass(frozen=True)
class Prepared:
    """A data set ready to train on, who taught the token targets, which clips had to be left out, and what was dropped
    of clips that stay.
    """

    data: MapStyle
    clips: int
    computed: int
    teacher: str
    skipped: tuple[Skipped, ...]
    labels: dict[str, int]
    notes: tuple[Skipped, ...] = ()
    said: Sentences | None = None  # for the semantic router's own stage: captions in other words too


@dataclass(frozen=True)
class Row:
    """The keys of one clip in the cache, and its label vector."""

    latent: str
    text: str
    maps: str | None
    labels: Float[Tensor, " L"]
    quantities: Float[Tensor, " q"]


class Clips:
    """Entries of the cache, read when they are asked for; targets are laid on the token grid then."""

    def __init__(self, cache: Cache, rows: Sequence[Row], recipe: Recipe, backbone: Backbone) -> None:
        self.cache, self.rows, self.recipe = cache, list(rows), recipe
        self.length = backbone.spec.text_length
        self.grid, self.times_s = token_grid(recipe, backbone)
        about = [(r.latent, r.text, r.maps, r.labels.tolist(), r.quantities.tolist()) for r in rows]
        self.digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        text = self.cache.get(row.text, "text")
        short = self.length - len(text)
        item = {
            "latent": self.cache.get(row.latent, "latent"),
            "text": torch.nn.functional.pad(text, (0, 0, 0, short)),
            "mask": torch.nn.functional.pad(self.cache.get(row.text, "mask"), (0, short)),
            "labels": row.labels,
            "quantities": row.quantities,
        }
        if row.maps is not None:
            item["target"], item["active"] = self._target(row.maps, row.labels)
        return item

    def _target(self, key: str, labels: Float[Tensor, " L"]) -> tuple[Tensor, Tensor]:
        """The token targets of a clip (n, L) and which of them count."""
        known = names(self.recipe.data.vocabulary)
        maps = unpack({name: self.cache.get(key, name) for name in self.cache.names(key)}, self.cache.meta(key))
        maps = Contrast({n: m for n, m in maps.maps.items() if n in known}, maps.times_s, maps.meta)
        present = [n for n, there in zip(known, labels.tolist(), strict=True) if there and n in maps.maps]
        laid = token_targets(maps, categories=known, present=present, grid=self.grid, times_s=self.times_s)
        values, mask = laid.values, laid.mask
        if self.recipe.losses.align_entries == "all":
            there = torch.tensor([n in present for n in known])[:, None, None, None]
            values, mask = values.clamp(min=0), there.expand_as(values)
        return values.flatten(1).mT.contiguous(), mask.flatten(1).mT.contiguous()


def prepare(recipe: Recipe, backbone: Backbone, root: Path, *, quiet: bool = False) -> Prepared:
    """Fill the cache at `root` with what a recipe needs and open it as a data set.

    ValueError for sizes that the backbone does not take, an empty source, an unknown category, and for clips whose maps
    a vision-language model has still to make (`prophy annotate`).
    """
    token_grid(recipe, backbone)
    teacher, maps_key = teacher_of(recipe)
    store = Store(recipe, backbone, Cache(root), maps_key if teacher == where.SOURCE else None)
    source = clips_of(recipe, store.noted)
    seen: list[Clip] = []
    waiting: dict[str, Clip] = {}
    with show.bar("cache", source.total, quiet=quiet) as bar, store.kept():
        for clip in source.clips:
            seen.append(clip)
            if store.noted(clip.content) is None:
                waiting.setdefault(clip.content, clip)
            if len(waiting) == recipe.data.encode_batch or len(seen) == source.total:
                store.encode(list(waiting.values()))
                waiting = {}
            bar.update(len(seen))
    skipped = [*source.skipped, *store.skipped]
    kept = [clip for clip in seen if store.cache.has(store.key(clip.content))]
    listed = [asdict(s) for s in (*skipped, *source.notes)]
    (root / "skipped.json").write_text(json.dumps(listed, indent=1) + "\n")
    if not kept:
        why = "".join(f"\n  {s.path}: {s.why}" for s in skipped[:LISTED])
        more = f"\n  and {len(skipped) - LISTED} more, see {root / 'skipped.json'}" if len(skipped) > LISTED else ""
        raise ValueError(f"none of the {len(skipped)} clips of {recipe.data.source!r} can be used:{why}{more}")
    said = store.embed([clip.caption for clip in kept])
    rows = _rows(recipe, store.cache, kept, store.key, said, maps_key)
    store.cache.flush()
    data: MapStyle = Clips(store.cache, rows, recipe, backbone)
    if len(rows) * sum(t.nbytes for t in data[0].values()) < IN_MEMORY_BYTES:
        items = [data[i] for i in range(len(rows))]
        data = InMemory({name: torch.stack([item[name] for item in items]) for name in items[0]})
    counts = {n: int(sum(r.labels[i] for r in rows)) for i, n in enumerate(names(recipe.data.vocabulary))}
    heard: Sentences | None = None
    if recipe.alone_first:
        labels, words = torch.stack([row.labels for row in rows]), recipe.semantic.reworded
        heard = sentences([clip.caption for clip in kept], labels, store.texts, other_words=words)
        store.cache.flush()
    return Prepared(data, len(rows), store.computed, teacher, tuple(skipped), counts, tuple(source.notes), heard)


def teacher_of(recipe: Recipe, *, always: bool = False) -> tuple[str, MapsKey | None]:
    """Who makes the token targets, in words, and the key of a clip's maps in the cache (None: nobody is needed).

    `always`: also for a recipe that does not align. ValueError where a recipe aligns tokens and nobody can say where a
    phenomenon is.
    """
    t = recipe.targets
    if not recipe.aligned and not always:
        return "none", None
    source = t.source if t.source != "auto" else "vlm" if t.vlm else "fields"
    if source == "vlm":
        if not t.vlm:
            raise ValueError("expected a model for targets.source=vlm: --set targets.vlm=FOLDER")
        spec = {"layers": t.layers, "tokens": t.max_new_tokens, "fps": t.fps}
        spec |= {"frames": recipe.data.frames, "clip_fps": recipe.data.fps}
        name = Path(t.vlm).name  # where it lay is nobody's
        producer = f"{FORMAT}/{name}"
        return f"vision-language model {name}", lambda content, categories: Cache.key(
            content.encode(), spec=spec | {"categories": list(categories)}, producer=producer
        )
    if recipe.data.source != "world":
        raise ValueError(
            f"nobody can say where a phenomenon is in {recipe.data.source}: give a vision-language model (--set "
            "targets.vlm=FOLDER, then `prophy annotate`), or train without token targets (--set targets.source=none)"
        )
    if recipe.data.vocabulary != "mechanisms":
        raise ValueError(
            f"expected data.vocabulary=mechanisms for the exact fields of the world, got {recipe.data.vocabulary}"
        )
    producer = f"{FORMAT}/fields/{t.contact_frames}"
    return where.SOURCE, lambda content, _: Cache.key(content.encode(), producer=producer)


def token_grid(recipe: Recipe, backbone: Backbone) -> tuple[tuple[int, int, int], Float[Tensor, " t"]]:
    """The (t, y, x) grid of a clip's tokens, and the centre of each of its times in seconds.

    ValueError for a clip size that the backbone does not take, or that its patches do not divide.
    """
    d, latent = recipe.data, backbone.spec.latent
    _, t, h, w = latent.shape(d.frames, d.height, d.width)
    p_t, p_y, p_x = blocks_of(backbone.transformer).spec.patch
    if t % p_t:
        raise ValueError(f"expected a number of latent frames that the patches of {p_t} divide, got {t} of {d.frames}")
    times = backbone.spec.time.latent_times(d.frames) * backbone.spec.time.stride / d.fps
    return (t // p_t, h // p_y, w // p_x), times.unflatten(0, (-1, p_t)).mean(1)


class Store:
    """The cache with what makes its entries; `maps_key` where exact fields are to be read on the way."""

    def __init__(self, recipe: Recipe, backbone: Backbone, cache: Cache, maps_key: MapsKey | None) -> None:
        d = recipe.data
        self.recipe, self.backbone, self.cache, self.maps_key = recipe, backbone, cache, maps_key
        self.producer = f"{FORMAT}/{backbone.digest}"
        self.spec = {"frames": d.frames, "height": d.height, "width": d.width, "fps": d.fps}
        self.skipped: list[Skipped] = []
        self.computed, self.flushed = 0, time.monotonic()

    def key(self, content: str) -> str:
        """The key of a clip's latent."""
        return Cache.key(content.encode(), spec=self.spec, producer=self.producer)

    def noted(self, content: str) -> dict[str, Any] | None:
        """What was noted of a clip of which everything is there."""
        there = self.cache.has(self.key(content)) and (not self.maps_key or self.cache.has(self.maps_key(content, ())))
        return self.cache.meta(self.key(content)) if there else None

    def encode(self, waiting: Sequence[Clip]) -> None:
        """Put latents (and exact fields) of clips into the cache; list those that cannot be read."""
        read: list[tuple[Clip, np.ndarray]] = []
        for clip in waiting:
            try:
                read.append((clip, clip.frames()))
            except ValueError as error:
                if self.recipe.data.short == "error" and not isinstance(error, video.VideoError):
                    raise ValueError(f"{clip.id}: {error}") from None
                self.skipped.append(Skipped(clip.id, str(error)))
        if not read:
            return
        frames = torch.from_numpy(np.stack([pixels for _, pixels in read])).permute(0, 4, 1, 2, 3)
        with torch.no_grad():
            latents = self.backbone.encode(frames.float().to(self.recipe.device) / 127.5 - 1)
        for (clip, _), latent in zip(read, latents, strict=True):
            if self.maps_key is not None and clip.truth is not None:
                contact = self.recipe.targets.contact_frames
                tensors, meta = pack(where.seen_in(clip.truth(), clip.labels.mechanisms, contact_frames=contact))
                self.cache.put(self.maps_key(clip.content, ()), tensors, meta)
            about = {"caption": clip.caption, "labels": list(clip.labels.mechanisms), "id": clip.id}
            about |= {"annotation": clip.annotation}
            self.cache.put(self.key(clip.content), {"latent": latent.float().cpu()}, about)
            self.computed += 1
        if time.monotonic() - self.flushed > FLUSH_S:
            self.cache.flush()
            self.flushed = time.monotonic()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what was computed when the block is left, by an error or by Ctrl-C too."""
        try:
            yield
        finally:
            self.cache.flush()

    def embed(self, captions: Sequence[str]) -> dict[str, str]:
        """Put text features and their masks into the cache without padding; give the key of each caption."""
        producer = f"{FORMAT}/text/{self.backbone.digest}"
        keys = {c: Cache.key(c.encode(), producer=producer) for c in dict.fromkeys(captions)}
        waiting = [c for c, key in keys.items() if not self.cache.has(key)]
        if waiting:
            self.backbone.check_words(waiting)  # pyright: ignore  # one warning for all that a vocabulary lacks
        for part in batches(waiting, BATCH):
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                text: Text = self.backbone.embed(list(part))
            for caption, features, mask in zip(part, text.features.float().cpu(), text.mask.cpu(), strict=True):
                # Behind the mask a T5 of CogVideoX has rows that are not zero, and its model reads them: keep all.
                rows = (features.abs().sum(-1) > 0) | mask
                length = int(rows.nonzero().max()) + 1 if bool(rows.any()) else 1
                self.cache.put(keys[caption], {"text": features[:length], "mask": mask[:length]})
        return keys

    def texts(self, sentences: Sequence[str]) -> Text:
        """Text features of sentences, through the cache, padded alike."""
        keys, length = self.embed(sentences), self.backbone.spec.text_length
        rows = [(self.cache.get(keys[s], "text"), self.cache.get(keys[s], "mask")) for s in sentences]
        text = torch.stack([torch.nn.functional.pad(t, (0, 0, 0, length - len(t))) for t, _ in rows])
        return Text(text, torch.stack([torch.nn.functional.pad(m, (0, length - len(m))) for _, m in rows]))


def _rows(
    recipe: Recipe,
    cache: Cache,
    kept: Sequence[Clip],
    latent_key: Callable[[str], str],
    said: dict[str, str],
    maps_key: MapsKey | None,
) -> list[Row]:
    vectors = torch.stack([vector(clip.labels, recipe.data.vocabulary) for clip in kept])
    keys = [maps_key(c.content, named(v, recipe)) if maps_key else None for c, v in zip(kept, vectors, strict=True)]
    if recipe.data.labels == "shuffled":
        vectors = shuffled(vectors, recipe.seed)
    without = [clip.id for clip, key in zip(kept, keys, strict=True) if key is not None and not cache.has(key)]
    if without:
        shown = ", ".join(without[:LISTED])
        raise ValueError(
            f"{len(without)} of {len(kept)} clips have no maps of the vision-language model yet ({shown}"
            f"{', ...' if len(without) > LISTED else ''}): run `prophy annotate` with the same recipe and --cache"
        )
    if not bool(vectors.any()):
        raise ValueError(
            f"none of the {len(kept)} clips has a label of data.vocabulary={recipe.data.vocabulary}: annotate them "
            "(q0, q1, ... as in WISA-80K), or take data.vocabulary=mechanisms, which captions can be read for"
        )
    return [
        Row(
            latent=latent_key(clip.content),
            text=said[clip.caption],
            maps=key,
            labels=labels,
            quantities=numbers(clip.annotation),
        )
        for clip, labels, key in zip(kept, vectors, keys, strict=True)
    ]


def named(marks: Float[Tensor, " L"], recipe: Recipe) -> list[str]:
    """The categories of a label vector that have a place in a video, and so a question."""
    known = names(recipe.data.vocabulary)
    return [n for n, there in zip(known, marks.tolist(), strict=True) if there and n not in PLACELESS]
