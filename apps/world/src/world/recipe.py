"""Every number of the tiny backbone's training, in one place (`recipes/world.yaml` holds the shipped values)."""

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from trainers import Config, load_config
from world.device import Autocast


class Network(Config):
    """Sizes of the transformer and of the text encoder, all our choice."""

    layers: PositiveInt = 4
    heads: PositiveInt = 6
    head_dim: PositiveInt = 32
    ffn: PositiveInt = 768
    patch: tuple[int, int, int] = (1, 2, 2)
    channels: PositiveInt = 16
    text_dim: PositiveInt = 64
    text_length: PositiveInt = 24  # longest caption plus its end; the pipeline pads prompts to the same length

    @model_validator(mode="after")
    def _width_rule(self) -> "Network":
        token = self.channels * self.patch[0] * self.patch[1] * self.patch[2]
        width = self.heads * self.head_dim
        if width < 2 * token:
            raise ValueError(
                f"expected a width of at least 2 x {token} numbers per token, got heads x head_dim = {width}: "
                "a velocity holds white noise in every direction and cannot pass a narrower network; "
                "use fewer channels, a smaller patch or more heads"
            )
        return self


class Recipe(Config):
    """Training of the embedded backbone as TI2V: text alone, first frame, or first frames as the condition."""

    network: Network = Network()
    seed: int = 0
    batch: PositiveInt = 32
    lr: PositiveFloat = 2e-3  # AdamW's: embeddings, head, vectors
    muon_lr: float = Field(8e-3, ge=0)  # Muon's, for the matrices of the blocks; 0 leaves them to AdamW
    weight_decay: float = 0.01
    warmup_steps: int = 60
    hold: float = Field(0.6, ge=0, le=1)  # share of the run at full rate before the cosine
    clip: PositiveFloat = 1.0
    ema: float = Field(0.999, ge=0, lt=1)
    caption_drop: float = Field(0.1, ge=0, le=1)
    shift: PositiveFloat = 1.0  # sigma = shift u / (1 + (shift - 1) u) with u uniform; 1 is plain uniform
    prefix_share: float = Field(0.3, ge=0, le=1)  # samples with clean first latents; .5 left text to video behind
    prefix_most: PositiveInt = 3  # longest clean prefix in latent frames (of five)
    validation_clips: PositiveInt = 64
    validate_every: PositiveInt = 200
    compile: bool = False  # torch.compile of the transformer: needs a C++ compiler, ~1 min to start
    device: str = "cpu"  # or "cuda": where the models train and the noise is drawn
    autocast: Autocast = "none"  # "bfloat16": forward passes in it, the weights stay float32 (our choice)


class VAERecipe(Config):
    """Training of the tiny Wan autoencoder (`--kind wan`), all our choice."""

    seed: int = 0
    base_dim: PositiveInt = 8
    batch: PositiveInt = 4
    lr: PositiveFloat = 2e-3
    warmup_steps: int = 30
    kl: float = 1e-6
    l1: float = 1.0
    clip: PositiveFloat = 1.0
    device: str = "cpu"
    autocast: Autocast = "none"


SHIPPED = Path(__file__).parent / "recipes" / "world.yaml"


def read_recipe(path: Path | None, overrides: list[str]) -> Recipe:
    """Read a backbone recipe, the shipped one when no path is given, and apply `a.b=c` overrides."""
    return load_config(Recipe, path or SHIPPED, overrides=overrides)
