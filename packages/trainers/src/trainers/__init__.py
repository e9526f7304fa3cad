"""Staged training of adapters on frozen models: stages as data, exact resume, caches, true timestamps."""

from importlib.metadata import version

from . import cache, checkpoint, data, show, video
from .cache import Cache
from .config import Config, did_you_mean, dump_config, load_config
from .data import Filters, InMemory, Record, Skipped, collate, read_records
from .guards import FrozenChanged, NonFiniteLoss, TrainingWarning
from .loop import FitResult, Guards, StageRecord, fit
from .order import Order, derive_seed
from .signals import Stopped
from .stage import EMA, Length, Loss, MapStyle, Matrices, Optim, Progress, Ramp, Stage
from .video import ClipSpec, Decoded, VideoError

__all__ = [
    "EMA",
    "Cache",
    "ClipSpec",
    "Config",
    "Decoded",
    "Filters",
    "FitResult",
    "FrozenChanged",
    "Guards",
    "InMemory",
    "Length",
    "Loss",
    "MapStyle",
    "Matrices",
    "NonFiniteLoss",
    "Optim",
    "Order",
    "Progress",
    "Ramp",
    "Record",
    "Skipped",
    "Stage",
    "StageRecord",
    "Stopped",
    "TrainingWarning",
    "VideoError",
    "__version__",
    "cache",
    "checkpoint",
    "collate",
    "data",
    "derive_seed",
    "did_you_mean",
    "dump_config",
    "fit",
    "load_config",
    "read_records",
    "show",
    "video",
]
__version__ = version("phystrainers")
