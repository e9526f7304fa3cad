"""From clips to what training reads: latents, text, labels, and where each phenomenon is on the token grid.

Latents, text features and maps are made once, by cache jobs (`trainers.cache_job`): they go on where they stopped, and
several processes share them. Maps come from a vision-language model (`prophy annotate` puts them there) or, for
simulated clips without one, from their exact fields; `Prepared.teacher` says which. They are kept on their teacher's
grid and laid on the backbone's token grid when opened, with the true times of both. A clip that cannot be used is
skipped and listed; the rest goes on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from prophy.sources import Clip, Loaded, Refused, clips_of
from trainers import InMemory, MapStyle, cache_job, video
from trainers.cache import Cache, Producer, Source
from trainers.data import Skipped
from trainers.engine import Engine
from trainers.heldout import kept_back, parted
from vlmdistill import PLACELESS, Contrast, token_targets, unpack

__all__ = ["Clips", "MapsKey", "Prepared", "Row", "held_out", "prepare", "producers", "teacher_of", "token_grid"]

FORMAT = "prophy-1"
"""Part of the key of a language model's maps: raise it when what is stored changes its meaning."""
SCHEMA = 1
"""Of every other producer, likewise."""
IN_MEMORY_BYTES = 2 * 1024**3
FLUSH_S = 60.0
"""A kill loses no more seconds of a language model's work than this and one clip."""
LISTED = 10
"""Clips without maps that an error names."""
HELD_CLIPS = 32
"""Clips of the held-out loss at most: our choice."""


MapsKey = Callable[[str, Sequence[str]], str]
"""From a clip's content and its categories to the key of its maps: other labels, other questions."""


@dataclass(frozen=True)
class Prepared:
    """A data set ready to train on, who taught the token targets, which clips had to be left out, and what was dropped
    of clips that stay; of one's own films some are `held` back.
    """

    data: MapStyle
    clips: int
    computed: int
    teacher: str
    skipped: tuple[Skipped, ...]
    labels: dict[str, int]
    notes: tuple[Skipped, ...] = ()
    said: Sentences | None = None  # for the semantic router's own stage: captions in other words too
    held: MapStyle | None = None
    held_clips: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """The keys of one clip in the cache, and its label vector; `maps` is the key of a language model's maps."""

    latent: str
    text: str
    maps: str | None
    labels: Float[Tensor, " L"]
    quantities: Float[Tensor, " q"]


class Clips:
    """Entries of the cache, read when they are asked for; targets are laid on the token grid then."""

    def __init__(
        self, cache: Cache, rows: Sequence[Row], recipe: Recipe, backbone: Backbone, made: Mapping[str, Producer]
    ) -> None:
        self.cache, self.rows, self.recipe, self.made = cache, list(rows), recipe, made
        self.length = backbone.spec.text_length
        self.grid, self.times_s = token_grid(recipe, backbone)
        about = [(r.latent, r.text, r.maps, r.labels.tolist(), r.quantities.tolist()) for r in rows]
        whole = [about, [producer.digest for producer in made.values()]]
        self.digest = hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        text, mask = (self.cache.get(row.text, name, self.made[name]) for name in ("text", "mask"))
        short = self.length - len(text)
        item = {
            "latent": self.cache.get(row.latent, "latent", self.made["latent"]),
            "text": torch.nn.functional.pad(text, (0, 0, 0, short)),
            "mask": torch.nn.functional.pad(mask, (0, short)),
            "labels": row.labels,
            "quantities": row.quantities,
        }
        if row.maps is not None or "maps" in self.made:
            item["target"], item["active"] = self._target(row)
        return item

    def _maps(self, row: Row) -> Contrast:
        if row.maps is None:
            planes = self.cache.get(row.latent, "maps", self.made["maps"]).float()
            known = names(self.recipe.data.vocabulary)
            there = {name: plane for name, plane in zip(known, planes, strict=True) if bool(plane.any())}
            return Contrast(there, self.cache.get(row.latent, "times_s").float())
        stored = {name: self.cache.get(row.maps, name) for name in self.cache.names(row.maps)}
        return unpack(stored, self.cache.meta(row.maps))

    def _target(self, row: Row) -> tuple[Tensor, Tensor]:
        """The token targets of a clip (n, L) and which of them count."""
        known, maps = names(self.recipe.data.vocabulary), self._maps(row)
        maps = Contrast({n: m for n, m in maps.maps.items() if n in known}, maps.times_s, maps.meta)
        present = [n for n, there in zip(known, row.labels.tolist(), strict=True) if there and n in maps.maps]
        laid = token_targets(maps, categories=known, present=present, grid=self.grid, times_s=self.times_s)
        values, mask = laid.values, laid.mask
        if self.recipe.losses.align_entries == "all":
            there = torch.tensor([n in present for n in known])[:, None, None, None]
            values, mask = values.clamp(min=0), there.expand_as(values)
        return values.flatten(1).mT.contiguous(), mask.flatten(1).mT.contiguous()


