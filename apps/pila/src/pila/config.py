"""A PILA recipe: every number of the method, where it is set and whether the paper gives it.

The defaults are the tiny recipe (the embedded backbone, the simulated world, a laptop CPU);
`recipes/wan2.1-1.3b.yaml` holds the paper's values. "our choice" marks what the paper does not say or what is scaled
down; "paper" marks what it does. Noise levels: sigma in [0, 1], 1 is noise. Units of fields: latent pixels and source
frames / 4.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from physfields.residuals import FAMILIES, Scales
from pila.bank import PHASES
from trainers import Config, Optim, did_you_mean, find_recipe, load_config

__all__ = ["RECIPES", "Recipe", "load_recipe"]

RECIPES = Path(__file__).parent / "recipes"


class Network(Config):
    """Sizes of the adapter. The paper gives 128 hidden features and 32 channels of the bank; the rest is our choice."""

    width: PositiveInt = 32  # features of encoder and decoder (paper: 128)
    blocks: PositiveInt = 2  # residual blocks of the encoder
    groups: PositiveInt = 8  # of its group norms
    frequencies: PositiveInt = 16  # sinusoids of a sigma embedding
    head_width: PositiveInt = 16  # hidden width of AFE's heads
    condition_width: PositiveInt = 32  # length of c (paper: 128)
    operator_width: PositiveInt = 32  # hidden width of an operator
    operator: str = "convolution"  # or one that a package registers (`physexperts.operator`): our choice
    gate_floor: float = Field(default=0.25, ge=0, le=1)  # g(1); the paper has a floor and does not print it: our choice

    @model_validator(mode="after")
    def _groups_divide(self) -> "Network":
        if self.width % self.groups:
            raise ValueError(f"expected a width that is a multiple of groups = {self.groups}, got {self.width}")
        return self


class Anchors(Config):
    """AFE: how fields are recovered."""

    mode: Literal["anchored", "free_kinematics", "scaffold"] = "anchored"  # ablations: w/o kinematic anchor, w/o AFE
    density_floor: PositiveFloat = 0.01  # rho_min of Eq. 18: our choice
    pressure_scale: float = 1.0  # a of Eq. 20: our choice
    shear_scale: float = 0.5  # mu of Eq. 20: our choice
    order: Literal[2, 4] = 2  # accuracy of the stencils: our choice


class Routing(Config):
    """LPMER: who is asked."""

    mode: Literal["prior", "uniform"] = "prior"  # uniform: all eight alike (ablation w/o expert routing)
    k: int = Field(default=4, ge=0, le=8)  # paper: 4 of 8
    prior_strength: NonNegativeFloat = 2.0  # beta of Eq. 22: our choice
    temperature: PositiveFloat = 1.0  # tau of Eq. 23: our choice
    operators: Literal["experts", "shared"] = "experts"  # shared: one operator for all (ablation w/o MoE operator)


class Physics(Config):
    """L_phys and the recovery losses: which residuals, how they are scaled."""

    families: tuple[str, ...] = FAMILIES  # drop one for "w/o PDE anchors", ... ; an empty list switches residuals off
    proxy_only: bool = False  # ablation: optical flow alone supervises the bank, no residual anywhere
    scales: Scales = Scales()  # viscosity, wave speeds, ...: `physfields.Scales`, all our choice
    relative: bool = False  # divide each residual by its own terms; off: it feeds on itself (pila.losses); our choice
    adaptive: bool = True  # w_kj = 1 / running mean square, mean 1 in each expert (paper: adaptive; the rule is ours)
    memory: float = Field(default=0.98, ge=0, lt=1)  # of the running mean square: our choice
    bounds: tuple[PositiveFloat, PositiveFloat] = (0.1, 10.0)  # of an adaptive weight: our choice
    mask_weights: tuple[float, float, float] = (0.55, 0.25, 0.20)  # paper
    mask_floor: float = Field(default=0.08, ge=0, le=1)  # paper
    mask_quantile: float = Field(default=0.95, gt=0, le=1)  # our choice

    @field_validator("scales", mode="before")
    @classmethod
    def _known_scales(cls, given: Any) -> Any:
        known = [f.name for f in fields(Scales)]
        for key in given if isinstance(given, dict) else ():
            if key not in known:
                raise ValueError(f"unknown scale {key!r}, {did_you_mean(key, known)}")
        return given

    @field_validator("families")
    @classmethod
    def _known_families(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if strangers := [f for f in given if f not in FAMILIES]:
            raise ValueError(f"expected families out of {FAMILIES}, got {strangers}")
        return given


class Noise(Config):
    """Noise levels and text in training."""

    shift: PositiveFloat | None = None  # sigma = shift u / (1 + (shift - 1) u), u uniform; none: the backbone's own
    text_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of prompts replaced by the empty one: our choice


class Observe(Config):
    """Stage A: velocity and strain rate from optical flow."""

    ranges: tuple[tuple[float, float], ...] = ((0.0, 0.3), (0.0, 0.6), (0.0, 1.0))  # of u before the shift: our choice
    steps: NonNegativeInt = 150  # each range (paper: 3,000)
    strain_weight: NonNegativeFloat = 0.5  # our choice
    kinematic_weight: NonNegativeFloat = 0.1  # our choice; nothing to do while the anchor derives displacement


class Recover(Config):
    """Stage B: the bank's fields one after another, the generator untouched."""

    phases: tuple[str, ...] = tuple(PHASES)  # paper's order; ("wave",) is "w/o staged recovery"
    steps: NonNegativeInt = 60  # each phase (paper: not given; 1,000 in the paper's recipe)
    observe_weight: NonNegativeFloat = 0.2  # small observable anchor: our choice
    active_share: float = Field(
        default=0.5, ge=0, le=1
    )  # of the labelled fields' mask against the bootstrap mask: our choice

    @model_validator(mode="after")
    def _known_phases(self) -> "Recover":
        order = tuple(PHASES)
        if any(p not in order for p in self.phases) or list(self.phases) != sorted(set(self.phases), key=order.index):
            raise ValueError(f"expected phases out of {order}, each once and in this order, got {self.phases}")
        return self


