"""Training of the embedded physics encoder: a stock V-JEPA 2 at toy size, self-supervised on the world's clips.

Masked latent prediction: the student sees some tubelets of a clip, a small predictor says what the teacher, a slow
average of the student that sees all of them, has at the others. Two kinds of masks, half of the steps each: a block of
cells through all times, and everything after some time, so that features must carry what moves on. No pixel, label or
field of the simulator is a target.

The clip's frame 0 is doubled in front (`VJEPA2Encoder`: tubelets then line up with the latents of a causal x4 VAE).
What a run leaves in `weights/` is the teacher as a stock `VJEPA2Model` folder, `encoder.json` beside it.

References: V-JEPA 2 (Assran et al., 2025), Section 2; V-JEPA (Bardes et al., 2024), masking. Sizes and
rates: our choice.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from trainers import Config, InMemory, Length, Optim, Progress, Stage, dump_config, fit
from world.clips import Clips, hold_out, read_clips, signed
from world.device import hardware, precision, usable

__all__ = ["EncoderRecipe", "Jepa", "TrainedEncoder", "masks", "train"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""V-JEPA 2's pixel statistics (ImageNet), as `backbones.VJEPA2Encoder` applies them."""


class EncoderRecipe(Config):
    """Every number of the encoder's training, all our choice: the papers train on millions of videos."""

    seed: int = 0
    patch: PositiveInt = 8  # pixels of a cell's side: 4 x 4 cells at 32 pixels, as many as the backbone's tokens
    width: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    predictor_width: PositiveInt = 96
    predictor_layers: PositiveInt = 3
    predictor_heads: PositiveInt = 3
    batch: PositiveInt = 32
    lr: PositiveFloat = 1e-3
    weight_decay: float = Field(default=0.04, ge=0)
    warmup_steps: int = Field(default=200, ge=0)
    hold: float = Field(default=0.5, ge=0, le=1)  # share of the run at full rate before the cosine
    teacher: tuple[float, float] = (0.99, 0.9995)  # decay of the teacher's average, from the first step to the last
    block: tuple[int, int] = (2, 3)  # least and most cells on a side of a hidden block
    seen: tuple[int, int] = (2, 6)  # least and most tubelets that are seen where the future is hidden
    validation_clips: PositiveInt = 128
    device: str = "cpu"
    autocast: str = Field(default="none", pattern="none|bfloat16")


@dataclass(frozen=True)
class TrainedEncoder:
    """What a run came to; `held_out` is the loss on clips that were not trained on, `spread` the mean standard
    deviation of a feature over cells and clips (0: collapsed)."""

    weights: Path
    parameters: int
    training_clips: int
    steps: int
    seconds: float
    held_out: float
    spread: float
    hardware: str


