"""The bidirectionally controlled teacher: RGB and perception as two streams of one transformer, joined by links.

Both streams hold a latent of the same shape: x of the video, q of its perception drawn as a video. They share text,
noise level and (by default) weights: the rows [x; q] run through the blocks as one batch, and behind chosen blocks each
row reads its partner. A fresh teacher gives, bit for bit, what the frozen model gives on the same two rows.

Attached to a stock pipeline it samples both: the pipeline steps x, and q follows on the same noise levels by

    q <- q + (sigma' - sigma) u,    u = u_uncond + g (u_cond - u_uncond),

which for a flow model is Euler's step and for a v-prediction model DDIM's (the two paths are one up to scale). q begins
as noise that belongs to its clip. `perception()` gives it after the sampling.

References: MMPhysVideo (2026): decoupled branches, zero-initialised control links in both directions. Shared weights,
task embeddings and pixel-wise links after whole blocks are our reading of digests of it.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones import BlockStack, Call, Text, Tokens, blocks_of
from mmphysvideo.config import Recipe
from mmphysvideo.links import Channels, Links, Tasks, applied
from mmphysvideo.weights import trainable

__all__ = ["Pair", "Teacher"]


@dataclass(frozen=True)
class Pair:
    """Both streams between two blocks: one batch of rows [x; q], two batches, or (channels) one stream for both."""

    parts: tuple[Tokens, ...]
    x: Float[Tensor, "b c t h w"]
    q: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, "b *t"]


@dataclass
class Walk:
    """One sampling under way: q at noise level `sigma`, and what was answered there on each side of the guidance."""

    q: Float[Tensor, "b c t h w"]
    sigma: float
    guidance: float
    sides: tuple[str, ...] = ("cond",)
    answers: dict[str, Tensor] = field(default_factory=dict)


class Teacher(nn.Module):
    """The trained parts of the teacher and the walk of the perception beside a pipeline's sampling."""

    kind = "mmphysvideo"
    needs_blocks = True

    def __init__(self, recipe: Recipe, backbone: Any) -> None:
        super().__init__()
        t = recipe.teacher
        self.recipe, self.backbone = recipe, backbone
        count = 2 if t.form == "links" and t.streams == "separate" else 1
        trained = [trainable(backbone, t.weights) for _ in range(count)]
        self.streams = tuple(each.stream for each in trained)
        self.weights = nn.ModuleList([each.group for each in trained])
        spec = blocks_of(backbone.transformer).spec
        self.blocks = spec.n_blocks
        self.links = self.tasks = self.channels = None
        if t.form == "channels":
            self.channels = Channels(spec.dim)
        else:
            self.links = Links(spec.dim, spec.n_blocks, every=t.links.every, way=t.links.way)
            self.tasks = Tasks(t.tasks, spec.dim if t.tasks == "tokens" else _time_dim(backbone.transformer))
        self.origin: dict[str, Any] = {}  # of a loaded bundle
        self._walk: Walk | None = None

    def groups(self) -> dict[str, nn.Module]:
        """The parts that a bundle keeps; those without a parameter (no links) are left out."""
        parts = {"weights": self.weights, "links": self.links, "tasks": self.tasks, "channels": self.channels}
        return {name: part for name, part in parts.items() if part is not None and any(True for _ in part.parameters())}

    # ---- both streams of one batch

    def velocities(
        self,
        x: Float[Tensor, "b c t h w"],
        q: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b *t"],
        text: Float[Tensor, "b l e"],
    ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"]]:
        """Give the flow velocities of both; `sigma` is (b,) or of each latent of x, q has the highest of a clip's."""
        pair = self.open(x, q, sigma, text)
        for k in range(self.blocks):
            pair = self.step(k, pair)
        return self.close(pair)

    @torch.no_grad()
    def features(
        self,
        x: Float[Tensor, "b c t h w"],
        q: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b *t"],
        text: Float[Tensor, "b l e"],
        *,
        place: int,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Give the hidden states of (RGB, perception) behind block `place` and its links; later blocks are not run."""
        pair = self.open(x, q, sigma, text)
        for k in range(place + 1):
            pair = self.step(k, pair)
        if self.channels is not None:
            return pair.parts[0].h, pair.parts[0].h
        return self._halves(pair)

    def open(
        self,
        x: Float[Tensor, "b c t h w"],
        q: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "b *t"],
        text: Float[Tensor, "b l e"],
        *,
        timestep: Tensor | None = None,
    ) -> Pair:
        """Embed both latents; `timestep` is that of x where a pipeline asks."""
        top = sigma if sigma.ndim == 1 else sigma.amax(1, keepdim=True).expand_as(sigma)
        high = (
            timestep if timestep is None or timestep.ndim == 1 else timestep.amax(1, keepdim=True).expand_as(timestep)
        )
        if len(self.streams) == 1 and self.channels is None:
            both = None if timestep is None or high is None else torch.cat([timestep, high])
            rows = torch.cat([x, q]), torch.cat([sigma, top]), torch.cat([text, text])
            parts: tuple[Tokens, ...] = (self.streams[0].begin(*rows, timestep=both),)
        else:
            rgb, perception = self.streams[0], self.streams[-1]
            parts = (
                rgb.begin(x, sigma, text, timestep=timestep),
                perception.begin(q, top, text, timestep=high),
            )
        if self.channels is not None:
            h = parts[0].h + applied(self.channels.into, parts[-1].h)
            return Pair((replace(parts[0], h=h),), x, q, sigma)
        assert self.tasks is not None
        streams = torch.eye(2, device=x.device).repeat_interleave(len(x), 0)
        told = streams.split(len(x)) if len(parts) == 2 else (streams,)
        stacks = [stream.stack for stream in self.streams]
        tasks = self.tasks
        parts = tuple(tasks(s, stack, rows) for s, stack, rows in zip(parts, stacks, told, strict=True))
        return Pair(parts, x, q, sigma)

    def step(self, k: int, pair: Pair) -> Pair:
        """Run block k of both streams and join them."""
        parts = tuple(stream.stack.block(k, s) for stream, s in zip(self.streams, pair.parts, strict=True))
        pair = replace(pair, parts=parts)
        if self.links is None:
            return pair
        rgb, perception = self.links(k, *self._halves(pair))
        if len(parts) == 1:
            return replace(pair, parts=(replace(parts[0], h=torch.cat([rgb, perception])),))
        return replace(pair, parts=(replace(parts[0], h=rgb), replace(parts[1], h=perception)))

    def close(self, pair: Pair) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"]]:
        """The flow velocities of x and q."""
        x, q, sigma = pair.x, pair.q, pair.sigma
        top = sigma if sigma.ndim == 1 else sigma.amax(1, keepdim=True).expand_as(sigma)
        v, u = self._outputs(pair)
        return self.streams[0].flow(v, x, sigma), self.streams[-1].flow(u, q, top)

    def _outputs(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """What the model says of x and q in its own layout."""
        first, last = self.streams[0].stack, self.streams[-1].stack
        if self.channels is not None:
            (s,) = pair.parts
            own = replace(s, h=s.h + applied(self.channels.out, s.h))
            return first.end(s), first.end(own)
        if len(pair.parts) == 2:
            return first.end(pair.parts[0]), last.end(pair.parts[1])
        v, u = first.end(pair.parts[0]).chunk(2)
        return v, u

    def _halves(self, pair: Pair) -> tuple[Tensor, Tensor]:
        if len(pair.parts) == 2:
            return pair.parts[0].h, pair.parts[1].h
        rgb, perception = pair.parts[0].h.chunk(2)
        return rgb, perception

    # ---- sampling: beside a stock pipeline

    def prepare(self, prompts: list[str], text: Text) -> None:
        """Forget the walk of the sampling before."""
        self._walk = None

    def begin(self, call: Call, tokens: Tokens, stack: BlockStack) -> list[Pair]:
        """Embed x and q at the call's noise level, after the step of q from the level before."""
        sides = tuple(sorted(call.branch_rows, key=lambda side: call.branch_rows[side].start)) or ("cond",)
        if self._walk is None or call.pipe is None:
            guidance = float(getattr(call.pipe, "_guidance_scale", None) or 1.0)
            own = call.x_s[call.branch_rows.get("cond", slice(None))]
            self._walk = Walk(torch.stack([_noise(clip) for clip in own]).to(own.device), 1.0, guidance)
        elif sides[0] in self._walk.answers:
            self._step(self._walk, float(call.sigma.max()))
        walk = self._walk
        walk.sigma, walk.sides = float(call.sigma.max()), sides
        q = torch.cat([walk.q] * len(sides))
        return [self.open(call.x_s, q, call.sigma, call.text.features, timestep=call.timestep)]

    def block(self, k: int, tokens: Tokens, state: list[Pair], stack: BlockStack) -> tuple[Tokens, list[Pair]]:
        """Run block k of both streams; the pipeline's own tokens stay what they were."""
        state[0] = self.step(k, state[0])
        return tokens, state

    def after_block(self, k: int, tokens: Tokens, state: list[Pair], stack: BlockStack) -> tuple[Tokens, list[Pair]]:
        """Nothing to do: `block` has done it."""
        return tokens, state

    def end(self, tokens: Tokens, state: list[Pair], stack: BlockStack) -> Tensor:
        """Keep what was said of q and give what was said of x, in the model's own layout."""
        (pair,), walk = state, self._walk
        assert walk is not None
        v, u = self._outputs(pair)
        flow = self.streams[-1].flow(u, pair.q, pair.sigma).float()
        walk.answers |= dict(zip(walk.sides, flow.chunk(len(walk.sides)), strict=True))
        return v.to(tokens.h.dtype)

    def perception(self) -> Float[Tensor, "b c t h w"]:
        """Give q as the last sampling left it; ValueError before any sampling."""
        if self._walk is None:
            raise ValueError("expected a sampling to have ended, got none: call the pipeline first")
        if self._walk.answers:
            self._step(self._walk, 0.0)
        return self._walk.q

    def _step(self, walk: Walk, sigma: float) -> None:
        """Move q to the next noise level, guided as the video is."""
        u = walk.answers["cond"]
        if "uncond" in walk.answers:
            u = walk.answers["uncond"] + walk.guidance * (u - walk.answers["uncond"])
        walk.q, walk.sigma, walk.answers = walk.q + (sigma - walk.sigma) * u, sigma, {}


def _time_dim(transformer: Any) -> int:
    """Width of the time embedding: Wan's is that of its tokens, CogVideoX has one of its own."""
    return getattr(transformer.config, "time_embed_dim", None) or (
        transformer.config.num_attention_heads * transformer.config.attention_head_dim
    )


def _noise(clip: Float[Tensor, "c t h w"]) -> Float[Tensor, "c t h w"]:
    """Noise of q that belongs to a clip's own first noise: the same alone, in a batch, and on any device."""
    content = clip.detach().float().cpu().contiguous().numpy().tobytes()
    seed = int.from_bytes(hashlib.blake2b(content, digest_size=7, person=b"mmphys-q").digest())
    return torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed))
