"""Ship a run: averaged weights in diffusers layout, a card that says what they cannot do, a size that is kept."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from physworld import SIZE
from trainers import checkpoint, load_config
from world import vae as autoencoder
from world.backbone import build, pixels_of, save_weights
from world.device import hardware
from world.recipe import Recipe, read_recipe

CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
tags: [simulated-physics, wan, tiny]
---
# world: a tiny Wan for the simulated physics world

A `WanPipeline` of stock classes, small enough to train {where}, for trying physics adapters end to end. 17
frames of {pixels} x {pixels} pixels, eight mechanisms, {words} words. Transformer and text encoder have {parameters:,}
parameters, the autoencoder {vae_parameters:,}.

```python
import backbones
world = backbones.load("{name}")
video = backbones.sample(world, ["a large blue ball is thrown to the left"], seed=1{size})
video.shape   # (1, 3, 17, {pixels}, {pixels}), in [-1, 1]
```

| | |
|---|---|
| data | {clips:,} simulated clips of `physworld` (train split), {held} more held out |
| autoencoder | {vae_kind}, {vae_psnr:.1f} dB on held-out clips, {vae_seconds:.0f} s |
| training | {steps:,} steps of {batch}, {seconds:,.0f} s, flow matching as TI2V, weights averaged |
| hardware | {hardware} |
| stored as | {dtype}{rounded} |
| validation loss | {validation} (text to video, fixed clips and noise) |

Autoencoder, dB by mechanism: {vae_table}.

Made with
```
{command}
```
{evaluation}
## What it cannot do
It knows the captions of `physworld` and no other word; a prompt outside them gets a warning. It is far from physically
plausible: balls jump against gravity, one of two balls may vanish or change its colour, ink is not conserved. That is
its use: there is room for an adapter to show something. Nothing measured on it carries over to large models.
"""

COMMANDS = """\
uv run world make --clips {clips}{scale} --no-fields --out data
uv run world train vae --data data --out vae --kind {kind}
uv run world train backbone --data data --vae vae --out run --minutes {minutes:.0f}{overrides}
uv run world export --run run --out weights{dtype}\
"""


