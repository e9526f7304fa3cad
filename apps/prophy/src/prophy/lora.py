"""The LoRA baseline: low-rank layers on the backbone's attention projections, in place of a physical branch.

The layers are peft's. They sit on *shadow* blocks, which share every frozen tensor with the backbone's own blocks and
are run in their place: the backbone itself is never written to, and detaching leaves no trace. What surprises: a
shadow holds the tensors that were there when it was made, so it comes before offload, casts and quantisation.
"""

from typing import Any

from torch import nn

from backbones import BlockStack, fresh_copy

__all__ = ["LoraBlocks"]


class LoraBlocks(nn.Module):
    """All blocks of a backbone with LoRA on `targets`; only the low-rank layers are parameters of this module.

    ValueError without peft, and for targets that no projection of a block is called.
    """

    def __init__(self, stack: BlockStack, *, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
        super().__init__()
        try:
            import peft
        except ImportError:
            raise ValueError("branch.kind=lora needs peft: uv pip install peft") from None
        self.layers = nn.ModuleDict()
        shadows: list[nn.Module] = []
        for k, block in enumerate(stack.blocks):
            shadow = fresh_copy(block, stack.transformer.config)
            shadow.load_state_dict(block.state_dict(), assign=True)
            shadow.requires_grad_(False)
            config = peft.LoraConfig(r=rank, lora_alpha=int(alpha), target_modules=list(targets))
            try:
                peft.inject_adapter_in_model(config, shadow)
            except ValueError as error:
                raise ValueError(f"expected branch.lora_targets that a block has, got {targets}: {error}") from None
            for name, module in shadow.named_modules():
                if hasattr(module, "lora_A"):
                    parts: Any = {"down": module.lora_A["default"], "up": module.lora_B["default"]}  # pyright: ignore
                    self.layers[f"{k}_{name.replace('.', '_')}"] = nn.ModuleDict(parts).float()
            shadows.append(shadow)
        object.__setattr__(self, "shadows", shadows)  # no children: their frozen weights are the backbone's

    shadows: list[nn.Module]
