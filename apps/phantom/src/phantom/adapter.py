"""Phantom as an adapter of the hidden states: a second flow beside the pipeline's own, on the same noise levels.

Attached to a stock Wan pipeline it runs the physics stream in lockstep with every forward, remembers what it answered
on each side of the guidance, and steps z with a copy of the pipeline's scheduler when the next noise level comes: a
multistep scheduler has one state a stream. z begins as noise that belongs to a clip (its seed is the clip's own first
noise), so that a batch, a seed and a pairing mean the same with and without Phantom.

A clean prefix (image or video to video) is observed physics, too: it is decoded and encoded by V-JEPA 2, these frames
alone, and kept; what a caller passes as `attention_kwargs={"physics": {"observed": z}}` is used instead. Under "z" a
caller hands in a whole physics latent to follow (a clip's own, transferred to another prompt), under "force" a force.

References: Phantom (2026), inference.
"""

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones import Text, VJEPA2Encoder, WanBackbone
from backbones.block_adapter import Call
from backbones.blocks import BlockStack, Tokens, blocks_of
from phantom.branch import Branch, Joint
from phantom.config import Recipe
from phantom.force import Injector, Point, Wind
from phantom.latent import Basis, PhysicsLatent, cells_of, source_of

__all__ = ["PhantomAdapter", "basis_of", "encoder_of"]

ADDED = ("observed", "z", "force")


@dataclass
class Walk:
    """One sampling under way: z before step `step`, and what was answered at its noise level."""

    z: Float[Tensor, "b c t y x"]
    scheduler: Any
    observed: Float[Tensor, "b c p y x"] | None
    given: Float[Tensor, "b c t y x"] | None
    noise: Float[Tensor, "b c t y x"]
    step: int = 0
    sigma: float = 1.0
    guidance: float = 1.0
    answers: dict[str, Tensor] = field(default_factory=dict)


