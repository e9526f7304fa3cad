"""Attach an adapter to a stock diffusers transformer, in place, and detach it without a trace.

The transformer's class is swapped for a subclass of itself ("PhysicsHost") and the adapter becomes one child module,
`phys_adapters`: the pipeline, LoRA, offload and `torch.compile` go on seeing the stock model, and gradients, devices
and hooks reach the adapter as they reach any block. Detaching removes the child and restores the class; no weight is
ever written.

An adapter corrects the flow velocity v: the pipeline sees v + D, with D = adapter.correction(x_s, v, sigma, text). A
guided velocity is v_u + g (v_c - v_u), so it matters on which side D is computed and added:

- `conditional` (default): D from the conditional velocity, added to both branches; the guided velocity gets + D once;
- `after_guidance`: D from the guided velocity itself, added just before the scheduler's step; also + D once;
- `per_branch`: each branch gets its own D; the guided velocity gets D_u + g (D_c - D_u).

Outside a pipeline (a bare forward: no branch is known) D is computed and added at once in every mode.

A clean prefix (TI2V: tokens with timestep 0) is not corrected, and its velocity reaches the adapter as 0, so that
x0 = x_s - s v gives the prefix itself. The adapter works in float32 and its output is cast to the transformer's dtype.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones import bundle as bundles
from backbones.contract import Adapter, Text
from backbones.wan import WanBackbone

__all__ = ["Attached", "attach"]

MODES = ("conditional", "after_guidance", "per_branch")
CHILD = "phys_adapters"


@dataclass(frozen=True)
class Call:
    """What a forward was asked: the latent, its noise level, where it is noisy (None: everywhere), its text."""

    x_s: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, " b"]
    noisy: Float[Tensor, "b 1 t h w"] | None
    text: Text
    timestep: Tensor


def attach(target: Any, adapter: Any, *, mode: str = "conditional") -> "Attached":
    """Attach an adapter, or the bundle in a folder, to a backbone or a stock pipeline; use as a context manager or call
    `detach()`.

    ValueError for an unknown mode, an object that is no adapter, a bundle made for another backbone; RuntimeError when
    something is attached already or when hooks (offload, caches, context parallel) hold the old forward: attach comes
    before them.
    """
    if mode not in MODES:
        raise ValueError(f"expected a mode among {', '.join(MODES)}, got {mode!r}")
    backbone = target if isinstance(target, WanBackbone) else WanBackbone(target)
    if isinstance(adapter, str | Path):
        adapter = bundles.build(bundles.load(adapter), backbone)
    if not isinstance(adapter, nn.Module) or not isinstance(adapter, Adapter):
        raise ValueError(
            f"expected an nn.Module with `kind`, `prepare`, `correction` and `groups`, got {type(adapter).__name__}"
        )
    return Attached(backbone, adapter, mode)


class Attached:
    """An adapter in its host. `detach()` (or leaving the `with` block) restores class and state dict bit for bit."""

    def __init__(self, backbone: WanBackbone, adapter: nn.Module, mode: str) -> None:
        for model in backbone.transformers:
            if CHILD in model._modules:
                raise RuntimeError(f"an adapter is attached to {backbone.id} already: detach it first")
            if "forward" in vars(model):
                raise RuntimeError(
                    "hooks have captured this transformer's forward and would pass the adapter by. Attach before"
                    " offload, caches, context parallel or compile, or remove the hooks (pipe.remove_all_hooks())."
                )
        if hasattr(backbone.pipe.scheduler, "phys_attached"):
            raise RuntimeError("an adapter is attached to this scheduler through another pipeline: detach it first")
        self.backbone, self.adapter, self.mode = backbone, adapter, mode
        # Kept, as the pipeline's may be replaced before `detach`.
        self._models, self._scheduler = backbone.transformers, backbone.pipe.scheduler
        self.active = True
        self._branch: str | None = None
        self._sigma: float | None = None
        self._pending: tuple[Call, Tensor | None] | None = None
        self._prepared = 0
        self._pipes: WeakSet[Any] = WeakSet()
        self._attached = True
        self._training = adapter.training
        adapter.to(device=backbone.device, dtype=torch.float32).eval()
        for model in self._models:
            model.__class__ = host_class(type(model))
            model.add_module(CHILD, nn.ModuleDict({"adapter": adapter}))
            object.__setattr__(model, "phys_attached", self)
        if mode == "after_guidance":
            self._scheduler.__class__ = scheduler_class(type(self._scheduler))
            self._scheduler.phys_attached = self
        self.watch(backbone.pipe)

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Restore the stock classes and methods; a second call does nothing."""
        if not self._attached:
            return
        self._attached = False
        for model in self._models:
            del model._modules[CHILD]
            object.__delattr__(model, "phys_attached")
            model.__class__ = type(model)._stock  # pyright: ignore[reportAttributeAccessIssue]
        if self.mode == "after_guidance":
            self._scheduler.__class__ = type(self._scheduler)._stock
            del self._scheduler.phys_attached
        for pipe in self._pipes:
            for name in ("encode_prompt", "save_pretrained", "_phys_encode_prompt"):
                vars(pipe).pop(name, None)
        self.adapter.train(self._training)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let the frozen model speak alone inside the block."""
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before

    def prepare(self, prompts: list[str], text: Text) -> None:
        """Tell the adapter what will be sampled. Pipelines called with prompts do it by themselves."""
        self.adapter.prepare(prompts, text)  # pyright: ignore[reportCallIssue]
        self._prepared = len(prompts)

    def watch(self, pipe: Any) -> None:
        """Follow a pipeline's prompts, and refuse to save it: the adapter would be lost in silence."""
        stock = pipe.encode_prompt
        signature = inspect.signature(stock)

        @wraps(stock)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            if self.mode == "after_guidance" and pipe.scheduler is not self._scheduler:
                raise RuntimeError(
                    "the scheduler was changed after attaching, and mode 'after_guidance' corrects in its step: detach,"
                    " change the scheduler, attach again."
                )
            out = stock(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            self._pending = None
            prompt, many = given.get("prompt"), given.get("num_videos_per_prompt", 1)
            if prompt is not None:
                each = [prompt] if isinstance(prompt, str) else prompt
                self.prepare([p for p in each for _ in range(many)], Text.of(out[0], "cond"))
            elif self._prepared != len(out[0]):
                raise ValueError(
                    f"the adapter {self.adapter.kind!r} reads the prompts, and the pipeline got `prompt_embeds` alone."
                    f" Call attached.prepare(prompts, text) with {len(out[0])} prompts first."
                )
            return out

        pipe._phys_encode_prompt, pipe.encode_prompt, pipe.save_pretrained = stock, encode_prompt, refuse_saving
        self._pipes.add(pipe)

    def correct(self, model: nn.Module, call: dict[str, Any], v: Float[Tensor, "b c t h w"]) -> Tensor:
        """Give the velocity that the pipeline shall see for this forward."""
        asked = self._read(model, call, v)
        if self._branch is None or self.mode == "per_branch":
            return v + self._delta(asked, v)
        if self.mode == "after_guidance":
            if self._branch == "cond":
                self._pending = (asked, None)
            return v
        if self._branch == "cond":
            self._pending = (asked, self._delta(asked, v))
        return v + self._remembered(asked)

    def before_step(self, guided: Float[Tensor, "b c t h w"]) -> Tensor:
        """Correct the guided velocity on its way into the scheduler; once a step."""
        pending, self._pending = self._pending, None
        if not self.active or pending is None:
            return guided
        return guided + self._delta(pending[0], guided)

    def enter(self, name: str | None, sigma: float | None) -> None:
        """Note the branch and the exact noise level that the pipeline announces."""
        self._branch, self._sigma = name, sigma

    def _remembered(self, asked: Call) -> Tensor:
        first, delta = self._pending or (None, None)
        if first is None or delta is None:
            raise RuntimeError("the unconditional branch came first: mode 'conditional' needs cond before uncond")
        same = torch.equal(first.timestep, asked.timestep) and torch.equal(first.x_s, asked.x_s)
        if not same:
            raise RuntimeError("the two guidance branches were asked at different points: use mode 'per_branch'")
        return delta

    def _read(self, model: nn.Module, call: dict[str, Any], v: Tensor) -> Call:
        timestep = cast(Tensor, call["timestep"])
        level = timestep.reshape(len(timestep), -1).amax(1).float() / 1000.0
        sigma = level if self._sigma is None else torch.full_like(level, self._sigma)
        noisy = None
        if timestep.ndim == 2:
            pt, ph, pw = self.backbone.spec.latent.patch
            grid = (timestep > 0).view(-1, 1, v.shape[2] // pt, v.shape[3] // ph, v.shape[4] // pw)
            if not bool(grid.all()):
                noisy = grid.repeat_interleave(pt, 2).repeat_interleave(ph, 3).repeat_interleave(pw, 4).float()
        branch = self._branch if self._branch in ("cond", "uncond") else None
        text = Text.of(call["encoder_hidden_states"].float(), branch)
        x_s = call["hidden_states"][:, : v.shape[1]]  # I2V appends its condition after the noisy channels
        return Call(x_s, sigma, noisy, text, timestep)

    def _delta(self, asked: Call, v: Tensor) -> Tensor:
        own = next(self.adapter.parameters(), None)
        if own is not None and own.dtype != torch.float32:
            raise RuntimeError(f"the adapter was cast to {own.dtype}, expected float32: cast the pipeline, then attach")
        seen = v.float() if asked.noisy is None else v.float() * asked.noisy
        with torch.autocast(device_type=v.device.type, enabled=False):
            delta = self.adapter.correction(asked.x_s.float(), seen, asked.sigma, asked.text)  # pyright: ignore
        if delta.shape != v.shape:
            raise ValueError(
                f"expected a correction of shape {tuple(v.shape)}, got {tuple(delta.shape)} from {self.adapter.kind}"
            )
        return (delta if asked.noisy is None else delta * asked.noisy).to(v.dtype)


class PhysicsHost:
    """What the swapped class adds to the stock transformer."""

    _stock: type
    phys_attached: Attached

    @contextmanager
    def cache_context(self, name: str, **where: Any) -> Iterator[None]:
        """Pass the branch and the noise level on to the adapter; the I2V pipeline gives the name alone."""
        attached = self.phys_attached
        attached.enter(name, where.get("sigma"))
        try:
            with self._stock.cache_context(self, name, **where):
                yield
        finally:
            attached.enter(None, None)

    def without_adapters(self) -> Any:
        """Give the context in which the frozen model speaks alone."""
        return self.phys_attached.off()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the saved class name would be stock and the adapter lost on loading."""
        refuse_saving()


@lru_cache
def host_class(stock: type) -> type:
    """Make the host of a stock transformer class: same forward signature, which hooks and pipelines inspect."""

    @wraps(stock.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = stock.forward(self, *args, **kwargs)
        attached = vars(self).get("phys_attached")
        if attached is None or not attached.active:
            return out
        call = dict(signature.bind(self, *args, **kwargs).arguments)
        v = attached.correct(self, call, out[0])
        return (v, *out[1:]) if isinstance(out, tuple) else type(out)(sample=v)

    signature = inspect.signature(stock.forward)
    skip = [*(getattr(stock, "_skip_layerwise_casting_patterns", None) or []), CHILD]
    extra = {"forward": forward, "_stock": stock, "_skip_layerwise_casting_patterns": skip, "__module__": __name__}
    return type(f"Physics{stock.__name__}", (PhysicsHost, stock), extra)


@lru_cache
def scheduler_class(stock: type) -> type:
    """Make a scheduler whose step corrects the guided velocity first; pipelines inspect the signature of `step`."""

    @wraps(stock.step)
    def step(self: Any, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        return stock.step(self, self.phys_attached.before_step(model_output), *args, **kwargs)

    return type(stock.__name__, (stock,), {"step": step, "_stock": stock, "__module__": stock.__module__})


def refuse_saving(*args: Any, **kwargs: Any) -> None:
    """Raise: a pipeline with an attached adapter cannot be saved as such."""
    raise RuntimeError(
        "an adapter is attached: saving the pipeline would lose it in silence. Call detach() first, and save the"
        " adapter alone with backbones.bundle.save."
    )
