"""An MMPhysVideo recipe: every number of the method, where it is set and whether the paper gives it.

The defaults are the tiny recipe (the embedded backbone, the simulated world, a laptop CPU); the other recipes hold the
real sizes. Of the paper abstract, page and digests are known, no number: nearly all is "our choice", and what is taken
from the code of VideoREPA says so. Noise levels: sigma in [0, 1], 1 is noise. Blocks count from 0.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from mmphysvideo.pseudo import Modality
from trainers import Config, Optim, find_recipe, load_config

__all__ = [
    "RECIPES",
    "Align",
    "Data",
    "Links",
    "Noise",
    "Recipe",
    "Student",
    "Teacher",
    "Way",
    "Weights",
    "load_recipe",
]

RECIPES = Path(__file__).parent / "recipes"

Way = Literal["both", "to_rgb", "to_perception", "none"]


class Weights(Config):
    """What of a transformer moves: low-rank layers beside it, or all of it."""

    kind: Literal["lora", "full"] = "lora"
    rank: PositiveInt = 32  # our choice (128 at real size: VideoREPA's)
    alpha: PositiveInt = 32  # our choice (64 at real size: VideoREPA's)
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")  # our choice


class Links(Config):
    """The control links between the streams."""

    way: Way = "both"  # paper; the others are ablations
    every: PositiveInt = 1  # a pair of links behind every so many blocks: our choice


class Teacher(Config):
    """The bidirectionally controlled teacher."""

    form: Literal["links", "channels"] = "links"  # channels: an ablation, one stream that reads both latents at once
    streams: Literal["shared", "separate"] = "shared"  # a digest of the paper: both streams run the same weights
    tasks: Literal["time", "tokens"] = "time"  # what the task embeddings are added to: our choice
    links: Links = Links()
    weights: Weights = Weights()
    perception: NonNegativeFloat = 1.0  # lambda_q of L = L_rgb + lambda_q L_perception: our choice
    steps: NonNegativeInt = 400  # our choice (4,000 at real size)
    optim: Optim = Optim(lr=1e-3, schedule="cosine", warmup_steps=20)  # our choice


class Align(Config):
    """What the student learns from beside the videos, and how."""

    source: Literal["teacher", "vjepa2", "videomae", "none"] = "teacher"  # none: the control of equal steps
    kind: Literal["relations", "cosine"] = "relations"  # a digest of the paper; cosine (REPA) is an ablation
    weight: PositiveFloat = 0.5  # VideoREPA's
    margin: NonNegativeFloat = 0.1  # VideoREPA's
    place: NonNegativeInt = 2  # block of the student behind which it is aligned: our choice (17 of 30: VideoREPA's)
    stream: Literal["rgb", "perception", "both"] = "both"  # of the teacher, behind its links: our choice
    teacher_place: NonNegativeInt = 2  # block of the teacher: our choice
    hidden: PositiveInt = 256  # of the projector: our choice (2,048: VideoREPA's)
    cells: tuple[PositiveInt, PositiveInt] | None = (
        None  # tokens a frame after pooling (none: all); 10 x 15: VideoREPA's
    )
    rows: PositiveInt = 256  # tokens compared with all others at once: bounds the memory, changes no value
    encoder: str | None = None  # of vjepa2 (none: the embedded one) and videomae: a folder or a hub id
    size: tuple[PositiveInt, PositiveInt] | None = (
        None  # (height, width) that the encoder sees; none: as it was trained
    )


class Student(Config):
    """The single-stream student: the backbone with other weights."""

    weights: Weights = Weights(rank=16, alpha=16)
    align: Align = Align()
    steps: NonNegativeInt = 400  # our choice (4,000 at real size)
    optim: Optim = Optim(lr=5e-4, schedule="cosine", warmup_steps=20)  # our choice


class Noise(Config):
    """Noise levels, observed beginnings and text in training."""

    # sigma = shift u / (1 + (shift - 1) u), u uniform; none: the backbone's own; v-prediction: uniform timesteps
    shift: PositiveFloat | None = None
    # samples with a clean beginning of 1 to `most_latents` latents, of backbones that take one (TI2V): our choice
    observed: float = Field(default=0.25, ge=0, le=1)
    most_latents: PositiveInt = 2
    text_dropout: float = Field(default=0.1, ge=0, lt=1)  # our choice


class Data(Config):
    """Clips and what is perceived in them."""

    source: str = "world"  # world, or a JSONL of clips with their perception, as `mmphysvideo pipe` writes it
    root: str | None = None  # folder that the records' paths are relative to
    split: Literal["train", "val", "test", "ood"] = "train"  # of the world
    clips: PositiveInt = 1600  # of the world, spread over the mechanisms; of other sources all are taken
    modality: Modality = "unified"  # paper; one kind of perception alone is an ablation
    # of the world: what the simulator knows, or what MMPhysPipe's embedded experts see in the pixels
    perception: Literal["exact", "experts"] = "exact"
    # of the world: leave out the clips that MMPhysPipe drops by its filters, evidence or checks (with experts)
    checked: bool = False
    frames: PositiveInt = 17
    height: PositiveInt = 32
    width: PositiveInt = 32
    fps: PositiveFloat = 16.0
    # share of one's own films that training leaves to `evaluate`, one at least where it is above 0: our choice
    held_out: float = Field(default=0.0, ge=0, lt=1)
    encode_batch: PositiveInt = 32


class Sampling(Config):
    """How videos are made."""

    steps: PositiveInt = 25
    guidance: PositiveFloat = 1.5


class Recipe(Config):
    """One training run of teacher or student, and how its result samples."""

    backbone: str = "world"
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    batch: PositiveInt = 16  # our choice
    accumulate: PositiveInt = 1
    save_every: PositiveInt = 200
    checkpointing: bool = False  # blocks are computed again in the backward pass: for the real size
    teacher: Teacher = Teacher()
    student: Student = Student()
    noise: Noise = Noise()
    data: Data = Data()
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _checks_need_experts(self) -> "Recipe":
        if self.data.checked and self.data.perception != "experts":
            raise ValueError(
                "expected data.perception=experts for data.checked=true: the simulator's own perception fails no check"
            )
        return self


def load_recipe(name: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by the name of a shipped one or by path (none: `tiny`), then apply overrides such as `batch=2`."""
    return load_config(Recipe, find_recipe(name, RECIPES), overrides)
