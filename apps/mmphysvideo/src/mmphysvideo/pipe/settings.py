"""The settings of a run of MMPhysPipe: sizes, and the bounds that keep or drop a clip. Every number is our choice."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mmphysvideo.colours import MOST
from mmphysvideo.pseudo import Modality
from trainers import Config

__all__ = ["Bounds", "Checks", "Cut", "Experts", "Settings", "Witness"]


class Cut(Config):
    """How clips are cut from shots: every k-th frame, so that the rate is nearest to `fps` and time stays even."""

    frames: PositiveInt = 33
    """4n+1 for a causal video autoencoder; a shorter shot gives the longest such clip it has."""
    least_frames: PositiveInt = 9
    fps: PositiveFloat = 8.0
    long_side: PositiveInt = 320
    """Pictures are shrunk to this, never enlarged; sides are multiples of `multiple`."""
    multiple: PositiveInt = 16
    clips_per_shot: PositiveInt = 1
    """Windows behind one another, without overlap."""
    shot_change: PositiveFloat = 0.45
    """A cut lies where colour histograms of neighbouring frames differ by this (0 to 1) and their pictures, too."""


class Bounds(Config):
    """What a filter lets pass; measures are those of `filters`."""

    least_motion: float = Field(default=0.0005, ge=0)
    most_motion: PositiveFloat = 0.9
    least_sharpness: float = Field(default=0.03, ge=0)
    brightness: tuple[float, float] = (8.0, 245.0)
    least_contrast: float = Field(default=12.0, ge=0)
    most_frozen: PositiveFloat = 0.8


class Witness(Config):
    """Who says what happens: rules on the pixels, a transformers model in a folder, or an OpenAI-compatible server."""

    kind: Literal["rules", "local", "server"] = "rules"
    model: str = ""
    url: str = ""
    key_variable: str = "OPENAI_API_KEY"
    device: str = "cpu"
    frames: PositiveInt = 8
    timeout_s: PositiveFloat = 60.0
    retries: int = Field(default=3, ge=0)
    repairs: int = Field(default=2, ge=0)
    """How often an answer that does not fit the schema is sent back with what is wrong."""
    max_tokens: PositiveInt = 1024
    fallback: bool = False
    """Let the rules testify where the model cannot; the manifest says so. Otherwise the clip is listed as failed, and
    tried again by the next run."""


class Experts(Config):
    """Who perceives: a model's folder or hub name, or what needs no weights."""

    segmenter: str = "motion"
    tracker: str = "flow"
    depth: str = "none"
    device: str = "cpu"


class Checks(Config):
    """What a subject must satisfy to be kept, and a clip with it."""

    area: tuple[float, float] = (0.0005, 0.8)
    """Median share of the picture; a swarm may be smaller than a body."""
    least_life: float = Field(default=0.2, ge=0, le=1)
    """Share of the frames that show it."""
    most_area_jitter: PositiveFloat = 0.6
    """Median size of the change of log area from frame to frame."""
    least_tracks: PositiveInt = 1
    least_survival: float = Field(default=0.5, ge=0, le=1)
    """Share of the visible tracks that are visible in the next frame, too."""
    least_agreement: float = Field(default=0.6, ge=0, le=1)
    """Share of the visible track places that lie in the subject's mask, within 2 pixels."""
    most_depth_jitter: PositiveFloat = 0.15
    """Median over background pixels of the standard deviation of log depth over time."""


class Settings(Config):
    """All of a run."""

    cut: Cut = Cut()
    bounds: Bounds = Bounds()
    witness: Witness = Witness()
    experts: Experts = Experts()
    checks: Checks = Checks()
    modality: Modality = "unified"
    subjects: int = Field(default=MOST, ge=1, le=MOST)
    seed: int = 0
    """Deals each clip's subjects their colours, together with the clip's name."""
