"""The part of a transformer that is trained: low-rank layers, or a copy of everything; the frozen model stays as it is.

The result is a stock transformer of the same class. With LoRA its frozen tensors are the backbone's own (no memory
twice); with full training they are copies in float32. `plain` gives the trained model without any trace of how it was
trained: stock modules with the weights that LoRA adds up to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmphysvideo.config import Weights
from mmphysvideo.streams import Stream

__all__ = ["Trained", "as_kept", "plain", "trainable"]


@dataclass(frozen=True)
class Trained:
    """A transformer with what of it moves."""

    stream: Stream
    group: nn.Module

    @property
    def model(self) -> Any:
        return self.stream.model


def trainable(backbone: Any, weights: Weights) -> Trained:
    """Build a transformer beside the backbone's, equal to it at the start.

    ValueError for a model with two transformers or one that carries a condition, and for targets that no layer has.
    """
    if len(backbone.transformers) > 1 or backbone.conditioned:
        raise ValueError(
            f"expected a text-to-video backbone with one transformer, got {backbone.id}: a second transformer, or an"
            " image beside the noisy latent, has no stream of its own here"
        )
    model = _copy(backbone.transformer, owned=weights.kind == "full")
    if weights.kind == "full":
        model.float().requires_grad_(True)
        return Trained(Stream(backbone, model), model)
    return Trained(Stream(backbone, model), _lora(model, weights))


def plain(backbone: Any, weights: Weights, state: Mapping[str, Tensor]) -> Any:
    """Give a stock transformer with trained weights (a group's state dict), LoRA merged, in the backbone's dtype."""
    model = _copy(backbone.transformer, owned=True)
    if weights.kind == "full":
        model.load_state_dict(state)  # casts to what the copy is kept in
        return model.eval().requires_grad_(False)
    _lora(model, weights).load_state_dict(state)
    model.fuse_lora()
    model.unload_lora()
    return model.eval().requires_grad_(False)


def as_kept(model: Any, like: Any) -> None:
    """Cast each weight of a model to the dtype that another of the same class keeps it in."""
    dtypes = {name: p.dtype for name, p in like.named_parameters()}
    for name, p in model.named_parameters():
        p.data = p.data.to(dtypes[name])


def _copy(transformer: Any, *, owned: bool) -> Any:
    """A stock transformer with the weights of another: its own copies, or the very tensors."""
    stock = getattr(type(transformer), "_stock", type(transformer))
    with torch.device("meta"):
        model = stock.from_config(dict(transformer.config))
    weights = transformer.state_dict()
    if lora := [name for name in weights if "lora_" in name]:
        raise ValueError(f"expected a transformer without LoRA, got one with {lora[0]}: fuse or unload it first")
    model.load_state_dict({n: v.detach().clone() if owned else v.detach() for n, v in weights.items()}, assign=True)
    for name, buffer in transformer.named_buffers():  # rotary tables are in no state dict
        home, _, last = name.rpartition(".")
        model.get_submodule(home)._buffers[last] = buffer
    return model.eval().requires_grad_(False)


def _lora(model: Any, weights: Weights) -> nn.ModuleDict:
    """Put LoRA layers into a model and give them, in float32, by the place they sit in."""
    import peft

    config = peft.LoraConfig(r=weights.rank, lora_alpha=weights.alpha, target_modules=list(weights.targets))
    try:
        model.add_adapter(config)
    except ValueError as error:
        raise ValueError(f"expected weights.targets that a block has, got {weights.targets}: {error}") from None
    layers = nn.ModuleDict()
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            parts = {"down": module.lora_A["default"], "up": module.lora_B["default"]}
            layers[name.replace(".", "_")] = nn.ModuleDict(parts).float()
    return layers
