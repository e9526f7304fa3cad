"""Training of the embedded backbone: a tiny Wan transformer and its text encoder, together, on latents held in memory.

One line from a data set to weights: encode every clip once, build the stock pipeline around the autoencoder, minimise
the flow loss of `world.objective` with `trainers.fit`, average the weights. The run's folder holds

```
recipe.yaml  vae/  latents.safetensors  checkpoints/   what a resumed run needs
log.jsonl  validation.jsonl                            losses; validation is that of the weights before averaging
weights/                                               a stock diffusers folder with the averaged weights
```
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbones import tiny
from physworld import captions
from trainers import EMA, InMemory, Length, Matrices, Optim, Stage, dump_config, fit
from world import vae as autoencoder
from world.clips import read_clips
from world.device import generator_on, hardware, precision, usable
from world.objective import (
    corrupt,
    drop_captions,
    flow_loss,
    padded_text,
    prefixes,
    training_sigma,
    velocity,
)
from world.recipe import Recipe

FPS = 16.0
HIDDEN = ("transformer/blocks.*", "text_encoder/*.SelfAttention.?.weight", "text_encoder/*.DenseReluDense.*")
"""The matrices that Muon trains."""


@dataclass(frozen=True)
class Trained:
    """What a run came to."""

    weights: Path
    steps: int
    seconds_per_step: float
    validation_loss: float


@dataclass(frozen=True)
class Tokens:
    """Prompts as ids and masks, padded to one length."""

    ids: Int[Tensor, "n l"]
    mask: Int[Tensor, "n l"]


def build(recipe: Recipe, vae: Any) -> Any:
    """Build the stock pipeline with random weights around an autoencoder."""
    network = recipe.network
    if vae.config.z_dim != network.channels:
        raise ValueError(
            f"expected an autoencoder with {network.channels} channels, got {vae.config.z_dim}; "
            f"set network.channels={vae.config.z_dim}"
        )
    pipe = tiny.pipeline(
        captions.VOCABULARY,
        vae=vae,
        layers=network.layers,
        heads=network.heads,
        head_dim=network.head_dim,
        ffn_dim=network.ffn,
        patch=network.patch,
        text_dim=network.text_dim,
        text_length=network.text_length,
        shift=recipe.shift,
        seed=recipe.seed,
    )
    pipe.transformer.requires_grad_(True)
    pipe.text_encoder.requires_grad_(True)
    return pipe


def tokenize(tokenizer: Any, prompts: list[str]) -> Tokens:
    """Turn prompts into padded ids.

    Raises:
        ValueError: if a prompt is longer than the network's text, which truncation would hide.
    """
    longest = max(prompts, key=lambda prompt: len(prompt.split()))
    if len(tokenizer(longest)["input_ids"]) > tokenizer.model_max_length:
        raise ValueError(
            f"expected captions of at most {tokenizer.model_max_length - 1} words, got {longest!r}; "
            "raise network.text_length"
        )
    batch = tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    return Tokens(ids=batch["input_ids"], mask=batch["attention_mask"])


def train(
    data: Path,
    vae_folder: Path,
    out: Path,
    *,
    recipe: Recipe,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
) -> Trained:
    """Train for some minutes or steps and write the averaged weights.

    Raises:
        ValueError: if the autoencoder and the recipe disagree, a caption is too long, or there are too few clips.
    """
    device = usable(recipe.device)
    out.mkdir(parents=True, exist_ok=True)
    dump_config(recipe, out / "recipe.yaml")
    if not (out / "vae").exists():
        if not (vae_folder / "config.json").is_file():
            raise ValueError(f"{vae_folder}: expected an autoencoder, got none; make it with `world train vae --out`")
        shutil.copytree(vae_folder, out / "vae", ignore=shutil.ignore_patterns("run"))
    vae = autoencoder.load(out / "vae")
    pipe = build(recipe, vae).to(device)
    latents = _latents(data, vae, pipe.tokenizer, out / "latents.safetensors")
    dataset, held = _split(latents, recipe.validation_clips, device)
    forward: Any = torch.compile(pipe.transformer, dynamic=False) if recipe.compile else pipe.transformer
    stage = Stage(
        name="backbone",
        groups={"transformer": 1.0, "text_encoder": 1.0},
        loss=_loss(forward, pipe, recipe, tokenize(pipe.tokenizer, [""])),
        data=dataset,
        batch_size=recipe.batch,
        length=Length(minutes=minutes) if minutes is not None else Length(steps=steps),
        optim=Optim(
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            clip=recipe.clip,
            schedule="hold_cosine",
            hold=recipe.hold,
            warmup_steps=recipe.warmup_steps,
            muon=Matrices(names=HIDDEN, lr=recipe.muon_lr) if recipe.muon_lr else None,
        ),
        ema=EMA(decay=recipe.ema, apply=True),
    )
    groups = {"transformer": pipe.transformer, "text_encoder": pipe.text_encoder}

    def validate(line: dict[str, Any]) -> None:
        if line["step"] % recipe.validate_every == 0:
            value = float(validation(forward, pipe, recipe, held))
            with (out / "validation.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": line["step"], "validation": value}) + "\n")

    result = fit([stage], groups, out=out, seed=recipe.seed, resume=resume, save_every=500, keep=2, log=validate)
    save_weights(pipe, out / "weights", pixels_of(out))
    trained = Trained(
        weights=out / "weights",
        steps=result.global_step,
        seconds_per_step=result.seconds / max(1, result.global_step),
        validation_loss=float(validation(pipe.transformer, pipe, recipe, held)),
    )
    facts = asdict(trained) | {"weights": "weights", "clips": len(dataset), "seconds": result.seconds}
    facts["hardware"] = hardware(recipe.device)
    (out / "run.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return trained


def save_weights(pipe: Any, folder: Path, pixels: int) -> None:
    """Write the pipeline, from the CPU, as a stock diffusers folder under the embedded backbone's name.

    `backbone.json` also tells the side of the clips in pixels, which no config of a pipeline knows.
    """
    from backbones import WanBackbone
    from backbones.loading import save

    device = pipe.device
    pipe.transformer.eval()
    pipe.text_encoder.eval()
    save(WanBackbone(pipe.to("cpu"), id="world", fps=FPS), folder, id="world")
    pipe.to(device)
    path = folder / "backbone.json"
    about = json.loads(path.read_text(encoding="utf-8")) | {"pixels": pixels}
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def pixels_of(run: Path) -> int:
    """Read the side of a run's clips in pixels off the latents that it trains on."""
    vae = json.loads((run / "vae" / "config.json").read_text(encoding="utf-8"))
    with safe_open(run / "latents.safetensors", framework="pt") as stored:
        return stored.get_slice("latents").get_shape()[-1] * vae["scale_factor_spatial"]