def producers(recipe: Recipe, backbone: Any) -> dict[str, Producer]:
    """Name what makes each artefact: another backbone or setting makes another one beside it. `maps` where exact fields
    are read.
    """
    vae = Producer(backbone.id, backbone.digest, dtype="float32", schema=SCHEMA, shape="_ t _ _")
    text = Producer(f"{backbone.id}/text", backbone.text_digest, dtype="float32", schema=SCHEMA, shape="n _")
    mask = Producer(f"{backbone.id}/text", backbone.text_digest, dtype="bool", schema=SCHEMA, shape="n")
    made = {"latent": vae, "text": text, "mask": mask}
    if teacher_of(recipe)[0] == where.SOURCE:
        how = {"contact_frames": recipe.targets.contact_frames, "cell": where.CELL}
        made["maps"] = Producer("physworld fields", dtype="float16", schema=SCHEMA, shape="_ _ _ _", settings=how)
    return made


def prepare(
    recipe: Recipe, backbone: Backbone, root: Path, *, quiet: bool = False, engine: Engine | None = None
) -> Prepared:
    """Fill the cache at `root` with what a recipe needs and open it as a data set. `engine` knows the other processes,
    which must all come here.

    ValueError for sizes that the backbone does not take, an empty source, an unknown category, and for clips whose maps
    a vision-language model has still to make (`prophy annotate`).
    """
    token_grid(recipe, backbone)
    (teacher, maps_key), engine = teacher_of(recipe), engine or Engine()
    source, made = clips_of(recipe), producers(recipe, backbone)
    place: dict[str, Any] = {"rank": engine.rank, "world": engine.world_size, "quiet": quiet or not engine.main}
    seen = {name: producer for name, producer in made.items() if name in ("latent", "maps")}
    build = partial(_encoder, recipe, backbone, maps="maps" in made)
    try:
        how: dict[str, Any] = {"batch": recipe.data.encode_batch, "stale": "add", **place}
        report = cache_job.make(root, [clip.item for clip in source.clips], build, seen, **how)
    except Refused as error:
        raise ValueError(str(error)) from None
    everyone = engine.exchange([report.made, [[s.path, s.why] for s in report.failed]])  # all have closed their shards
    failed = [Skipped(path, why) for _, lost in everyone for path, why in lost]
    lost = {s.path for s in failed}
    kept = [clip for clip in source.clips if clip.id not in lost]
    texts = _Texts(root, backbone, made, engine, place)
    texts.fill([clip.caption for clip in kept])
    found = cache_job.sources(root, [clip.item for clip in kept])
    cache = Cache(root)
    rows = _rows(recipe, cache, kept, found, maps_key)
    films: dict[str, str] = {}  # of twins the first one's
    back = kept_back(
        [films.setdefault(row.latent, clip.film) for row, clip in zip(rows, kept, strict=True)],
        recipe.data.held_out if recipe.data.source != "world" else 0.0,
    )
    (trained, held), (shown, unseen) = parted(rows, back), parted(kept, back)

    def opened(rows: Sequence[Row]) -> MapStyle:
        """Clips of the cache as a data set, in memory where they fit."""
        data = Clips(cache, rows, recipe, backbone, made)
        if len(rows) * sum(t.nbytes for t in data[0].values()) * engine.world_size >= IN_MEMORY_BYTES:
            return data
        items = [data[i] for i in range(len(rows))]
        return InMemory({name: torch.stack([item[name] for item in items]) for name in items[0]})

    counts = {n: int(sum(r.labels[i] for r in trained)) for i, n in enumerate(names(recipe.data.vocabulary))}
    heard: Sentences | None = None
    if recipe.alone_first:
        labels, words = torch.stack([row.labels for row in trained]), recipe.semantic.reworded
        heard = sentences([clip.caption for clip in shown], labels, texts, other_words=words)
    return Prepared(
        opened(trained),
        len(trained),
        sum(count for count, _ in everyone),
        teacher,
        (*source.skipped, *failed),
        counts,
        tuple(source.notes),
        heard,
        opened(held) if held else None,
        tuple(clip.id for clip in unseen),
    )


def held_out(
    recipe: Recipe, backbone: Backbone, root: Path, *, quiet: bool = False, engine: Engine | None = None
) -> MapStyle | None:
    """Clips of the world's `val` split for the held-out loss; None for other sources (`Prepared.held`)."""
    d = recipe.data
    if d.source != "world":
        return None
    still = d.model_copy(update={"split": "val", "clips": min(HELD_CLIPS, d.clips), "labels": "given"})
    alone = recipe.semantic.model_copy(update={"first_steps": 0})  # whose sentences nobody reads here
    held = recipe.model_copy(update={"data": still, "semantic": alone})
    return prepare(held, backbone, root, quiet=quiet, engine=engine).data


