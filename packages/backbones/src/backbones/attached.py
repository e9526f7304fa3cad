"""Attach an adapter to a stock diffusers transformer, in place, and detach it without a trace.

The transformer's class is swapped for a subclass of itself (`backbones.host`); its modules, parameters and state dict
stay what they were, while the adapter is attached too. Detaching restores the class; no weight is ever written.

An adapter of the velocity corrects v: the pipeline sees v + D, with D = adapter.correction(x_s, v, sigma, text) in flow
space, whatever the model predicts. A guided velocity is v_u + g (v_c - v_u), so it matters on which side D is computed
and added:

- `conditional` (default): D from the conditional velocity, added to both branches; the guided velocity gets + D once;
- `after_guidance`: D from the guided velocity itself, added just before the scheduler's step; also + D once;
- `per_branch`: each branch gets its own D; the guided velocity gets D_u + g (D_c - D_u).

Outside a pipeline (a bare forward: no branch is known) D is computed and added at once in every mode. An adapter of the
hidden states (`backbones.block_adapter`) acts inside each branch, which is `per_branch`.

A clean prefix (TI2V: tokens with timestep 0) is not corrected, and its velocity reaches the adapter as 0, so that
x0 = x_s - s v gives the prefix itself. Outside the adapter's `sigma_range` the model speaks alone. The adapter works in
float32 on the device of what it corrects, and its output is cast to the transformer's dtype.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones import bundle as bundles
from backbones.block_adapter import SEAMS, BlockAdapter, through_blocks, unanswered
from backbones.contract import Adapter, Asked, Text
from backbones.host import eagerly, host_class, refuse_saving, scheduler_class, whole_timestep
from backbones.loading import wrap

__all__ = ["Attached", "attach"]

MODES = ("conditional", "after_guidance", "per_branch")
EXPERTS = ("both", "high", "low")
SAME_TEXT = 0.03  # relative; half precision and another batch size move text features by less, another word by more


def attach(
    target: Any, adapter: Any, *, mode: str | None = None, experts: str = "both", in_predict: bool = False
) -> "Attached":
    """Attach an adapter, or the bundle in a folder, to a backbone or a stock pipeline; use as a context manager or call
    `detach()`.

    `mode` is "conditional" unless said otherwise ("per_branch" for an adapter of the hidden states). `experts` ("both",
    "high", "low") chooses among the two transformers of a model that splits the noise levels (A14B).

    `backbone.predict` is the frozen model's own voice, which an adapter may ask while it samples. `in_predict` has the
    adapter answer there as well, with gradients: to train or to probe it outside of a pipeline (the adapter itself must
    not call `predict` then).

    ValueError for an
    unknown mode or experts, an object that is no adapter, a bundle made for another backbone, a `sigma_range` that the
    chosen expert never meets; RuntimeError when something is attached already or when hooks (offload, caches, context
    parallel) hold the old forward: attach comes before them.
    """
    backbone: Any = target if hasattr(target, "asked") else wrap(target)
    if isinstance(adapter, str | Path):
        adapter = bundles.build(bundles.load(adapter), backbone)
    deep = bool(getattr(adapter, "needs_blocks", False))
    wanted = "begin`, `after_block" if deep else "correction"
    if not isinstance(adapter, nn.Module) or not isinstance(adapter, BlockAdapter if deep else Adapter):
        raise ValueError(
            f"expected an nn.Module with `kind`, `prepare`, `{wanted}` and `groups`, got {type(adapter).__name__}"
        )
    mode = mode or ("per_branch" if deep else "conditional")
    if mode not in MODES:
        raise ValueError(f"expected a mode among {', '.join(MODES)}, got {mode!r}")
    if deep:
        check_deep(adapter, mode)
    attached = Attached(backbone, adapter, mode, chosen(backbone, experts, sigma_range(adapter)))
    attached.in_predict = in_predict
    return attached


@dataclass(frozen=True)
class Pending:
    """The conditional rows of a step, kept for the other branch (with their correction) or for the scheduler's step."""

    asked: Asked
    physics: dict[str, Any]
    delta: Tensor | None


