"""A simulated world of eight physical mechanisms with exact fields, captions and judge-free metrics."""

from importlib.metadata import version

from physworld import captions, controls, metrics
from physworld.clip import FPS, FRAMES, MECHANISMS, SIZE, SLOTS, SPLITS, Clip, scale_of
from physworld.simulation import Planned, caption, code, parameters, simulate, simulate_many, spread

__all__ = [
    "FPS",
    "FRAMES",
    "MECHANISMS",
    "SIZE",
    "SLOTS",
    "SPLITS",
    "Clip",
    "Planned",
    "__version__",
    "caption",
    "captions",
    "code",
    "controls",
    "metrics",
    "parameters",
    "scale_of",
    "simulate",
    "simulate_many",
    "spread",
]
__version__ = version("physworld")
