"""A student as files for people who have diffusers alone: plain weights of a stock transformer, or a LoRA.

- `weights`: DIR/transformer as `save_pretrained` writes it, LoRA merged. It takes the place of the folder of the same
  name in the base's own pipeline: `WanTransformer3DModel.from_pretrained(DIR, subfolder="transformer")`.
- `lora`: `pytorch_lora_weights.safetensors`, for `pipe.load_lora_weights(DIR)`.
- `bundle`: this project's own form.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from backbones import lora
from mmphysvideo.config import Recipe
from mmphysvideo.weights import plain, trainable
from trainers.atomic import write_text

__all__ = ["Form", "write"]

Form = Literal["bundle", "weights", "lora"]


def write(
    recipe: Recipe,
    backbone: Any,
    state: dict[str, Tensor],
    out: Path,
    form: Form,
) -> Path:
    """Write a student's trained state (a bundle's group `weights`) as `weights` or as `lora`, and read it back.

    ValueError for a LoRA of fully trained weights.
    """
    w = recipe.student.weights
    if form == "lora":
        if w.kind != "lora":
            raise ValueError("expected a student trained with LoRA for --form lora, got full weights: --form weights")
        trained = trainable(backbone, w)
        trained.group.load_state_dict(state)
        (path,) = lora.save(out, {"transformer": trained.model})
        return path
    model, folder = plain(backbone, w, state), out / "transformer"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)  # where the base lay is nobody's
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    again = type(model).from_pretrained(folder)
    kept, wanted = again.state_dict(), model.state_dict()
    if any(not torch.equal(kept[name].to(value.dtype), value.cpu()) for name, value in wanted.items()):
        raise RuntimeError(f"the weights in {folder} are not those that were written: disk or memory is at fault")
    return folder