class PhantomAdapter(nn.Module):
    """The trained parts (`branch`, the data set's `basis`) and the walk of z beside a pipeline's sampling."""

    kind = "phantom"
    needs_blocks = True

    def __init__(self, recipe: Recipe, backbone: WanBackbone, basis: Basis, encoder: Any = None) -> None:
        super().__init__()
        spec = blocks_of(backbone.transformer).spec
        if not backbone.spec.per_token_time:
            raise ValueError(
                f"expected a TI2V backbone (a timestep for each token), got {backbone.id}: observed frames are given as"
                " clean tokens, as Wan2.2-TI2V and the embedded 'world' take them"
            )
        self.recipe, self.backbone, self.encoder = recipe, backbone, encoder
        self.stride_s = backbone.spec.time.stride / backbone.spec.time.fps
        self.basis = basis
        self.branch = Branch(
            recipe.branch,
            recipe.couple,
            channels=recipe.physics.channels,
            video_width=spec.dim,
            blocks=spec.n_blocks,
            text_dim=spec.text_dim,
            stride_s=self.stride_s,
        )
        self.injector = None
        if recipe.force.kind != "none":
            width, (rows, _) = recipe.branch.heads * recipe.branch.head_dim, self.cells
            self.injector = Injector(width, recipe.force.fine, recipe.force.whole, rows=rows)
        self.origin: dict[str, Any] = {}  # of a loaded bundle
        self._walk: Walk | None = None
        self._joint: tuple[str, Joint] | None = None

    @classmethod
    def from_bundle(cls, bundle: Any, backbone: WanBackbone, *, recipe: Recipe | None = None) -> "PhantomAdapter":
        """Build the adapter of a trained bundle, in the backbone's precision; ValueError where its V-JEPA 2 is missing
        or another one.
        """
        recipe = recipe or Recipe.model_validate(bundle.meta["config"])
        encoder = encoder_of(recipe)
        basis = basis_of(bundle, recipe, encoder)
        adapter = cls(recipe, backbone, basis, encoder)
        for name in ("branch", "injector"):
            if name in adapter.groups():
                adapter.groups()[name].load_state_dict(bundle.tensors.get(name, {}))
        adapter.origin = bundle.origin
        model: Any = backbone.transformer
        if model.dtype != torch.float32:
            adapter.branch.halve(model.dtype)
        return adapter.to(backbone.device).eval()

    def groups(self) -> dict[str, nn.Module]:
        """The parts that a bundle keeps."""
        parts: dict[str, nn.Module] = {"branch": self.branch, "basis": self.basis}
        if self.injector is not None:
            parts["injector"] = self.injector
        return parts

    @property
    def latent(self) -> PhysicsLatent:
        """From frames to z; ValueError where the recipe's z is not made of frames."""
        if self.encoder is None:
            raise ValueError(
                f"expected a V-JEPA 2 for observed frames, got physics.kind={self.recipe.physics.kind!r}: hand in the"
                ' observed part as attention_kwargs={"physics": {"observed": z}}'
            )
        p = self.recipe.physics
        return PhysicsLatent(self.encoder, self.basis, p.size, p.pool)

    @property
    def cells(self) -> tuple[int, int]:
        """(height, width) of z."""
        return self.latent.grid() if self.encoder is not None else cells_of(self.recipe.physics)

    def times_s(self, latents: int) -> Float[Tensor, " t"]:
        """The latent times of the video in seconds."""
        time = self.backbone.spec.time
        return time.latent_times((latents - 1) * time.stride + 1) * self.stride_s

    # ---- training: both streams of one batch

    def velocities(
        self,
        x: Float[Tensor, "b c t h w"],
        z: Float[Tensor, "b d t y x"],
        sigma: Float[Tensor, "b t"],
        text: Text,
        *,
        force: Float[Tensor, "b 3 f y2 x2"] | None = None,
    ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b d t y x"]]:
        """Give the velocities of both streams; `sigma` is the noise level of each latent, 0 where it is observed."""
        model: Any = self.backbone.transformer
        video = blocks_of(model)
        pt, ph, pw = self.backbone.spec.latent.patch
        cells = (x.shape[3] // ph) * (x.shape[4] // pw)
        timestep = (1000.0 * sigma[:, ::pt]).repeat_interleave(cells, 1)
        tokens = video.begin(
            hidden_states=x.to(model.dtype),
            timestep=timestep,
            encoder_hidden_states=text.features.to(model.dtype),
        )
        joint = self.branch.begin(
            z,
            1000.0 * sigma,
            text.features,
            video_grid=tokens.grid,
            times_s=self.times_s(z.shape[2]),
            added=self.pushed(force, z),
        )
        for k in range(len(video)):
            tokens, joint = self.branch.block(k, video, tokens, joint)
        return video.end(tokens).float(), self.branch.end(joint).float()

    def pushed(
        self, force: Float[Tensor, "b 3 f y2 x2"] | None, z: Float[Tensor, "b d t y x"]
    ) -> Float[Tensor, "b m e"] | None:
        """What a force adds to the tokens of the physics stream; ValueError where the adapter was not taught forces."""
        if force is None:
            return None
        if self.injector is None:
            raise ValueError("expected an adapter trained with forces (force.kind=point or wind), got one without")
        t, y, x = z.shape[2:]
        return self.injector(force.to(z.device).expand(len(z), -1, -1, -1, -1), (t, y, x))

    def check_force(self, force: Point | Wind) -> None:
        """Raise ValueError for a force of another kind than those that the adapter was taught."""
        kind = type(force).__name__.lower()
        if self.recipe.force.kind != kind:
            raise ValueError(
                f"expected a force of the kind that the adapter was trained with ({self.recipe.force.kind}), got"
                f" {kind}: train it with --set force.kind={kind}"
            )

    # ---- sampling: beside a stock pipeline

    def prepare(self, prompts: list[str], text: Text) -> None:
        """Forget the walk of the sampling before."""
        self._walk, self._joint = None, None

    def begin(self, call: Call, tokens: Tokens, stack: BlockStack) -> Joint:
        """Embed z at the call's noise level, after the step from the level before."""
        if unknown := sorted(set(call.physics) - set(ADDED)):
            raise ValueError(f"expected physics among {', '.join(ADDED)}, got {', '.join(unknown)}")
        side = next(iter(call.branch_rows), "cond")
        if self._walk is None or call.pipe is None:
            self._walk = self._start(call, tokens.grid)
        elif side in self._walk.answers:
            self._step(self._walk)
        walk = self._walk
        walk.sigma = float(call.sigma.max())
        z = self._seen(walk)
        top = call.timestep.reshape(len(call.timestep), -1).amax(1).float()
        timestep = top[:, None].repeat(1, z.shape[2])
        if walk.observed is not None:
            timestep[:, : walk.observed.shape[2]] = 0.0
        told = side == "cond"  # a push, like the text, is told to one side alone: guidance amplifies both
        joint = self.branch.begin(
            z,
            timestep,
            call.text.features,
            video_grid=tokens.grid,
            times_s=self.times_s(z.shape[2]),
            added=self.pushed(call.physics.get("force"), z) if told else None,
        )
        self._joint = (side, joint)
        return joint

    def block(self, k: int, tokens: Tokens, state: Joint, stack: BlockStack) -> tuple[Tokens, Joint]:
        """Run block k of both streams."""
        return self.branch.block(k, stack, tokens, state)

    def after_block(self, k: int, tokens: Tokens, state: Joint, stack: BlockStack) -> tuple[Tokens, Joint]:
        """Keep the physics stream's answer after the last block."""
        if k == len(stack) - 1 and self._walk is not None and self._joint is not None:
            self._walk.answers[self._joint[0]] = self.branch.end(state).float()
        return tokens, state

    def physics_latent(self) -> Float[Tensor, "b c t y x"]:
        """Give z as the last sampling left it, observed part included; ValueError before any sampling."""
        walk = self._walk
        if walk is None:
            raise ValueError("expected a sampling to have ended, got none: call the pipeline first")
        if walk.answers:
            self._step(walk)
        return self._seen(walk)

    def _start(self, call: Call, grid: tuple[int, int, int]) -> Walk:
        shape = (self.recipe.physics.channels, grid[0], *self.cells)
        noise = torch.stack([_noise(clip, shape) for clip in call.x_s]).to(call.x_s.device)
        scheduler = copy.deepcopy(call.pipe.scheduler) if call.pipe is not None else None
        observed = call.physics.get("observed")
        prefix = _prefix(call)
        if observed is None and prefix:
            seen = call.x_s[:, :, :prefix]
            if self.recipe.physics.kind == "noise":  # the control: what is observed says nothing either
                observed = torch.stack([_noise(clip, (shape[0], prefix, *shape[2:])) for clip in seen]).to(seen.device)
            else:
                observed = self._encode(seen)
        if observed is not None and observed.shape[2] != prefix:
            raise ValueError(
                f"expected an observed physics latent as long as the clean prefix ({prefix} latents), got"
                f" {observed.shape[2]}"
            )
        given = call.physics.get("z")
        if given is not None and given.shape[1:] != noise.shape[1:]:
            raise ValueError(f"expected a physics latent (b, {', '.join(map(str, shape))}), got {tuple(given.shape)}")
        guidance = float(getattr(call.pipe, "_guidance_scale", None) or 1.0)
        return Walk(noise, scheduler, observed, given, noise, guidance=guidance)

    def _step(self, walk: Walk) -> None:
        """Move z to the next noise level, guided as the video is."""
        u = walk.answers["cond"]
        if "uncond" in walk.answers:
            u = walk.answers["uncond"] + walk.guidance * (u - walk.answers["uncond"])
        walk.z = walk.scheduler.step(u, walk.scheduler.timesteps[walk.step], walk.z, return_dict=False)[0]
        walk.step, walk.answers = walk.step + 1, {}

    def _seen(self, walk: Walk) -> Float[Tensor, "b c t y x"]:
        """z with what is known put in: the given latent at this noise level, the observed part clean."""
        z = walk.z
        if walk.given is not None:
            sigma = walk.sigma if walk.answers or walk.step < len(walk.scheduler.timesteps) else 0.0
            z = (1 - sigma) * walk.given.to(z) + sigma * walk.noise
        if walk.observed is not None:
            z = torch.cat([walk.observed.to(z), z[:, :, walk.observed.shape[2] :]], 2)
        return z

    def _encode(self, prefix: Float[Tensor, "b c p h w"]) -> Float[Tensor, "b d p y x"]:
        """Encode the observed frames alone."""
        latent = self.latent
        with torch.no_grad():
            return latent(self.backbone.decode(prefix).clamp(-1, 1))


def encoder_of(recipe: Recipe) -> Any:
    """The V-JEPA 2 of a recipe, None where z is not made of frames."""
    return VJEPA2Encoder.load(recipe.physics.encoder, device=recipe.device) if recipe.physics.kind == "vjepa2" else None


def basis_of(bundle: Any, recipe: Recipe, encoder: Any) -> Basis:
    """The basis of z that a bundle brings; ValueError where it belongs to another z than the recipe's."""
    kept, p = bundle.tensors["basis"], recipe.physics
    if bundle.config["physics"]["kind"] != p.kind or len(kept["scale"]) != p.channels:
        theirs = f"physics.kind={bundle.config['physics']['kind']} with {len(kept['scale'])} channels"
        raise ValueError(f"expected the physics latent of the bundle ({theirs}), got {p.kind} with {p.channels}")
    basis = Basis(kept["mean"].numel(), p.channels)
    basis.load_state_dict(kept)
    if encoder is not None:
        basis.check(source_of(encoder), p.encoder)
    return basis


def _prefix(call: Call) -> int:
    """How many latents in front are clean."""
    if call.noisy is None:
        return 0
    clean = (call.noisy.amax(dim=(0, 1, 3, 4)) == 0).int()
    return int(clean.cumprod(0).sum())


def _noise(clip: Float[Tensor, "c t h w"], shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """Noise of z that belongs to a clip's own first noise: the same alone, in a batch, and on any device."""
    content = clip.detach().float().cpu().contiguous().numpy().tobytes()
    seed = int.from_bytes(hashlib.blake2b(content, digest_size=7, person=b"phantom-z").digest())
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
