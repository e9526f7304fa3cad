"""Staged training of adapters on frozen models: stages as data, exact resume, caches, true timestamps."""

from importlib.metadata import version

from .config import Config, did_you_mean, dump_config, load_config
from .data import InMemory, collate
from .guards import FrozenChanged, NonFiniteLoss, TrainingWarning
from .loop import FitResult, Guards, StageRecord, fit
from .order import Order, derive_seed
from .stage import EMA, Length, Loss, MapStyle, Optim, Progress, Ramp, Stage

__all__ = [
    "EMA",
    "Config",
    "FitResult",
    "FrozenChanged",
    "Guards",
    "InMemory",
    "Length",
    "Loss",
    "MapStyle",
    "NonFiniteLoss",
    "Optim",
    "Order",
    "Progress",
    "Ramp",
    "Stage",
    "StageRecord",
    "TrainingWarning",
    "__version__",
    "collate",
    "derive_seed",
    "did_you_mean",
    "dump_config",
    "fit",
    "load_config",
]
__version__ = version("phystrainers")
