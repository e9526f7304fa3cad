"""Ship a trained encoder: the stock folder and a card that quotes the probe, in at most 8 MB."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainers import load_config, write_text
from world.encoder import EncoderRecipe
from world.probe import DIMENSIONS, Ratio, table

__all__ = ["export"]

CARD = """\
---
license: apache-2.0
library_name: transformers
tags: [simulated-physics, vjepa2, tiny]
---
# A tiny V-JEPA 2 for the simulated physics world

A stock `VJEPA2Model` with {parameters:,} parameters (encoder and predictor), trained without labels on clips of
`physworld` by masked latent prediction: a physics latent for adapters, at toy size.

```python
import torch
from backbones import VJEPA2Encoder

encoder = VJEPA2Encoder.load("world")
features = encoder.encode(torch.zeros(1, 3, 17, 32, 32), pad="first")
features.last.shape, features.per_latent().shape   # (1, 9, 4, 4, {width}), (1, 5, 4, 4, {width})
```

| | |
|---|---|
| data | {training_clips:,} simulated clips (train split), no captions, no fields |
| training | {steps:,} steps of {batch}, {seconds:,.0f} s, on {hardware} |
| loss on held-out clips | {held_out:.3f} (mean absolute error of normed features; 0.80 says nothing) |
| spread of a feature over cells and clips | {spread:.2f} (0: collapsed) |

## What it knows of the physics
Parameters of the laws, read by ridge regression from {dimensions} principal dimensions of a clip's features. A cell is
the error over that of the same network at random weights (mean of three), with a 95 % interval over clips: below 1 the
training helped, at 1 it did not. Random features are a strong peer.

{table}

Made with
```
uv run world make --clips {clips} --no-fields --out data
uv run world train encoder --data data --out run --steps {steps}{overrides}
uv run world probe --weights run/weights --out probe.json
uv run world export-encoder --run run --probe probe.json --out weights
```
"""


def export(run: Path, out: Path, *, probe: Path, most_mb: float = 8.0) -> int:
    """Write the encoder of a finished run with its card; returns the folder's size in bytes.

    Raises:
        ValueError: for a run without weights, a probe that is none, or a folder larger than `most_mb`.
    """
    weights = run / "weights"
    if not (weights / "encoder.json").is_file():
        raise ValueError(f"{run}: expected a finished run of `world train encoder`, found no weights/encoder.json")
    try:
        ratios = [Ratio(**row) for row in json.loads(probe.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{probe}: expected the JSON of `world probe` ({error})") from None
    facts = json.loads((weights / "encoder.json").read_text(encoding="utf-8"))
    recipe = load_config(EncoderRecipe, run / "recipe.yaml")
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.copytree(weights, part)
    (part / "README.md").write_text(_card(facts, recipe, ratios), encoding="utf-8")
    size = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
    if size > most_mb * 1e6:
        shutil.rmtree(part)
        raise ValueError(
            f"{weights}: expected at most {most_mb} MB to ship, got {size / 1e6:.1f} MB; lower width or layers"
        )
    for file in part.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    if out.exists():
        shutil.rmtree(out)
    part.replace(out)
    return size


def _card(facts: dict[str, Any], recipe: EncoderRecipe, ratios: list[Ratio]) -> str:
    plain = EncoderRecipe().model_dump()
    changed = "".join(f" --set {k}={v}" for k, v in recipe.model_dump().items() if v != plain[k])
    return CARD.format(
        **facts,
        width=recipe.width,
        batch=recipe.batch,
        dimensions=DIMENSIONS,
        table=table(ratios),
        clips=facts["training_clips"] + recipe.validation_clips,
        overrides=changed,
    )


def save_probe(ratios: list[Ratio], path: Path) -> None:
    """Write the ratios as JSON, by rename."""
    write_text(path, json.dumps([asdict(r) for r in ratios], indent=1) + "\n")