@torch.no_grad()
def validation(forward: Any, pipe: Any, recipe: Recipe, held: InMemory) -> Float[Tensor, ""]:
    """Measure the flow loss on fixed clips, noise levels and noise (the CPU's, on every device), text-to-video,
    without dropped captions.
    """
    generator = torch.Generator().manual_seed(1234)
    losses = []
    for start in range(0, len(held), recipe.batch):
        batch = held.get_batch(torch.arange(start, min(start + recipe.batch, len(held))))
        count = len(batch["x0"])
        sigma = (torch.arange(count) + 0.5) / count
        noised = corrupt(batch["x0"], sigma, torch.zeros(count, dtype=torch.long), generator)
        with precision(noised.x_s.device, recipe.autocast):
            text = padded_text(pipe.text_encoder, batch["ids"], batch["mask"])
            predicted = velocity(forward, noised.x_s, noised.sigma, text, recipe.network.patch)
        losses.append(flow_loss(predicted, noised))
    return torch.stack(losses).mean()


def _loss(
    forward: Any, pipe: Any, recipe: Recipe, empty: Tokens
) -> Callable[[dict[str, Any], Any], Mapping[str, Tensor]]:
    nothing = (empty.ids[0].to(pipe.device), empty.mask[0].to(pipe.device))

    def loss(batch: dict[str, Any], progress: Any) -> Mapping[str, Tensor]:
        x0 = batch["x0"]
        generator = generator_on(x0.device, progress.generator)
        count = len(x0)
        sigma = training_sigma(count, recipe.shift, generator)
        prefix = prefixes(count, recipe.prefix_share, recipe.prefix_most, generator)
        noised = corrupt(x0, sigma, prefix, generator)
        prompts = drop_captions(batch["ids"], batch["mask"], nothing, recipe.caption_drop, generator)
        with precision(x0.device, recipe.autocast):
            text = padded_text(pipe.text_encoder, *prompts)
            predicted = velocity(forward, noised.x_s, noised.sigma, text, recipe.network.patch)
        return {"flow": flow_loss(predicted, noised)}

    return loss


def _latents(data: Path, vae: Any, tokenizer: Any, cached: Path) -> InMemory:
    clips = read_clips(data)
    tokens = tokenize(tokenizer, list(clips.captions))
    if cached.exists():
        latents = load_file(cached)["latents"]
        if len(latents) != len(clips):
            raise ValueError(
                f"{cached}: expected latents of the {len(clips)} clips of {data}, got {len(latents)}; "
                "the data set has changed: remove the file, or give another --out"
            )
    else:
        latents = autoencoder.encode(vae, clips.videos).contiguous()
        temporary = cached.with_name(cached.name + ".tmp")
        save_file({"latents": latents}, temporary)
        temporary.replace(cached)
    return InMemory({"x0": latents, "ids": tokens.ids, "mask": tokens.mask})


def _split(clips: InMemory, held: int, device: torch.device) -> tuple[InMemory, InMemory]:
    """Hold out clips evenly spaced over the records, which are sorted by mechanism; put all on the device."""
    if len(clips) <= held:
        raise ValueError(f"expected more than {held} clips (validation_clips), got {len(clips)}; make more clips")
    out = torch.zeros(len(clips), dtype=torch.bool)
    out[torch.linspace(0, len(clips) - 1, held).round().long()] = True
    kept, validation_set = (
        {key: column[keep].to(device) for key, column in clips.columns.items()} for keep in (~out, out)
    )
    return InMemory(kept), InMemory(validation_set)
