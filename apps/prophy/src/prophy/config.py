"""A ProPhy recipe: every number of the method, where it is set and whether the paper gives it.

The defaults are the tiny recipe (the embedded backbone, the simulated world, a laptop CPU); `recipes/wan2.1-1.3b.yaml`
and `recipes/cogvideox-5b.yaml` hold the paper's values. "paper" marks what the paper says, "our choice" what it leaves
open or what is scaled down. Noise levels: sigma in [0, 1], 1 is noise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from trainers import Config, Optim, find_recipe, load_config

__all__ = ["RECIPES", "Recipe", "load_recipe"]

RECIPES = Path(__file__).parent / "recipes"


class Branch(Config):
    """What is trained beside the frozen backbone: a physical branch, or LoRA in its place (the paper's baseline)."""

    kind: Literal["physical", "lora"] = "physical"
    blocks: PositiveInt = 2  # physical blocks M, spread evenly over the depth (paper: by depth and memory)
    lora_rank: PositiveInt = 16  # our choice
    lora_alpha: PositiveFloat = 16.0  # our choice
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # our choice: all attention projections


class Semantic(Config):
    """SEB: video-level experts that shift the latent which enters the branch."""

    on: bool = True  # off: rows without SEB
    # E_s: our choice (17 in the large recipes); with 12 for 8 mechanisms two often share one for good
    experts: PositiveInt = 14
    # of the router's MLP (none: the text's own width, as in the large recipes): our choice; one ball or two is hard to
    # tell from a mean
    hidden: PositiveInt | None = 96
    std: NonNegativeFloat = 0.02  # of the basis maps at the start: our choice (with LoRA they start at zero)
    # share of the text tokens that the router is not shown while training, so that it reads more than one word of a
    # caption: our choice (0 in the large recipes)
    token_dropout: float = Field(default=0.2, ge=0, lt=1)
    # first the router alone learns L_coarse, on captions, in large batches, which costs little: our choice (the
    # paper trains all at once: 0 steps)
    first_steps: NonNegativeInt = 2000
    first_batch: PositiveInt = 128
    first_lr: PositiveFloat = 5e-3
    # as strong as this, two mechanisms rarely end in one expert, whatever the seed: our choice
    first_weight_decay: NonNegativeFloat = 0.3
    # that stage also reads each caption of the simulated world in up to 139 other wordings (`data/rewordings.json`), as
    # real captions are free and the world's come from few templates: our choice
    reworded: bool = True


class Refine(Config):
    """REB: token-level experts in the last physical block, between attention to the text and the feed-forward."""

    on: bool = True  # off: rows without REB
    experts: PositiveInt = 4  # E_r: our choice (8 in the large recipes)
    k: PositiveInt = 2  # our choice
    hidden: PositiveInt = 32  # of the MLP from expert weights to attention categories: our choice
    jitter: float = Field(default=0.0, ge=0, lt=1)  # noise of the gate while training: our choice
    rate: PositiveFloat = 10.0  # factor of the learning rate of gate and head: our choice (1 in the large recipes)

    @model_validator(mode="after")
    def _k_of_experts(self) -> "Refine":
        if self.k > self.experts:
            raise ValueError(f"expected refine.k <= refine.experts = {self.experts}, got {self.k}")
        return self


class Losses(Config):
    """L = L_diff + coarse L_coarse + align L_fine-align + balance L_fine-balance."""

    coarse: NonNegativeFloat = 0.1  # paper
    align: NonNegativeFloat = 0.02  # paper
    balance: NonNegativeFloat = 0.01  # paper; 0 is "REB without balance"
    coarse_kind: Literal["relative", "bce"] = "relative"  # bce: the paper's ablation
    coarse_distance: Literal["square", "abs"] = "square"  # the paper's copies differ: our choice
    align_distance: Literal["squared", "absolute"] = "squared"  # the paper's copies differ: our choice
    # which entries of present categories count: those above the neutral map (paper), or all, the rest with target 0
    align_entries: Literal["positive", "all"] = "positive"


class Targets(Config):
    """Where the token targets come from."""

    source: Literal["auto", "fields", "vlm", "none"] = "auto"  # auto: the VLM if one is given, else the exact fields
    vlm: str | None = None  # folder of a Qwen2.5-VL or Qwen3-VL; its name goes into the cache
    vlm_device: str | None = None  # none: the recipe's device
    layers: tuple[int, ...] | None = None  # of the VLM whose attention is read; none: its middle third; our choice
    max_new_tokens: PositiveInt = 64  # of the description: our choice
    fps: PositiveFloat = 2.0  # frames a second that the VLM sees: our choice
    contact_frames: NonNegativeInt = 2  # of a simulated impact, before and after it: our choice


class Wisa(Config):
    """The baseline WISA: physical attention after the last block, driven by annotated categories and quantities."""

    heads: PositiveInt = 2  # attention heads a category: WISA's code
    head_dim: PositiveInt = 8  # our choice (WISA: the backbone's width / heads)
    floor: float = Field(default=0.1, ge=0, le=1)  # gate of an absent category: WISA's code
    flip: float = Field(default=0.2, ge=0, le=1)  # share of flipped gates while training: WISA's code
    bottleneck: PositiveInt = 32  # of the quantity embedding (WISA: 512)
    frequencies: PositiveInt = 8  # sinusoids of a quantity: our choice
    dropout: float = Field(default=0.1, ge=0, lt=1)  # of categories and of quantities, each: WISA's code
    guidance: NonNegativeFloat = 3.0  # of the physics over the text: WISA's code


class Noise(Config):
    """Noise levels and text in training."""

    # sigma = shift u / (1 + (shift - 1) u), u uniform; none: the backbone's own; v-prediction: uniform timesteps
    shift: PositiveFloat | None = None
    text_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of prompts replaced by the empty one: our choice


class Data(Config):
    """What is learned from."""

    source: str = "world"  # simulated clips, made on the fly; else a folder of videos, or a JSON or JSONL of records
    root: str | None = None  # folder that the paths of a JSON are relative to; none: the JSON's own folder
    clips: PositiveInt = 800  # of the world, spread evenly over the mechanisms; a folder gives what it has
    split: Literal["train", "val", "test", "ood"] = "train"  # of the world
    frames: PositiveInt = 17  # as the backbone's VAE wants them: 4n+1, 8n+1
    height: PositiveInt = 32
    width: PositiveInt = 32
    fps: PositiveFloat = 16.0  # of the training clips
    # share of one's own films that training leaves to `evaluate`, one at least where it is above 0: our choice
    held_out: float = Field(default=0.0, ge=0, lt=1)
    vocabulary: Literal["mechanisms", "laws", "wisa"] = "mechanisms"  # 8, WISA's 17 laws or its 29 categories
    labels: Literal["given", "shuffled"] = "given"  # shuffled: among the clips, the control of the routers' tests
    encode_batch: PositiveInt = 16  # clips that go through the autoencoder at once
    on_unknown: Literal["error", "list"] = "error"  # a category outside the vocabulary stops, or is listed and dropped
    short: Literal["skip", "error"] = "skip"  # a clip with too few frames is skipped and listed, or stops
    fallback: Literal["none", "keywords"] = "keywords"  # mechanisms of captions without annotation


class Sampling(Config):
    """Generation through the stock pipeline."""

    steps: PositiveInt = 25  # (Wan, CogVideoX: 50)
    guidance: PositiveFloat = 1.5  # of the tiny backbone
    inverted: bool = False  # the paper's expert inversion: the semantic router's logits are negated


class Recipe(Config):
    """One run: what is trained beside which backbone, how, and on what."""

    backbone: str = "world"  # the embedded default, a diffusers folder or a hub id
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen model; what is trained stays in fp32
    # plain: physical blocks alone, of equal size, under the diffusion loss alone; wisa: the baseline
    adapter: Literal["prophy", "plain", "wisa"] = "prophy"
    seed: int = 0
    steps: NonNegativeInt = 400
    batch: PositiveInt = 16
    accumulate: PositiveInt = 1
    save_every: PositiveInt = 200
    store: Literal["float16", "float32"] = "float16"  # of the weights in a bundle: our choice
    # the log's lines go there, too: tensorboard, trackio, wandb
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    checkpointing: bool = False  # recompute blocks in the backward pass instead of keeping their activations
    optim: Optim = Optim(lr=5e-4, schedule="hold_cosine", warmup_steps=20)  # not given by the paper: our choice
    branch: Branch = Branch()
    semantic: Semantic = Semantic()
    refine: Refine = Refine()
    losses: Losses = Losses()
    targets: Targets = Targets()
    wisa: Wisa = Wisa()
    noise: Noise = Noise()
    data: Data = Data()
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if self.adapter == "plain" and self.branch.kind != "physical":
            raise ValueError("expected branch.kind=physical for the plain control: it is physical blocks alone")
        if self.adapter == "wisa" and self.data.vocabulary == "laws":
            raise ValueError("expected data.vocabulary=wisa (or mechanisms on the world) for WISA, got laws")
        return self

    @property
    def alone_first(self) -> bool:
        """Whether the semantic router has a stage of its own before all else."""
        return self.adapter == "prophy" and self.semantic.on and bool(self.semantic.first_steps and self.losses.coarse)

    @property
    def aligned(self) -> bool:
        """Whether training reads token targets."""
        return self.adapter == "prophy" and self.refine.on and self.losses.align > 0 and self.targets.source != "none"


def load_recipe(name: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or by the name of a shipped one (none: `tiny`), with overrides such as `refine.k=1`."""
    return load_config(Recipe, find_recipe(name, RECIPES), overrides)