class Jepa(nn.Module):
    """Student, predictor and teacher. The teacher gets no gradient; `follow` moves it towards the student."""

    def __init__(self, recipe: EncoderRecipe, *, frames: int, size: int) -> None:
        super().__init__()
        from transformers import VJEPA2Config, VJEPA2Model

        config = VJEPA2Config(
            crop_size=size,
            patch_size=recipe.patch,
            frames_per_clip=frames,
            hidden_size=recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            mlp_ratio=4.0,
            pred_hidden_size=recipe.predictor_width,
            pred_num_hidden_layers=recipe.predictor_layers,
            pred_num_attention_heads=recipe.predictor_heads,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.student: Any = VJEPA2Model(config)
            self.teacher: Any = VJEPA2Model(config).encoder
        self.teacher.load_state_dict(self.student.encoder.state_dict())
        self.cells = size // recipe.patch
        self.tubelets = frames // config.tubelet_size

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the teacher towards the student."""
        pairs = zip(self.teacher.parameters(), self.student.encoder.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - decay)

    def forward(
        self, pixels: Float[Tensor, "b t 3 y x"], seen: Int[Tensor, "b n"], hidden: Int[Tensor, "b m"]
    ) -> Float[Tensor, ""]:
        """Return the mean absolute error of the predicted features at the hidden cells; the teacher's are normed."""
        with torch.no_grad():
            target = self.teacher(pixel_values_videos=pixels).last_hidden_state
            target = F.layer_norm(target.float(), target.shape[-1:])
            target = target.gather(1, hidden[..., None].expand(-1, -1, target.shape[-1]))
        encoder = self.student.encoder
        tokens = encoder.embeddings(pixels)
        everywhere = torch.zeros_like(tokens)
        index = seen[..., None].expand(-1, -1, tokens.shape[-1])
        h = tokens.gather(1, index)  # the stock encoder hides nothing: a hidden cell must not reach the student at all
        for layer in encoder.layer:
            h = layer(h, seen)[0]
        h = encoder.layernorm(h)
        # the stock predictor takes states of all cells and picks the seen ones itself
        states = everywhere.to(h.dtype).scatter(1, index, h)
        predicted = self.student.predictor(
            encoder_hidden_states=states, context_mask=[seen], target_mask=[hidden]
        ).last_hidden_state
        return (predicted.float() - target).abs().mean()


def masks(
    batch: int, tubelets: int, cells: int, recipe: EncoderRecipe, generator: torch.Generator
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b m"]]:
    """Draw which cells are seen and which are hidden, flat indices in (t, y, x) order, rising."""

    def draw(low: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    if int(draw(0, 1)):  # the future
        first = int(draw(recipe.seen[0], min(recipe.seen[1], tubelets - 1)))
        everything = torch.arange(tubelets * cells**2).expand(batch, -1)
        return everything[:, : first * cells**2], everything[:, first * cells**2 :]
    rows, columns = (int(draw(recipe.block[0], min(recipe.block[1], cells - 1))) for _ in range(2))
    top, left = draw(0, cells - rows, (batch, 1)), draw(0, cells - columns, (batch, 1))
    y, x = torch.arange(cells).repeat_interleave(cells), torch.arange(cells).repeat(cells)
    inside = (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
    inside = inside.repeat(1, tubelets)
    order = inside.int().argsort(dim=1, stable=True)  # seen cells first, each part in rising order
    count = (cells**2 - rows * columns) * tubelets
    return order[:, :count], order[:, count:]


def pixels_of(videos: UInt8[Tensor, "n t h w 3"]) -> Float[Tensor, "n t2 3 h w"]:
    """Frame 0 twice, then the others, normalised as V-JEPA 2 wants them."""
    frames = (signed(videos).transpose(1, 2) + 1) / 2
    mean, std = (frames.new_tensor(v).view(1, 1, 3, 1, 1) for v in (MEAN, STD))
    frames = (frames - mean) / std
    return torch.cat([frames[:, :1], frames], 1)


def train(
    data: Path,
    out: Path,
    *,
    recipe: EncoderRecipe,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
) -> TrainedEncoder:
    """Train for some minutes or steps and write the teacher as a stock `VJEPA2Model` folder.

    Raises:
        ValueError: for a data set whose pictures are not square or do not divide into cells, or too few clips.
    """
    device = usable(recipe.device)
    clips, held = hold_out(read_clips(data), recipe.validation_clips)
    jepa = _build(recipe, clips).to(device)

    def loss(batch: dict[str, Tensor], progress: Progress) -> dict[str, Tensor]:
        low, high = recipe.teacher
        if progress.step:
            jepa.follow(low + (high - low) * progress.fraction)
        seen, hidden = masks(len(batch["video"]), jepa.tubelets, jepa.cells, recipe, progress.generator)
        with precision(device, recipe.autocast):  # pyright: ignore[reportArgumentType]
            return {"jepa": jepa(pixels_of(batch["video"]), seen.to(device), hidden.to(device))}

    out.mkdir(parents=True, exist_ok=True)
    dump_config(recipe, out / "recipe.yaml")
    stage = Stage(
        name="encoder",
        groups={"jepa": 1.0},
        loss=loss,
        data=InMemory({"video": torch.from_numpy(clips.videos).to(device)}),
        batch_size=recipe.batch,
        length=Length(minutes=minutes) if minutes is not None else Length(steps=steps),
        optim=Optim(
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            schedule="hold_cosine",
            hold=recipe.hold,
            warmup_steps=recipe.warmup_steps,
        ),
    )
    result = fit([stage], {"jepa": jepa}, out=out, seed=recipe.seed, resume=resume, save_minutes=2)
    report = TrainedEncoder(
        weights=out / "weights",
        parameters=sum(p.numel() for p in jepa.student.parameters()),
        training_clips=len(clips),
        steps=result.global_step,
        seconds=round(result.seconds, 1),
        held_out=_held_out(jepa, held, recipe),
        spread=_spread(jepa, held),
        hardware=hardware(recipe.device),
    )
    _save(jepa, report)
    return report


def _build(recipe: EncoderRecipe, clips: Clips) -> Jepa:
    _, frames, height, width, _ = clips.videos.shape
    if height != width or height % recipe.patch:
        raise ValueError(
            f"expected square pictures that divide into cells of {recipe.patch} pixels, got {height} x {width}: set "
            "patch=..."
        )
    return Jepa(recipe, frames=frames + 1, size=height)


@torch.no_grad()
def _held_out(jepa: Jepa, held: Clips, recipe: EncoderRecipe) -> float:
    """The loss on held-out clips under sixteen fixed draws of masks."""
    device = next(jepa.parameters()).device
    pixels = pixels_of(torch.from_numpy(held.videos).to(device))
    values = []
    for k in range(16):
        drawn = masks(len(pixels), jepa.tubelets, jepa.cells, recipe, torch.Generator().manual_seed(k))
        values.append(float(jepa(pixels, *(m.to(device) for m in drawn))))
    return float(np.mean(values))


@torch.no_grad()
def _spread(jepa: Jepa, held: Clips) -> float:
    device = next(jepa.parameters()).device
    features = jepa.teacher(pixel_values_videos=pixels_of(torch.from_numpy(held.videos).to(device))).last_hidden_state
    return float(features.flatten(0, 1).std(0).mean())


def _save(jepa: Jepa, report: TrainedEncoder) -> None:
    """Write the teacher in the student's place: the slow average is the better encoder, the predictor comes along."""
    model = jepa.student.cpu()
    model.encoder.load_state_dict(jepa.teacher.state_dict())
    model.save_pretrained(report.weights)
    facts = {k: v for k, v in asdict(report).items() if k != "weights"} | {"finished": time.strftime("%Y-%m-%d")}
    (report.weights / "encoder.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
