"""Load a backbone by name, folder or hub id.

`"world"` is the embedded default inside this package. A folder or a hub id must hold a diffusers pipeline of Wan or
CogVideoX, for text or an image, or of a family that an installed package registers (`backbones.stock.families`). An
optional `backbone.json` beside `model_index.json` gives `id` and `fps`.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

# Importing Wan's image-to-video pipeline makes transformers look for CLIP's image processor: a note, not a fault.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "`CLIPImageProcessor` requires torchvision" not in record.getMessage()
)

import diffusers  # noqa: E402
import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from diffusers.utils import logging as diffusers_logging  # noqa: E402

# diffusers loads a component class outside its own libraries only when its module is already imported
from backbones import block_pca as _block_pca  # noqa: E402, F401
from backbones import guards  # noqa: E402
from backbones.cogvideox import CogVideoXBackbone  # noqa: E402
from backbones.quiet import no_weight_bars  # noqa: E402
from backbones.stock import StockBackbone, families  # noqa: E402
from backbones.wan import WanBackbone, describe  # noqa: E402

__all__ = ["load", "save", "wrap"]

OWN: tuple[type[StockBackbone], ...] = (WanBackbone, CogVideoXBackbone)


def wrap(pipe: Any, *, id: str = "", fps: float | None = None) -> StockBackbone:
    """Put a loaded stock pipeline behind the contract; ValueError names the classes that can be."""
    for family in [f for f in OWN if isinstance(pipe, f.pipelines)] or families():
        if isinstance(pipe, family.pipelines):
            return family(pipe, id=id, fps=fps)
    known = ", ".join(p.__name__ for family in (*OWN, *families()) for p in family.pipelines)
    raise ValueError(f"expected a pipeline among {known}, got {type(pipe).__name__}")


def load(
    name_or_path: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    torch_dtype: torch.dtype | None = None,
) -> StockBackbone:
    """Load `"world"`, a diffusers folder or a hub id; ValueError with the remedy when there is nothing to load.

    `torch_dtype` is `dtype` under diffusers' former name. Wan's VAE stays in float32 whatever the dtype.
    """
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ValueError(f"expected one dtype, got dtype={dtype} and torch_dtype={torch_dtype}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"expected a CUDA device for device={device}, found none on this machine; set device=cpu")
    dtype = dtype or torch_dtype
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
    guards.checkpoint_layout(folder)
    source = str(folder) if folder.exists() else str(name_or_path)
    try:
        with _quiet():
            pipe = DiffusionPipeline.from_pretrained(source, **_dtypes(dtype))
    except (OSError, ValueError) as error:
        if folder.exists():
            raise
        raise ValueError(
            f"expected 'world', a folder with a diffusers pipeline or a hub id, got {source!r}: no such folder is"
            f" there, and as a hub id it failed ({str(error).splitlines()[0]})"
        ) from error
    # Half precision loses the picture, and a checkpoint may hold the VAE in it.
    precision = torch.float32 if wrap(pipe).float32_vae else pipe.transformer.dtype
    if pipe.vae.dtype != precision:
        with _quiet():
            pipe.vae.to(precision)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    about = describe(folder)
    return wrap(pipe, id=about.get("id", str(name_or_path)), fps=about.get("fps"))


def save(backbone: StockBackbone, folder: str | Path, *, id: str) -> Path:
    """Write the pipeline in diffusers layout with `backbone.json` beside it, so that `load` gives the same contract."""
    folder = Path(folder)
    backbone.pipe.save_pretrained(folder)
    for config in sorted(folder.rglob("*.json")):
        content = json.loads(config.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")  # where it lay before is nobody's
    about: dict[str, Any] = {"id": id, "fps": backbone.spec.time.fps, "words": list(backbone.words)}
    (folder / "backbone.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder


def _dtypes(dtype: torch.dtype | None) -> dict[str, Any]:
    """Say the dtype as this diffusers wants it: before 0.42 the argument was called `torch_dtype`."""
    if dtype is None:
        return {}
    name = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42) else "torch_dtype"
    return {name: {"default": dtype, "vae": torch.float32}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Show neither bars of weights that load in a moment nor diffusers' remark that a block PCA is no Wan VAE."""
    verbosity, bars = diffusers_logging.get_verbosity(), diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    try:
        with no_weight_bars():
            yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if bars:
            diffusers_logging.enable_progress_bar()
