"""Load a backbone by name, folder or hub id.

`"world"` is the embedded default inside this package. A folder or a hub id must hold a diffusers Wan pipeline. An
optional `backbone.json` beside `model_index.json` gives `id` and `fps`.
"""

import json
from importlib.resources import files
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, WanPipeline
from diffusers.utils import logging

# diffusers loads a component class outside its own libraries only when its module is already imported
from backbones import block_pca as _block_pca  # noqa: F401
from backbones.wan import WanBackbone, describe

__all__ = ["load", "save"]

MODEL_24_FPS = 48  # latent channels of Wan2.2 TI2V-5B, the only 24 fps model of the family


def load(name_or_path: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> WanBackbone:
    """Load `"world"`, a diffusers folder or a hub id; ValueError with the remedy when there is nothing to load."""
    embedded = Path(str(files("backbones"))) / "weights"
    folder = embedded / str(name_or_path)
    if name_or_path == "world" and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"the embedded backbone 'world' is not in this installation ({folder} holds no model_index.json)."
            " Train it with `uv run world train backbone` and put it there with `uv run world export`."
        )
    if not (folder / "model_index.json").is_file():
        folder = Path(name_or_path)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(f"expected a diffusers pipeline folder with a model_index.json, got {folder}")
    source = str(folder) if folder.exists() else str(name_or_path)
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # "Expected types for vae": the block PCA is meant to stand there
    try:
        pipe = DiffusionPipeline.from_pretrained(source, **({} if dtype is None else {"dtype": dtype}))
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    if not isinstance(pipe, WanPipeline):
        raise ValueError(f"expected a WanPipeline in {source}, got {type(pipe).__name__}")
    if pipe.vae.dtype != torch.float32:
        pipe.vae.to(torch.float32)  # a VAE in half precision loses the picture
    for module in (pipe.transformer, pipe.transformer_2, pipe.text_encoder, pipe.vae):
        if module is not None:
            module.eval()
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    about = describe(folder)
    fps = about.get("fps", 24.0 if pipe.vae.config.z_dim == MODEL_24_FPS else 16.0)
    return WanBackbone(pipe, id=about.get("id", str(name_or_path)), fps=fps)


def save(backbone: WanBackbone, folder: str | Path, *, id: str) -> Path:
    """Write the pipeline in diffusers layout with `backbone.json` beside it, so that `load` gives the same contract."""
    folder = Path(folder)
    backbone.pipe.save_pretrained(folder)
    about = {"id": id, "fps": backbone.spec.time.fps, "words": list(backbone.words)}
    (folder / "backbone.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder
