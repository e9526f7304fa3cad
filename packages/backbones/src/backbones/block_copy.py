"""A trainable copy of a block: a new block built from the config, with the weights loaded into it.

Never `copy.deepcopy`: diffusers' hooks (offload, caches, context parallel) keep the *original* block's forward in a
closure, so that a deep copy of a hooked block runs the original's weights; and a deep-copied quantised weight takes
`requires_grad_(True)` and never gets a gradient.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fresh_copy"]

FUSED = (".to_qkv.", ".to_kv.", ".to_added_kv.")  # made from the separate projections by fuse_qkv_projections


def fresh_copy(block: nn.Module, config: Any) -> nn.Module:
    """Build a new block of the sizes in `config` (the transformer's) and load the block's weights into it.

    Each parameter keeps its dtype (a bf16 Wan keeps float32 norms and tables) and its device; quantised weights are
    dequantised, and weights stored in 8 bits by layerwise casting get the dtype that they are computed in. A block on
    the meta device gives a copy on the meta device. All parameters of the copy require gradients.

    ValueError for a block of an unknown class, one that carries LoRA layers or other additions, one whose weights are
    elsewhere (offloaded), packed weights, and a config of another size.
    """
    from diffusers.models.attention_processor import FusedCogVideoXAttnProcessor2_0
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    from backbones.cogvideox_blocks import new_cogvideox_block
    from backbones.stock import families
    from backbones.wan_blocks import new_wan_block

    builders: dict[type, Callable[[Any], nn.Module]] = {
        WanTransformerBlock: new_wan_block,
        CogVideoXBlock: new_cogvideox_block,
    }
    if type(block) not in builders:
        builders |= {s.block_class: s.new_block for f in families() for s in f.stacks if s.block_class is not None}
    if type(block) not in builders:
        raise ValueError(
            f"expected a {' or a '.join(c.__name__ for c in builders)}, got {type(block).__name__}: give one block of a"
            " stock transformer, not compiled or wrapped"
        )
    check_memory(block)
    with torch.device("meta"):
        new = builders[type(block)](config)
    weights = {
        name: plain(name, value, block).detach().clone()
        for name, value in block.state_dict().items()
        if not any(part in f".{name}" for part in FUSED)
    }
    check_names(weights, new.state_dict())
    new.load_state_dict(weights, assign=True)
    new.requires_grad_(True)
    for name, module in block.named_modules():
        # The attention backend and the context-parallel plan live there; fused projections are not copied.
        if hasattr(module, "processor") and not isinstance(module.processor, FusedCogVideoXAttnProcessor2_0):
            new.get_submodule(name).processor = copy.copy(module.processor)
    return new.train(block.training)


def check_memory(block: nn.Module) -> None:
    """Refuse a block whose weights are elsewhere: on meta under hooks (accelerate), or in a file (diffusers), and then
    what is in memory was never written to.
    """
    hooks = [h for m in block.modules() for h in getattr(vars(m).get("_diffusers_hook"), "hooks", {}).values()]
    on_disk = any(getattr(getattr(h, "group", None), "offload_to_disk_path", None) for h in hooks)
    hooked = any("forward" in vars(m) for m in block.modules())
    if on_disk or (hooked and any(p.is_meta for p in block.parameters())):
        raise ValueError("the block's weights are not in memory: copy the block before offload is enabled")


def plain(name: str, value: Tensor, block: nn.Module) -> Tensor:
    """Give a weight as a floating-point tensor that can be trained."""
    if value.is_quantized or type(value).dequantize is not Tensor.dequantize:
        value = value.dequantize()
    if not value.is_floating_point():
        raise ValueError(
            f"the weight {name!r} is packed as {value.dtype}: call transformer.dequantize() first, or load the model"
            " without quantisation"
        )
    if value.element_size() == 1:
        value = value.to(compute_dtype(block.get_submodule(name.rpartition(".")[0]), name))
    return value


def compute_dtype(module: nn.Module, name: str) -> torch.dtype:
    """Read the dtype that layerwise casting computes a module in."""
    hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    for hook in hooks.values():
        if hasattr(hook, "compute_dtype"):
            return hook.compute_dtype
    raise ValueError(
        f"the weight {name!r} is stored in 8 bits, and no layerwise casting says in which dtype it is computed: copy"
        " the block before it is cast"
    )


def check_names(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare names and shapes before anything is loaded."""
    extra, missing = sorted(set(given) - set(wanted)), sorted(set(wanted) - set(given))
    if extra or missing:
        why = "it carries LoRA layers: copy the block before load_lora_weights, or fuse and unload the LoRA first"
        other = "the config does not belong to this block, or something was added to it"
        raise ValueError(
            f"cannot copy the block: {why if any('lora' in n for n in extra) else other}"
            f" (beyond the config: {extra[:3]}, missing: {missing[:3]})"
        )
    wrong = [n for n in wanted if given[n].shape != wanted[n].shape]
    if wrong:
        n = wrong[0]
        raise ValueError(
            f"expected {n!r} of shape {tuple(wanted[n].shape)} by the config, got {tuple(given[n].shape)}: give the"
            " config of the transformer that the block belongs to"
        )