class Couple(Config):
    """Stage C: the correction under the flow-matching loss, with physics warmed up."""

    steps: NonNegativeInt = 1000  # (paper: three epochs)
    range: tuple[float, float] = (0.0, 1.0)  # of u before the shift: our choice
    physics_weight: NonNegativeFloat = 0.30  # lambda: paper; 0 is "w/o residuals"
    physics_warmup: NonNegativeInt = 100  # steps of lambda's ramp (paper: 2,000)
    condition_warmup: NonNegativeInt = 50  # steps of the ramp of c and of the label prior (paper: 1,000)
    mask_warmup: NonNegativeInt = 30  # steps from the bootstrap mask to the active one (paper: 300)
    encoder_frozen: NonNegativeInt = 100  # first steps without the encoder (paper: 1,000)
    encoder_factor: float = Field(default=0.3, ge=0)  # of the learning rate after that: our choice
    observe_weight: NonNegativeFloat = 0.05  # keeps the bank from collapsing to zero: our choice


class Data(Config):
    """What is learned from."""

    source: str = "world"  # simulated clips, made on the fly; else a folder of videos, or a JSON or JSONL of records
    root: str | None = None  # folder that the paths of a JSON are relative to; none: the JSON's own folder
    clips: PositiveInt = 1600  # of the world, spread evenly over the mechanisms; a folder gives what it has
    split: Literal["train", "val", "test", "ood"] = "train"  # of the world
    frames: PositiveInt = 17  # 4n + 1 for a causal x4 VAE
    height: PositiveInt = 32
    width: PositiveInt = 32
    fps: PositiveFloat = 16.0  # of the training clips; sources are brought to it by whole frame ratios where possible
    # share of one's own films that training leaves to `evaluate`, one at least where it is above 0: our choice
    held_out: float = Field(default=0.0, ge=0, lt=1)
    flow: Literal["dis", "raft"] = "dis"  # optical flow of the pixels; raft needs its weights
    flow_weights: str | None = None  # file of torchvision's RAFT weights
    encode_batch: PositiveInt = 16  # clips that go through the autoencoder at once
    labels: Literal["given", "random", "none"] = "given"  # random: shuffled per clip (ablation "random label")
    on_unknown: Literal["error", "list"] = "error"  # a category outside the vocabulary stops, or is listed and dropped
    short: Literal["skip", "error"] = "skip"  # a clip with too few frames is skipped and listed, or stops
    fallback: Literal["none", "keywords", "llm"] = "keywords"  # labels of captions without annotation


class Parser(Config):
    """The language model that rewrites a prompt and names its mechanisms; used where `llm` is chosen."""

    base_url: str = ""  # of an OpenAI-compatible server, such as http://localhost:8000/v1
    model: str = ""  # its name there
    local: str = ""  # folder or hub id of a transformers model that is asked instead of a server
    refine: bool = True  # rewrite the prompt first (paper); off: label it as it is (ablation "w/o prompt refine")
    cache: str | None = None  # folder that keeps the answers; none: each run asks again
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the key; may be unset for a local server
    timeout_s: PositiveFloat = 30.0
    fallback: Literal["keywords", "error"] = "keywords"  # where no valid answer comes: keywords and a warning, or stop


class Sampling(Config):
    """Generation through the stock pipeline."""

    steps: PositiveInt = 25  # (paper: 50)
    guidance: PositiveFloat = 1.5  # of the tiny backbone; Wan: 5
    mode: Literal["conditional", "after_guidance", "per_branch"] = "conditional"  # our choice
    correct_steps: tuple[PositiveInt, PositiveInt] | None = None  # first, last corrected step; 1 is noise; none: all
    labels: Literal["keywords", "llm", "none"] = "keywords"  # who reads the mechanisms out of a prompt


class Recipe(Config):
    """One run: what is corrected, how it is trained, what it is trained on."""

    backbone: str = "world"  # the embedded default, a diffusers folder or a hub id
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen model; the adapter stays in fp32
    adapter: Literal["pila", "plain"] = "pila"  # plain: the same network and steps, flow-matching loss alone
    # none: w/o flow correction; encoder_only: the decoder reads the scaffold
    correct: Literal["full", "none", "encoder_only"] = "full"
    seed: int = 0
    batch: PositiveInt = 24
    accumulate: PositiveInt = 1
    save_every: PositiveInt = 200
    optim: Optim = Optim(
        lr=1e-3, schedule="hold_cosine", warmup_steps=20
    )  # AdamW, constant in the paper; rates our choice
    network: Network = Network()
    anchors: Anchors = Anchors()
    routing: Routing = Routing()
    physics: Physics = Physics()
    noise: Noise = Noise()
    observe: Observe = Observe()
    recover: Recover = Recover()
    couple: Couple = Couple()
    data: Data = Data()
    parser: Parser = Parser()
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Recipe":
        if self.adapter == "plain" and self.correct == "none":
            raise ValueError(
                "expected a correction for the plain adapter: its only loss is that of the corrected velocity"
            )
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages together: what the plain control gets too."""
        return (
            self.observe.steps * len(self.observe.ranges)
            + self.recover.steps * len(self.recover.phases)
            + self.couple.steps
        )


def load_recipe(name: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or by the name of a shipped one (none: `tiny`), with overrides such as `routing.k=2`."""
    return load_config(Recipe, find_recipe(name, RECIPES), overrides)
