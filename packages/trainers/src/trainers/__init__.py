"""Staged training of adapters on frozen models: stages as data, exact resume, caches, true timestamps."""

from importlib.metadata import version

from . import cache, checkpoint, data, run_folder, show, video
from .atomic import write_bytes, write_text
from .buckets import Buckets, sizes_of
from .cache import Cache
from .clips import Clips
from .config import Config, did_you_mean, dump_config, find_recipe, load_config, override
from .curves import report
from .data import Filters, InMemory, Record, Skipped, collate, read_records
from .groups import named_groups
from .guards import FrozenChanged, Guards, GuardStop, NonFiniteLoss, TrainingWarning
from .heldout import HeldOut
from .loop import FitResult, StageRecord, fit
from .order import Order, derive_seed
from .ramps import Ramp, RecursiveRamp, expected_resets
from .sampling import Moment, Sampling
from .signals import Stopped
from .stage import EMA, Length, Loss, MapStyle, Matrices, Optim, Progress, Stage
from .video import ClipSpec, Decoded, VideoError

__all__ = [
    "EMA",
    "Buckets",
    "Cache",
    "ClipSpec",
    "Clips",
    "Config",
    "Decoded",
    "Filters",
    "FitResult",
    "FrozenChanged",
    "GuardStop",
    "Guards",
    "HeldOut",
    "InMemory",
    "Length",
    "Loss",
    "MapStyle",
    "Matrices",
    "Moment",
    "NonFiniteLoss",
    "Optim",
    "Order",
    "Progress",
    "Ramp",
    "Record",
    "RecursiveRamp",
    "Sampling",
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
    "expected_resets",
    "find_recipe",
    "fit",
    "load_config",
    "named_groups",
    "override",
    "read_records",
    "report",
    "run_folder",
    "show",
    "sizes_of",
    "video",
    "write_bytes",
    "write_text",
]
__version__ = version("phystrainers")
