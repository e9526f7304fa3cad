"""Frozen video diffusion models behind one contract; adapters attach to stock diffusers pipelines.

`import backbones` costs torch and no more: diffusers and transformers are imported by the first name that needs them.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from backbones import paths
from backbones.contract import Adapter, Backbone, LatentSpec, Spec, Text, TimeSpec

if TYPE_CHECKING:
    from backbones import bundle, flow, tiny
    from backbones.block_pca import AutoencoderBlockPCA
    from backbones.bundle import Bundle
    from backbones.host import Attached, attach
    from backbones.loading import load
    from backbones.sampling import noise, sample
    from backbones.wan import WanBackbone

__all__ = [
    "Adapter",
    "Attached",
    "AutoencoderBlockPCA",
    "Backbone",
    "Bundle",
    "LatentSpec",
    "Spec",
    "Text",
    "TimeSpec",
    "WanBackbone",
    "__version__",
    "attach",
    "bundle",
    "flow",
    "load",
    "noise",
    "paths",
    "sample",
    "tiny",
]
__version__ = version("physbackbones")

_HOME = {
    "Attached": "host",
    "AutoencoderBlockPCA": "block_pca",
    "Bundle": "bundle",
    "WanBackbone": "wan",
    "attach": "host",
    "load": "loading",
    "noise": "sampling",
    "sample": "sampling",
}
_MODULES = ("bundle", "flow", "tiny")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"backbones.{name}")
    if name in _HOME:
        return getattr(import_module(f"backbones.{_HOME[name]}"), name)
    raise AttributeError(f"module 'backbones' has no attribute {name!r}")
