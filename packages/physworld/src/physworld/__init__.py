"""A simulated world of eight physical mechanisms with exact fields, captions and judge-free metrics."""

from importlib.metadata import version

from physworld import captions, controls, metrics
from physworld.clip import FPS, FRAMES, MECHANISMS, SIZE, SLOTS, SPLITS, Clip
from physworld.simulation import caption, parameters, simulate, simulate_many

__all__ = [
    "FPS",
    "FRAMES",
    "MECHANISMS",
    "SIZE",
    "SLOTS",
    "SPLITS",
    "Clip",
    "__version__",
    "caption",
    "captions",
    "controls",
    "metrics",
    "parameters",
    "simulate",
    "simulate_many",
]
__version__ = version("physworld")
