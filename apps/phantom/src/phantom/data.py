"""From clips to what training reads: video latents, text, and physics features of the whole clip and of its beginnings.

Everything is made once by a cache job (`trainers.cache_job`): it goes on where it stopped, and several processes share
it. Features are kept before the projection to z, whose basis is fitted on them when the data set is opened; the
features of every beginning (1, 2, ... latents) come from those frames alone.

A clip that cannot be used is listed and left out; the rest goes on.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

import physworld
from backbones import WanBackbone
from phantom.config import Recipe
from phantom.fields import field_features
from phantom.force import Point, Wind, tensor
from phantom.latent import Basis, PhysicsLatent, cells_of, source_of
from phantom.pushed import pushed_items
from trainers import ClipSpec, Filters, cache_job, read_records, video
from trainers.cache import Cache, Producer, Source
from trainers.data import Skipped
from trainers.engine import Engine
from trainers.heldout import kept_back, parted

__all__ = [
    "Clips",
    "Prepared",
    "fit_basis",
    "held_out",
    "prepare",
    "producers",
    "world_item",
]

SCHEMA = 1
"""Part of every producer: raise it when what is stored changes its meaning."""
HELD_CLIPS = 64
"""Clips of the held-out loss: our choice."""
FIT_CLIPS = 512
"""Clips that the basis of z is fitted on at most: our choice."""


@dataclass(frozen=True)
class Loaded:
    """The pixels of a clip with their times, and of a simulated one what is true."""

    frames: UInt8[np.ndarray, "t h w 3"]
    times_s: Float[np.ndarray, " t"]
    truth: physworld.Clip | None = None


@dataclass(frozen=True)
class Prepared:
    """A data set ready to train on, the basis of its z, and what was left out; of one's own films some are `held`
    back.
    """

    data: "Clips"
    clips: int
    computed: int
    skipped: tuple[Skipped, ...]
    held: "Clips | None" = None
    held_clips: tuple[str, ...] = ()


class Clips:
    """Entries of the cache as training reads them: `latent`, `text`, `z` and `observed` (z of each beginning, end to
    end: of 1 latent, of 2, ...), and `force` as a tensor over the frames where there are `forces`.
    """

    forces: "Sequence[Point | Wind | None] | None" = None

    def __init__(
        self,
        cache: Cache,
        keys: Sequence[tuple[str, str]],
        recipe: Recipe,
        basis: Basis,
        *,
        made: Mapping[str, Producer],
        text_length: int,
    ) -> None:
        self.cache, self.keys, self.recipe, self.basis = cache, list(keys), recipe, basis
        self.made, self.length = made, text_length
        about = [self.keys, [p.digest for p in self.made.values()], basis.components.sum().item()]
        self.digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        seen, said = self.keys[index]
        text = self.cache.get(said, "text", self.made["text"])
        item = {
            "latent": self.cache.get(seen, "latent", self.made["latent"]),
            "text": torch.nn.functional.pad(text, (0, 0, 0, self.length - len(text))),
        }
        if self.forces is not None and (force := self.forces[index]) is not None:
            d = self.recipe.data
            item["force"] = tensor(force, d.frames, d.height, d.width)
        if self.recipe.physics.kind == "noise":
            p = self.recipe.physics
            z = noise_of(seen, (p.channels, item["latent"].shape[1], *cells_of(p)))
            observed = torch.cat([z[:, :n] for n in range(1, self.recipe.condition.most_latents + 1)], 1)
            return item | {"z": z, "observed": observed}
        whole, begun = (self.cache.get(seen, name, self.made[name]) for name in ("physics", "physics_observed"))
        z, observed = (self.basis(features.float()).permute(3, 0, 1, 2) for features in (whole, begun))
        return item | {"z": z, "observed": observed}


def noise_of(key: str, shape: tuple[int, ...]) -> Float[Tensor, "c t y x"]:
    """A control for z: as many numbers, the same ones for a clip every time, that say nothing of it."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest())
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def producers(recipe: Recipe, backbone: WanBackbone, encoder: Any) -> dict[str, Producer]:
    """Name what makes each artefact: another backbone, encoder (by its weights) or setting makes another one beside
    it.
    """
    p, most = recipe.physics, recipe.condition.most_latents
    vae = Producer(backbone.id, backbone.digest, dtype="float32", schema=SCHEMA, shape="_ t _ _")
    text = Producer(f"{backbone.id}/text", backbone.text_digest, dtype="float32", schema=SCHEMA, shape="_ _")
    if p.kind == "noise":
        return {"latent": vae, "text": text}
    settings: dict[str, Any] = {"size": list(p.size) if p.size else None, "pool": p.pool}
    model = ("physworld fields", "")
    if p.kind == "vjepa2":
        model = ("vjepa2", bytes(source_of(encoder).tolist()).hex())
    physics = Producer(*model, dtype="float16", schema=SCHEMA, shape="t _ _ _", settings=settings)
    begun = Producer(*model, dtype="float16", schema=SCHEMA, shape="_ _ _ _", settings=settings | {"most": most})
    return {"latent": vae, "text": text, "physics": physics, "physics_observed": begun}


