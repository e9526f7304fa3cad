"""Load a backbone by name, folder or hub id.

`"world"` is the embedded default inside this package. A folder or a hub id must hold a diffusers Wan pipeline. An
optional `backbone.json` beside `model_index.json` gives `id` and `fps`.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

# Importing Wan's image-to-video pipeline makes transformers look for CLIP's image processor, which no Wan here uses.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "`CLIPImageProcessor` requires torchvision" not in record.getMessage()
)

import torch  # noqa: E402
from diffusers import DiffusionPipeline, WanPipeline  # noqa: E402
from diffusers.utils import logging as diffusers_logging  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

# diffusers loads a component class outside its own libraries only when its module is already imported
from backbones import block_pca as _block_pca  # noqa: E402, F401
from backbones.wan import WanBackbone, describe  # noqa: E402

__all__ = ["load", "save"]

MODEL_24_FPS = 48  # latent channels of Wan2.2 TI2V-5B, the only 24 fps model of the family


def load(name_or_path: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> WanBackbone:
    """Load `"world"`, a diffusers folder or a hub id; ValueError with the remedy when there is nothing to load."""
    embedded = Path(str(files("backbones"))) / "weights"
    folder = embedded / str(name_or_path)
    if name_or_path == "world" and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"the embedded backbone 'world' is not in this installation ({folder} holds no model_index.json)."
            " Train it with `uv run world train backbone --out RUN` and put it there with"
            f" `uv run world export --run RUN --out {folder}`."
        )
    if not (folder / "model_index.json").is_file():
        folder = Path(name_or_path)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(f"expected a diffusers pipeline folder with a model_index.json, got {folder}")
    source = str(folder) if folder.exists() else str(name_or_path)
    try:
        with _quiet():
            pipe = DiffusionPipeline.from_pretrained(source, **({} if dtype is None else {"dtype": dtype}))
    except (OSError, ValueError) as error:
        if folder.exists():
            raise
        raise ValueError(
            f"expected 'world', a folder with a diffusers pipeline or a hub id, got {source!r}: no such folder is"
            f" there, and as a hub id it failed ({str(error).splitlines()[0]})"
        ) from error
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
    for config in sorted(folder.rglob("*.json")):
        content = json.loads(config.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")  # where it lay before is nobody's
    about = {"id": id, "fps": backbone.spec.time.fps, "words": list(backbone.words)}
    (folder / "backbone.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Show neither bars of weights that load in a moment nor diffusers' remark that a block PCA is no Wan VAE."""
    verbosity, bars = diffusers_logging.get_verbosity(), diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    # the bars of transformers alone: its `disable_progress_bar` would hide downloads from the hub, too
    hook = transformers_logging.set_tqdm_hook(lambda make, args, kwargs: make(*args, **(kwargs | {"disable": True})))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)
        diffusers_logging.set_verbosity(verbosity)
        if bars:
            diffusers_logging.enable_progress_bar()