def teacher_of(recipe: Recipe, *, always: bool = False) -> tuple[str, MapsKey | None]:
    """Who makes the token targets, in words, and the key of the maps that a language model makes of a clip.

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
    return where.SOURCE, None


def token_grid(recipe: Recipe, backbone: Any) -> tuple[tuple[int, int, int], Float[Tensor, " t"]]:
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


def _encoder(recipe: Recipe, backbone: Backbone, *, maps: bool) -> cache_job.Produce:
    """Make latents of a batch of clips, and the maps of those whose fields are known."""
    known = names(recipe.data.vocabulary)

    @torch.no_grad()
    def produce(clips: list[Any]) -> list[dict[str, Tensor]]:
        frames = video.from_bytes(np.stack([clip.frames for clip in clips]))
        latents = backbone.encode(frames.to(recipe.device)).float().cpu()
        found = [{"latent": latent} for latent in latents]
        return [one | {"maps": planes(clip)} for one, clip in zip(found, clips, strict=True)] if maps else found

    def planes(clip: Loaded) -> Float[Tensor, "L t y x"]:
        """A plane for each mechanism, zero where it does not act."""
        assert clip.truth is not None
        seen = where.seen_in(clip.truth, clip.mechanisms, contact_frames=recipe.targets.contact_frames).maps
        empty = torch.zeros(len(clip.frames), where.SIZE // where.CELL, where.SIZE // where.CELL)
        return torch.stack([seen.get(name, empty) for name in known]).half()

    return produce


class _Texts:
    """Text features and their masks through the cache, without padding there and padded alike when asked for."""

    def __init__(
        self, root: Path, backbone: Any, made: Mapping[str, Producer], engine: Engine, place: Mapping[str, Any]
    ) -> None:
        self.root, self.backbone, self.engine, self.place = root, backbone, engine, dict(place)
        self.made = {name: made[name] for name in ("text", "mask")}

    def fill(self, wanted: Sequence[str]) -> None:
        """Put sentences into the cache, each once; all processes come here."""
        items = [cache_job.Item(s, s.encode(), partial(str, s)) for s in sorted(set(wanted))]
        cache = Cache(self.root)
        if lacking := [item.id for item in items if not cache.has(_said(item.id), self.made)]:
            self.backbone.check_words(lacking)  # one warning for all that a vocabulary lacks
        how: dict[str, Any] = {"name": "text", "batch": 16, "stale": "add", **self.place}
        cache_job.make(self.root, items, lambda: self._produce, self.made, **how)
        self.engine.barrier()

    def __call__(self, wanted: Sequence[str]) -> Text:
        """The features of sentences, one row each."""
        self.fill(wanted)
        cache, length = Cache(self.root), self.backbone.spec.text_length
        rows = [[cache.get(_said(s), name, self.made[name]) for name in ("text", "mask")] for s in wanted]
        text = torch.stack([torch.nn.functional.pad(t, (0, 0, 0, length - len(t))) for t, _ in rows])
        return Text(text, torch.stack([torch.nn.functional.pad(m, (0, length - len(m))) for _, m in rows]))

    @torch.no_grad()
    def _produce(self, sentences: list[Any]) -> list[dict[str, Tensor]]:
        text = self.backbone.embed(list(sentences))
        found = []
        for features, mask in zip(text.features.float().cpu(), text.mask.cpu(), strict=True):
            # Behind the mask a T5 of CogVideoX has rows that are not zero, and its model reads them: keep all.
            rows = (features.abs().sum(-1) > 0) | mask
            length = int(rows.nonzero().max()) + 1 if bool(rows.any()) else 1
            found.append({"text": features[:length], "mask": mask[:length]})
        return found


def _said(sentence: str) -> str:
    """The key of a sentence."""
    return Source.of(sentence.encode()).key


def _rows(
    recipe: Recipe, cache: Cache, kept: Sequence[Clip], found: Mapping[str, Source], maps_key: MapsKey | None
) -> list[Row]:
    vectors = torch.stack([vector(clip.labels, recipe.data.vocabulary) for clip in kept])
    keys: list[str | None] = [None] * len(kept)
    if maps_key is not None:
        asked = zip(kept, vectors, strict=True)
        keys = [maps_key(found[clip.id].content, named(v, recipe)) for clip, v in asked]
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
        Row(found[clip.id].key, _said(clip.caption), key, labels, numbers(clip.annotation))
        for clip, labels, key in zip(kept, vectors, keys, strict=True)
    ]


def named(marks: Float[Tensor, " L"], recipe: Recipe) -> list[str]:
    """The categories of a label vector that have a place in a video, and so a question."""
    known = names(recipe.data.vocabulary)
    return [n for n, there in zip(known, marks.tolist(), strict=True) if there and n not in PLACELESS]
