"""A Phantom recipe: every number of the method, where it is set and whether the paper gives it.

The defaults are the tiny recipe (the embedded backbone, the simulated world, a laptop CPU);
`recipes/wan2.2-ti2v-5b.yaml` holds the real size. "our choice" marks what the paper does not say, which is most: it
prints neither rates nor sizes of its branch. Noise levels: sigma in [0, 1], 1 is noise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from phantom.coupling import Way
from trainers import Config, Optim, find_recipe, load_config

__all__ = [
    "RECIPES",
    "Branch",
    "Condition",
    "Couple",
    "Data",
    "Force",
    "Physics",
    "Recipe",
    "Weight",
    "kind_of",
    "load_recipe",
]

RECIPES = Path(__file__).parent / "recipes"


class Physics(Config):
    """The physics latent z."""

    kind: Literal["vjepa2", "fields", "noise"] = "vjepa2"
    """vjepa2: features of the clip; fields: the world's exact fields (an oracle); noise: a control without content."""
    encoder: str = "world"  # a V-JEPA 2: the embedded one, a folder or a hub id (the paper does not say which)
    size: tuple[int, int] | None = None  # (height, width) the encoder sees; none: the square it was trained at
    pool: PositiveInt = 1  # cells averaged on a side: our choice
    channels: PositiveInt = 32  # principal channels kept: our choice (256 at real size)


class Branch(Config):
    """The physics stream: sizes are our choice throughout."""

    heads: PositiveInt = 2
    head_dim: PositiveInt = 32
    ffn_dim: PositiveInt = 128
    freq_dim: PositiveInt = 64
    rope_max_seq_len: PositiveInt = 64


class Couple(Config):
    """Vis- and Phy-Attention."""

    way: Way = "both"  # paper; the others are ablations
    heads: PositiveInt = 2  # our choice
    head_dim: PositiveInt = 32  # our choice
    cells: PositiveFloat = 16.0  # rotary steps across the frame: our choice


class Weight(Config):
    """alpha_z of L = L_v + alpha_z L_z and its recursive schedule."""

    end: NonNegativeFloat = 1.0  # our choice
    ramp_steps: PositiveInt = 300  # steps from 0 to `end`: our choice (2,000 at real size)
    fixed: bool = False  # ablation: alpha_z = `end` from the first step on
    threshold: PositiveFloat | None = None  # eta_z; none: `factor` x the median of a calibration, the first ramp
    factor: PositiveFloat = 5.0  # our choice
    measure_every: PositiveInt = 10  # steps between two measurements of the norm: our choice


class Data(Config):
    """Clips and what is made of them."""

    source: str = "world"  # world, a folder of videos with captions, or a JSON or JSONL of records
    root: str | None = None  # folder that the records' paths are relative to
    split: Literal["train", "val", "test", "ood"] = "train"  # of the world
    clips: PositiveInt = 1600  # of the world; of other sources all are taken
    frames: PositiveInt = 17
    height: PositiveInt = 32
    width: PositiveInt = 32
    fps: PositiveFloat = 16.0
    # share of one's own films that training leaves to `evaluate`, one at least where it is above 0: our choice
    held_out: float = Field(default=0.0, ge=0, lt=1)
    encode_batch: PositiveInt = 32


class Condition(Config):
    """What is observed in training."""

    share: float = Field(default=0.5, ge=0, le=1)  # samples with observed frames: paper
    most_latents: PositiveInt = 3  # longest observed part in latents (paper: 45 frames, 12 latents)
    text_dropout: float = Field(default=0.1, ge=0, lt=1)  # our choice


class Force(Config):
    """Force prompting: a fine-tuning stage of the physics stream and the couplings with an injector of forces."""

    kind: Literal["none", "point", "wind"] = "none"
    fine: PositiveInt = 8  # cells of the force on a side of a cell of z: our choice
    whole: PositiveInt = 8  # cells of the force on a side of the frame, for all tokens: our choice
    steps: NonNegativeInt = 1000  # our choice (the force data sets were trained on for 5,000)
    clips: PositiveInt = 1600  # pushed balls of the world: our choice; of a table all are taken
    observed: float = Field(default=0.9, ge=0, le=1)  # samples that begin at their first frame: our choice
    noisy: PositiveFloat = 3.0  # sigma from u^(1/noisy): 1 is even, above it noise is likelier: our choice
    weight: NonNegativeFloat = 0.1  # alpha_z of this stage, where weight.end is not 0: our choice
    optim: Optim = Optim(lr=2e-3, schedule="cosine", warmup_steps=30)  # our choice
    injector_rate: PositiveFloat = 5.0  # the injector's rate over that of the branch: our choice
    table: str | None = None  # a Force Prompting CSV; none: balls of the simulated world that are thrown
    shuffled: bool = False  # control: each clip gets the force of another


class Sampling(Config):
    """How videos are made with a trained branch."""

    steps: PositiveInt = 25
    guidance: PositiveFloat = 1.5


class Recipe(Config):
    """One training run and how its result samples."""

    backbone: str = "world"
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    batch: PositiveInt = 24  # our choice
    accumulate: PositiveInt = 1
    steps: NonNegativeInt = 900  # our choice
    save_every: PositiveInt = 200
    checkpointing: bool = False  # both streams jointly: for the real size
    data: Data = Data()
    physics: Physics = Physics()
    branch: Branch = Branch()
    couple: Couple = Couple()
    weight: Weight = Weight()
    condition: Condition = Condition()
    shift: PositiveFloat | None = None  # sigma = shift u / (1 + (shift - 1) u); none: the backbone's own
    optim: Optim = Optim(lr=1e-3, schedule="cosine", warmup_steps=50)  # our choice
    force: Force = Force()
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _width_rule(self) -> "Recipe":
        width = self.branch.heads * self.branch.head_dim
        if width < 2 * self.physics.channels:
            raise ValueError(
                f"expected branch.heads x branch.head_dim >= 2 x physics.channels = {2 * self.physics.channels}, got"
                f" {width}: a velocity holds white noise in every direction and cannot pass a narrower network"
            )
        return self


def load_recipe(name: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or by the name of a shipped one (none: `tiny`), with overrides such as `steps=10`."""
    return load_config(Recipe, find_recipe(name, RECIPES), overrides)


def kind_of(recipe: Recipe) -> str:
    """What a recipe trains, in a word or two: phantom, or the ablation or control that it is.

    >>> kind_of(Recipe()), kind_of(Recipe(couple=Couple(way="none")))
    ('phantom', 'no coupling')
    """
    if recipe.physics.kind != "vjepa2":
        return {"fields": "phantom on exact fields", "noise": "phantom on noise"}[recipe.physics.kind]
    if recipe.weight.end == 0:
        return "branch without its loss"
    ways = {
        "none": "no coupling",
        "to_video": "one way",
        "to_physics": "one way to physics",
        "joint": "joint attention",
    }
    return ways.get(recipe.couple.way, "fixed weight" if recipe.weight.fixed else "phantom")