def prepare(
    recipe: Recipe,
    backbone: WanBackbone,
    encoder: Any,
    root: Path,
    *,
    basis: Basis | None = None,
    pushed: bool = False,
    quiet: bool = False,
    engine: Engine | None = None,
) -> Prepared:
    """Fill the cache at `root` with what a recipe needs and open it; `basis` is fitted where none is given. `pushed`:
    the clips of the force stage, with their forces. `engine` knows the other processes, which must all come here.

    ValueError for sizes that the backbone does not take, an empty source, or when no clip can be used.
    """
    d = recipe.data
    latents = backbone.spec.latent.shape(d.frames, d.height, d.width)[1]
    if recipe.condition.most_latents >= latents:
        raise ValueError(
            f"expected condition.most_latents below the {latents} latents of {d.frames} frames, got"
            f" {recipe.condition.most_latents}: something must be left to predict"
        )
    made, skipped, engine = producers(recipe, backbone, encoder), [], engine or Engine()
    place: dict[str, Any] = {"rank": engine.rank, "world": engine.world_size, "quiet": quiet or not engine.main}
    pairs = list(pushed_items(recipe, skipped)) if pushed else [(item, None) for item in _items(recipe, skipped)]
    items, forces = [item for item, _ in pairs], {item.id: force for item, force in pairs}
    seen = {name: producer for name, producer in made.items() if name != "text"}
    report = cache_job.make(
        root, items, partial(_encoder, recipe, backbone, encoder), seen, batch=d.encode_batch, stale="add", **place
    )
    captions = {item.id: str(item.noted["caption"]) for item in items}
    wanted = sorted(set(captions.values()))
    said = [cache_job.Item(c, c.encode(), partial(str, c)) for c in wanted]
    backbone.check_words(wanted)
    cache_job.make(
        root, said, partial(_writer, backbone), {"text": made["text"]}, name="text", batch=16, stale="add", **place
    )
    everyone = engine.exchange([report.made, [[s.path, s.why] for s in report.failed]])  # all have closed their shards
    failed = [Skipped(path, why) for _, rows in everyone for path, why in rows]
    skipped, lost = [*skipped, *failed], {s.path for s in failed}  # a row that repeats a clip loses the row alone
    store = Cache(root)
    kept = [item for item in items if item.id not in lost]
    found = cache_job.sources(root, kept)
    films: dict[str, str] = {}  # of twins the first one's
    own = d.source != "world" and not pushed
    back = kept_back(
        [films.setdefault(found[i.id].key, str(i.noted.get("film", ""))) for i in kept], d.held_out if own else 0.0
    )
    rows = [(found[i.id].key, Source.of(captions[i.id].encode()).key) for i in kept]
    keys, held = parted(rows, back)
    if basis is None:
        basis = fit_basis(recipe, store, [seen for seen, _ in keys], made, encoder)
    opened = partial(Clips, store, recipe=recipe, basis=basis, made=made, text_length=backbone.spec.text_length)
    data = opened(keys)
    if pushed:
        data.forces = [forces[i.id] for i in kept]
        if recipe.force.shuffled:
            data.forces = data.forces[1:] + data.forces[:1]
    names = tuple(item.id for item in parted(kept, back)[1])
    made_now = sum(count for count, _ in everyone)
    return Prepared(data, len(keys), made_now, tuple(skipped), opened(held) if held else None, names)


