"""Frozen video diffusion models behind one contract; adapters attach to stock diffusers pipelines.

`import backbones` costs torch and no more: diffusers and transformers are imported by the first name that needs them.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from backbones import paths
from backbones.contract import Adapter, Asked, Backbone, Condition, LatentSpec, Spec, Text, TimeSpec

if TYPE_CHECKING:
    from backbones import bundle, configs, flow, guards, laws, lora, taps, tiny, verify, vjepa2
    from backbones.attached import Attached, attach
    from backbones.block_adapter import BlockAdapter, Call
    from backbones.block_copy import fresh_copy
    from backbones.block_pca import AutoencoderBlockPCA
    from backbones.blocks import BlockSpec, BlockStack, Tokens, blocks_of, lockstep
    from backbones.bundle import Bundle
    from backbones.cogvideox import CogVideoXBackbone
    from backbones.loading import load, wrap
    from backbones.recipe import load_for
    from backbones.sampling import noise, sample
    from backbones.vjepa2 import VJEPA2Encoder
    from backbones.wan import WanBackbone

__all__ = [
    "Adapter",
    "Asked",
    "Attached",
    "AutoencoderBlockPCA",
    "Backbone",
    "BlockAdapter",
    "BlockSpec",
    "BlockStack",
    "Bundle",
    "Call",
    "CogVideoXBackbone",
    "Condition",
    "LatentSpec",
    "Spec",
    "Text",
    "TimeSpec",
    "Tokens",
    "VJEPA2Encoder",
    "WanBackbone",
    "__version__",
    "attach",
    "blocks_of",
    "bundle",
    "configs",
    "flow",
    "fresh_copy",
    "guards",
    "laws",
    "load",
    "load_for",
    "lockstep",
    "lora",
    "noise",
    "paths",
    "sample",
    "taps",
    "tiny",
    "verify",
    "vjepa2",
    "wrap",
]
__version__ = version("physbackbones")

_HOME = {
    "Attached": "attached",
    "AutoencoderBlockPCA": "block_pca",
    "BlockAdapter": "block_adapter",
    "BlockSpec": "blocks",
    "BlockStack": "blocks",
    "Bundle": "bundle",
    "Call": "block_adapter",
    "CogVideoXBackbone": "cogvideox",
    "Tokens": "blocks",
    "VJEPA2Encoder": "vjepa2",
    "WanBackbone": "wan",
    "attach": "attached",
    "blocks_of": "blocks",
    "fresh_copy": "block_copy",
    "load": "loading",
    "load_for": "recipe",
    "lockstep": "blocks",
    "noise": "sampling",
    "sample": "sampling",
    "wrap": "loading",
}
_MODULES = ("bundle", "configs", "flow", "guards", "laws", "lora", "taps", "tiny", "verify", "vjepa2")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"backbones.{name}")
    if name in _HOME:
        return getattr(import_module(f"backbones.{_HOME[name]}"), name)
    raise AttributeError(f"module 'backbones' has no attribute {name!r}")