class Attached:
    """An adapter in its host. `detach()` (or leaving the `with` block) restores class and state dict bit for bit."""

    def __init__(self, backbone: Any, adapter: nn.Module, mode: str, models: tuple[nn.Module, ...]) -> None:
        for model in models:
            check_free(model, backbone.id)
        if hasattr(backbone.pipe.scheduler, "phys_attached"):
            raise RuntimeError("an adapter is attached to this scheduler through another pipeline: detach it first")
        self.backbone, self.mode = backbone, mode
        self.adapter: Any = adapter
        # Kept, as the pipeline's may be replaced before `detach`.
        self._models, self._scheduler = models, backbone.pipe.scheduler
        self.active = True
        self.in_predict = False
        self._deep = bool(getattr(adapter, "needs_blocks", False))
        self._branch: str | None = None
        self._sigma: float | None = None
        self._pending: Pending | None = None
        self._prepared: Text | None = None
        self._told: Tensor | None = None
        self._pipes: WeakSet[Any] = WeakSet()
        self._asking: Any = None  # the pipeline whose prompts came last
        self._attached = True
        self._training = adapter.training
        if not self._deep:
            adapter.float()
            self._takes_physics = "physics" in inspect.signature(self.adapter.correction).parameters
        self._place(next(models[0].parameters()).device)
        adapter.eval()
        for model in models:
            model.__class__ = host_class(type(model))
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
        self._attached, self._asking = False, None
        for model in self._models:
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
        self._place(text.features.device)
        self.backbone.remember(text)
        self.adapter.prepare(prompts, text)
        self._prepared, self._told = text, None

    def watch(self, pipe: Any) -> None:
        """Follow a pipeline's prompts, and refuse to save it: the adapter would be lost in silence."""
        stock = pipe.encode_prompt
        signature = inspect.signature(stock)

        @wraps(stock)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            parts = [m for m in pipe.components.values() if isinstance(m, nn.Module)]  # a wrapper has it inside
            if not all(any(m is model for part in parts for m in part.modules()) for model in self._models):
                raise RuntimeError(
                    "the transformer was changed after attaching, and the adapter stayed on the former one: detach,"
                    " change the transformer, attach again."
                )
            if self.mode == "after_guidance" and pipe.scheduler is not self._scheduler:
                raise RuntimeError(
                    "the scheduler was changed after attaching, and mode 'after_guidance' corrects in its step: detach,"
                    " change the scheduler, attach again."
                )
            out = stock(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            self._pending, self._asking = None, pipe
            prompt, many = given.get("prompt"), given.get("num_videos_per_prompt", 1)
            features, against = self.backbone.encoded(out)
            if prompt is not None:
                each = [prompt] if isinstance(prompt, str) else prompt
                prompts = [p for p in each for _ in range(many)]
                self.prepare(prompts, self.backbone.text_of(prompts, features, "cond"))
                if against is not None and given.get("negative_prompt_embeds") is None:
                    no = given.get("negative_prompt") or ""
                    negative = [no] * len(each) if isinstance(no, str) else no
                    self.backbone.text_of([p for p in negative for _ in range(many)], against, "uncond")
            elif self._prepared is None or len(self._prepared) != len(features):
                raise ValueError(
                    f"the adapter {self.adapter.kind!r} reads the prompts, and the pipeline got `prompt_embeds` alone."
                    f" Call attached.prepare(prompts, text) with {len(features)} prompts first."
                )
            return out

        pipe._phys_encode_prompt, pipe.encode_prompt, pipe.save_pretrained = stock, encode_prompt, refuse_saving
        self._pipes.add(pipe)

    def answer(self, model: nn.Module, stock: Any, arguments: dict[str, Any], physics: dict[str, Any]) -> Any:
        """Answer a forward call of a hosted model in place of its stock class."""
        if not self._deep:
            out = stock.forward(model, **arguments)
            v = self.correct(model, arguments, out[0], physics)
            return (v, *out[1:]) if isinstance(out, tuple) else type(out)(sample=v)
        asked = self._read(model, arguments, unanswered(model, arguments))
        inside = self._inside(asked)
        if not bool(inside.all()):
            if bool(inside.any()):
                raise ValueError(
                    f"expected all noise levels of a batch inside the adapter's sigma_range {self.sigma_range} or all"
                    f" outside, got {asked.sigma.tolist()}: split the batch"
                )
            return stock.forward(model, **arguments)
        self._check_prepared(asked, arguments)
        pipe = self._asking if asked.branch_rows else None
        out = through_blocks(model, self.adapter, asked, physics, pipe, **arguments)
        if not arguments.get("return_dict", True):
            return (out,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=out)  # pyright: ignore[reportArgumentType]

    @eagerly
    def correct(
        self, model: nn.Module, arguments: dict[str, Any], output: Tensor, physics: dict[str, Any] | None = None
    ) -> Tensor:
        """Give the output that the pipeline shall see for this forward."""
        asked, physics = self._read(model, arguments, output), physics or {}
        if not asked.branch_rows:
            return output + self.backbone.answer(asked, self._delta(asked, physics))
        self._check_prepared(asked, arguments)
        sides = sorted(asked.branch_rows, key=lambda side: asked.branch_rows[side].start)
        if self.mode == "per_branch":
            deltas = [self._delta(asked.part(side), physics) for side in sides]
            return output + self.backbone.answer(asked, torch.cat(deltas))
        once = self.mode == "conditional"
        if "cond" in sides:
            cond = asked.part("cond")
            self._pending = Pending(cond, physics, self._delta(cond, physics) if once else None)
            delta = self._pending.delta
        else:
            delta = self._remembered(asked) if once else None
        return output if delta is None else output + self.backbone.answer(asked, torch.cat([delta] * len(sides)))

    @eagerly
    def before_step(self, guided: Tensor) -> Tensor:
        """Correct the guided output on its way into the scheduler; once a step."""
        pending, self._pending = self._pending, None
        if not self.active or pending is None:
            return guided
        asked = replace(pending.asked, v=self.backbone.velocity(pending.asked, guided), dtype=guided.dtype)
        return guided + self.backbone.answer(asked, self._delta(asked, pending.physics))

    def enter(self, name: str | None, sigma: float | None) -> None:
        """Note the branch and the exact noise level that the pipeline announces."""
        self._branch, self._sigma = name, sigma

    @eagerly
    def _read(self, model: nn.Module, arguments: dict[str, Any], output: Tensor) -> Asked:
        whole = arguments | {"timestep": whole_timestep(model, arguments["timestep"])}
        return self.backbone.asked(model, whole, output, sigma=self._sigma, branch=self._branch)

    def _remembered(self, asked: Asked) -> Tensor:
        if self._pending is None or self._pending.delta is None:
            raise RuntimeError("the unconditional branch came first: mode 'conditional' needs cond before uncond")
        first = self._pending.asked
        if not (torch.equal(first.timestep, asked.timestep) and torch.equal(first.x_s, asked.x_s)):
            raise RuntimeError("the two guidance branches were asked at different points: use mode 'per_branch'")
        return self._pending.delta

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels that are corrected, as the adapter says them."""
        return sigma_range(self.adapter)

    def _inside(self, asked: Asked) -> Tensor:
        low, high = self.sigma_range
        return (asked.sigma >= low) & (asked.sigma <= high)

    def _delta(self, asked: Asked, physics: dict[str, Any]) -> Float[Tensor, "b c t h w"]:
        """Give the correction of some rows in flow space, 0 outside the adapter's range of noise levels."""
        whole = self.sigma_range == (0.0, 1.0)
        inside = None if whole else self._inside(asked)
        if inside is not None and not bool(inside.any()):
            return torch.zeros_like(asked.v)
        if physics and not self._takes_physics:
            raise ValueError(
                f"the adapter {self.adapter.kind!r} takes no `physics`, got {', '.join(physics)} in attention_kwargs"
            )
        self._place(asked.v.device)
        seen = asked.v if asked.noisy is None else asked.v * asked.noisy
        given = {"physics": physics} if self._takes_physics else {}
        with torch.autocast(device_type=seen.device.type, enabled=False):
            delta = self.adapter.correction(asked.x_s, seen, asked.sigma, asked.text, **given)
        if not isinstance(delta, Tensor) or delta.shape != seen.shape:  # pyright: ignore[reportUnnecessaryIsInstance]
            came = tuple(delta.shape) if isinstance(delta, Tensor) else repr(delta)  # pyright: ignore
            raise ValueError(f"expected a correction of shape {tuple(seen.shape)}, got {came} from {self.adapter.kind}")
        return delta if inside is None else torch.where(inside.view(-1, 1, 1, 1, 1), delta, 0.0)

    def _place(self, device: torch.device) -> None:
        """Bring the adapter to where it is asked (offload moves the model, never the adapter); it stays float32."""
        own = next(chain(self.adapter.parameters(), self.adapter.buffers()), None)
        if own is None or device.type == "meta":
            return
        if own.dtype != torch.float32 and not self._deep:
            raise RuntimeError(
                f"the adapter was cast to {own.dtype}, expected float32: cast the model, not the adapter"
            )
        if own.device != device:
            self.adapter.to(device)

    @eagerly
    def _check_prepared(self, asked: Asked, arguments: dict[str, Any]) -> None:
        """Refuse a pipeline whose prompts the adapter was not told: its own would be those of another call."""
        features = arguments["encoder_hidden_states"]
        if "cond" not in asked.branch_rows or features is self._told:
            return
        told, text = self._prepared, asked.part("cond").text.features
        if told is not None and told.features.shape == text.shape:
            mine = told.features.to(text)
            if bool((mine - text).norm() <= SAME_TEXT * mine.norm()):
                self._told = features
                return
        raise RuntimeError(
            f"the adapter {self.adapter.kind!r} was not told the prompts of this call: the pipeline is not the one that"
            " it was attached to, or its text was changed. Call attached.watch(pipe) first, or"
            " attached.prepare(prompts, text) with the text of this call."
        )


def check_free(model: nn.Module, name: str) -> None:
    """Refuse a transformer that is taken, or whose forward is held by something that would pass the host by."""
    if "phys_attached" in vars(model):
        raise RuntimeError(f"an adapter is attached to {name} already: detach it first")
    if "forward" in vars(model) or model._compiled_call_impl is not None:
        raise RuntimeError(
            "hooks have captured this transformer's forward and would pass the adapter by. Attach before"
            " offload, caches, context parallel or compile, or remove the hooks (pipe.remove_all_hooks())."
        )


def check_deep(adapter: Any, mode: str) -> None:
    """Refuse what an adapter of the hidden states cannot be."""
    if mode != "per_branch":
        raise ValueError(
            f"expected mode 'per_branch' for the adapter {adapter.kind!r}, got {mode!r}: it changes hidden states"
            " inside each guidance branch and has no velocity to add afterwards"
        )
    if unknown := [s for s in getattr(adapter, "seams", ()) if s not in SEAMS or not hasattr(adapter, s)]:
        raise ValueError(
            f"expected seams among {', '.join(SEAMS)}, each a method of {type(adapter).__name__}, got"
            f" {', '.join(unknown)}"
        )


def sigma_range(adapter: Any) -> tuple[float, float]:
    """Read the noise levels that an adapter was trained on; ValueError for what is no range in [0, 1]."""
    given = getattr(adapter, "sigma_range", (0.0, 1.0))
    try:
        low, high = map(float, given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a sigma_range (low, high), got {given!r}") from error
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"expected a sigma_range (low, high) with 0 <= low < high <= 1, got ({low}, {high})")
    return low, high


def chosen(backbone: Any, experts: str, levels: tuple[float, float]) -> tuple[nn.Module, ...]:
    """Choose the transformers to attach to; ValueError when the adapter's noise levels never reach them."""
    if experts not in EXPERTS:
        raise ValueError(f"expected experts among {', '.join(EXPERTS)}, got {experts!r}")
    models = backbone.transformers
    if experts == "both":
        return models
    if len(models) != 2:
        raise ValueError(
            f"expected experts='both' for {backbone.id}, got {experts!r}: it has one transformer for all noise levels"
        )
    high, low = backbone.sigma_ranges
    meets = levels[1] >= high[0] if experts == "high" else levels[0] < low[1]
    if not meets:
        raise ValueError(
            f"the adapter was trained on noise levels {levels}, and the {experts}-noise expert of {backbone.id} works"
            f" in {high if experts == 'high' else low}: it would never be corrected. Attach it with"
            f" experts={'low' if experts == 'high' else 'high'!r}."
        )
    return (models[0],) if experts == "high" else (models[1],)