def held_out(
    recipe: Recipe,
    backbone: WanBackbone,
    encoder: Any,
    root: Path,
    basis: Basis,
    *,
    quiet: bool = False,
    engine: Engine | None = None,
) -> "Clips | None":
    """Clips of the world's `val` split for the held-out loss; None for other sources (`Prepared.held`)."""
    if recipe.data.source != "world":
        return None
    data = recipe.data.model_copy(update={"split": "val", "clips": HELD_CLIPS})
    held = recipe.model_copy(update={"data": data})
    return prepare(held, backbone, encoder, root, basis=basis, quiet=quiet, engine=engine).data


def fit_basis(recipe: Recipe, cache: Cache, keys: Sequence[str], made: Mapping[str, Producer], encoder: Any) -> Basis:
    """Fit standardisation and principal channels on cached features of clips spread over the data set; noise is its
    own basis.
    """
    if recipe.physics.kind == "noise":
        return Basis(recipe.physics.channels, recipe.physics.channels)
    chosen = keys[:: max(1, len(keys) // FIT_CLIPS)]
    rows = (cache.get(key, "physics", made["physics"]).float().flatten(0, 2) for key in chosen)
    source = source_of(encoder) if encoder is not None else None
    return Basis.fit(rows, recipe.physics.channels, source=source)


def _items(recipe: Recipe, skipped: list[Skipped]) -> Iterator[cache_job.Item]:
    d = recipe.data
    if d.source != "world":
        spec = ClipSpec(frames=d.frames, fps=d.fps, height=d.height, width=d.width)
        records, left_out = read_records(d.source, root=d.root, filters=Filters())
        skipped += left_out
        if recipe.physics.kind == "fields":
            raise ValueError(
                f"expected simulated clips for physics.kind=fields, got data.source={d.source}: only they have exact"
                " fields; use physics.kind=vjepa2"
            )
        yield from cache_job.clip_items(records, spec)
        return
    scale = physworld.scale_of(d.frames, d.height, d.width)
    for clip in physworld.spread(d.clips, split=d.split, scale=scale):
        yield world_item(recipe, clip)


def world_item(recipe: Recipe, clip: physworld.Planned) -> cache_job.Item:
    """One simulated clip to be cached, named by what makes it and drawn when its turn has come."""
    d = recipe.data
    size, noted = {"height": d.height, "frames": d.frames}, {"caption": clip.caption}
    return cache_job.Item(clip.name, clip.content.encode(), partial(_simulated, clip), size, noted)


def _simulated(clip: physworld.Planned) -> Loaded:
    made = clip.draw()
    return Loaded(made.video, made.times_s, made)


@torch.no_grad()
def _encoder(recipe: Recipe, backbone: WanBackbone, encoder: Any) -> cache_job.Produce:
    """Make latents and physics features of a batch of clips, and those of every beginning."""
    most, p = recipe.condition.most_latents, recipe.physics
    raw = PhysicsLatent(encoder, Basis(encoder.dim if encoder else 1, 1), p.size, p.pool)

    def features(frames: Tensor, clips: Sequence[Any], count: int) -> Float[Tensor, "b t y x d"]:
        if p.kind == "fields":
            return torch.stack([field_features(clip.truth, count) for clip in clips])
        return raw.features(frames[:, :, :count])

    @torch.no_grad()
    def produce(clips: list[Any]) -> list[dict[str, Tensor]]:
        frames = video.from_bytes(np.stack([clip.frames for clip in clips])).to(recipe.device)
        latents = backbone.encode(frames).float().cpu()
        stride = backbone.spec.time.stride
        if p.kind == "noise":
            return [{"latent": latent} for latent in latents]
        whole = features(frames, clips, frames.shape[2]).half().cpu()
        begun = [features(frames, clips, stride * n + 1).half().cpu() for n in range(most)]
        parts = torch.cat(begun, 1)
        return [
            {"latent": latent, "physics": z, "physics_observed": o}
            for latent, z, o in zip(latents, whole, parts, strict=True)
        ]

    return produce


def _writer(backbone: WanBackbone) -> cache_job.Produce:
    """Make text features without their padding."""

    @torch.no_grad()
    def produce(captions: list[Any]) -> list[dict[str, Tensor]]:
        text = backbone.embed(list(captions))
        lengths = [int(mask.nonzero().max()) + 1 if bool(mask.any()) else 1 for mask in text.mask]
        return [{"text": f[:n].float().cpu()} for f, n in zip(text.features, lengths, strict=True)]

    return produce
