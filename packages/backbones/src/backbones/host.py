"""The classes that a stock transformer and a stock scheduler wear while an adapter is attached.

A subclass of the object's own class is put in its place ("PhysicsWanTransformer3DModel"): pipelines, LoRA, offload and
caches go on seeing the stock model with its weights, its state dict and the signature of its forward. The adapter is no
child of the model: casts, offload hooks and LoRA's name patterns, which would reach it as they reach any block, have
nothing to do with it.

What surprises: diffusers' hooks keep the forward that they found, so a class can only be swapped before them; context
parallel hands this forward one shard of the per-token timesteps.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from backbones.attached import Attached

__all__ = ["PhysicsHost", "hooks_of", "host_class", "refuse_saving", "scheduler_class"]

CACHES = {
    "FirstBlockCacheConfig",
    "MagCacheConfig",
    "PyramidAttentionBroadcastConfig",
    "TaylorSeerCacheConfig",
}  # a cached step still ends in the model's output, which is what an adapter of the velocity corrects


F = TypeVar("F", bound=Callable[..., Any])


def eagerly(function: F) -> F:
    """Keep a function, and all that it calls, out of what `torch.compile` compiles: it looks at values."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


class PhysicsHost:
    """What the swapped class adds to the stock transformer."""

    _stock: type
    phys_attached: "Attached"

    @contextmanager
    def cache_context(self, name: str, **where: Any) -> Iterator[None]:
        """Pass the branch and the noise level on to the adapter; image pipelines and CogVideoX give the name alone."""
        attached = self.phys_attached
        attached.enter(name, where.get("sigma"))
        try:
            with self._stock.cache_context(self, name, **where):
                yield
        finally:
            attached.enter(None, None)

    def without_adapters(self) -> Any:
        """Give the context of `predict`: in it the frozen model speaks alone, unless the adapter was asked for."""
        attached = self.phys_attached
        return nullcontext() if attached.in_predict else attached.off()

    def enable_cache(self, config: Any) -> None:
        """Enable a cache that leaves the model's output what it is; RuntimeError for the others."""
        adapter = self.phys_attached.adapter
        if getattr(adapter, "needs_blocks", False):
            raise RuntimeError(
                f"the adapter {adapter.kind!r} changes hidden states between blocks, and a cache that skips blocks or"
                " attentions would count its changes twice or lose them. Sample without a cache, or detach."
            )
        if type(config).__name__ not in CACHES:
            raise RuntimeError(
                f"{type(config).__name__} is not known to leave a model's output as it is (FasterCache estimates the"
                " unconditional branch from the conditional one, correction included). With an adapter attached, use"
                f" one of {', '.join(sorted(CACHES))}."
            )
        self._stock.enable_cache(self, config)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the saved class name would be stock and the adapter lost on loading."""
        refuse_saving()


@lru_cache
def host_class(stock: type) -> type:
    """Make the host of a stock transformer class: same forward signature, which hooks and pipelines inspect."""
    signature = inspect.signature(stock.forward)

    # Dynamo passes this frame over and compiles what it calls: the stock forward, or the blocks.
    @torch.compiler.disable(recursive=False)
    @wraps(stock.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(self, *args, **kwargs).arguments)
        del arguments["self"]
        physics = take_physics(arguments)
        attached = vars(self).get("phys_attached")
        if attached is None or not attached.active:
            return stock.forward(self, **arguments)
        return attached.answer(self, stock, arguments, physics)

    extra = {"forward": forward, "_stock": stock, "__module__": __name__}
    return type(f"Physics{stock.__name__}", (PhysicsHost, stock), extra)


@lru_cache
def scheduler_class(stock: type) -> type:
    """Make a scheduler whose step corrects the guided output first; pipelines inspect the signature of `step`."""

    @wraps(stock.step)
    def step(self: Any, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        return stock.step(self, self.phys_attached.before_step(model_output), *args, **kwargs)

    return type(stock.__name__, (stock,), {"step": step, "_stock": stock, "__module__": stock.__module__})


def take_physics(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take `attention_kwargs["physics"]` out of a call: attention processors do not know it."""
    given = arguments.get("attention_kwargs")
    if not given or "physics" not in given:
        return {}
    arguments["attention_kwargs"] = {k: v for k, v in given.items() if k != "physics"} or None
    return given["physics"]


def hooks_of(model: nn.Module) -> set[str]:
    """Name the kinds of diffusers hooks anywhere in a model, as their modules are called: "mag_cache", ..."""
    registries = (vars(m).get("_diffusers_hook") for m in model.modules())
    return {type(h).__module__.rpartition(".")[2] for r in registries if r is not None for h in r.hooks.values()}


def whole_timestep(model: nn.Module, timestep: Tensor) -> Tensor:
    """Give the timesteps of all tokens: under context parallel a rank's forward sees those of its own tokens alone."""
    registry = vars(model).get("_diffusers_hook")
    if registry is None or timestep.ndim != 2:
        return timestep
    from diffusers.hooks.context_parallel import (
        ContextParallelSplitHook,
        EquipartitionSharder,
        PartitionAnythingSharder,
    )

    for hook in registry.hooks.values():
        if isinstance(hook, ContextParallelSplitHook) and "timestep" in hook.metadata:
            config = hook.parallel_config
            uneven = config.ulysses_anything or config.ring_anything
            gather: Any = PartitionAnythingSharder.unshard_anything if uneven else EquipartitionSharder.unshard
            return gather(timestep, 1, config._flattened_mesh)
    return timestep


def refuse_saving(*args: Any, **kwargs: Any) -> None:
    """Raise: a pipeline with an attached adapter cannot be saved as such."""
    raise RuntimeError(
        "an adapter is attached: saving the pipeline would lose it in silence. Call detach() first, and save the"
        " adapter alone with backbones.bundle.save."
    )