def export(
    run: Path, out: Path, *, evaluation: Path | None = None, most_mb: float = 15.0, dtype: str = "float32"
) -> int:
    """Write the averaged weights of a run, finished or stopped, and return the folder's size in bytes.

    `dtype="bfloat16"` stores the matrices of transformer and text encoder in half the bytes; configs keep naming
    float32, and float32 is what they load as.

    Raises:
        ValueError: if the run has neither weights nor a checkpoint, or the folder would be larger than `most_mb`.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"expected --dtype float32 or bfloat16, got {dtype!r}")
    weights = run / "weights"
    if not weights.exists():
        weights = _from_checkpoint(run)
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.copytree(weights, part)
    if dtype == "bfloat16":
        for file in (*(part / "transformer").glob("*.safetensors"), *(part / "text_encoder").glob("*.safetensors")):
            _round(file)
    (part / "README.md").write_text(card(run, weights, evaluation, dtype=dtype), encoding="utf-8")
    size = _bytes(part)
    if size > most_mb * 1e6:
        shutil.rmtree(part)
        remedy = "use a smaller network" + (" or --dtype bfloat16" if dtype == "float32" else "")
        raise ValueError(f"{weights}: expected at most {most_mb} MB to ship, got {size / 1e6:.1f} MB; {remedy}")
    for file in part.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)  # diffusers writes weights for their owner alone
    if out.exists():
        shutil.rmtree(out)
    part.replace(out)
    return size


def card(run: Path, weights: Path, evaluation: Path | None, *, dtype: str = "float32") -> str:
    """Write the model card from what the run left behind."""
    from backbones import load

    backbone = load(weights)
    recipe = load_config(Recipe, run / "recipe.yaml")
    facts = _facts(run)
    vae = json.loads((run / "vae" / "vae.json").read_text(encoding="utf-8"))
    pixels = pixels_of(run)
    return CARD.format(
        words=len(backbone.words),
        where="on one CPU core" if recipe.device == "cpu" else "on one GPU in minutes",
        pixels=pixels,
        name="world" if pixels == SIZE else "weights",
        size="" if pixels == SIZE else f", height={pixels}, width={pixels}",
        dtype=dtype,
        rounded=" (matrices of transformer and text encoder; computed in float32)" if dtype == "bfloat16" else "",
        parameters=_parameters(backbone.pipe.transformer) + _parameters(backbone.pipe.text_encoder),
        vae_parameters=_parameters(backbone.pipe.vae),
        clips=facts["clips"],
        held=recipe.validation_clips,
        vae_kind={"pca": "causal block PCA with one basis", "wan": "tiny AutoencoderKLWan"}[vae["kind"]],
        vae_psnr=vae["psnr_db"],
        vae_seconds=vae["seconds"],
        vae_table=", ".join(f"{m} {v:.1f}" for m, v in vae["psnr_db_by_mechanism"].items()),
        steps=facts["steps"],
        batch=recipe.batch,
        seconds=facts["seconds"],
        hardware=facts["hardware"],
        validation="not measured" if facts["validation_loss"] is None else f"{facts['validation_loss']:.4f}",
        command=COMMANDS.format(
            clips=facts["clips"] + recipe.validation_clips,
            scale="" if pixels == SIZE else f" --scale {pixels // SIZE}",
            kind=vae["kind"],
            minutes=facts["seconds"] / 60,
            overrides="".join(f" --set {change}" for change in _changes(recipe)),
            dtype="" if dtype == "float32" else f" --dtype {dtype}",
        ),
        evaluation="" if evaluation is None else _quote(json.loads(evaluation.read_text(encoding="utf-8"))),
    )


def _quote(result: dict[str, Any]) -> str:
    sources = list(next(iter(result["passes"].values())))
    lines = [
        "",
        "## Measured",
        f"Share of clips that pass every test of their law, {result['clips']} captions a mechanism of the "
        f"{result['split']} split, {result['steps']} Euler steps, guidance {result['guidance']}:",
        "",
        "| | " + " | ".join(sources) + " |",
        "|---" * (len(sources) + 1) + "|",
    ]
    for mechanism, shares in result["passes"].items():
        lines.append(f"| {mechanism} | " + " | ".join(f"{shares[source]:.2f}" for source in sources) + " |")
    lines += ["", "Continuous score (0 = shuffled frames, 1 = the autoencoder's floor):", ""]
    lines += ["| | " + " | ".join(sources) + " |", "|---" * (len(sources) + 1) + "|"]
    for mechanism, scores in result["scores"].items():
        lines.append(f"| {mechanism} | " + " | ".join(f"{scores[source]:.2f}" for source in sources) + " |")
    return "\n".join(lines) + "\n"


def _from_checkpoint(run: Path) -> Path:
    newest = checkpoint.latest(run / "checkpoints")
    if newest is None:
        raise ValueError(
            f"{run}: expected a run of `world train backbone`, got neither weights/ nor a whole checkpoint"
        )
    stored = checkpoint.load(newest)
    recipe = load_config(Recipe, run / "recipe.yaml")
    pipe = build(recipe, autoencoder.load(run / "vae"))
    for group, module in (("transformer", pipe.transformer), ("text_encoder", pipe.text_encoder)):
        prefix = f"{group}/"
        tensors = stored.tensors["weights"] | stored.tensors.get("ema", {})
        module.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    save_weights(pipe, run / "weights-partial", pixels_of(run))
    return run / "weights-partial"


def _facts(run: Path) -> dict[str, Any]:
    """Read what a finished run wrote, or, for a stopped one, what its newest checkpoint and log know."""
    path = run / "run.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    state = checkpoint.load(newest).state
    return {
        "steps": state["global_step"],
        "seconds": state["seconds"],
        "clips": state["run"]["stages"][0]["samples"],
        "validation_loss": None,
        "hardware": hardware(load_config(Recipe, run / "recipe.yaml").device),
    }


def _changes(recipe: Recipe) -> list[str]:
    """List what a recipe overrides in the shipped one, as `a.b=c`."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        parts = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in values.items()]
        return {key: value for part in parts for key, value in part.items()}

    shipped = flat(read_recipe(None, []).model_dump())
    return [
        f"{key}={json.dumps(value, separators=(',', ':')) if not isinstance(value, str) else value}"
        for key, value in flat(recipe.model_dump()).items()
        if value != shipped[key]
    ]


def _round(path: Path) -> None:
    """Store matrices as bfloat16; vectors (norms, biases) cost nothing and stay exact."""
    tensors = load_file(path)
    save_file({key: t.bfloat16() if t.ndim > 1 else t for key, t in tensors.items()}, path, metadata={"format": "pt"})


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())
