"""LoRA parts as files that diffusers' `load_lora_weights` takes.

A LoRA that was trained on a stock transformer (`transformer.add_adapter(LoraConfig(...))`) is written with its config,
because rank and alpha are not in the tensors: a file without it is loaded as if alpha were the rank.

A model with two transformers (Wan2.2 A14B) gets two files. diffusers reads keys that begin with `transformer.` alone,
also for the second transformer (`load_into_transformer_2=True`), so one file cannot serve both: a key
`transformer_2.` would be passed over in silence.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as write_tensors
from torch import Tensor, nn

__all__ = ["FILES", "load", "save", "serialise", "state"]

FILES = {"transformer": "pytorch_lora_weights.safetensors", "transformer_2": "pytorch_lora_weights_2.safetensors"}


def state(transformer: nn.Module, *, name: str = "default") -> dict[str, Tensor]:
    """Give the LoRA tensors of a transformer under diffusers' names; ValueError when it carries no LoRA `name`."""
    peft = _peft()
    config = getattr(transformer, "peft_config", {})
    if name not in config:
        known = ", ".join(config) or "none"
        raise ValueError(
            f"expected a transformer with a LoRA {name!r}, it has: {known}."
            " Train one with transformer.add_adapter(peft.LoraConfig(...))."
        )
    # embeddings are no LoRA, and looking for them asks the hub for the base model's config
    found: dict[str, Tensor] = peft.get_peft_model_state_dict(
        transformer, adapter_name=name, save_embedding_layers=False
    )
    return {k: v.detach().cpu().contiguous() for k, v in found.items()}


def serialise(parts: Mapping[str, nn.Module], *, name: str = "default") -> dict[str, bytes]:
    """Give the content of the files, by file name, of the LoRAs of `{"transformer": module, "transformer_2": ...}`."""
    unknown = [part for part in parts if part not in FILES]
    if unknown:
        raise ValueError(f"expected LoRA parts among {', '.join(FILES)}, got {', '.join(unknown)}")
    result = {}
    for part, module in parts.items():
        tensors = {f"transformer.{key}": value for key, value in state(module, name=name).items()}
        config: dict[str, Any] = module.peft_config[name].to_dict()  # pyright: ignore
        config["base_model_name_or_path"] = None  # where the base lay is nobody's
        packed = {f"transformer.{key}": value for key, value in config.items()}
        about = json.dumps(packed, indent=2, sort_keys=True, default=_plain)
        result[FILES[part]] = write_tensors(tensors, {"format": "pt", "lora_adapter_metadata": about})
    return result


def save(folder: str | Path, parts: Mapping[str, nn.Module], *, name: str = "default") -> list[Path]:
    """Write the files (by rename) and give their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file, content in serialise(parts, name=name).items():
        part = folder / f"{file}.tmp"
        part.write_bytes(content)
        paths.append(part.replace(folder / file))
    return paths


def load(pipe: Any, folder: str | Path, *, name: str = "default") -> list[str]:
    """Load what `save` wrote through the stock pipeline's own `load_lora_weights`; give the parts that were loaded.

    ValueError when there is nothing to load, or a part for a transformer that the pipeline does not have.
    """
    _peft()
    folder = Path(folder)
    found = [part for part, file in FILES.items() if (folder / file).is_file()]
    if not found:
        raise ValueError(f"expected {' or '.join(FILES.values())} in {folder}, got neither")
    for part in found:
        if getattr(pipe, part, None) is None:
            raise ValueError(f"{folder / FILES[part]} is for a `{part}`, and {type(pipe).__name__} here has none")
    for part in found:
        second = {"load_into_transformer_2": True} if part == "transformer_2" else {}
        pipe.load_lora_weights(str(folder), weight_name=FILES[part], adapter_name=name, use_safetensors=True, **second)
    return found


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft: uv pip install 'physbackbones[lora]'") from error
    return peft


def _plain(value: Any) -> Any:
    """Sets and enumerations of a LoraConfig as JSON has them."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", str(value))
