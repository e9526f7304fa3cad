"""A pipeline without weights: every module on the meta device, built from configurations alone.

It answers what a model is (its spec, its parameters, its shapes) in seconds and without memory: a folder or hub id
gives `model_index.json` and the `config.json` of each part, the names of `backbones.configs` need neither. Classes come
from diffusers, transformers and this package alone: a configuration that names others is refused, nothing is executed.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from backbones import configs, hub
from backbones.block_pca import AutoencoderBlockPCA

__all__ = ["Length", "skeleton"]

JSON = ("model_index.json", "backbone.json", "*/config.json", "*/scheduler_config.json", "*/tokenizer_config.json")

# The encoders that the published repositories hold: google/umt5-xxl, T5 v1.1 XXL, CLIP ViT-H/14.
ENCODERS: dict[str, dict[str, Any]] = {
    "UMT5EncoderModel": {"vocab_size": 256384, "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    "T5EncoderModel": {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
    "CLIPVisionModel": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
}


class Length:
    """All that is asked of a tokenizer here: the length that it pads to."""

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length


def skeleton(name: str | Path) -> tuple[Any, dict[str, Any]]:
    """Build the stock pipeline on the meta device; give it with what is known about it (`id`, `fps`, the usual clip).

    `name` is a name of `backbones.configs` or the hub id that it describes, "world", a diffusers folder or a hub id.
    ValueError when it is none of them.
    """
    for known in configs.NAMES:
        about = configs.read(known)
        if str(name) in (known, about["hub"]):
            return _published(known, about), {"id": about["hub"], **about}
    folder = Path(str(files("backbones"))) / "weights" / "world" if str(name) == "world" else Path(name)
    if not folder.exists():
        found = hub.split_id(str(name))
        if found is None:
            raise ValueError(
                f"expected a family ({', '.join(configs.NAMES)}), 'world', a diffusers folder or a hub id (org/name),"
                f" got {str(name)!r}"
            )
        folder, _ = hub.download(found[0], JSON, revision=found[1])
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"expected a diffusers pipeline folder with a model_index.json, got {folder}")
    about = _read(folder / "backbone.json") if (folder / "backbone.json").is_file() else {}
    return _saved(folder), {"id": str(name), **about}


def _published(name: str, about: dict[str, Any]) -> Any:
    parts: dict[str, Any] = {
        "transformer": configs.transformer(name),
        "vae": configs.vae(name),
        "text_encoder": _encoder(about["text_encoder"], ENCODERS[about["text_encoder"]]),
        "tokenizer": Length(about["text_length"]),
        "scheduler": _scheduler(about["scheduler"]),
    }
    if about["transformers"] == 2:
        parts |= {"transformer_2": configs.transformer(name), "boundary_ratio": about["boundary_ratio"]}
    if about["transformer"].get("image_dim"):
        parts |= {"image_encoder": _encoder("CLIPVisionModel", ENCODERS["CLIPVisionModel"]), "image_processor": None}
    if about["pipeline"].startswith("Wan"):
        parts["expand_timesteps"] = about["expand_timesteps"]
    return _pipeline(about["pipeline"], parts)


def _saved(folder: Path) -> Any:
    index = _read(folder / "model_index.json")
    parts: dict[str, Any] = {}
    for part, entry in index.items():
        if part.startswith("_"):
            continue
        if not isinstance(entry, list):
            parts[part] = entry  # a setting of the pipeline: boundary_ratio, expand_timesteps
        elif entry[1] is None:
            parts[part] = None
        elif part == "scheduler":
            parts[part] = _scheduler(_read(folder / part / "scheduler_config.json"))
        elif part == "tokenizer":
            config = _read(folder / part / "tokenizer_config.json")
            parts[part] = Length(int(config.get("model_max_length", 512)))
        else:
            parts[part] = _module(folder / part, *entry)
    return _pipeline(index.get("_class_name", ""), parts)


def _module(folder: Path, library: str, kind: str) -> nn.Module | None:
    if not (folder / "config.json").is_file():
        return None  # an image processor
    config = _read(folder / "config.json")
    if library == "transformers":
        return _encoder(kind, config)
    found: Any = AutoencoderBlockPCA if kind == "AutoencoderBlockPCA" else _of(diffusers, kind, nn.Module)
    with torch.device("meta"):
        return found.from_config({k: v for k, v in config.items() if not k.startswith("_")}).eval()


def _encoder(kind: str, config: dict[str, Any]) -> nn.Module:
    found: Any = _of(transformers, kind, transformers.PreTrainedModel)
    with torch.device("meta"):
        return found(found.config_class(**config)).eval()


def _scheduler(config: dict[str, Any]) -> Any:
    found: Any = _of(diffusers, config.get("_class_name", ""), diffusers.SchedulerMixin)
    return found.from_config({k: v for k, v in config.items() if not k.startswith("_")})


def _pipeline(kind: str, parts: dict[str, Any]) -> Any:
    found: Any = _of(diffusers, kind, diffusers.DiffusionPipeline)
    try:
        return found(**parts)
    except TypeError as error:
        raise ValueError(f"the parts {', '.join(sorted(parts))} do not make a {kind}: {error}") from error


def _of(library: Any, kind: str, base: type) -> Any:
    found = getattr(library, kind, None) if kind and not kind.startswith("_") else None
    if not isinstance(found, type) or not issubclass(found, base):
        raise ValueError(f"expected a class of {library.__name__}, got {kind!r}: nothing else is built from a config")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"expected JSON in {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected an object in {path}, got a {type(content).__name__}")
    return content
